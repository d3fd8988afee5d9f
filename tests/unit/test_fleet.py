from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from contextlib import nullcontext
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from test_reservations_actor import Group

from remoterl import capacity, fleet
from remoterl._protocol import spoken
from remoterl.capacity import Grant
from remoterl.errors import HubLostError, VersionMismatchError
from remoterl.fleet import Fleet


def simulator(node: str, draining: bool = False, of: Sequence[str] = ()) -> Any:
    """`of`: whose env runners it has."""
    env_runners = [SimpleNamespace(actor_id=who, trainer=SimpleNamespace(session_id=who)) for who in of]
    info = SimpleNamespace(draining=draining, env_runners=env_runners)
    return SimpleNamespace(name=node, node_id=node, units=1, info=info)


def strategy(group: Any, bundle: int = 0) -> Any:
    return SimpleNamespace(placement_group=group, placement_group_bundle_index=bundle)


def lost(node: str, of: Any = None) -> Any:
    return SimpleNamespace(node_id=node, strategy=of)


@pytest.fixture
def removed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    removed: list[Any] = []
    monkeypatch.setattr(capacity, "remove_group", removed.append)
    return removed


def groups(count: int) -> list[Any]:
    made = [Group(True) for _ in range(count)]
    for number, group in enumerate(made):
        group.id = number  # type: ignore[attr-defined]
    return made


def test_another_trainer_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a and b, with a unit each when it looked, a's is taken; it goes to c then, long before its time is over."""
    rounds = iter([{"a": 1, "b": 1}, {"a": 0, "b": 0, "c": 1}])
    started: list[list[str]] = []

    def create(places: Any, deadline: float) -> list[Any]:
        started.append([one.node_id for one, _ in places])
        return [SimpleNamespace(node_id=node) for node in started[-1] if node != "a"]

    fewer = Fleet(SimpleNamespace(labels={}, total_env_runners=2, reservation=None), None, SimpleQueue())  # type: ignore[arg-type]
    monkeypatch.setattr(fleet.directory, "find_simulators", lambda *_, **__: [simulator(node) for node in "abc"])
    monkeypatch.setattr(capacity, "free_units", lambda *_: next(rounds))
    monkeypatch.setattr(capacity, "is_autoscaling", lambda: False)
    monkeypatch.setattr(fewer, "_create", create)
    assert fewer.place(deadline=float("inf"))
    assert started == [["a", "b"], ["c"]] and [one.node_id for one in fewer.runners] == ["b", "c"]


@pytest.mark.parametrize(
    ("free", "then", "outrun"),
    [
        ({"a": 0, "b": 1}, ["ours", "theirs"], True),
        ({"a": 0, "b": 1}, ["ours"], False),  # it starts slowly
        ({"a": 0, "b": 0}, ["ours", "theirs"], False),  # there is no other
        ({"a": 1, "b": 1}, ["ours", "theirs"], False),  # its unit is still there
    ],
)
def test_who_is_outrun(monkeypatch: pytest.MonkeyPatch, free: dict[str, int], then: list[str], outrun: bool) -> None:
    monkeypatch.setattr(fleet.directory, "find_simulators", lambda *_, **__: [simulator("a", of=then)])
    monkeypatch.setattr(capacity, "free_units", lambda *_: free)
    late = [
        fleet._Started(simulator("a", of=["ours"]), None, None),
        fleet._Started(simulator("a"), strategy(groups(1)[0]), None),  # in a unit of its own
    ]
    info: Any = SimpleNamespace(session_id="ours")
    trainers = Fleet(SimpleNamespace(labels={}, reservation=None), info, SimpleQueue())  # type: ignore[arg-type]
    assert trainers._outrun(late) == late[:outrun]


def test_a_lost_one_comes_back_where_its_unit_went(removed: list[Any]) -> None:
    one, other, third = groups(3)
    grant = Grant(((one, 0), (other, 0), (third, 0)), ("b", "", "gone"))
    batch = [lost("a", strategy(one)), lost("a", strategy(other)), lost("a", strategy(third)), lost("a")]
    places = fleet._places(batch, [simulator("b"), simulator("c")], {"b": 0, "c": 1}, grant)
    assert [(where.node_id, how) for where, how in places] == [("b", batch[0].strategy), ("c", None)]
    held = [batch[0].strategy]  # by one that stands for another
    assert fleet._places(batch[:1], [simulator("b")], {"b": 0}, grant, in_use=held) == []
    leaving = [simulator("b", draining=True), simulator("c")]
    assert [where.node_id for where, _ in fleet._places(batch[:1], leaving, {"c": 1}, grant)] == ["c"]


