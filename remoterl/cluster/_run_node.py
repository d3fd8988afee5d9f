"""Runs `ray start` so that it ends with its parent, and leaves nothing behind. Executed as a script by `node`.

The kernel sends SIGINT to this process when the thread that started it ends, however it ends (`prctl`); it is passed on
to `ray start --block`, which takes its whole node down. On Linux this process stays beside it: whoever is orphaned
below it (what an environment started, and then lost its raylet) becomes its child, and is ended with the node.
"""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
FORWARDED = (signal.SIGINT, signal.SIGTERM)


def main(parent: int, arguments: list[str]) -> int:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job ignores it, and children inherit that
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", *arguments]
    if not sys.platform.startswith("linux"):
        os.execv(sys.executable, command)
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)  # what comes before there is someone to forward it to, waits
    end_with(parent, prctl)
    own, child = os.getpid(), os.fork()
    if child == 0:
        os.setpgid(0, 0)  # Ray's own reaper kills its whole group; this process has to outlive that
        end_with(own, prctl)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
        os.execv(sys.executable, command)
    for number in FORWARDED:
        signal.signal(number, lambda number, _: os.kill(child, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    while True:
        pid, status = os.wait()  # orphans among them
        if pid == child:
            break
    for number in FORWARDED:
        signal.signal(number, signal.SIG_IGN)
    end_children()
    return os.waitstatus_to_exitcode(status) & 0xFF


def end_with(parent: int, prctl: Callable[..., int]) -> None:
    prctl(PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def end_children() -> None:
    """Kill them, and those that become our children by that."""
    with contextlib.suppress(ChildProcessError):
        while True:
            for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            os.wait()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
