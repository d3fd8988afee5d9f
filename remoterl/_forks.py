"""What is done in a forked child before anything else runs there, with signals held back meanwhile.

A signal's handler that raises (`sys.exit`, as Ray's does) raises in vain while Python calls what was registered for
forks: a child that `Process.terminate()` or a pool ended in its first milliseconds would live on.
"""

from __future__ import annotations

import ctypes
import functools
import os
import signal
from collections.abc import Callable

_SIGSET_BYTES = 128  # of glibc's `sigset_t`, which is the largest


def after_fork_in_child(call: Callable[[], None]) -> None:
    """Call this in every child that this process forks from here on. It must not raise."""
    if not hasattr(os, "register_at_fork"):  # Windows
        return
    before = ctypes.create_string_buffer(_SIGSET_BYTES)
    every = ctypes.create_string_buffer(b"\xff" * _SIGSET_BYTES, _SIGSET_BYTES)
    # The C function itself: handlers run when Python code does, and none is to run between this and `fork`'s return.
    mask = ctypes.PyDLL(None).pthread_sigmask
    let_go = functools.partial(mask, signal.SIG_SETMASK, before, None)
    os.register_at_fork(
        before=functools.partial(mask, signal.SIG_BLOCK, every, before), after_in_parent=let_go, after_in_child=call
    )
    os.register_at_fork(after_in_child=let_go)
