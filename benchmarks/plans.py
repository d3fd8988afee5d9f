"""Which cells are measured, which ratios matter, and which figures are wanted."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.contenders import BY_HAND, Cell

SYNC, ASYNC = "Gymnasium SyncVectorEnv", "Gymnasium AsyncVectorEnv"
DUMMY, SUBPROC = "SB3 DummyVecEnv", "SB3 SubprocVecEnv"
LIMIT = "processes without messages"
CARTPOLE, CHEETAH, PONG = "CartPole-v1", "HalfCheetah-v5", "ALE/Pong-v5"
CONNECTIONS = ("driver", "client")
CHANNELS = ("stream", "actor")


@dataclass(frozen=True)
class Wanted:
    """A figure to reach: the contender's steps a second against the baseline's, or a step's time above it."""

    cell: Cell
    baseline: Cell
    at_least: float = 0.0  # as a ratio
    at_most_us: float = 0.0


def figures() -> list[Wanted]:
    """By `stream`, through Ray Client and in-cluster alike, unless a line says otherwise."""
    wanted = []
    for connection in CONNECTIONS:
        gym, sb3 = f"remoterl Gymnasium stream {connection}", f"remoterl SB3 stream {connection}"
        for face, work, rows, baseline, at_least in (
            (sb3, CARTPOLE, 32, SUBPROC, 15.0),
            (gym, CARTPOLE, 32, ASYNC, 12.0),
            (gym, CARTPOLE, 32, SYNC, 1.0),
            (gym, CARTPOLE, 128, SYNC, 1.5),
            (gym, CHEETAH, 16, ASYNC, 5.0),
            (gym, CHEETAH, 16, SYNC, 1.6),
            (gym, PONG, 16, ASYNC, 1.7),
            (gym, PONG, 16, SYNC, 1.7),
        ):
            wanted.append(Wanted(Cell(face, work, rows), Cell(baseline, work, rows), at_least))
        one = Cell(f"remoterl make stream {connection}", CARTPOLE, 1, 1)
        wanted.append(Wanted(one, Cell("gymnasium.make", CARTPOLE, 1), at_most_us=150.0))
    for connection, rows, at_least in (("driver", 32, 2.0), ("driver", 128, 6.0), ("client", 128, 2.0)):
        cell = Cell(f"remoterl SB3 actor {connection}", CARTPOLE, rows)
        wanted.append(Wanted(cell, Cell(SUBPROC, CARTPOLE, rows), at_least))
    return wanted


def limit(cell: Cell) -> Cell:
    """What the cores of this machine can do at most, with the rows and env runners of a cell."""
    return Cell(LIMIT, cell.work, cell.rows, cell.env_runners)


def ideal() -> list[tuple[Cell, float]]:
    """Cells with a known best: eight rows one after the other, 5 ms each, on every one of eight env runners."""
    return [
        (Cell(f"remoterl Gymnasium stream {connection}", "sleep-5", 64, 8), 8 * 5_000.0) for connection in CONNECTIONS
    ]


def others() -> list[Cell]:
    """Measured for the table."""
    cells = [Cell(name, CARTPOLE, 32) for name in (DUMMY, "EnvPool", "remote-gym")]
    cells.append(Cell(BY_HAND, CARTPOLE, 16))
    cells += [Cell(f"remoterl Gymnasium {channel} driver", CARTPOLE, 32) for channel in CHANNELS]
    cells += [Cell(name, "bytes-1000000", 16) for name in (SYNC, ASYNC)]
    cells += [Cell(f"remoterl Gymnasium {channel} driver", "bytes-1000000", 16) for channel in CHANNELS]
    return cells


def growth(quick: bool) -> list[Cell]:
    """For the fit of time = a + b x rows + c x env runners + d x bytes, with environments that cost nothing."""
    sizes = [(1, 1), (32, 1), (128, 1), (512, 1), (8, 2), (128, 2), (512, 2), (32, 4), (512, 4), (64, 8), (512, 8)]
    shapes = [(rows, runners, 32) for rows, runners in (sizes[::3] if quick else sizes)]
    shapes += [(16, 2, 10_000), (16, 2, 100_000), (8, 1, 100_000)] if quick else [
        (rows, runners, size) for rows, runners in ((8, 1), (16, 2)) for size in (10_000, 100_000, 500_000)
    ]  # fmt: skip
    return [
        Cell(f"remoterl Gymnasium {channel} driver", f"bytes-{size}", rows, runners)
        for channel in CHANNELS
        for rows, runners, size in shapes
    ]
