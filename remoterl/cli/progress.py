"""How a training goes: a progress bar (plain lines where there is no terminal), a summary, a learning curve."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import Any

LINES = 20  # without a terminal, a training says so often where it is
REPORTS = 1000  # points of the learning curve at most, for those who ask `is_due`


class TrainingProgress:
    """Shows and keeps the score of one training; a context manager, which measures the time inside it.

    Args:
        title: what is trained, `PPO on CartPole-v1`.
        max_steps: environment steps of all rows after which the training ends.
        target: the score that ends it earlier; None for all the steps.
    """

    def __init__(self, console: Any, title: str, max_steps: int, target: float | None = None) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self.title = title
        self.max_steps = max_steps
        self.target = target
        self.steps = 0
        self.score: float | None = None
        self._is_whole = False
        self.curve: list[tuple[int, float]] = []  # (steps, mean return of the last 100 episodes)
        self.seconds = 0.0
        self._console = console
        self._lines = 0
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"), TimeElapsedColumn(),
            console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task(title, total=target or max_steps, state="")

    def __enter__(self) -> TrainingProgress:
        self._start = time.monotonic()
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.seconds = time.monotonic() - self._start
        self._bar.stop()

    @property
    def reached(self) -> bool:
        """Has the score reached the target, over 100 episodes? False where there is no target."""
        return self.target is not None and self.score is not None and self._is_whole and self.score >= self.target

    @property
    def rate(self) -> float:
        """Environment steps a second, everything included."""
        return self.steps / max(self.seconds, 1e-9)

    def report(self, steps: int, score: float | None, is_whole: bool = True) -> None:
        """So many steps are done, with this mean return; None as long as no episode has ended.

        `is_whole`: it is of as many episodes as it will ever be, so that it can reach the target.
        """
        self._is_whole = is_whole
        self.steps, self.seconds = steps, time.monotonic() - self._start
        if score is not None:
            self.score = score
            self.curve.append((steps, score))
        state = f"{steps:,} steps  {self._score}  {self.rate:,.0f} steps/s"
        done = steps if self.target is None else max(0.0, min(self.score or 0.0, self.target))
        self._bar.update(self._task, completed=done, state=state)
        if not self._console.is_terminal and steps * LINES >= self._lines * self.max_steps:
            self._lines = steps * LINES // self.max_steps + 1
            self.say(state)

    def is_due(self, steps: int) -> bool:
        """Is it time for another report? For loops that come by at every step."""
        return steps >= min(self.steps + self.max_steps / REPORTS, self.max_steps)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._console.print(line, highlight=False, soft_wrap=True)

    def summary(self) -> str:
        """One line: how it ended, and how fast it was."""
        outcome = "Done" if self.target is None else "Solved" if self.reached else "Stopped"
        target = "" if self.target is None else f" (target {self.target:g})"
        return (
            f"{outcome}: {self._score}{target} after {self.steps:,} steps in {self.seconds:.0f} s: "
            f"{self.rate:,.0f} steps/s"
        )

    def plot(self, path: Path, title: str) -> None:
        """Save the learning curve as a picture."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(
            [steps for steps, _ in self.curve],
            [score for _, score in self.curve],
            marker="." if len(self.curve) < LINES else None,
            label="mean return of the last 100 episodes",
        )
        if self.target is not None:
            axes.axhline(self.target, linestyle="--", color="grey", label="target")
        axes.set(xlabel="steps", ylabel="return", title=title)
        axes.legend()
        axes.grid(alpha=0.3)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)

    @property
    def _score(self) -> str:
        return "no episode has ended" if self.score is None else f"mean return {self.score:.1f}"
