"""Capacity that can be asked for: described, checked, reserved; each unit is one trainer's."""

from __future__ import annotations

import json
import logging
import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import racing
from conftest import assert_free
from processes import KEY, clean_environment, wait_until

import remoterl
from remoterl import capacity
from remoterl.errors import CapacityError, ConfigurationError


@pytest.fixture(params=["driver", "client"])
def connected(request: pytest.FixtureRequest, cluster) -> Iterator[str]:
    """An open connection, so that each call does not make one."""
    with capacity.connected(cluster.address(request.param), KEY, 30.0):
        yield request.param
        wait_until(lambda: remoterl.check(16), 30, "all units are free again")


def test_capacity_is_described_checked_reserved_and_released(connected: str) -> None:
    described = remoterl.describe()
    assert {one["name"]: (one["units"], one["free_units"]) for one in described["simulators"]} == {
        "alpha": (8, 8),
        "beta": (8, 8),
    }
    assert [one["name"] for one in remoterl.describe({"zone": "b"})["simulators"]] == ["beta"]
    assert remoterl.check(16) and not remoterl.check(17)
    assert remoterl.check(8, {"zone": "in(a,b)"}) and not remoterl.check(9, {"zone": "b"})
    assert remoterl.check(8, {"zone": "!b"}) and not remoterl.check(1, {"zone": "c"})
    reservation = remoterl.reserve(10, timeout_s=20.0)
    try:
        wait_until(lambda: not remoterl.check(7), 10, "the units are held")
        assert remoterl.check(6)
        with pytest.raises(CapacityError, match=r"7 env runners can't be reserved.* 6 free of 16"):
            remoterl.reserve(7, timeout_s=1.0)
    finally:
        assert remoterl.release(reservation)
    assert not remoterl.release(reservation.id)
    with pytest.raises(ConfigurationError):
        remoterl.reserve(0)


def test_labels_choose_simulators(cluster, caplog: pytest.LogCaptureFixture) -> None:
    assert remoterl.init(KEY, address=cluster.gcs_address, num_env_runners=3, labels={"zone": "b"})
    vec: Any = gym.make_vec("CartPole-v1", num_envs=3, vectorization_mode="sync")
    assert list(vec._core.places()) == ["beta"]
    remoterl.shutdown()
    with caplog.at_level(logging.ERROR, "remoterl"):
        assert not remoterl.init(KEY, address=cluster.gcs_address, labels={"zone": "nowhere"}, timeout_s=2.0)
    assert "None of the cluster's 2 simulators matches labels={'zone': 'nowhere'}" in caplog.text
    assert_free(cluster)


def test_another_process_takes_a_reservation(cluster, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "remoterl", "reserve", "6", "--label", "zone=b", "--ttl", "120", "--json"]
    address = cluster.gcs_address
    reserved = subprocess.run(
        command, env=clean_environment(REMOTERL_ADDRESS=address), capture_output=True, text=True, timeout=120
    )
    assert reserved.returncode == 0, reserved.stderr
    reservation = json.loads(reserved.stdout.splitlines()[-1])
    assert reservation["num_env_runners"] == 6
    script = tmp_path / "trainer.py"
    script.write_text(
        "import sys, gymnasium as gym, remoterl\n"
        f"assert remoterl.init(address={address!r}, reservation={reservation['id']!r})\n"
        "vec = gym.make_vec('CartPole-v1', num_envs=12, vectorization_mode='sync')\n"
        "print({name: len(rows) for name, rows in vec._core.places().items()}, flush=True)\n"
        "sys.stdin.readline()\n"
    )
    with capacity.connected(cluster.gcs_address, KEY, 30.0):
        assert not remoterl.check(3, {"zone": "b"})
        first = subprocess.Popen(
            [sys.executable, str(script)], env=clean_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        assert first.stdout is not None
        assert first.stdout.readline().strip() == "{'beta': 12}"
        with pytest.raises(CapacityError, match="another trainer has taken it"):
            remoterl.init(KEY, reservation=reservation["id"])
        first.kill()
        first.wait()
        first.stdout.close()
        wait_until(lambda: remoterl.check(16), 60, "the reservation ended with its trainer")
        with pytest.raises(CapacityError, match="no such reservation"):
            remoterl.init(KEY, reservation=reservation["id"])


def test_a_reservation_outlives_its_creator_only_for_its_time(cluster) -> None:
    script = f"import remoterl; remoterl.reserve(9, ttl_s=8.0, address={cluster.gcs_address!r}, timeout_s=20.0)"
    subprocess.run([sys.executable, "-c", script], env=clean_environment(), check=True, timeout=120)
    with capacity.connected(cluster.gcs_address, KEY, 30.0):
        wait_until(lambda: remoterl.check(16), 30, "it ended")


def test_two_trainers_never_share_a_unit(cluster) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(2), context.Queue()
    rounds = 5
    racers = [
        context.Process(target=racing.reserve_at_once, args=(barrier, answers, cluster.gcs_address, rounds, 9))
        for _ in range(2)
    ]
    for racer in racers:
        racer.start()
    granted = [0] * rounds
    for number, refusal in (answers.get(timeout=120) for _ in range(2 * rounds)):
        granted[number] += refusal == ""
        assert refusal == "" or "can't be reserved" in refusal
    for racer in racers:
        racer.join(60)
        assert racer.exitcode == 0
    assert max(granted) == 1  # two times nine are more than sixteen

    racers = [
        context.Process(target=racing.train_at_once, args=(barrier, answers, cluster.gcs_address, 16)) for _ in range(2)
    ]
    for racer in racers:
        racer.start()
    first, second = (answers.get(timeout=120) for _ in range(2))
    for racer in racers:
        racer.join(60)
        assert racer.exitcode == 0
    assert not set(first) & set(second) and 0 < len(first) + len(second) <= 16
    assert_free(cluster)
