"""Which environments there are, where they live, and what they answer."""

from __future__ import annotations

import os
import sys

import envs
import gymnasium as gym
import numpy as np
import pytest
from conftest import in_cluster
from processes import Way

from remoterl._process import current_session
from remoterl.errors import UnknownEnvironmentError, UnsupportedError
from remoterl.vector.single import RemoteEnv

pytestmark = in_cluster


def test_rows_sit_on_both_simulators(trainer: Way, cluster) -> None:
    vec = gym.vector.SyncVectorEnv([envs.CountingEnv] * 6)
    places = vec.call("where")
    pids = [pid for _, pid in places]
    assert pids[:3] == [pids[0]] * 3 and pids[3:] == [pids[3]] * 3 and pids[0] != pids[3]
    for pid, name in ((pids[0], "alpha"), (pids[3], "beta")):
        assert pid in [process.pid for process in cluster.simulators[name].tree()]
    assert os.getpid() not in pids
    vec.close()


def test_an_id_that_only_the_simulators_know(trainer: Way) -> None:
    assert "OnlyHere-v0" not in gym.registry and "only_here" not in sys.modules
    env = gym.make("OnlyHere-v0", size=4)
    assert env.reset(seed=1)[0].shape == (4,)
    assert env.spec.id == "OnlyHere-v0" and env.spec.max_episode_steps == 10
    vec = gym.make_vec("OnlyHereByName-v0", num_envs=3, vectorization_mode="async")
    assert vec.reset(seed=1)[0].shape == (3, 5)
    assert vec.spec.id == "OnlyHereByName-v0"
    from stable_baselines3.common.env_util import make_vec_env

    sb3 = make_vec_env("OnlyHere-v0", n_envs=2, seed=3)
    assert sb3.reset().shape == (2, 3)
    for closing in (env, vec, sb3):
        closing.close()
    assert "only_here" not in sys.modules


def test_a_simulator_wins_where_both_know_an_id(trainer: Way) -> None:
    gym.register("BothKnow-v0", entry_point=envs.CountingEnv)
    try:
        env = gym.make("BothKnow-v0")
        assert env.observation_space.shape == (7,)
        env.close()
    finally:
        del gym.registry["BothKnow-v0"]


@pytest.mark.parametrize("entry_point", [envs.CountingEnv, "envs:CountingEnv"], ids=["class", "text"])
def test_an_id_that_only_the_trainer_knows(trainer: Way, entry_point) -> None:
    gym.register("OnlyTrainer-v0", entry_point=entry_point, kwargs={"length": 3}, max_episode_steps=2)
    try:
        for make in (lambda: gym.make("OnlyTrainer-v0"), lambda: gym.make(gym.spec("OnlyTrainer-v0"))):
            env = make()
            assert isinstance(env, RemoteEnv)
            env.reset()
            assert env.step(1)[4]["pid"] != os.getpid()
            assert env.step(1)[3]  # truncated after two steps: the spec's TimeLimit came along
            env.close()
        vec = gym.vector.SyncVectorEnv([lambda: gym.make("OnlyTrainer-v0", length=9)])
        assert vec.reset()[0].tolist() == [[0.0, 9.0]]
        vec.close()
    finally:
        del gym.registry["OnlyTrainer-v0"]


def test_an_unknown_id_names_the_closest_and_who_was_asked(trainer: Way) -> None:
    from stable_baselines3.common.env_util import make_vec_env

    def by_factory(env_id: str) -> gym.Env:
        return gym.vector.SyncVectorEnv([lambda: gym.make(env_id)] * 3)

    for make in (gym.make, gym.make_vec, make_vec_env, by_factory):
        with pytest.raises(UnknownEnvironmentError, match="CartPole-v1.*") as caught:
            make("CartPol-v1")
        assert "alpha" in str(caught.value) and "beta" in str(caught.value)
        assert isinstance(caught.value, gym.error.Error)
        with pytest.raises(UnknownEnvironmentError, match=r"No environment 'CartPole-v99': .* names: CartPole-v1"):
            make("CartPole-v99")


def test_a_single_env_behaves_as_one(trainer: Way) -> None:
    env = gym.make("CartPole-v1", render_mode="rgb_array")
    assert env.render_mode == "rgb_array" and env.spec.id == "CartPole-v1"
    assert env.get_wrapper_attr("gravity") == 9.8 and env.unwrapped.gravity == 9.8
    assert env.has_wrapper_attr("gravity") and not env.has_wrapper_attr("nothing_of_the_kind")
    env.set_wrapper_attr("gravity", 3.5)
    assert env.get_wrapper_attr("gravity") == 3.5
    env.reset(seed=4)
    assert env.np_random_seed == 4
    with pytest.raises(AttributeError):
        _ = env.nothing_of_the_kind
    env.close()
    env.close()
    with pytest.raises(gym.error.ClosedEnvironmentError):
        env.step(0)
    with gym.make("CartPole-v1") as managed:
        managed.reset()


