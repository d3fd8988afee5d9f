"""Environments that misbehave: the error names the row and the simulator, and shows the remote traceback."""

from __future__ import annotations

import envs
import gymnasium as gym
import numpy as np
import pytest
from conftest import in_cluster
from processes import Way

from remoterl.errors import RemoteEnvError

pytestmark = in_cluster  # by each of both ways: test_bad_environments


def make(where: str, error: str, row: int = 2) -> gym.vector.SyncVectorEnv:
    return gym.vector.SyncVectorEnv(
        [lambda i=i: envs.RaisingEnv(where if i == row else "nowhere", error) for i in range(4)]
    )


@pytest.mark.parametrize("error", [ValueError, KeyError])
def test_an_environments_exception_keeps_its_type(trainer: Way, error: type[Exception]) -> None:
    vec = make("step", error.__name__)
    vec.reset()
    vec.step(np.zeros(4, int))
    vec.step(np.zeros(4, int))
    with pytest.raises(error, match="the arm hit the table") as caught:
        vec.step(np.zeros(4, int))
    story = str(caught.value.__cause__)
    assert "simulator beta" in story and "row 2" in story and "in _raise" in story
    vec.close()


def test_an_unpicklable_exception(trainer: Way) -> None:
    vec = make("reset", "unpicklable")
    with pytest.raises(RemoteEnvError, match="UnpicklableError: the arm hit the table.*row 2"):
        vec.reset()
    vec.close()


def test_every_rows_error_is_kept(trainer: Way) -> None:
    vec = gym.vector.SyncVectorEnv([lambda: envs.RaisingEnv("reset")] * 4)
    with pytest.raises(ValueError, match="the arm") as caught:
        vec.reset()
    story = str(caught.value.__cause__)
    assert all(f"row {row}" in story for row in range(4))
    assert story.count("Traceback") == 1  # all are alike
    vec.close()


def test_a_constructor_that_raises_frees_every_row(trainer: Way) -> None:
    from remoterl._process import current_session

    before = [runner.rows for runner in current_session().runners]
    with pytest.raises(ValueError, match="the arm") as caught:
        make("init", "ValueError")
    assert "row 2" in str(caught.value.__cause__)
    assert [runner.rows for runner in current_session().runners] == before


def test_a_missing_module_is_named(trainer: Way) -> None:
    def factory() -> gym.Env:
        import stable_baselines3  # noqa: F401 - the tests' simulators don't have it

        return gym.make("CartPole-v1")

    with pytest.raises(ModuleNotFoundError, match="stable_baselines3") as caught:
        gym.vector.SyncVectorEnv([factory] * 2)
    assert "simulator alpha" in str(caught.value.__cause__)


def test_an_sb3_wrapper_needs_sb3_there(trainer: Way) -> None:
    from stable_baselines3.common.atari_wrappers import ClipRewardEnv
    from stable_baselines3.common.env_util import make_vec_env

    from remoterl.errors import NotShippableError

    with pytest.raises(NotShippableError, match="simulator alpha.*'stable_baselines3'"):
        make_vec_env("CartPole-v1", n_envs=2, wrapper_class=ClipRewardEnv)


def test_wrong_actions(trainer: Way) -> None:
    from stable_baselines3.common.vec_env import DummyVecEnv

    vec, sb3 = gym.vector.SyncVectorEnv([envs.CountingEnv] * 3), DummyVecEnv([envs.CountingEnv] * 3)
    for env, error in ((vec, ValueError), (sb3, IndexError)):  # as locally
        env.reset()
        with pytest.raises(error, match="one action for each of the 3 .* got 2"):
            env.step(np.array([0, 1]))
        env.step(np.array([0, 1, 2]))
        env.close()


def test_calls_out_of_order(trainer: Way) -> None:
    vec = gym.vector.AsyncVectorEnv([envs.CountingEnv] * 2)
    with pytest.raises(gym.error.NoAsyncCallError):
        vec.step_wait()
    vec.reset_async(seed=1)
    with pytest.raises(gym.error.AlreadyPendingCallError):
        vec.step_async(np.array([0, 1]))
    vec.reset_wait()
    vec.close()
    with pytest.raises(gym.error.ClosedEnvironmentError):
        vec.reset()


def test_an_info_that_cannot_travel_is_named(trainer: Way) -> None:
    class Leaky(envs.CountingEnv):
        def step(self, action: int):
            import threading

            *rest, info = super().step(action)
            return (*rest, {**info, "handle": threading.Lock()})

    vec = gym.vector.SyncVectorEnv([Leaky] * 4)
    vec.reset()
    with pytest.raises(RemoteEnvError, match=r"info\['handle'\] of row 0 is a lock"):
        vec.step(np.zeros(4, int))
    vec.close()