def test_a_unit_that_nobody_needs_is_let_go_alone(removed: list[Any]) -> None:
    one, other = groups(2)
    grant = Grant(((one, 0), (other, 0)), ("a", "b"))
    assert grant.unit_of(strategy(other)) == 1 and grant.unit_of(strategy(other, 1)) is None
    left = grant.without(strategy(one))
    assert left.nodes == ("b",) and left.bundles == ((other, 0),) and removed == [one]
    assert left.without(strategy(one)) is left and removed == [one]


def test_units_are_handed_out_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Ray sees who is in them, and to a second algorithm after the first has gone."""
    free = [0, 1]
    monkeypatch.setattr(Grant, "free_units", lambda _: free)
    [group] = groups(1)
    grant = Grant(((group, 0), (group, 1)), ("a", "a"), "reservation")
    assert [grant.take(1) for _ in range(4)] == [[0], [1], [0], [1]]
    free = [1]
    assert grant.take(1) == [1]
    free = [0, 1]
    assert grant.take() == [0, 1]


class Granted:
    """A fleet with a unit that was granted on each of these nodes; a simulator on each of `there` answers."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *nodes: str, there: str, reservation: str | None = None
    ) -> None:
        self.grant = Grant(tuple((group, 0) for group in groups(len(nodes))), nodes, reservation)
        self.fleet = Fleet(SimpleNamespace(labels={}, reservation=None), None, SimpleQueue())  # type: ignore[arg-type]
        self.create: Any = lambda places: [SimpleNamespace(node_id=at.node_id, strategy=how) for at, how in places]
        self.moves_to = nodes

        def look(grant: Grant) -> Grant:
            return dataclasses.replace(grant, nodes=self.moves_to)

        def find(deadline: float, among: set[str]) -> list[Any]:
            return [simulator(node) for node in there if node in among]

        monkeypatch.setattr(ray, "is_initialized", lambda: True)
        monkeypatch.setattr(Grant, "looked_at_again", look)
        monkeypatch.setattr(fleet.directory, "find_simulators", find)
        monkeypatch.setattr(fleet.directory, "simulator_nodes", lambda: [{"NodeID": node} for node in "ab"])
        monkeypatch.setattr(fleet, "RETRY_PERIOD_S", 0.0)
        monkeypatch.setattr(self.fleet, "_create", lambda places, deadline: self.create(places))

    def place(self) -> bool:
        return self.fleet._create_granted(self.grant, time.monotonic() + 3600)

    def placed(self) -> list[str]:
        return [runner.node_id for runner in self.fleet.runners]


def test_a_granted_unit_that_ray_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    there = Granted(monkeypatch, "gone", "b", there="bc")
    there.moves_to = ("c", "b")
    assert there.place() and there.placed() == ["c", "b"]


@pytest.mark.parametrize("reservation", [None, "reservation"])
def test_a_granted_unit_that_is_gone_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, removed: list[Any], reservation: str | None
) -> None:
    monkeypatch.setattr(fleet, "ENV_RUNNER_START_S", 0.0)
    there = Granted(monkeypatch, "gone", "b", there="b", reservation=reservation)
    assert there.place() and there.placed() == ["b"]
    assert removed == ([] if reservation else [there.grant.bundles[0][0]])


@pytest.mark.parametrize("reservation", [None, "reservation"])
@pytest.mark.parametrize("error", [None, KeyboardInterrupt, HubLostError])
def test_granted_units_without_env_runners_are_given_back(
    monkeypatch: pytest.MonkeyPatch, removed: list[Any], reservation: str | None, error: type[BaseException] | None
) -> None:
    """A reservation stays its session's, and nobody asks a hub that is lost."""

    def create(places: Any) -> list[Any]:
        if error is not None:
            raise error
        return []

    there = Granted(monkeypatch, "a", "b", there="ab", reservation=reservation)
    there.create = create
    with pytest.raises(error) if error is not None else nullcontext():
        assert not there.place()
    kept = reservation is not None or error is HubLostError
    assert removed == ([] if kept else [group for group, _ in there.grant.bundles])
    assert (there.fleet._grant is None) is not kept


