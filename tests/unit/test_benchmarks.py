"""What the benchmarks make of measurements."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import plans, report, trainings
from benchmarks.contenders import FACES, LOCAL, REMOTE, Cell
from benchmarks.measure import Measured


def test_the_fit_finds_what_the_times_were_made_of() -> None:
    results = {}
    for cell in plans.growth(quick=False):
        kilobytes = int(cell.work.partition("-")[2]) * cell.rows / 1000
        results[cell] = [Measured(step_us=100 + 2 * cell.rows + 30 * cell.env_runners + 0.5 * kilobytes)] * 3
    for fitted in report.fits(results).values():
        assert [round(value, 3) for value in fitted.values()] == [100, 2, 30, 0.5, 0, 0]
    assert list(report.fits(results)) == list(plans.CHANNELS)


def test_a_split_adds_up() -> None:
    cell = Cell("remoterl Gymnasium stream driver", plans.CARTPOLE, 32)
    local = Cell(plans.SYNC, plans.CARTPOLE, 32)
    results = {cell: [Measured(step_us=300, send_us=40, wait_us=220)], local: [Measured(step_us=200)]}
    parts = report.split(results, cell)
    assert parts == {"step": 300, "face": 40, "sending": 40, "environments": 100, "wire": 120}
    assert report.split(results, local) is None


def test_every_wanted_figure_is_of_contenders_that_exist() -> None:
    known = {*LOCAL, *REMOTE}
    assert {cell.contender for wanted in plans.figures() for cell in (wanted.cell, wanted.baseline)} <= known
    assert {name.split()[1] for name in REMOTE} == set(FACES)


@pytest.mark.parametrize("error", ["", "ImportError: no such package"])
def test_a_report_of_little_is_no_error(tmp_path: Path, error: str) -> None:
    from rich.console import Console

    results: report.Results = {Cell(plans.SYNC, plans.CARTPOLE, 32): [Measured(step_us=1, steps_per_s=9, error=error)]}
    report.show(results, Console(quiet=True))
    report.save(results, {"cores": 2}, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["machine"] == {"cores": 2}


# ---- trainings -----------------------------------------------------------------------------------------------


def test_two_trainings_are_equal_whatever_their_clocks_and_columns_say() -> None:
    here = {"time/total_timesteps": "100", "rollout/ep_rew_mean": "1.5", "time/fps": "50"}
    remote = {"time/fps": "40", "rollout/ep_rew_mean": "1.5", "time/total_timesteps": "100"}
    assert trainings.figures([here]) == trainings.figures([remote])
    assert trainings.figures([here]) != trainings.figures([{**remote, "rollout/ep_rew_mean": "1.50001"}])


def test_a_trainings_rate_is_that_between_its_first_row_and_its_last() -> None:
    curve = [{"time/total_timesteps": str(steps), "time/fps": str(fps)} for steps, fps in ((100, 10), (300, 20))]
    assert trainings.rate(curve) == 200 / (15 - 10)
