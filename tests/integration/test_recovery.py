"""A lost env runner costs its rows' current episodes, and nothing else. Real env runners, killed with -9."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import envs
import gymnasium as gym
import numpy as np
import psutil
import pytest
from bad_envs import BadEnv
from conftest import WAYS, assert_free, patched_places, session
from gymnasium.vector import AutoresetMode
from ledger import LedgerEnv
from processes import PATIENCE_S, Cluster, Way, start_simulator, wait_until
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

import remoterl
from remoterl import messages as m
from remoterl._process import current_session
from remoterl.channels.opening import open_channels
from remoterl.channels.stream import Streams
from remoterl.errors import EnvRunnerLostError, StepTimeoutError

ROWS = 4  # two on each of two env runners
# For what the trainer's side does, whichever way it heard of the loss.
one_way = pytest.mark.parametrize("trainer", WAYS[:1], ids=str, indirect=True, scope="session")
LOST = [0, 1]


def kill_first() -> Any:
    """Kill the env runner of rows 0 and 1, and see it dead."""
    victim = current_session().runners[0]
    process = psutil.Process(victim.pid)
    process.kill()
    process.wait(10)
    return victim


def kill_all() -> None:
    for runner in current_session().runners:
        with contextlib.suppress(psutil.NoSuchProcess):  # one that an earlier test killed while nobody used it
            process = psutil.Process(runner.pid)
            process.kill()
            process.wait(10)


def survive(stories: list[Iterator[None]], kill: Callable[[], Any]) -> None:
    """Each goes up to its `yield`, and from there to its end after env runners were killed."""
    for story in stories:
        next(story)
    kill()
    for story in stories:
        assert next(story, "at its end") == "at its end"


def actions(step: int) -> np.ndarray:
    return np.array([step * 10 + row for row in range(ROWS)]) % 1000


def vector_env(class_name: str, mode: AutoresetMode) -> Any:
    return getattr(gym.vector, class_name)([LedgerEnv] * ROWS, autoreset_mode=mode)


def test_an_env_runner_that_dies_before_its_channel_is_open(trainer: Way) -> None:
    """No matter of ports, also where only a stream would do: whoever needs it finds it lost."""
    victim = kill_first()
    streams = Streams()
    (channel,), _ = open_channels([victim.actor], ["late one"], trainer.channel, streams)
    with pytest.raises(EnvRunnerLostError, match="late one"):
        channel.receive(channel.send(m.FindSpec("CartPole-v1", ())), 10.0)
    channel.close()


@pytest.mark.parametrize("when", ["between steps", "in flight"])
def test_next_step(trainer: Way, when: str) -> None:
    """Of two vector envs that have rows on the env runner that dies."""
    both = [vector_env(class_name, AutoresetMode.NEXT_STEP) for class_name in ("SyncVectorEnv", "AsyncVectorEnv")]
    sync, asynchronous = both
    for vec in both:
        vec.reset(seed=7)
    restarts = current_session().fleet.restarts
    for step in range(5):
        last = [vec.step(actions(step))[0] for vec in both]
    victim = current_session().runners[0]
    if when == "between steps":
        kill_first()
        stepped = [vec.step(actions(5)) for vec in both]
    else:
        os.kill(victim.pid, signal.SIGSTOP)  # it can't answer any more
        asynchronous.step_async(actions(5))
        killer = threading.Timer(0.3, kill_first)
        killer.start()
        stepped = [sync.step(actions(5)), asynchronous.step_wait()]
        killer.join()
    for vec, before, at_the_loss in zip(both, last, stepped, strict=True):
        check_next_steps(vec, before, at_the_loss, victim)

    def told_restarts() -> list[int]:
        return [trainer["restarts"] for trainer in remoterl.describe()["trainers"]]

    wait_until(lambda: told_restarts() == [restarts + 1], what="the new env runner tells of one more restart")
    for vec in both:
        vec.close()


def check_next_steps(vec: Any, last: np.ndarray, stepped: Any, victim: Any) -> None:
    """The sixth step, in which rows were lost, and those after it."""
    observations, rewards, terminations, truncations, infos = stepped
    assert truncations.tolist() == [True, True, False, False]
    assert not terminations.any()
    assert rewards.tolist() == [0, 0, 52, 53]
    np.testing.assert_array_equal(observations[LOST], last[LOST])
    told = infos["remoterl"]
    assert infos["_remoterl"].tolist() == [True, True, False, False]
    assert told["lost"].tolist() == [True, True, False, False]
    assert told["simulator"][0] == victim.simulator and told["moved_to"][0] in ("alpha", "beta")
    assert f"pid {victim.pid}" in told["reason"][0] and "unexpectedly" in told["reason"][0]

    observations, rewards, terminations, truncations, infos = vec.step(actions(6))  # the new episode's reset
    assert not (terminations | truncations).any() and "remoterl" not in infos
    assert observations[:, 0].tolist() == [0, 0, 7, 7]
    assert rewards.tolist() == [0, 0, 62, 63]
    fresh_seeds = observations[LOST, 3].tolist()
    assert len(set(fresh_seeds)) == 2 and min(fresh_seeds) >= 0 and not {7, 8} & set(fresh_seeds)
    observations = vec.step(actions(7))[0]
    assert observations[:, :3].tolist() == [[1, 1, 70], [1, 1, 71], [8, 8, 72], [8, 8, 73]]
    books = vec.get_attr("book")
    for row in (2, 3):
        assert books[row] == tuple((step + 1, int(actions(step)[row])) for step in range(8)) or books[row] == [
            (step + 1, int(actions(step)[row])) for step in range(8)
        ]


@one_way
def test_one_loss_in_other_modes_and_classes(trainer: Way) -> None:
    """Of five vector envs that have rows on the env runner that dies; each goes on where it yielded."""
    those = [
        same_step(),
        disabled(),
        stable_baselines(DummyVecEnv),
        stable_baselines(SubprocVecEnv),
        a_call_goes_on_and_the_next_step_tells(),
    ]
    survive(those, kill_first)


def same_step() -> Iterator[None]:
    vec = vector_env("SyncVectorEnv", AutoresetMode.SAME_STEP)
    vec.reset(seed=7)
    last = vec.step(actions(0))[0]
    yield
    observations, _, terminations, truncations, infos = vec.step(actions(1))
    assert truncations.tolist() == [True, True, False, False] and not terminations.any()
    assert observations[:, 0].tolist() == [0, 0, 2, 2]
    assert infos["_final_obs"].tolist() == [True, True, False, False]
    for row in LOST:
        np.testing.assert_array_equal(infos["final_obs"][row], last[row])
    assert infos["remoterl"]["lost"].tolist() == [True, True, False, False]
    assert vec.step(actions(2))[0][:, 0].tolist() == [1, 1, 3, 3]
    vec.close()


def disabled() -> Iterator[None]:
    vec = vector_env("SyncVectorEnv", AutoresetMode.DISABLED)
    vec.reset(seed=7)
    last = vec.step(actions(0))[0]
    yield
    observations, _, _, truncations, _ = vec.step(actions(1))
    assert truncations.tolist() == [True, True, False, False]
    np.testing.assert_array_equal(observations[LOST], last[LOST])
    with pytest.raises(AssertionError, match="reset it first"):
        vec.step(actions(2))
    vec.reset(options={"reset_mask": np.array([True, True, False, False])})
    vec.close()


def stable_baselines(vec_env_class: Any) -> Iterator[None]:
    vec = vec_env_class([LedgerEnv] * ROWS)
    vec.seed(3)
    vec.reset()
    last = vec.step(actions(0))[0].copy()
    yield
    observations, rewards, dones, infos = vec.step(actions(1))
    assert dones.tolist() == [True, True, False, False]
    assert rewards.tolist() == [0, 0, 12, 13]
    assert observations[:, 0].tolist() == [0, 0, 2, 2]
    for row in LOST:
        np.testing.assert_array_equal(infos[row]["terminal_observation"], last[row])
        assert infos[row]["TimeLimit.truncated"] and infos[row]["remoterl"]["lost"]
    assert "remoterl" not in infos[2]
    assert vec.step(actions(2))[0][:, 1].tolist() == [1, 1, 3, 3]
    vec.close()


def a_call_goes_on_and_the_next_step_tells() -> Iterator[None]:
    vec = vector_env("SyncVectorEnv", AutoresetMode.NEXT_STEP)
    vec.reset(seed=7)
    vec.step(actions(0))
    yield
    assert [len(book) for book in vec.get_attr("book")] == [0, 0, 1, 1]
    _, _, _, truncations, infos = vec.step(actions(1))
    assert truncations.tolist() == [True, True, False, False] and "remoterl" in infos
    assert vec.step(actions(2))[0][:, 0].tolist() == [0, 0, 3, 3]
    vec.close()


@one_way
def test_an_interrupt_while_an_env_runner_starts(trainer: Way) -> None:
    """In a notebook, where the next cell goes on: the one that was on its way is ended."""
    fleet = current_session().fleet
    vec = vector_env("SyncVectorEnv", AutoresetMode.NEXT_STEP)
    vec.reset(seed=7)
    kill_first()
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    links = fleet._links

    def interrupted(*started: Any) -> Any:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        return links(*started)

    fleet._links = interrupted
    try:
        with pytest.raises(KeyboardInterrupt):
            vec.step(actions(0))
    finally:
        del fleet._links
        signal.signal(signal.SIGALRM, before)
    assert len(fleet._actors) == len(fleet.living()) == 1
    assert vec.step(actions(0))[3].tolist() == [True, True, False, False]
    assert len(fleet._actors) == len(fleet.living()) == 2
    vec.close()


@one_way
def test_all_env_runners_die(trainer: Way) -> None:
    """That of a single environment, and that of a vector env of the environment's own."""
    those = [one_environment(), a_vector_env_of_the_environments_own()]
    survive(those, kill_all)


