"""Simulators that go: one that is told to drains, and where the last unit went, rows double up or the loss is told."""

from __future__ import annotations

import signal

import gymnasium as gym
import numpy as np
import psutil
import pytest
import ray
from conftest import WAYS, assert_free, patched_places
from ledger import LedgerEnv
from processes import PATIENCE_S, Cluster, Process, Way, start_simulator, wait_until

import remoterl
from remoterl._process import current_session
from remoterl.actors import directory
from remoterl.errors import EnvRunnerLostError


def simulator(cluster: Cluster, name: str, units: str, *options: str) -> Process:
    units_and_more = ("--max-env-runners", units, *options)
    return start_simulator("--name", name, *units_and_more, REMOTERL_ADDRESS=cluster.gcs_address)


def test_sigterm_moves_its_rows(cluster: Cluster) -> None:
    before = patched_places()
    gamma = simulator(cluster, "gamma", "64")
    try:
        gamma.wait_for("is up")
        WAYS[1].open(cluster, num_env_runners=4)
        vec = gym.vector.SyncVectorEnv([LedgerEnv] * 8)
        vec.reset(seed=7)
        leaving = vec._core.places()["gamma"]
        assert 0 < len(leaving) < 8
        tree = gamma.tree()
        gamma.process.send_signal(signal.SIGTERM)
        env_runners = [process for process in tree if "EnvRunner" in " ".join(process.cmdline())]
        psutil.wait_procs(env_runners, timeout=PATIENCE_S)
        truncations = np.zeros(8, bool)
        for step in range(20):  # its env runners are gone, its node may be there still
            truncations |= vec.step(np.full(8, step))[3]
        assert np.flatnonzero(truncations).tolist() == leaving
        assert set(vec._core.places()) <= {"alpha", "beta"}
        assert current_session().fleet.restarts == len(env_runners)  # none of them was tried at gamma
        for row, book in enumerate(vec.get_attr("book")):
            if row not in leaving:
                assert list(book) == [(step + 1, step) for step in range(20)]
        vec.close()
        assert gamma.process.wait(30) == 0, gamma.output
        _, alive = psutil.wait_procs(tree, timeout=PATIENCE_S)
        assert alive == []
        wait_until(lambda: "gamma" not in {one["name"] for one in remoterl.describe()["simulators"]})
    finally:
        remoterl.shutdown()
        gamma.end()
    assert patched_places() == before
    assert_free(cluster)


def test_rows_double_up_and_then_there_is_no_place(cluster: Cluster) -> None:
    gamma, delta = (simulator(cluster, name, "1", "--label", "zone=small") for name in ("gamma", "delta"))
    try:
        gamma.wait_for("is up")
        delta.wait_for("is up")
        Way("driver", "stream").open(cluster, labels={"zone": "small"}, restart_timeout_s=6.0)
        vec = gym.vector.SyncVectorEnv([LedgerEnv] * 4)
        vec.reset(seed=7)
        vec.step(np.arange(4))
        lost = vec._core.places()["delta"]
        # Told to drain, and here still: its unit is free soon, and nobody gets it.
        [leaving] = [one for one in directory.find_simulators() if one.name == "delta"]
        ray.get(leaving.actor.drain.remote(), timeout=20)
        truncations = vec.step(np.arange(4))[3]
        assert np.flatnonzero(truncations).tolist() == lost
        assert vec._core.places() == {"gamma": [0, 1, 2, 3]}
        assert delta.process.poll() is None
        delta.end(signal.SIGTERM)
        wait_until(lambda: [one["restarts"] for one in remoterl.describe()["trainers"]] == [1])
        assert [len(book) for book in vec.get_attr("book")] == [0 if row in lost else 2 for row in range(4)]
        gamma.end(signal.SIGTERM)
        with pytest.raises(EnvRunnerLostError, match="No other had a free env runner within restart_timeout_s=6"):
            vec.step(np.arange(4))
        vec.close()
    finally:
        remoterl.shutdown()
        gamma.end()
        delta.end()
