"""Stable-Baselines3 over remote vector envs: algorithms, wrappers, callbacks, logs."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comparing
import envs
import gymnasium as gym
import learning
import numpy as np
import pytest
from conftest import WAYS
from processes import Way


@pytest.mark.long
@pytest.mark.parametrize(
    ("trainer", "algorithm"),
    [
        *((WAYS[0], algorithm) for algorithm in ("PPO", "PPO dict", "DQN", "HER")),
        *((WAYS[1], algorithm) for algorithm in ("PPO", "PPO normalized", "A2C", "SAC", "MaskablePPO")),
    ],
    ids=str,
    indirect=["trainer"],
    scope="session",
)
def test_same_seed_same_weights(algorithm: str, trainer: Way, locally: Callable[..., Any]) -> None:
    call = (algorithm, 600 if trainer.channel == "actor" else 1600, algorithm == "A2C")
    comparing.assert_same(locally(learning.train, *call), learning.train(*call))


def test_wrappers_of_sb3(trainer: Way, tmp_path: Path) -> None:
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import (
        DummyVecEnv,
        VecCheckNan,
        VecFrameStack,
        VecMonitor,
        VecNormalize,
        VecTransposeImage,
        VecVideoRecorder,
    )

    image = make_vec_env(envs.OfSpace("image"), 3, seed=0)
    stacked = VecTransposeImage(VecFrameStack(image, 4))
    assert stacked.reset().shape == (3, 12, 24, 32)
    stacked.close()
    bare = DummyVecEnv([lambda: gym.make("CartPole-v1")] * 3)
    bare.seed(0)
    vec = VecMonitor(VecNormalize(VecCheckNan(bare)), str(tmp_path / "monitor"))
    assert vec.env_is_wrapped(Monitor) == [False] * 3
    vec.reset()
    for _ in range(60):
        vec.step(np.ones(3, int))
    vec.set_attr("gravity", 5.0, indices=[0, -1])
    assert vec.get_attr("gravity") == [5.0, 9.8, 5.0]
    assert vec.get_attr("gravity", indices=[-1]) == [5.0]
    vec.close()
    assert (tmp_path / "monitor.monitor.csv").read_text().count("\n") > 3
    recorded = VecVideoRecorder(
        make_vec_env("CartPole-v1", 2), str(tmp_path), record_video_trigger=lambda step: step == 0, video_length=20
    )
    recorded.reset()
    for _ in range(25):
        recorded.step(np.zeros(2, int))
    recorded.close()
    assert [path.stat().st_size > 1000 for path in tmp_path.glob("*.mp4")] == [True]


def test_render(trainer: Way) -> None:
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

    for vec_env_cls in (DummyVecEnv, SubprocVecEnv):
        vec = vec_env_cls([lambda: envs.CountingEnv(render_mode="rgb_array")] * 3)
        vec.reset()
        vec.step(np.zeros(3, int))
        assert vec.render_mode == "rgb_array"
        assert [frame.shape for frame in vec.get_images()] == [(4, 4, 3)] * 3
        assert vec.render().shape == (8, 8, 3) and vec.render("rgb_array").max() == 1
        with pytest.warns(UserWarning, match="render mode"):
            vec.render(mode="something_else")
        vec.close()


def test_evaluation_saving_and_loading(trainer: Way, tmp_path: Path) -> None:
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import EvalCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    vec, evaluation = make_vec_env("CartPole-v1", 4, seed=1), make_vec_env("CartPole-v1", 2, seed=2)
    model = PPO("MlpPolicy", vec, n_steps=64, seed=1, device="cpu")
    callback = EvalCallback(evaluation, eval_freq=64, n_eval_episodes=4, log_path=str(tmp_path), verbose=0)
    model.learn(512, callback=callback)
    assert np.load(tmp_path / "evaluations.npz")["results"].shape == (2, 4)
    model.save(tmp_path / "model")
    again = PPO.load(tmp_path / "model", env=vec, device="cpu")
    mean, _ = evaluate_policy(again, evaluation, n_eval_episodes=5)
    assert mean > 5
    again.learn(256)
    vec.close()
    evaluation.close()


def test_monitor_files_are_on_the_trainers_machine(trainer: Way, tmp_path: Path) -> None:
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.monitor import get_monitor_files

    folder = tmp_path / "logs"
    options = {"info_keywords": ("word",), "allow_early_resets": False}
    vec = make_vec_env(envs.CountingEnv, 3, start_index=2, monitor_dir=str(folder), monitor_kwargs=options)
    vec.reset()
    for _ in range(12):
        vec.step(np.array([0, 1, 2]))
    vec.close()
    assert sorted(path.name for path in folder.iterdir()) == [f"{rank}.monitor.csv" for rank in (2, 3, 4)]
    header, *lines = (folder / "4.monitor.csv").read_text().splitlines()
    assert json.loads(header[1:])["env_id"] == "None"
    rows = list(csv.DictReader(lines))
    assert [(row["r"], row["l"], row["word"]) for row in rows] == [("10.0", "5", "xxxxx")] * 2
    assert len(get_monitor_files(str(folder))) == 3


def test_monitor_files_of_an_env_that_lives_here(trainer: Way, tmp_path: Path) -> None:
    from stable_baselines3.common.env_util import make_vec_env

    live, asked = envs.CountingEnv(), []
    live.close = lambda: pytest.fail("it was closed")  # type: ignore[method-assign]
    vec = make_vec_env(lambda: asked.append(1) or live, monitor_dir=str(tmp_path))
    assert vec.unwrapped is vec and vec.envs[0].unwrapped is live and len(asked) == 1  # type: ignore[attr-defined]
    vec.reset()
    for _ in range(5):
        vec.step(np.array([2]))
    vec.envs[0].results_writer.close()  # type: ignore[attr-defined]
    assert (tmp_path / "0.monitor.csv").read_text().splitlines()[2].startswith("10.0,5,")


def test_monitor_files_of_a_vec_env_in_a_wrapper(trainer: Way, tmp_path: Path) -> None:
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

    def wrapped(fns: Any) -> VecNormalize:
        return VecNormalize(SubprocVecEnv(fns))

    vec = make_vec_env(envs.CountingEnv, 2, monitor_dir=str(tmp_path), vec_env_cls=wrapped)
    assert type(vec).__name__ == "VecNormalize" and type(vec.unwrapped).__name__ == "RemoteSubprocVecEnv"
    vec.reset()
    for _ in range(5):
        vec.step(np.array([0, 2]))
    vec.close()
    assert (tmp_path / "1.monitor.csv").read_text().splitlines()[2].startswith("10.0,5,")


def test_atari_wrappers_say_what_they_need(trainer: Way) -> None:
    from stable_baselines3.common.env_util import make_atari_env

    from remoterl.errors import NotShippableError

    with pytest.raises(NotShippableError, match="stable_baselines3"):
        make_atari_env("ALE/Pong-v5", n_envs=2)


def test_an_unknown_start_method(trainer: Way) -> None:
    from stable_baselines3.common.vec_env import SubprocVecEnv

    with pytest.raises(ValueError, match="cannot find context for 'illegal'"):
        SubprocVecEnv([envs.CountingEnv], start_method="illegal")
    with pytest.raises(ValueError, match="cannot find context for 'illegal'"):
        gym.vector.AsyncVectorEnv([envs.CountingEnv], context="illegal")


class NoEnvironment:
    observation_space = action_space = gym.spaces.Discrete(2)


def test_what_is_no_environment_of_gymnasiums(trainer: Way) -> None:
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

    for vec_env_class in (DummyVecEnv, SubprocVecEnv):
        with pytest.raises(ValueError, match="NoEnvironment'>, not a Gymnasium environment"):
            vec_env_class([NoEnvironment])
