"""Which channel a trainer gets, and what is the same whichever it is."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comparing
import envs
import gymnasium as gym
import numpy as np
import psutil
import pytest
from conftest import assert_free
from processes import KEY, Cluster, Way, start_simulator, wait_until

import remoterl
from remoterl._process import current_session
from remoterl.errors import RemoteRLError


def names() -> list[str]:
    return sorted(runner.channel.name for runner in current_session().runners)


def test_auto_takes_the_stream_and_says_so(cluster: Cluster, caplog) -> None:
    with caplog.at_level(logging.INFO, "remoterl"):
        assert remoterl.init(KEY, address=cluster.gcs_address, num_env_runners=2)
    assert names() == ["stream", "stream"]
    assert len([line for line in caplog.messages if "channel 'stream'" in line]) == 1
    remoterl.shutdown()
    assert_free(cluster)


def test_where_no_stream_can_be(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    """To env runners of a third simulator, which find no port for one: an error, and with `auto` actor calls."""
    with socket.create_server(("", 0)) as taken:
        port = str(taken.getsockname()[1])
        where = {"REMOTERL_ADDRESS": cluster.gcs_address, "REMOTERL_STREAM_PORTS": port}
        gamma = start_simulator("--name", "gamma", "--max-env-runners", "8", **where)
        try:
            gamma.wait_for("is up")
            three = {"address": cluster.gcs_address, "num_env_runners": 3}  # one on each
            with pytest.raises(RemoteRLError, match="simulator gamma.*REMOTERL_STREAM_PORTS.*channel='actor'"):
                remoterl.init(KEY, channel="stream", **three)
            assert not remoterl.is_initialized()
            assert_free(cluster)
            with caplog.at_level(logging.INFO, "remoterl"):
                assert remoterl.init(KEY, **three)
            assert names() == ["actor", "stream", "stream"]
            [line] = [line for line in caplog.messages if "env runners over" in line]
            assert "channel 'actor' to" in line and "no stream to" in line and "REMOTERL_STREAM_PORTS" in line
            vec = gym.make_vec("CartPole-v1", num_envs=15, vectorization_mode="sync")
            assert "gamma" in vec._core.places()
            vec.reset(seed=1)
            assert vec.step(np.zeros(15, int))[0].shape == (15, 4)
        finally:
            remoterl.shutdown()
            assert gamma.end() == 0


def test_environments_live_in_the_main_thread(trainer: Way) -> None:
    """Renderers and signal handlers care."""
    vec = gym.vector.SyncVectorEnv([envs.ThreadEnv] * 2)
    vec.reset()
    infos = vec.step(np.zeros(2, int))[4]
    assert list(infos["threads"]) == [["main"], ["main"]]
    vec.close()


class PunctualEnv(envs.CountingEnv):
    def timer_slack(self) -> int:
        return int(Path(f"/proc/{os.getpid()}/timerslack_ns").read_text())  # of the main thread


def test_linux_is_asked_to_wake_environments_punctually(trainer: Way) -> None:
    vec = gym.vector.SyncVectorEnv([PunctualEnv] * 2)
    assert vec.call("timer_slack") == (1000, 1000)
    vec.close()


def test_big_observations(trainer: Way, locally: Callable[..., Any]) -> None:
    for class_name in ("SyncVectorEnv", "AsyncVectorEnv"):
        call = (envs.BigEnv, class_name, 5, 3, {})
        comparing.assert_same(locally(comparing.vector_class, *call), comparing.vector_class(*call))
    call = (envs.BigEnv, "DummyVecEnv", 5, 3)
    comparing.assert_same(locally(comparing.sb3_class, *call), comparing.sb3_class(*call))


def test_several_vector_envs_from_several_threads(trainer: Way) -> None:
    failures: list[str] = []

    def work(number: int) -> None:
        try:
            vec = gym.vector.AsyncVectorEnv([envs.CountingEnv] * 3)
            vec.reset(seed=number)
            for step in range(4):
                rewards = vec.step(np.full(3, (number + step) % 3))[1]
                assert rewards.tolist() == [(number + step) % 3] * 3
            vec.close()
        except BaseException as error:
            failures.append(f"{number}: {error!r}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failures == []


def test_idle_env_runners_use_no_cpu(trainer: Way) -> None:
    vec = gym.make_vec("CartPole-v1", num_envs=4, vectorization_mode="sync")
    vec.reset()
    for _ in range(20):
        vec.step(np.zeros(4, int))
    processes = [psutil.Process(runner.pid) for runner in current_session().runners]

    def used() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in processes)

    def is_idle() -> bool:
        before = used()
        time.sleep(1)
        return used() - before < 0.2

    wait_until(is_idle, what="idle env runners")
    vec.close()


def test_a_forked_child_leaves_its_parents_streams_alone(trainer: Way) -> None:
    vec = gym.vector.SyncVectorEnv([envs.CountingEnv] * 2)
    vec.reset()
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        try:
            remoterl.describe()
        except remoterl.RemoteRLError as error:
            is_told = "is a fork of one that is connected" in str(error)
            os._exit(0 if is_told and vec._core.closed and not remoterl.is_initialized() else 1)
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert vec.step(np.array([1, 2]))[1].tolist() == [1, 2]
    vec.close()
