"""Pure placement decisions: how many env runners go where, and which rows go to which env runner.

No Ray in here. `session` feeds it what the cluster offers and carries out what it answers.
"""

from __future__ import annotations

from collections.abc import Mapping


def plan(free_units: Mapping[str, int], wanted: int) -> dict[str, int]:
    """Spread `wanted` env runners over the simulators in proportion to their free units.

    Args:
        free_units: node id -> free units of `env_runner` (zero or negative: nothing goes there).
        wanted: how many env runners are asked for.

    Returns:
        node id -> number of env runners, nodes with none left out. The sum is the smaller of `wanted` and
        all the free units. Largest-remainder rounding; ties go to the node listed first.
    """
    free = {node: units for node, units in free_units.items() if units > 0}
    total_free = sum(free.values())
    total = min(wanted, total_free)
    if total <= 0:
        return {}
    quotas = {node: total * units / total_free for node, units in free.items()}
    counts = {node: int(quota) for node, quota in quotas.items()}
    by_remainder = sorted(free, key=lambda node: counts[node] - quotas[node])  # stable: ties keep their order
    for node in by_remainder[: total - sum(counts.values())]:
        counts[node] += 1
    return {node: count for node, count in counts.items() if count}


def split_rows(num_rows: int, num_env_runners: int) -> list[range]:
    """Cut rows 0..num_rows-1 into consecutive ranges, sizes differing by one at most.

    Returns:
        One non-empty range for each env runner used: `min(num_rows, num_env_runners)` of them.
    """
    parts = min(num_rows, num_env_runners)
    if parts <= 0:
        return []
    size, extra = divmod(num_rows, parts)
    ranges, start = [], 0
    for part in range(parts):
        stop = start + size + (part < extra)
        ranges.append(range(start, stop))
        start = stop
    return ranges