def one_environment() -> Iterator[None]:
    env = gym.make("CartPole-v1")
    env.reset(seed=1)
    last = env.step(0)[0]
    yield
    observation, reward, terminated, truncated, info = env.step(0)
    np.testing.assert_array_equal(observation, last)
    assert (reward, terminated, truncated) == (0.0, False, True) and info["remoterl"]["lost"]
    env.reset(seed=1)
    np.testing.assert_array_equal(env.step(0)[0], last)
    env.close()


def a_vector_env_of_the_environments_own() -> Iterator[None]:
    vec = gym.make_vec("CartPole-v1", num_envs=3, vectorization_mode="vector_entry_point")
    vec.reset(seed=1)
    last = vec.step(np.zeros(3, int))[0]
    yield
    observations, rewards, terminations, truncations, infos = vec.step(np.zeros(3, int))
    np.testing.assert_array_equal(observations, last)
    assert truncations.all() and not terminations.any() and not rewards.any()
    assert infos["remoterl"]["lost"].all()
    assert not vec.step(np.zeros(3, int))[3].any()
    vec.close()


@one_way
def test_who_looks_at_lost_rows_sees_the_episodes_to_come(trainer: Way) -> None:
    vec = gym.make_vec("CartPole-v1", num_envs=ROWS, vectorization_mode="sync")
    vec.reset(seed=7)
    before, *_ = vec.step(np.zeros(ROWS, np.int64))
    kill_first()
    looked_at = vec.get_attr("state")  # None before a reset, and nothing to render
    vec.render()
    np.testing.assert_array_equal(np.float32(looked_at[ROWS - 1]), before[ROWS - 1])
    _, _, _, truncations, _ = vec.step(np.zeros(ROWS, np.int64))
    assert list(np.flatnonzero(truncations)) == LOST
    kill_first()  # the same rows, before they have begun
    vec.render()
    assert list(np.flatnonzero(vec.step(np.zeros(ROWS, np.int64))[3])) == LOST
    looked_at = vec.get_attr("state")
    started, *_ = vec.step(np.zeros(ROWS, np.int64))
    np.testing.assert_array_equal(np.float32([looked_at[row] for row in LOST]), started[LOST])
    vec.close()


