"""What was measured, as tables, a JSON file and plots."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import plans
from benchmarks.contenders import Cell
from benchmarks.measure import Measured

Results = dict[Cell, list[Measured]]


def median(results: Results, cell: Cell, what: str = "steps_per_s") -> float:
    """Over the rounds; NaN where nothing was measured."""
    values = [getattr(measured, what) for measured in results.get(cell, []) if not measured.error]
    return statistics.median(values) if values else float("nan")


def show(results: Results, console: Console) -> None:
    """All tables."""
    _show_rates(results, console)
    _show_figures(results, console)
    _show_split(results, console)
    for channel, fitted in fits(results).items():
        console.print(
            f"{channel}: a vector step takes {fitted['a_us']:.0f} us + {fitted['b_us_a_row']:.2f} us a row "
            f"+ {fitted['c_us_an_env_runner']:.0f} us an env runner + {fitted['d_us_a_kilobyte']:.2f} us a kilobyte; "
            f"half of the cells are within {fitted['median_error']:.0%} of it, all within {fitted['largest_error']:.0%}"
        )


def _show_rates(results: Results, console: Console) -> None:
    table = Table(title="Steps a second", title_justify="left")
    for column in ("work", "rows", "env runners", "contender", "median", "least to most", "init() s"):
        table.add_column(column, justify="left" if column in ("work", "contender") else "right")
    for cell in sorted(results, key=lambda cell: (cell.work, cell.rows, cell.env_runners, cell.contender)):
        rates = [measured.steps_per_s for measured in results[cell] if not measured.error]
        runners = str(cell.env_runners) if cell.contender.startswith("remoterl") else ""
        start = (cell.work, str(cell.rows), runners, cell.contender)
        if not rates:
            table.add_row(*start, "not here: " + results[cell][0].error, "", "")
            continue
        init = f"{median(results, cell, 'init_s'):.1f}" if runners else ""
        table.add_row(*start, f"{statistics.median(rates):,.0f}", f"{min(rates):,.0f} to {max(rates):,.0f}", init)
    console.print(table)


def _show_figures(results: Results, console: Console) -> None:
    table = Table(title="Against the alternatives, ratios of medians", title_justify="left")
    for column in ("what", "against", "measured", "wanted", "the cores' limit"):
        table.add_column(column)
    for line in figures(results):
        table.add_row(*line)
    if table.row_count:
        console.print(table)


def figures(results: Results) -> list[tuple[str, str, str, str, str]]:
    """Every wanted figure whose cells were measured: what, against what, measured, wanted, what the cores can do."""
    lines = []
    for wanted in plans.figures():
        name, baseline = f"{wanted.cell.contender}, {wanted.cell.work}, {wanted.cell.rows}", wanted.baseline.contender
        if wanted.at_most_us:
            above = median(results, wanted.cell, "step_us") - median(results, wanted.baseline, "step_us")
            lines.append((name, baseline, f"{above:.0f} us above", f"at most {wanted.at_most_us:.0f} us", ""))
        else:
            ratio, most = (
                median(results, cell) / median(results, wanted.baseline)
                for cell in (wanted.cell, plans.limit(wanted.cell))
            )
            lines.append((name, baseline, f"{ratio:.1f} x", f"{wanted.at_least} x", f"{most:.1f} x"))
    for cell, step_us in plans.ideal():
        ratio = step_us / median(results, cell, "step_us")
        lines.append((f"{cell.contender}, {cell.work}, {cell.rows}", "the ideal", f"{ratio:.2f}", "0.95", "1"))
    return [line for line in lines if "nan" not in line[2]]


def _show_split(results: Results, console: Console) -> None:
    table = Table(title="Where a step's time goes, microseconds", title_justify="left")
    columns = (
        "contender",
        "work",
        "rows",
        "step",
        "framework and its face",
        "sending",
        "environments",
        "wire and waking",
    )
    for column in columns:
        table.add_column(column, justify="left" if column in columns[:2] else "right")
    for cell in results:
        parts = split(results, cell)
        if parts is not None:
            table.add_row(cell.contender, cell.work, str(cell.rows), *(f"{value:.0f}" for value in parts.values()))
    if table.row_count:
        console.print(table)


def split(results: Results, cell: Cell) -> dict[str, float] | None:
    """Of a remote cell whose environments were also stepped in process: a step's time and its parts.

    `environments` is what an env runner's rows cost in process: all of a SyncVectorEnv's step, by its share of rows.
    """
    local = median(results, Cell(plans.SYNC, cell.work, cell.rows), "step_us")
    step, send, wait = (median(results, cell, what) for what in ("step_us", "send_us", "wait_us"))
    if not cell.contender.startswith("remoterl Gymnasium") or np.isnan(local) or np.isnan(step):
        return None
    environments = local / cell.env_runners
    return {
        "step": step,
        "face": max(0.0, step - send - wait),
        "sending": send,
        "environments": environments,
        "wire": max(0.0, wait - environments),
    }


def fits(results: Results) -> dict[str, dict[str, float]]:
    """For each channel: time a vector step = a + b x rows + c x env runners + d x bytes, by least squares.

    Relative errors are made small, so that a step of 100 us counts as much as one of 10 ms.
    """
    fitted = {}
    for channel in plans.CHANNELS:
        cells = [
            cell
            for cell in results
            if cell.work.startswith("bytes-") and cell.contender == f"remoterl Gymnasium {channel} driver"
        ]
        times = np.array([median(results, cell, "step_us") for cell in cells])
        if len(cells) < 5 or np.isnan(times).any():
            continue
        sizes = [int(cell.work.partition("-")[2]) * cell.rows / 1000 for cell in cells]
        terms = np.array([[1.0, cell.rows, cell.env_runners, size] for cell, size in zip(cells, sizes, strict=True)])
        factors, *_ = np.linalg.lstsq(terms / times[:, None], np.ones(len(cells)), rcond=None)
        errors = abs(terms @ factors / times - 1)
        names = ("a_us", "b_us_a_row", "c_us_an_env_runner", "d_us_a_kilobyte", "median_error", "largest_error")
        fitted[channel] = dict(zip(names, [*factors, np.median(errors), max(errors)], strict=True))
    return fitted


def save(results: Results, machine: dict[str, Any], folder: Path) -> None:
    """`results.json` and plots."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "machine": machine,
        "cells": [{**asdict(cell), "rounds": [asdict(one) for one in measured]} for cell, measured in results.items()],
        "figures": figures(results),
        "fits": fits(results),
    }
    (folder / "results.json").write_text(json.dumps(content, indent=1))
    for work in (plans.CARTPOLE, plans.CHEETAH, plans.PONG):
        _plot(results, work, folder / f"{work.replace('/', '-')}.png")


def _plot(results: Results, work: str, path: Path) -> None:
    from matplotlib.figure import Figure

    cells = [cell for cell in results if cell.work == work and cell.rows > 1 and not np.isnan(median(results, cell))]
    if not cells:
        return
    cells.sort(key=lambda cell: median(results, cell))
    figure = Figure(figsize=(8, 0.32 * len(cells) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    rates = [[one.steps_per_s for one in results[cell]] for cell in cells]
    middle = [statistics.median(values) for values in rates]
    spread: Sequence[Any] = [
        [at - min(values) for at, values in zip(middle, rates, strict=True)],
        [max(values) - at for at, values in zip(middle, rates, strict=True)],
    ]
    colors = ["tab:blue" if cell.contender.startswith("remoterl") else "tab:gray" for cell in cells]
    axes.barh([f"{cell.contender}, {cell.rows} rows" for cell in cells], middle, xerr=spread, color=colors)
    axes.set(xlabel="steps a second (median, least to most)", title=work)
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=130)
