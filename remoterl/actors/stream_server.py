"""An env runner's side of a stream: a loop that answers requests until the trainer goes. Linux.

It runs in the thread that calls `serve`, the actor's own, so that environments are made and stepped in one and the
same thread, by whichever channel. What costs most in a step of small environments is waking a process that sleeps:
after a step the loop looks for the next one for up to `SPIN_S` before it sleeps, where this machine has a core for it
and the last one came so soon. A trainer that computes for longer between two steps has the cores for that.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable
from typing import Any, cast

from remoterl.channels.cores import SPIN_S, SpareCores
from remoterl.channels.framing import FrameSocket, UndecodableError
from remoterl.channels.stream import set_options
from remoterl.messages import StepRows


def serve(
    connected: socket.socket, answer: Callable[[Any, Any], Any], failed: Callable[[Any, Any, Exception], Any]
) -> None:
    """Answer requests in their order until the other end is gone.

    Args:
        connected: to the trainer, authenticated.
        answer: makes the reply to a request, whose observations can be written to the memory that comes with it (bytes
            for each of their arrays, or nothing); never raises.
        failed: makes the reply in place of one that can't be pickled (request, reply, error).
    """
    set_options(connected)
    _let_the_trainer_go_first()
    frames = FrameSocket(connected)
    readable, writable = select.poll(), select.poll()
    readable.register(connected, select.POLLIN)
    writable.register(connected, select.POLLOUT)
    cores = SpareCores()
    looks = False  # for the next request, before it sleeps
    replied_at = 0.0
    try:
        while True:
            came_soon, room = False, None
            try:
                request = (_spin(frames) if looks and cores.enough() else None) or _wait(frames, readable)
            except UndecodableError as error:
                request, reply = None, failed(None, None, cast(Exception, error.__cause__))
            else:
                came_soon = time.perf_counter() - replied_at < SPIN_S
                room = frames.room(request)
                reply = answer(request, () if room is None else room.arrays)
            try:
                frames.put(reply, room)
            except Exception as error:
                if frames.is_torn:  # an environment's alarm, and no fault of the reply's
                    raise
                frames.put(failed(request, reply, error))
            while not frames.flush():
                writable.poll()
            looks, replied_at = came_soon and type(request) is StepRows, time.perf_counter()
    except OSError:  # the trainer closed the stream, or is gone
        pass
    finally:
        frames.close()


def _let_the_trainer_go_first() -> None:
    """On a machine that the trainer shares, its first message would wake this process in its own place, and the other
    env runners would get theirs when this one has stepped. Linux's batch policy has the same priority, but a process
    that wakes does not take the core of one that runs."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _spin(frames: FrameSocket) -> Any:
    """Look again and again; between two looks the core is another's, if it waits for it.

    A trainer of another session may wait until the end of this (`/proc/sys/kernel/sched_autogroup_enabled`, sched(7)).
    Short sleeps are no better: on a virtual machine one of less than 30 us is over before the core is given away.
    """
    until = time.perf_counter() + SPIN_S
    while (request := frames.get()) is None and time.perf_counter() < until:
        os.sched_yield()
    return request


def _wait(frames: FrameSocket, readable: select.poll) -> Any:
    while (request := frames.get()) is None:
        readable.poll()
    return request
