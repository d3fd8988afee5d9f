"""Errors of a script's and of a framework's, with their traceback: Typer ends some with a word, or with none."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from remoterl.errors import RemoteRLError


class InterruptedByUser(BaseException):
    """Holds a `KeyboardInterrupt`, which Typer would end with a word: this it lets through."""

    def __init__(self, interrupt: KeyboardInterrupt) -> None:
        super().__init__()
        self.interrupt = interrupt


@contextmanager
def interrupts() -> Iterator[None]:
    """Ctrl-C in here ends the command as it ends a script: with a traceback, and by SIGINT, as shells expect."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise InterruptedByUser(interrupt) from None


@contextmanager
def shown(*kinds: type[BaseException]) -> Iterator[None]:
    """Show an `EOFError`, an `OSError` or one of these as Python shows what nobody catches; the exit code is 1."""
    try:
        yield
    except Exception as error:
        is_typers = isinstance(error, (EOFError, OSError)) and not isinstance(error, RemoteRLError)
        if not is_typers and not isinstance(error, kinds):
            raise
        sys.excepthook(type(error), error, error.__traceback__)
        raise typer.Exit(1) from None
