"""Capacity that can be asked for: described, checked, reserved; each unit is one trainer's."""

from __future__ import annotations

import json
import logging
import multiprocessing
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import racing
from commands import Call, run_in_turn
from conftest import assert_free
from processes import A_MINUTE_S, KEY, clean_environment, stage, wait_until

import remoterl
from remoterl import capacity
from remoterl._process import current_session
from remoterl.errors import CapacityError, ConfigurationError


@pytest.fixture(params=["driver", "client"])
def connected(request: pytest.FixtureRequest, cluster) -> Iterator[str]:
    """An open connection, so that each call does not make one."""
    with capacity.connected(cluster.address(request.param), KEY, 30.0):
        yield request.param
        wait_until(lambda: remoterl.check(16), what="all units are free again")


def test_capacity_is_described_checked_reserved_and_released(connected: str) -> None:
    wait_until(  # one that is too busy to answer is left out
        lambda: (
            {one["name"]: (one["units"], one["free_units"]) for one in remoterl.describe()["simulators"]}
            == {"alpha": (8, 8), "beta": (8, 8)}
        )
    )
    assert [one["name"] for one in remoterl.describe({"zone": "b"})["simulators"]] == ["beta"]
    assert remoterl.check(16) and not remoterl.check(17)
    assert remoterl.check(8, {"zone": "in(a,b)"}) and not remoterl.check(9, {"zone": "b"})
    assert remoterl.check(8, {"zone": "!b"}) and not remoterl.check(1, {"zone": "c"})
    reservation = remoterl.reserve(10, timeout_s=20.0)
    try:
        wait_until(lambda: not remoterl.check(7), what="the units are held")
        assert remoterl.check(6)
        with pytest.raises(CapacityError, match=r"7 env runners can't be reserved.* 6 free of 16"):
            remoterl.reserve(7, timeout_s=1.0)
    finally:
        assert remoterl.release(reservation)
    assert not remoterl.release(reservation.id)
    with pytest.raises(ConfigurationError):
        remoterl.reserve(0)


def test_labels_choose_simulators(cluster, caplog: pytest.LogCaptureFixture) -> None:
    assert remoterl.init(KEY, address=cluster.gcs_address, num_env_runners=2, labels={"zone": "b"})
    vec: Any = gym.make_vec("CartPole-v1", num_envs=3, vectorization_mode="sync")
    assert list(vec._core.places()) == ["beta"]
    vec.close()
    check_that_those_come_back_that_made_room()
    remoterl.shutdown()
    with caplog.at_level(logging.ERROR, "remoterl"):
        assert not remoterl.init(KEY, address=cluster.gcs_address, labels={"zone": "nowhere"}, timeout_s=2.0)
    assert "None of the cluster's 2 simulators matches labels={'zone': 'nowhere'}" in caplog.text
    assert_free(cluster)


def check_that_those_come_back_that_made_room() -> None:
    """For an algorithm of RLlib's, which has ended since."""
    session: Any = current_session()
    env = gym.make("CartPole-v1")
    with session.room_for({"env_runner": 1.0}, "an algorithm"):
        gym.make("CartPole-v1").close()
        assert [runner.rows for runner in session.runners] == [1]
    wait_until(lambda: remoterl.check(7, {"zone": "b"}), what="the other's unit is free")
    vec: Any = gym.make_vec("CartPole-v1", num_envs=4, vectorization_mode="sync")
    assert [runner.rows for runner in session.runners] == [3, 2]
    vec.close()
    env.close()


def test_exit_codes_of_the_command_line_and_a_reservation_for_another_process(cluster, tmp_path: Path) -> None:
    where = {"REMOTERL_ADDRESS": cluster.gcs_address}
    with capacity.connected(cluster.gcs_address, KEY, 30.0):
        wait_until(lambda: remoterl.check(16))
        reservation = remoterl.reserve(10, ttl_s=240.0, timeout_s=20.0)
        expected = [
            (["check", "7"], 1, "no"),
            (["check", "6", "--json"], 0, "true"),
            (["release", reservation.id], 0, "released"),
            (["release", reservation.id], 1, "there is no such reservation (any more)"),
        ]
        calls = [Call(words, where) for words, _, _ in expected]
        reserve = Call(["reserve", "3", "--label", "zone=b", "--ttl", "120", "--json"], where)
        *others, reserved = run_in_turn(*calls, reserve)
    for done, (_, code, said) in zip(others, expected, strict=True):
        assert (done.returncode, done.stdout.splitlines()[-1]) == (code, said), done.stderr
    assert reserved.returncode == 0, reserved.stderr
    told = json.loads(reserved.stdout.splitlines()[-1])
    assert told["num_env_runners"] == 3
    check_that_another_process_takes_it(cluster, told["id"], tmp_path)


