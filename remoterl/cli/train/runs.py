"""What every training of the command line has around it: a session, a folder, an end.

The training itself is the framework's, in the subcommand's own file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from remoterl.cli import tracebacks
from remoterl.cli.progress import TrainingProgress
from remoterl.errors import ConfigurationError


@contextmanager
def session(*, address: str | None, num_workers: int, num_env_runners: int, timeout: float) -> Iterator[None]:
    """A trainer's session for as long as the body runs; exit code 1 where there is none to be had."""
    import logging

    from remoterl import _process

    with _process.session_of_a_command(
        address=address,
        num_workers=num_workers,
        num_env_runners=num_env_runners,
        timeout_s=timeout,
    ) as connected:
        if not connected:
            raise typer.Exit(1)
        logging.getLogger("ray").setLevel(logging.WARNING)  # ray.init() has set it to INFO
        with tracebacks.shown():
            yield


@contextmanager
def refusals(algo: str) -> Iterator[None]:
    """What a framework says of settings that don't fit together, or not to the environment, is an error of ours."""
    try:
        yield
    except (AssertionError, ValueError) as error:
        raise ConfigurationError(f"{algo} refuses: {' '.join(str(error).split())}") from error


def output_folder(output: Path | None, algo: str, env_id: str, root: Path = Path("runs")) -> Path:
    """The folder that was asked for, else the first free `runs/ALGO_ENV_1`, `_2`, ...; made if need be.

    Raises:
        ConfigurationError: nothing can be written there.
    """
    try:
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
            return output
        root.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{algo}_{env_id}")
        number = 1
        while True:
            try:
                (root / f"{name}_{number}").mkdir()
                return root / f"{name}_{number}"
            except FileExistsError:
                number += 1
    except OSError as error:
        raise ConfigurationError(f"--output: nothing can be written to {error.filename} ({error.strerror}).") from error


def follow(progress: TrainingProgress, learn: Callable[[], None], save: Callable[[], Path], folder: Path) -> typer.Exit:
    """Train, save, and say how it went; Ctrl-C ends the training earlier, and what was learned is saved too.

    Returns:
        The command's exit: 0 where it ran to its end, and to its target if it has one.
    """
    interrupted = False
    try:
        with progress:
            learn()
    except KeyboardInterrupt:
        interrupted = True
        progress.say("Interrupted: saving what was learned ...")
    saved = save()
    progress.say(f"{progress.summary()}, learning included.")
    progress.say(f"Saved: {saved}")
    if progress.curve:
        progress.plot(folder / "learning_curve.png", progress.title)
        progress.say(f"The learning curve is in {folder / 'learning_curve.png'}.")
    done = not interrupted and (progress.target is None or progress.reached)
    return typer.Exit(0 if done else 1)
