"""Contenders that start once and then take turns (A B A B ...), each in a process of its own."""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

Opened = Callable[..., AbstractContextManager[Callable[[], Any]]]


@dataclass
class Failed:
    """What a contender sends in place of a measurement."""

    trace: str


def take_turns(opened: Opened, contenders: Mapping[str, tuple[Any, ...]], rounds: int) -> dict[str, list[Any]]:
    """What each contender measured in each round; a first one, to warm up, is left out. Standard error tells of each.

    Args:
        opened: a context manager that sets a contender up and gives the function that measures once; importable.
        contenders: name -> the arguments of `opened`.
        rounds: how many measurements of each.

    Raises:
        SystemExit: a contender failed; with its traceback.
    """
    spawn = multiprocessing.get_context("spawn")
    measured: dict[str, list[Any]] = {name: [] for name in contenders}
    with contextlib.ExitStack() as ends:
        pipes = {}
        for name, arguments in contenders.items():
            ours, theirs = spawn.Pipe()
            # no daemon: a contender may start Ray, whose processes are its children; it ends when its pipe closes
            contender = spawn.Process(target=_contend, args=(theirs, opened, arguments))
            contender.start()
            ends.callback(contender.join)
            ends.callback(ours.close)
            theirs.close()
            _answer(ours)
            pipes[name] = ours
        for turn in range(rounds + 1):
            for name, pipe in pipes.items():
                pipe.send("go")
                answer = _answer(pipe)
                print(f"{f'round {turn} of {rounds}' if turn else 'warming up'}: {name}: {answer}", file=sys.stderr)
                if turn:
                    measured[name].append(answer)
    return measured


def _contend(pipe: Connection, opened: Opened, arguments: tuple[Any, ...]) -> None:
    try:
        with opened(*arguments) as measure:
            pipe.send("ready")
            with contextlib.suppress(EOFError):
                while pipe.recv():
                    pipe.send(measure())
    except Exception:
        pipe.send(Failed(traceback.format_exc()))


def _answer(pipe: Connection) -> Any:
    try:
        said = pipe.recv()
    except EOFError:
        raise SystemExit("A contender ended without a word.") from None
    if isinstance(said, Failed):
        raise SystemExit(said.trace)
    return said
