"""Runs `ray start` so that it ends with its parent. Executed as a script by `node`, never imported.

The kernel sends SIGINT to this process when the thread that started it ends, however it ends (`prctl`);
`ray start --block` takes its whole node down on SIGINT. Both survive the exec below.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    parent = int(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job ignores it, and children inherit that
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        sys.exit(1)
    os.execv(sys.executable, [sys.executable, "-m", "ray.scripts.scripts", "start", *sys.argv[2:]])