@one_way
def test_a_view_is_told_of_its_loss(trainer: Way) -> None:
    """A script that steps `env.unwrapped`, or one of `vec.envs`."""
    vec = gym.vector.SyncVectorEnv([LedgerEnv] * ROWS)
    single = gym.make("CartPole-v1").unwrapped
    views = [*vec.envs[: ROWS - 1], single]
    for view in views:
        view.reset(seed=3)
    last = [view.step(1)[0] for view in views]
    kill_all()
    for view, observation in zip(views, last, strict=True):
        for _ in range(2):
            told, reward, terminated, truncated, info = view.step(0)
            assert (reward, terminated, truncated, info["remoterl"]["lost"]) == (0.0, False, True, True)
            np.testing.assert_array_equal(told, observation)
    for view in views:
        view.reset()
        assert not view.step(1)[3]
    vec.close()
    single.close()


@one_way
def test_rows_come_back_as_what_they_were(trainer: Way) -> None:
    """Also where their id stands for something else by now, as RLlib's ids do."""

    def lengths(vec: Any) -> list[float]:
        return vec.reset()[0][:, 1].tolist()

    gym.register("Twice-v0", entry_point=envs.CountingEnv, kwargs={"length": 3})
    vec = gym.make_vec("Twice-v0", num_envs=ROWS, vectorization_mode="sync")
    assert lengths(vec) == [3] * ROWS
    try:
        del gym.registry["Twice-v0"]
        gym.register("Twice-v0", entry_point=envs.CountingEnv, kwargs={"length": 9})
        for _ in range(2):
            other = gym.make_vec("Twice-v0", num_envs=ROWS, vectorization_mode="sync")
            assert lengths(other) == [9] * ROWS
            kill_first()
            assert (lengths(vec), lengths(other)) == ([3] * ROWS, [9] * ROWS)
            other.close()
    finally:
        del gym.registry["Twice-v0"]
    vec.close()