def test_wrappers_around_a_remote_env(trainer: Way) -> None:
    env = gym.wrappers.TimeLimit(gym.make("Pendulum-v1"), 3)
    env.reset(seed=1)
    assert [env.step(env.action_space.sample())[3] for _ in range(3)] == [False, False, True]
    env.close()


def test_methods_and_attributes_of_rows(trainer: Way) -> None:
    vec = gym.vector.SyncVectorEnv([lambda length=length: envs.CountingEnv(length) for length in (3, 4, 5)])
    assert vec.get_attr("length") == (3, 4, 5)
    assert vec.call("add", 1, right=2) == (3, 3, 3)
    vec.set_attr("favourite", ["red", "green", "blue"])
    assert vec.get_attr("favourite") == ("red", "green", "blue")
    with pytest.raises(ValueError, match="length equal to the number"):
        vec.set_attr("favourite", ["red"])
    vec.close()


def test_sb3_methods(trainer: Way) -> None:
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

    for vec_env_cls in (DummyVecEnv, SubprocVecEnv):
        vec = make_vec_env(envs.CountingEnv, n_envs=4, seed=0, vec_env_cls=vec_env_cls)
        assert isinstance(vec, vec_env_cls)
        assert vec.get_attr("length", indices=[3, 0]) == [5, 5]
        vec.set_attr("favourite", "red", indices=1)
        assert vec.env_method("add", 1, right=5, indices=[2]) == [6]
        assert vec.env_is_wrapped(Monitor) == [True] * 4
        assert vec.env_is_wrapped(gym.wrappers.TimeLimit, indices=0) == [False]
        assert vec.has_attr("favourite") and not vec.has_attr("nothing_of_the_kind")
        [bound, *_] = vec.get_attr("add")
        assert bound(2, right=3) == 5
        vec.reset()
        infos = [vec.step(np.array([1, 0, 2, 1]))[3] for _ in range(5)][-1]
        assert [info["episode"]["l"] for info in infos] == [5] * 4
        assert [info["episode"]["r"] for info in infos] == [5.0, 0.0, 10.0, 5.0]
        vec.close()
        vec.close()


def test_an_existing_env_is_wrapped_where_it_lives(trainer: Way) -> None:
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

    live = envs.CountingEnv()
    vec = DummyVecEnv([lambda: live])
    assert vec.envs[0] is live
    model = PPO("MlpPolicy", gym.make("CartPole-v1"), n_steps=64, device="cpu")
    model.learn(64)
    assert isinstance(model.get_env().envs[0].env, RemoteEnv)
    several = [gym.make("CartPole-v1") for _ in range(3)]
    assert DummyVecEnv([lambda env=env: env for env in several]).envs == several
    for copying in (SubprocVecEnv, gym.vector.AsyncVectorEnv):  # a process can't have a copy of what lives elsewhere
        with pytest.raises(UnsupportedError, match=rf"{copying.__name__} .*CartPole-v1.* lambda: gym\.make"):
            copying([lambda: several[0]])
    assert several[0].reset(seed=1)[0].shape == (4,)


def test_subclasses_and_isinstance(trainer: Way) -> None:
    class Labelled(gym.vector.SyncVectorEnv):
        def __init__(self, env_fns):
            super().__init__(env_fns)
            self.label = "mine"

        def step(self, actions):
            return (*super().step(actions)[:4], {"label": self.label})

    vec = Labelled([envs.CountingEnv] * 2)
    assert isinstance(vec, Labelled) and isinstance(vec, gym.vector.SyncVectorEnv)
    assert type(vec).__name__ == "Labelled"
    vec.reset()
    observations, *_, infos = vec.step(np.array([0, 1]))
    assert infos == {"label": "mine"} and observations[:, 0].tolist() == [1.0, 1.0]
    assert vec.call("where")[0][1] != os.getpid()
    vec.close()


def test_collected_envs_free_their_rows(trainer: Way) -> None:
    import gc

    from processes import wait_until

    runners = current_session().runners
    gc.collect()
    wait_until(lambda: sum(runner.rows for runner in runners) == 0, what="rows of earlier tests")
    gc.disable()  # no cycle holds them
    try:
        vec = gym.make_vec("CartPole-v1", num_envs=4, vectorization_mode="sync")
        env = gym.make("CartPole-v1")
        assert env.unwrapped.action_space is env.action_space and sum(runner.rows for runner in runners) == 5
        del vec, env
        wait_until(lambda: sum(runner.rows for runner in runners) == 0, what="freed rows")
    finally:
        gc.enable()


def test_no_patch_in_an_env_runner(trainer: Way) -> None:
    class Inner(envs.CountingEnv):
        def kind(self) -> str:
            import gymnasium

            vec = gymnasium.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync")
            return f"{type(vec).__name__} {type(gymnasium.make('CartPole-v1')).__name__}"

    vec = gym.vector.SyncVectorEnv([Inner])
    assert vec.call("kind") == ("SyncVectorEnv TimeLimit",)
    vec.close()
