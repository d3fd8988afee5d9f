"""An env runner's side of a stream: a loop that answers requests until the trainer goes. Linux.

It runs in the thread that calls `serve`, the actor's own, so that environments are made and stepped in one and the
same thread, by whichever channel. What costs most in a step of small environments is waking a process that sleeps:
after a step the loop looks for the next one for up to `SPIN_S` before it sleeps, where this machine has a core for it.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from remoterl.channels.framing import FrameSocket, UndecodableError
from remoterl.channels.stream import keep_alive
from remoterl.messages import StepRows

SPIN_S = 0.0003  # what waking a process costs, a few times over
RECOUNT_S = 5.0


def serve(connected: socket.socket, answer: Callable[[Any], Any], failed: Callable[[Any, Any, Exception], Any]) -> None:
    """Answer requests in their order until the other end is gone.

    Args:
        connected: to the trainer, authenticated.
        answer: makes the reply to a request; never raises.
        failed: makes the reply in place of one that can't be pickled (request, reply, error).
    """
    keep_alive(connected)
    frames = FrameSocket(connected)
    readable, writable = select.poll(), select.poll()
    readable.register(connected, select.POLLIN)
    writable.register(connected, select.POLLOUT)
    cores = SpareCores()
    stepped = False
    try:
        while True:
            try:
                request = (_spin(frames) if stepped and cores.enough() else None) or _wait(frames, readable)
            except UndecodableError as error:
                request, reply = None, failed(None, None, error)
            else:
                reply = answer(request)
            try:
                frames.put(reply)
            except Exception as error:
                frames.put(failed(request, reply, error))
            while not frames.flush():
                writable.poll()
            stepped = type(request) is StepRows
    except OSError:  # the trainer closed the stream, or is gone
        pass
    finally:
        frames.close()


def _spin(frames: FrameSocket) -> Any:
    until = time.perf_counter() + SPIN_S
    while (request := frames.get()) is None and time.perf_counter() < until:
        os.sched_yield()  # to the trainer, if it waits for this core
    return request


def _wait(frames: FrameSocket, readable: select.poll) -> Any:
    while (request := frames.get()) is None:
        readable.poll()
    return request


class SpareCores:
    """Has every env runner on this machine a core of its own? Where not, one that spins takes another's time."""

    def __init__(self) -> None:
        self._cores = len(os.sched_getaffinity(0))
        self._enough = False
        self._recount_at = 0.0

    def enough(self) -> bool:
        """As of the last count, which is at most a few seconds old."""
        now = time.monotonic()
        if now >= self._recount_at:
            self._recount_at = now + RECOUNT_S
            self._enough = count_env_runners() <= self._cores
        return self._enough


def count_env_runners() -> int:
    """Env runners on this machine, of all its Ray nodes and trainers: Ray gives its actors' processes their names."""
    count = 0
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                count += (process / "cmdline").read_bytes().startswith(b"ray::EnvRunner")
            except OSError:  # it ended while we looked
                continue
    return count
