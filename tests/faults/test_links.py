"""Cut, lossy and slow links, dead trainers and a dead hub, each as a host of its own. Real packets, real kills.

The tests are in the order of a story and share one cluster, because starting one takes many seconds. Two trainers run
in every one of them, Ray Client with streams and in-cluster with actor calls, and hear of the same fault.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

import machines
import psutil
import pytest
from conftest import WAYS
from machines import HostProcess, Network
from premises import UNITS, Premises, events
from processes import A_MINUTE_S, Way, kill, wait_until

missing = machines.why_not()
pytestmark = [pytest.mark.long, pytest.mark.skipif(bool(missing), reason=missing)]

Tell = Callable[..., None]
Pair = dict[str, HostProcess]


@pytest.fixture(scope="module")
def premises() -> Iterator[Premises]:
    with Network(hosts=5, wired=["10.77.5.2"]) as network:
        premises = Premises(network)
        premises.open()
        yield premises
        assert premises.close() == {}


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Tell:
    """Print what was measured, also where the test passes."""

    def tell(what: str, way: object = "", seconds: float | None = None, more: str = "") -> None:
        with capsys.disabled():
            took = "" if seconds is None else f"{seconds:.1f} s"
            print("\nmeasured: " + ", ".join(filter(None, [what, str(way), took, more])), end="")

    return tell


_pairs: dict[str, Pair] = {}


def pair(premises: Premises, script: str = "trainer", env_runners: int = 3, host: str = "") -> Pair:
    """Two trainers at the desk (or on another host), by each way; those of an earlier test if they still run."""
    host = host or premises.desk_host
    name = f"{script} on {host}"
    running = _pairs.get(name, {})
    if not running or any(trainer.process.poll() is not None for trainer in running.values()):
        _pairs[name] = {str(way): premises.start_trainer(script, way, env_runners, host) for way in WAYS}
        for trainer in _pairs[name].values():
            premises.event(trainer, "up", 90)
    return _pairs[name]


def steps_on(premises: Premises, trainers: Pair, timeout_s: float, steps: int = 5) -> None:
    """Wait until each has made so many more steps."""
    before = {way: last_step(trainer) for way, trainer in trainers.items()}
    for way, trainer in trainers.items():
        premises.eventually(
            lambda trainer=trainer, way=way: last_step(trainer) >= before[way] + steps, timeout_s, f"{way} goes on"
        )


def last_step(trainer: HostProcess) -> int:
    return max((event["step"] for event in events(trainer) if "step" in event), default=0)


def test_a_lossy_slow_link(premises: Premises, tell: Tell) -> None:
    """The trainers' own, 100 ms longer there and back; `trainer` compares every step with local environments."""
    trainers = pair(premises)
    steps_on(premises, trainers, 30)
    began, before = time.monotonic(), {way: last_step(trainer) for way, trainer in trainers.items()}
    premises.network.disturb(premises.desk_host, delay_s=0.05, loss=0.05)
    steps_on(premises, trainers, 60, 20)
    premises.network.disturb(premises.desk_host, delay_s=0.0, loss=0.0)
    for way, trainer in trainers.items():
        steps = last_step(trainer) - before[way]
        tell("a link of 100 ms that loses 5 %", way, (time.monotonic() - began) / steps, "each step")
        assert not [event for event in events(trainer) if event["event"] == "lost"]


def test_a_link_that_is_cut_for_seconds(premises: Premises, tell: Tell) -> None:
    trainers = pair(premises)
    steps_on(premises, trainers, 30)
    cut = time.monotonic()
    premises.network.cut(premises.simulator_hosts["far"])
    time.sleep(3.0)
    premises.network.mend(premises.simulator_hosts["far"])
    for way, trainer in trainers.items():
        slow = premises.event(trainer, "slow", 60, cut)
        tell("a simulator's link is cut for 3 s", way, slow["took"], "the step in which it happened; nothing is lost")
        assert not [event for event in events(trainer) if event["event"] == "lost"]
    steps_on(premises, trainers, 30)


def test_simulators_that_are_cut_off(premises: Premises, tell: Tell) -> None:
    """Two of three; their rows go on at the third, and no other row notices."""
    trainers = pair(premises)
    steps_on(premises, trainers, 30)
    cut = time.monotonic()
    for name in ("far", "gone"):
        premises.network.cut(premises.simulator_hosts[name])
    dropped = premises.until_seen(["near"], 90)
    tell("simulators' links are cut: the hub drops their nodes", "", dropped - cut)
    for way, trainer in trainers.items():
        lost = premises.event(trainer, "lost", 90, cut)
        tell("simulators' links are cut: training goes on", way, lost["at"] - cut)
    steps_on(premises, trainers, 60)
    for trainer in trainers.values():
        os.kill(trainer.pid, signal.SIGTERM)
    for trainer in trainers.values():
        end = premises.event(trainer, "end", 30)
        places = premises.event(trainer, "up", 0)["places"]
        assert end["agree"] and end["lost"] == sorted(places["far"] + places["gone"])
        assert list(end["places"]) == ["near"] and len(places["near"]) > 0
        assert trainer.process.wait(30) == 0


