"""Processes that environments start: they end with their env runner, and never pass for it. Linux.

A child that was forked holds copies of the env runner's sockets, and as long as one of them is open neither Ray nor the
trainer sees that the env runner is dead. What was started as a program of its own (`subprocess`, `os.system`) gets
none of them, and is ended by Ray with the env runner's process group (see `cluster.node`).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading

PR_SET_PDEATHSIG = 1

_forked_by_main_thread = False


def end_with_this_process() -> None:
    """Called once, by an env runner's process."""
    if not sys.platform.startswith("linux"):
        return
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:  # not the standard ones: what a child prints goes where its parent's words go
            with contextlib.suppress(OSError):
                os.set_inheritable(int(name), False)
    prctl = ctypes.CDLL(None).prctl  # looked up now: a forked child should do as little as it can

    def before() -> None:
        global _forked_by_main_thread
        _forked_by_main_thread = threading.get_native_id() == os.getpid()

    def in_child() -> None:
        # The kernel sends it when the *thread* that forked ends; of any but the main one that may be long before.
        if _forked_by_main_thread:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    os.register_at_fork(before=before, after_in_child=in_child)
