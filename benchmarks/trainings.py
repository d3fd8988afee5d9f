"""The real trainings of `docs/trainings.md`: their curves on simulators and in process, and their steps a second.

`python -m benchmarks.trainings --folder FOLDER` draws what is in `FOLDER/TRAINING-simulators` and
`FOLDER/TRAINING-process`, the `--output`s of one training in both places, into `docs/trainings`, and says whether the
two are equal. With `--rounds 3` it runs each training in small instead, on a private cluster's simulators, in process
and in sub-processes, in turn, and prints a table of steps a second, learning included.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WHERES = ("simulators", "process", "subprocesses")
CLOCKS = ("time/fps", "time/time_elapsed")


@dataclass(frozen=True)
class Training:
    title: str
    script: str
    small: int  # steps that the wall-clock takes


TRAININGS = {
    "cartpole": Training("PPO on CartPole-v1", "benchmarks/cartpole_training.py", 12_288),
    "halfcheetah": Training("SAC on HalfCheetah-v5", "examples/sb3_halfcheetah.py", 16_000),
    "minigrid": Training("PPO on MiniGrid-LavaGapS5-v0, from pixels", "examples/sb3_minigrid.py", 6_144),
}


def rows(folder: Path) -> list[dict[str, str]]:
    """What the logger wrote of a training, every digit of it."""
    with open(folder / "progress.csv") as file:
        return list(csv.DictReader(file))


def figures(curve: list[dict[str, str]]) -> list[dict[str, str]]:
    """Returns, lengths, losses, steps: all but the clocks'."""
    return [{key: value for key, value in row.items() if key not in CLOCKS} for row in curve]


def rate(curve: list[dict[str, str]]) -> float:
    """Steps a second between the first row and the last, so that the start does not count, nor what follows."""
    steps = [int(curve[place]["time/total_timesteps"]) for place in (0, -1)]
    seconds = [total / int(curve[place]["time/fps"]) for total, place in zip(steps, (0, -1), strict=True)]
    return (steps[1] - steps[0]) / (seconds[1] - seconds[0])


def draw(name: str, folder: Path, picture: Path) -> None:
    """Both curves in one picture; says where they part, in any figure that is no clock's."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    remote, here = (rows(folder / f"{name}-{where}") for where in ("simulators", "process"))
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for curve, label, style in (
        (here, "in process", {"linewidth": 6, "color": "#f5b97a"}),
        (remote, "on simulators", {"linewidth": 1.2, "color": "#1f3a93"}),
    ):
        points = [(int(row["time/total_timesteps"]), row["rollout/ep_rew_mean"]) for row in curve]
        axes.plot(*zip(*[(steps, float(mean)) for steps, mean in points if mean], strict=True), label=label, **style)
    axes.set(title=TRAININGS[name].title, xlabel="environment steps", ylabel="mean return of 100 episodes")
    axes.grid(alpha=0.3)
    axes.legend()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=100)
    both = min(len(remote), len(here))
    same = figures(remote[:both]) == figures(here[:both])
    said = "equal in every digit" if same else "NOT equal"
    print(f"{name}: {len(remote)} rows on simulators, {len(here)} in process, what both have is {said}.")


def steps_per_second(name: str, where: str) -> float:
    training = TRAININGS[name]
    with tempfile.TemporaryDirectory() as folder:
        arguments = ("--where", where, "--timesteps", str(training.small), "--output", folder)
        environment = {**os.environ, "REMOTERL_ADDRESS": "local", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, training.script, *arguments]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        return rate(rows(Path(folder)))


def wall_clock(names: list[str], rounds: int) -> None:
    measured: dict[tuple[str, str], list[float]] = {(name, where): [] for name in names for where in WHERES}
    for _ in range(rounds):
        for name, where in measured:
            measured[name, where].append(steps_per_second(name, where))
            print(f"{name}, {where}: {measured[name, where][-1]:,.0f} steps a second", file=sys.stderr)
    print("| training | " + " | ".join(WHERES) + " |\n| --- |" + " ---: |" * len(WHERES))
    for name in names:
        cells = [measured[name, where] for where in WHERES]
        told = [f"{statistics.median(cell):,.0f} ({min(cell):,.0f} to {max(cell):,.0f})" for cell in cells]
        print(f"| {TRAININGS[name].title} | {' | '.join(told)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trainings", nargs="*", help=f"of {', '.join(TRAININGS)}; all, unless some are named")
    parser.add_argument("--folder", type=Path, help="draw the curves in it")
    parser.add_argument("--rounds", type=int, default=0, help="measure the steps a second")
    options = parser.parse_args()
    names = options.trainings or list(TRAININGS)
    if options.folder:
        for name in names:
            draw(name, options.folder, ROOT / "docs" / "trainings" / f"{name}.png")
    if options.rounds:
        wall_clock(names, options.rounds)


if __name__ == "__main__":
    main()
