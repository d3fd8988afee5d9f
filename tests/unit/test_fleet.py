from __future__ import annotations

from collections.abc import Sequence
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest
from test_reservations_actor import Group

from remoterl import capacity, fleet
from remoterl.capacity import Grant
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
    assert fleet._places(batch[:1], [simulator("b")], {"b": 0}, grant, held) == []
    leaving = [simulator("b", draining=True), simulator("c")]
    assert [where.node_id for where, _ in fleet._places(batch[:1], leaving, {"c": 1}, grant)] == ["c"]


def test_a_unit_that_nobody_needs_is_let_go_alone(removed: list[Any]) -> None:
    one, other = groups(2)
    grant = Grant(((one, 0), (other, 0)), ("a", "b"))
    assert grant.node_of(strategy(other)) == "b" and grant.node_of(strategy(other, 1)) is None
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
