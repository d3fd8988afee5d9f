from __future__ import annotations

import time
from typing import Any, cast

import pytest

from remoterl.actors import reservations
from remoterl.actors.reservations import Reservations
from remoterl.config import make_config
from remoterl.errors import ConfigurationError
from remoterl.labels import check_selector, matches, parse_options
from remoterl.messages import Reservation

# What Ray 2.60 does with a placement group's `bundle_label_selector` on a node with zone=a, found by experiment.
CONDITIONS = {
    "a": True, "!a": False, "b": False, "in(a,b)": True, "in(a, b)": True, "!in(b,c)": True, "!in(a,b)": False,
}  # fmt: skip


@pytest.mark.parametrize(("condition", "expected"), CONDITIONS.items())
def test_a_selector_means_what_it_means_to_ray(condition: str, expected: bool) -> None:
    assert matches({"zone": "a", "other": "b"}, check_selector({"zone": condition})) is expected


def test_a_missing_label_satisfies_only_what_is_negated() -> None:
    assert matches({}, {"zone": "!b"}) and matches({}, {"zone": "!in(b,c)"})
    assert not matches({}, {"zone": "b"}) and not matches({}, {"zone": "in(b)"})
    assert matches({"zone": "a"}, {}) and not matches({"zone": "a"}, {"zone": "a", "gpu": "yes"})


@pytest.mark.parametrize("value", ["", "!!a", "in()", "in(a", "a,b", "-a", "a b", 5])
def test_a_wrong_selector_is_refused_as_ray_would(value: Any) -> None:
    from ray._private.label_utils import validate_label_selector_value

    with pytest.raises(ConfigurationError, match="must be asked for as"):
        check_selector({"zone": value})
    assert value in ("", 5) or validate_label_selector_value(value) is not None


def test_labels_of_the_command_line() -> None:
    assert parse_options(["zone=a", "kind=!in(b,c)"]) == {"zone": "a", "kind": "!in(b,c)"}
    assert parse_options(None) == {}
    with pytest.raises(ConfigurationError, match="KEY=VALUE"):
        parse_options(["zone"])


def test_a_reservation_is_taken_by_itself_or_by_its_id() -> None:
    arguments: dict[str, Any] = {
        "api_key": None, "role": "trainer", "num_workers": 1, "num_env_runners": 2, "max_env_runners": 32,
        "address": None, "name": None, "labels": {"zone": "in(a,b)"}, "channel": "auto", "timeout_s": 30.0,
        "runtime_env": None,
    }  # fmt: skip
    config: Any = make_config(**arguments, reservation=Reservation("abc", 2, {}, 30.0))
    assert config.reservation == "abc" and config.labels == {"zone": "in(a,b)"}
    assert make_config(**arguments, reservation="abc") == config
    with pytest.raises(ConfigurationError, match="reservation must be"):
        make_config(**arguments, reservation=5)
    with pytest.raises(ConfigurationError, match="takes no reservation"):
        make_config(**{**arguments, "role": "simulator", "labels": None}, reservation="abc")


class Group:
    """A placement group that is ready or not."""

    def __init__(self, ready: bool) -> None:
        self.ready = ready

    def wait(self, timeout_s: float) -> bool:
        return self.ready


@pytest.fixture
def removed(monkeypatch: pytest.MonkeyPatch) -> list[Group]:
    removed: list[Group] = []
    monkeypatch.setattr(reservations, "SWEEP_PERIOD_S", 3600.0)
    monkeypatch.setattr(reservations, "make_group", lambda number, labels: Group(number <= 8))
    monkeypatch.setattr(reservations, "remove_group", removed.append)
    return removed


def test_what_is_not_granted_is_not_held(removed: list[Group]) -> None:
    keeper = Reservations(living_jobs=set)
    assert keeper.reserve(9, {}, 30.0, 0.1) is None and len(removed) == 1


def test_a_reservation_ends_with_its_time_unless_it_is_taken(removed: list[Group]) -> None:
    jobs = {"01"}
    keeper = Reservations(living_jobs=lambda: jobs)
    short, taken, long = (keeper.reserve(2, {"zone": "b"}, ttl_s, 0.1) for ttl_s in (1e-3, 1e-3, 3600.0))
    assert short and taken and long
    group, labels = cast(Any, keeper.take(taken, "01"))
    assert isinstance(group, Group) and labels == {"zone": "b"}
    assert "another trainer" in keeper.take(taken, "02")
    time.sleep(2e-3)
    keeper.sweep()
    assert len(removed) == 1 and "no such reservation" in keeper.take(short, "01")
    jobs.clear()  # the trainer that took it died
    keeper.sweep()
    assert removed[1:] == [group]
    assert keeper.release(long) and not keeper.release(long) and len(removed) == 3