def test_one_comes_back_and_one_ends_while_it_is_cut_off(premises: Premises, tell: Tell) -> None:
    gone = premises.simulators.pop("gone")
    began = time.monotonic()
    os.kill(gone.pid, signal.SIGTERM)
    premises.network.mend(premises.simulator_hosts["far"])
    back = premises.until_seen(["far", "near"], 120)
    tell("a simulator's link is back: it is in the cluster again", "", back - began)
    assert gone.process.wait(60) == 0
    assert premises.left(premises.simulator_hosts["gone"]) == []
    tell("a simulator is told to end while it is cut off: nothing of it runs", "", time.monotonic() - began)
    for trainer in pair(premises, env_runners=2).values():
        assert sorted(premises.event(trainer, "up", 0)["places"]) == ["far", "near"]


def test_dead_trainers_hold_nothing(premises: Premises, tell: Tell) -> None:
    """Two that are killed with -9, on the hub's host, and three whose link is cut for ever."""
    cut_off = dict(pair(premises, env_runners=2))
    way = Way("client", "actor")  # the one whose env runners nothing but the leash ends
    if str(way) not in cut_off:
        cut_off[str(way)] = premises.start_trainer("trainer", way, 1, premises.desk_host)
        premises.event(cut_off[str(way)], "up", 90)
    killed = pair(premises, env_runners=1, host=premises.hub_host)
    held = {
        (what, way): premises.event(trainer, "up", 0)["runners"]
        for what, trainers in (("cut off", cut_off), ("killed", killed))
        for way, trainer in trainers.items()
    }
    premises.network.cut(premises.desk_host)
    for trainer in killed.values():
        os.kill(trainer.pid, signal.SIGKILL)
    began = time.monotonic()
    gone: dict[tuple[str, str], float] = {}

    def all_gone() -> bool:
        living = {(name, pid) for name in premises.simulators for pid in premises.env_runners(name)}
        for whose, runners in held.items():
            if whose not in gone and living.isdisjoint(map(tuple, runners)):
                gone[whose] = time.monotonic() - began
        return len(gone) == len(held)

    try:
        wait_until(all_gone, A_MINUTE_S + 20)
    except AssertionError:
        pass  # the assertion below says whose are left
    for (what, way), seconds in gone.items():
        tell(f"a trainer is {what}: its env runners are gone", way, seconds)
    try:
        assert {whose for whose, seconds in gone.items() if seconds < A_MINUTE_S} == held.keys()
        names = sorted(premises.simulators)
        free = premises.until_seen(names, 20, free=len(names) * UNITS)
        tell("trainers are dead: all units are free", "", free - began)
        for way, trainer in cut_off.items():
            lost = premises.event(trainer, "hub lost", 90 - (time.monotonic() - began) + 30)
            tell("a trainer is cut off: HubLostError", way, lost["at"] - began, lost["message"])
            assert lost["at"] - began < 90 and lost["closed"]
    finally:
        for trainer in cut_off.values():
            trainer.end(signal.SIGKILL)
        premises.network.mend(premises.desk_host)
        premises.start_desk()


def test_the_hub_is_killed_and_comes_back(premises: Premises, tell: Tell) -> None:
    """The trainers save their models; the simulators join the new hub by themselves."""
    learners = pair(premises, "learner", env_runners=1)
    leaving = pair(premises, env_runners=1)
    steps_on(premises, learners, 60)
    killed = kill_the_hub(premises)
    for trainer in leaving.values():  # who ends just now does not wait for it
        os.kill(trainer.pid, signal.SIGTERM)
    for way, trainer in leaving.items():
        assert trainer.process.wait(A_MINUTE_S) == 0, trainer.output
        tell("the hub is killed: shutdown() right after it returns", way, time.monotonic() - killed)
    for way, learner in learners.items():
        lost = premises.event(learner, "hub lost", 120)
        tell("the hub is killed: HubLostError", way, lost["at"] - killed)
        assert lost["closed"] and premises.event(learner, "saved", 30)["same"]
        premises.event(learner, "closed", 10)
        assert not premises.event(learner, "end", 30)["initialized"]
        assert learner.process.wait(30) == 0
    began = time.monotonic()
    premises.start_hub()
    tell("the hub is started again", "", time.monotonic() - began)
    names = sorted(premises.simulators)
    back = premises.until_seen(names, 120)
    tell("the hub is up again: its simulators are back", "", back - began)
    premises.start_desk()
    again = pair(premises, env_runners=len(names))  # they go on in the next test
    for trainer in again.values():
        assert sorted(premises.event(trainer, "up", 0)["places"]) == names
    steps_on(premises, again, 30)


def test_the_hub_is_started_anew_at_once(premises: Premises, tell: Tell) -> None:
    """It never was silent for long; but it knows nobody any more."""
    trainers = pair(premises, env_runners=2)
    steps_on(premises, trainers, 60)
    killed = kill_the_hub(premises)
    premises.start_hub()
    tell("the hub is killed and started anew: it is up", "", time.monotonic() - killed)
    for way, trainer in trainers.items():
        lost = premises.event(trainer, "hub lost", 90)
        tell("the hub is started anew: HubLostError", way, lost["at"] - killed, lost["message"])
        assert lost["closed"] and trainer.process.wait(A_MINUTE_S) == 0
    premises.until_seen(sorted(premises.simulators), 120)


def kill_the_hub(premises: Premises) -> float:
    """With everything on its host; when that was, monotonic."""
    hubs = premises.network.processes(premises.hub_host)
    killed = time.monotonic()
    kill(hubs)
    psutil.wait_procs(hubs, timeout=10)
    return killed
