from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from remoterl.placement import plan, split_rows

capacities = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.integers(-2, 40), max_size=6)


def test_even_over_equal_simulators() -> None:
    assert plan({"a": 8, "b": 8}, 8) == {"a": 4, "b": 4}
    assert plan({"a": 32, "b": 32}, 3) == {"a": 2, "b": 1}


def test_in_proportion_to_free_units() -> None:
    assert plan({"a": 6, "b": 2}, 4) == {"a": 3, "b": 1}


def test_nothing_to_give() -> None:
    assert plan({}, 3) == {} and plan({"a": 0, "b": -1}, 3) == {}


@given(capacities, st.integers(0, 100))
def test_a_plan_never_passes_free_units_and_uses_what_there_is(free: dict[str, int], wanted: int) -> None:
    counts = plan(free, wanted)
    assert sum(counts.values()) == min(wanted, sum(units for units in free.values() if units > 0))
    assert all(0 < count <= free[node] for node, count in counts.items())


@given(st.integers(0, 200), st.integers(0, 40))
def test_rows_are_consecutive_complete_and_even(num_rows: int, num_env_runners: int) -> None:
    ranges = split_rows(num_rows, num_env_runners)
    assert [row for rows in ranges for row in rows] == (list(range(num_rows)) if num_env_runners else [])
    assert all(len(rows) > 0 for rows in ranges)
    if ranges:
        assert max(map(len, ranges)) - min(map(len, ranges)) <= 1
        assert len(ranges) == min(num_rows, num_env_runners)