def check_that_another_process_takes_it(cluster, reservation: str, tmp_path: Path) -> None:
    """Three of the eight units in zone b."""
    script = tmp_path / "trainer.py"
    script.write_text(
        "import sys, gymnasium as gym, remoterl\n"
        f"assert remoterl.init(address={cluster.gcs_address!r}, reservation={reservation!r})\n"
        "vec = gym.make_vec('CartPole-v1', num_envs=12, vectorization_mode='sync')\n"
        "print({name: len(rows) for name, rows in vec._core.places().items()}, flush=True)\n"
        "import os\n"
        "from remoterl._process import current_session\n"
        "fleet = current_session().fleet\n"
        "vec.reset(seed=1)\n"
        "os.kill(fleet.runners[1].pid, 9)\n"
        "lost = sum(vec.step(vec.action_space.sample())[3])\n"
        "print('UNITS', lost, sorted(fleet.reserved.unit_of(one.strategy) for one in fleet.runners), flush=True)\n"
        "sys.stdin.readline()\n"
    )
    with capacity.connected(cluster.gcs_address, KEY, 30.0):
        assert not remoterl.check(6, {"zone": "b"})
        first = subprocess.Popen(
            [sys.executable, str(script)], env=clean_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        assert first.stdout is not None
        assert first.stdout.readline().strip() == "{'beta': 12}"
        units = next(line for line in first.stdout if line.startswith("UNITS"))  # Ray tells of the loss there too
        assert units.split(maxsplit=1)[1].strip() == "4 [0, 1, 2]"  # the lost one's rows go on in its own unit
        with pytest.raises(CapacityError, match="another trainer has taken it"):
            remoterl.init(KEY, reservation=reservation)
        first.kill()
        first.wait()
        first.stdout.close()
        wait_until(lambda: remoterl.check(16), A_MINUTE_S, "the reservation ended with its trainer")
        with pytest.raises(CapacityError, match="no such reservation"):
            remoterl.init(KEY, reservation=reservation)


def test_a_reservation_outlives_its_creator_only_for_its_time(cluster) -> None:
    script = (
        "import os, signal, time, remoterl\n"
        "from remoterl import capacity\n"
        f"with capacity.connected({cluster.client_address!r}, {KEY!r}, 20.0):\n"
        "    since = time.monotonic()\n"  # from when it counts: before the call, which holds the units at its end
        "    remoterl.reserve(9, ttl_s=15.0, timeout_s=20.0)\n"
        "    print(since, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with capacity.connected(cluster.gcs_address, KEY, 30.0):
        done = subprocess.run(
            [sys.executable, "-c", script], env=clean_environment(), stdout=subprocess.PIPE, text=True
        )
        assert done.returncode == -signal.SIGKILL
        since = float(done.stdout)  # the same clock for every process of a machine
        assert not remoterl.check(8) and remoterl.check(7)
        assert time.monotonic() - since < 14
        wait_until(lambda: remoterl.check(16), what="it ended")
        assert 15 < time.monotonic() - since < 30


def test_two_trainers_never_share_a_unit(cluster) -> None:
    """One by each connection, all the time at the same moment."""
    context = multiprocessing.get_context("spawn")
    barrier, answers, two_are_left = context.Barrier(2), context.Queue(), context.Event()
    racers = [
        context.Process(target=racing.reserve_then_train, args=(barrier, answers, two_are_left, cluster.address(kind)))
        for kind in ("driver", "client")
    ]
    for racer in racers:
        racer.start()
    with stage("rounds of reservations"):
        reservations = [answers.get(timeout=120) for _ in range(racing.RESERVATIONS) for _ in racers]
    for number in range(racing.RESERVATIONS):
        (refusal,) = [said for when, said in reservations if when == number and said]  # exactly one has it
        assert "9 env runners can't be reserved: the 2 simulators have 7 free of 16" in refusal

    with capacity.connected(cluster.gcs_address, KEY, 30.0):
        wait_until(lambda: remoterl.check(16))
        reservation = remoterl.reserve(14, ttl_s=600.0, timeout_s=20.0)
        free = {one["name"]: one["free_units"] for one in remoterl.describe()["simulators"]}
        assert sum(free.values()) == 2
        two_are_left.set()
        try:
            with stage("a round of trainers"):
                trainers = [answers.get(timeout=120) for _ in racers]
                for racer in racers:
                    racer.join(60)
                    assert racer.exitcode == 0
        finally:
            assert remoterl.release(reservation)
    assert sum(len(runners) for _, runners, _ in trainers) == 2
    pids = {pid for _, runners, _ in trainers for _, pid in runners}
    assert len(pids) == 2  # no process is both's
    used = Counter(simulator for _, runners, _ in trainers for simulator, _ in runners)
    assert all(used[simulator] <= free[simulator] for simulator in used)
    for got, runners, said in trainers:
        line = {
            2: "",
            1: "Going on with 1 of the 2 env runners that were asked for: no more are free. "
            "Start another simulator, or ask for fewer.",
            0: "All env runners of the 2 simulators are taken; start another simulator, or end another trainer.\n"
            "init() returns False. A script that goes on makes its environments on this machine.",
        }[len(runners)]
        assert got == bool(runners) and "\n".join(said) == line
    assert_free(cluster)