@one_way
def test_rows_whose_module_was_sent_come_back(trainer: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sent_poles.py").write_text("import gymnasium\ndef pole(): return gymnasium.make('CartPole-v1')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def factory() -> gym.Env:
        from sent_poles import pole

        return pole()

    vec = gym.vector.SyncVectorEnv([factory] * ROWS)
    kill_first()
    assert vec.reset()[0].shape == (ROWS, 4) and "sent_poles" not in sys.modules
    vec.close()


def test_a_reset_goes_on_as_if_nothing_had_been(trainer: Way, locally: Callable[..., Any]) -> None:
    vec = gym.make_vec("CartPole-v1", num_envs=ROWS, vectorization_mode="sync")
    first = vec.reset(seed=11)[0].copy()
    kill_first()
    again, infos = vec.reset(seed=11)
    np.testing.assert_array_equal(again, first)
    assert "remoterl" not in infos
    vec.close()


def test_a_new_vector_env_after_all_env_runners_died(trainer: Way) -> None:
    kill_all()
    vec = gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync")
    assert vec.reset(seed=1)[0].shape == (2, 4)
    vec.close()


def test_a_step_that_hangs(cluster: Cluster) -> None:
    class Hanging(LedgerEnv):
        def step(self, action: int) -> Any:
            if action == 999:
                time.sleep(1000)
            return super().step(action)

    with session(WAYS[1], cluster, step_timeout_s=1.0):
        vec = gym.vector.AsyncVectorEnv([Hanging] * ROWS)
        vec.reset(seed=1)
        stuck = psutil.Process(current_session().runners[0].pid)
        with pytest.raises(StepTimeoutError, match=r"step_timeout_s=1 from rows 0 to 1 on simulator .* of <Hanging"):
            vec.step(np.array([999, 1, 1, 1]))
        stuck.wait(10)
        observations, infos = vec.reset(seed=1)
        assert observations[:, 0].tolist() == [0] * ROWS and "remoterl" not in infos
        assert vec.step(actions(0))[0][:, 0].tolist() == [1] * ROWS
        vec.close()


def test_no_restarts(cluster: Cluster) -> None:
    with session(WAYS[1], cluster, max_restarts=0):
        vec = gym.vector.SyncVectorEnv([envs.CountingEnv] * 2)
        vec.reset()
        victim = kill_first()
        with pytest.raises(EnvRunnerLostError, match=f"pid {victim.pid}.*Ray says: .*unexpectedly.*max_restarts=0"):
            vec.step(np.zeros(2, int))
        vec.close()
        again = gym.vector.SyncVectorEnv([envs.CountingEnv] * 4)  # with the one that lives
        assert again.reset()[0].shape == (4, 2) and victim.simulator not in again._core.places()
        again.close()


def test_a_simulator_is_killed(cluster: Cluster) -> None:
    """With all its env runners: their rows go on at the other simulators."""
    before = patched_places()
    gamma = start_simulator("--name", "gamma", "--max-env-runners", "64", REMOTERL_ADDRESS=cluster.gcs_address)
    try:
        gamma.wait_for("is up")
        WAYS[1].open(cluster, num_env_runners=4)
        vec = vector_env("SyncVectorEnv", AutoresetMode.NEXT_STEP)
        vec.reset(seed=7)
        vec.step(actions(0))
        lost = vec._core.places()["gamma"]
        assert 0 < len(lost) < ROWS
        parents = gym.vector.SyncVectorEnv([lambda: BadEnv("start_children", "reset")] * ROWS)
        parents.reset()
        tree = gamma.tree()
        assert {pid for row in lost for pid in parents.get_attr("children")[row]} <= {one.pid for one in tree}
        gamma.process.kill()
        _, alive = psutil.wait_procs(tree, timeout=PATIENCE_S)  # its node ends with it, env runners and all
        assert alive == []
        truncations = np.zeros(ROWS, bool)
        for step in range(1, 4):
            truncations |= vec.step(actions(step))[3]
        assert np.flatnonzero(truncations).tolist() == lost
        assert set(vec._core.places()) <= {"alpha", "beta"}
        for row, book in enumerate(vec.get_attr("book")):
            if row not in lost:
                assert list(book) == [(step + 1, int(actions(step)[row])) for step in range(4)]
        vec.close()
    finally:
        remoterl.shutdown()
        gamma.end()
    assert patched_places() == before
    assert_free(cluster)
