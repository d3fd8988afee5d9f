"""Measures one cell in this process: `python -m benchmarks.measure CELL_AS_JSON` prints one line of JSON."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from benchmarks.contenders import Cell, open_contender

WARM_UP_S = 0.5
SETTLE_TRIES, SETTLE_S, IDLE_PERCENT = 30, 0.5, 10.0
ACTIONS = 64


@dataclass
class Measured:
    """Of one turn of one cell. `error` says why there is nothing else.

    Attributes:
        step_us: microseconds of one vector step, median.
        steps_per_s: rows stepped in a second, over the whole turn.
        init_s: of `remoterl.init()` and making the environments.
        send_us, wait_us: of a step, in the channels: until all requests were sent, until all replies were there.
    """

    step_us: float = 0.0
    steps_per_s: float = 0.0
    init_s: float = 0.0
    send_us: float = 0.0
    wait_us: float = 0.0
    error: str = ""


def measure(cell: Cell, addresses: dict[str, str], seconds: float) -> Measured:
    """Step for `seconds` after a warm-up, then see where the time of a remote step goes."""
    start = time.perf_counter()
    try:
        step = open_contender(cell, addresses)
    except (ImportError, NotImplementedError) as error:
        return Measured(error=f"{type(error).__name__}: {error}")
    measured = Measured(init_s=time.perf_counter() - start)
    _settle()
    actions = _actions(cell)
    _run(step, actions, WARM_UP_S)
    times = _run(step, actions, seconds)
    measured.step_us = sorted(times)[len(times) // 2] * 1e6
    measured.steps_per_s = cell.rows * len(times) / sum(times)
    if cell.contender.startswith("remoterl"):
        measured.send_us, measured.wait_us = _split(step, actions, seconds / 2)
        import remoterl

        remoterl.shutdown()
    return measured


def _settle() -> None:
    """Wait until the machine is idle: after `init()` Ray starts processes in place of those that it gave."""
    for _ in range(SETTLE_TRIES):
        if psutil.cpu_percent(SETTLE_S) < IDLE_PERCENT:
            return


def _actions(cell: Cell) -> list[Any]:
    """Random actions, made before anything is measured."""
    from benchmarks.works import factory

    space = factory(cell.work)().action_space
    space.seed(0)
    import numpy as np

    return [np.stack([space.sample() for _ in range(cell.rows)]) for _ in range(ACTIONS)]


def _run(step: Any, actions: list[Any], seconds: float) -> list[float]:
    times = []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end or not times:
        step(actions[len(times) % ACTIONS])
        times.append(time.perf_counter() - start)
    return times


def _split(step: Any, actions: list[Any], seconds: float) -> tuple[float, float]:
    from remoterl.vector.core import VectorCore

    spent = {"scatter": 0.0, "gather": 0.0}

    def timed(name: str) -> None:
        original = getattr(VectorCore, name)

        def wrapper(*args: Any) -> Any:
            start = time.perf_counter()
            try:
                return original(*args)
            finally:
                spent[name] += time.perf_counter() - start

        setattr(VectorCore, name, wrapper)

    for name in spent:
        timed(name)
    count = len(_run(step, actions, seconds))
    return spent["scatter"] / count * 1e6, spent["gather"] / count * 1e6


if __name__ == "__main__":
    call = json.loads(sys.argv[1])
    print("RESULT", json.dumps(asdict(measure(Cell(**call["cell"]), call["addresses"], call["seconds"]))), flush=True)
