"""What warns in an env runner while environments are made there, for the trainer's script to show, or to raise."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from remoterl.messages import Warned

# Python's own filters are one for the process: of two threads that make environments, one's warnings are collected.
_collecting = threading.Lock()


@contextmanager
def collected(found: list[Warned]) -> Iterator[None]:
    """Every warning of this thread, but for those of an import: locally the script's own import had them, or none."""
    if not _collecting.acquire(blocking=False):
        yield
        return
    here, outside = sys._getframe(2), warnings.showwarning  # whose `with` it is
    thread = threading.get_ident()

    def show(message: Any, category: Any, filename: str, lineno: int, *more: Any) -> None:
        if threading.get_ident() != thread:
            outside(message, category, filename, lineno, *more)
            return
        module, frame = "", sys._getframe(1)
        while frame is not None and frame is not here:
            if frame.f_code.co_name == "<module>":
                return
            if frame.f_code.co_filename == filename:
                module = frame.f_globals.get("__name__", "")
            frame = frame.f_back  # type: ignore[assignment]
        known = next(kind for kind in category.__mro__ if kind.__module__ == "builtins")
        found.append(Warned(str(message), known, filename, lineno, module))

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.simplefilter("ignore", ResourceWarning)  # of whatever is collected as garbage just then
            warnings.showwarning = show  # type: ignore[assignment]
            yield
    finally:
        _collecting.release()
