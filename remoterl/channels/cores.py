"""Whether a process that waits for an answer has a core to spare, and may look for it instead of sleeping.

What costs most in a step of small environments is waking a process that sleeps. So whoever waits, looks for a while
before it sleeps; but where there are more processes than cores, one that looks takes another's time.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

SPIN_S = 0.0005  # what waking a process costs, a few times over
RECOUNT_S = 5.0


class SpareCores:
    """Has every env runner on this machine a core of its own, and `others` processes too? Linux; else never."""

    def __init__(self, others: int = 0) -> None:
        self._cores = len(os.sched_getaffinity(0)) - others if hasattr(os, "sched_getaffinity") else 0
        self._enough = False
        self._recount_at = 0.0

    def enough(self) -> bool:
        """As of the last count, which is at most a few seconds old."""
        now = time.monotonic()
        if now >= self._recount_at:
            self._recount_at = now + RECOUNT_S
            try:
                self._enough = self._cores > 0 and count_env_runners() <= self._cores
            except OSError:
                self._enough = False
        return self._enough


def count_env_runners() -> int:
    """Env runners on this machine, of all its Ray nodes and trainers: Ray gives its actors' processes their names.

    Raises:
        OSError: this process can open no more files.
    """
    count = 0
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                count += (process / "cmdline").read_bytes().startswith(b"ray::EnvRunner")
            except (FileNotFoundError, ProcessLookupError, PermissionError):  # it ended while we looked
                continue
    return count