def test_another_version_on_a_simulator(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Installed there while a session runs, for env runners that start later: they go elsewhere, once it is known."""
    trainers = Fleet(SimpleNamespace(labels={}, reservation=None), None, SimpleQueue())  # type: ignore[arg-type]
    started = fleet._Started(simulator("a"), None, None)
    other, same = SimpleNamespace(speaks="0.0.1"), SimpleNamespace(speaks=spoken())
    with pytest.raises(VersionMismatchError):
        trainers._speaks_the_same(started, other)  # type: ignore[arg-type]
    trainers.runners = [lost("a")]
    assert trainers._speaks_the_same(started, same)  # type: ignore[arg-type]
    assert not trainers._speaks_the_same(started, other)  # type: ignore[arg-type]
    assert "The simulator a is left out" in caplog.text and "0.0.1" in caplog.text

    def create(where: Any, deadline: float) -> list[Any]:
        return [SimpleNamespace(node_id=one.node_id) for one, _ in where]

    monkeypatch.setattr(fleet.directory, "find_simulators", lambda *_, **__: [simulator("a"), simulator("b")])
    monkeypatch.setattr(capacity, "free_units", lambda *_: {"a": 1, "b": 1})
    monkeypatch.setattr(trainers, "_create", create)
    monkeypatch.setattr(trainers, "living", list)
    [new] = trainers._find_places([lost("a")], time.monotonic() + 60, lambda _: True)
    assert new.node_id == "b"


def test_another_unit_of_the_reservation() -> None:
    """Where its own is nowhere, or somebody else's; not a unit of nobody's while its own may come back."""
    [group] = groups(1)
    grant = Grant(((group, 0), (group, 1), (group, 2)), ("", "b", "b"), "reservation")
    gone, taken = lost("a", strategy(group)), lost("b", strategy(group, 1))

    def units(batch: list[Any], *free: int, **how: Any) -> list[int | None]:
        places = fleet._places(batch, [simulator("b"), simulator("c")], {"c": 1}, grant, free, **how)
        return [grant.unit_of(one) for _, one in places]

    assert units([gone], 1, 2) == [1] and units([gone, taken], 1, 2) == [2, 1]
    assert units([gone], 1, 2, in_use=[strategy(group, 1)]) == [2]
    assert units([taken], 2) == [2] and units([taken], own_comes_back=True) == []
    assert units([taken]) == [None] and units([gone], own_comes_back=True) == [None]


def test_old_reasons_explain_nothing_new(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """An hour ago one ran out of memory, and the autoscaler was late; now all units are taken."""
    trainers = Fleet(SimpleNamespace(labels={}, total_env_runners=2, reservation=None), None, SimpleQueue())  # type: ignore[arg-type]
    trainers.last_failure, trainers._autoscaler_was_late = "out of memory", True
    monkeypatch.setattr(fleet.directory, "find_simulators", lambda *_, **__: [simulator("a")])
    monkeypatch.setattr(capacity, "free_units", lambda *_: {"a": 0})
    monkeypatch.setattr(capacity, "is_autoscaling", lambda: False)
    assert not trainers.place(deadline=0.0)
    assert caplog.messages == [
        "All env runners of the 1 simulators are taken; start another simulator, or end another trainer."
    ]


def test_a_second_replacement_of_the_same_one_is_the_sessions() -> None:
    """The first can't make the rows of another vector env that was lost with it."""
    trainers = Fleet(SimpleNamespace(labels={}, reservation=None), None, SimpleQueue())  # type: ignore[arg-type]
    one, first, second = (SimpleNamespace(name=name, replaced_by=None) for name in ("one", "first", "second"))
    trainers.runners = [one]  # type: ignore[list-item]
    for new in (first, second, first):
        trainers._put_in_place(one, new)  # type: ignore[arg-type]
    assert trainers.runners == [first, second]


def test_those_that_made_room_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as units are free, some now and the others when theirs are; then nobody is asked any more."""
    trainers = Fleet(SimpleNamespace(labels={}, total_env_runners=4, reservation=None), None, SimpleQueue())  # type: ignore[arg-type]
    free = {"a": 2}
    looks: list[Any] = []
    monkeypatch.setattr(fleet.directory, "find_simulators", lambda *_, **__: looks.append(1) or [simulator("a")])
    monkeypatch.setattr(capacity, "free_units", lambda *_: free)
    monkeypatch.setattr(trainers, "give_up", lambda _: None)
    monkeypatch.setattr(
        trainers, "_create", lambda places, _: [SimpleNamespace(rows=0, strategy=None, node_id="a") for _ in places]
    )
    trainers.runners = [SimpleNamespace(rows=rows, strategy=None) for rows in (1, 0, 0, 0)]  # type: ignore[misc]
    trainers.top_up()
    assert len(trainers.runners) == 4 and not looks
    assert trainers.let_go_idle() and len(trainers.runners) == 1
    free = {"a": 0}
    trainers.top_up()
    assert len(trainers.runners) == 1
    free = {"a": 2}
    for now, asked in ((3, 2), (4, 3), (4, 3)):
        trainers.top_up()
        assert (len(trainers.runners), len(looks)) == (now, asked)
