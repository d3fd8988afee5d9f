"""An environment that misbehaves in any way and at any time that it is told. Shipped by value, as `envs` is."""

from __future__ import annotations

import ctypes
import os
import random
import resource
import signal
import string
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from envs import UnpicklableError
from ledger import LedgerEnv

MEGABYTE = 1_000_000


class BadEnv(LedgerEnv):
    """Keeps books like `LedgerEnv`, and does `what` (a method of it) `when`: in init, reset, step, render, close, add.

    A step does it at its second call; everything else at each.
    """

    metadata = {"render_modes": ["rgb_array"]}
    render_mode = "rgb_array"

    def __init__(self, what: str = "nothing", when: str = "step") -> None:
        super().__init__()
        self._what, self._when = what, when
        self.children: list[int] = []
        self._do("init")

    def _do(self, when: str, value: Any = None) -> Any:
        if when != self._when or (when == "step" and len(self.book) != 2):
            return value
        changed = getattr(self, f"_{self._what}")()
        return value if changed is None else changed

    def reset(self, **arguments: Any) -> Any:
        return self._do("reset", super().reset(**arguments))

    def step(self, action: int) -> Any:
        return self._do("step", super().step(action))

    def render(self) -> Any:
        return self._do("render", np.zeros((2, 2, 3), np.uint8))

    def close(self) -> None:
        self._do("close")

    def add(self, number: int) -> Any:
        """A method to call."""
        return self._do("add", number + 1)

    def folder(self) -> str:
        """The working directory, if it is still there."""
        return os.getcwd()

    def _nothing(self) -> None:
        pass

    # ---- raising -------------------------------------------------------------------------------------------------

    def _raise(self) -> None:
        raise ValueError("the arm hit the table")

    def _raise_unpicklable(self) -> None:
        raise UnpicklableError("the arm hit the table")

    def _raise_two_words(self) -> None:
        raise TwoWordsError("the arm", "hit the table")

    def _raise_only_here(self) -> None:
        raise PicklableOnceError("the arm hit the table")

    def _raise_unspeakable(self) -> None:
        raise UnspeakableError

    def _exit(self) -> None:
        sys.exit("the arm hit the table")

    def _interrupt(self) -> None:
        raise KeyboardInterrupt("the arm hit the table")

    def _use_up_memory(self) -> None:
        limits = resource.getrlimit(resource.RLIMIT_AS)
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + 50 * MEGABYTE, limits[1]))
        try:
            bytearray(1000 * MEGABYTE)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)

    # ---- ending its process ----------------------------------------------------------------------------------------

    def _exit_at_once(self) -> None:
        os._exit(7)

    def _crash(self) -> None:
        ctypes.string_at(0)

    def _be_killed(self) -> None:
        """As the kernel does it to whoever takes the last memory."""
        os.kill(os.getpid(), signal.SIGKILL)

    def _leave_children_and_die(self) -> None:
        self._start_children()
        os._exit(7)

    # ---- never coming back -----------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while True:
            pass

    # ---- returning what it should not --------------------------------------------------------------------------------

    def _return_longer(self) -> Any:
        return self._instead_of_the_observation(np.zeros(5, np.int64))

    def _return_floats(self) -> Any:
        return self._instead_of_the_observation(np.full(4, 0.5))

    def _return_text(self) -> Any:
        return self._instead_of_the_observation("the arm hit the table")

    def _return_outside(self) -> Any:
        return self._instead_of_the_observation(np.full(4, -7, np.int64))

    def _return_small_integers(self) -> Any:
        return self._instead_of_the_observation(np.array([1, 2, 3, 4], np.int8))

    def _return_four(self) -> Any:
        return (self._observation(0), 0.0, False, {})

    def _reward_with_a_word(self) -> Any:
        return (self._observation(0), "much", False, False, {})

    def _return_a_huge_info(self) -> Any:
        return (
            self._observation(0),
            0.0,
            False,
            False,
            {"frames": np.ones(30 * MEGABYTE, np.uint8), "text": "x" * MEGABYTE},
        )

    def _instead_of_the_observation(self, observation: Any) -> Any:
        return (observation, {}) if self._when == "reset" else (observation, 0.0, False, False, {})

    # ---- leaving its process other than it was -----------------------------------------------------------------------

    def _print(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            never_said = "".join(random.choices(string.ascii_lowercase, k=20))  # Ray keeps what resembles what was
            print(never_said, "the arm hit the table", file=stream, flush=True)

    def _print_megabytes(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            for line in range(10_000):
                print(f"{line:06} the arm hit the table", "and again, " * 10, file=stream)
            print("x" * MEGABYTE, file=stream, flush=True)

    def _lose_its_folder(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)

    def _start_children(self) -> None:
        """One forked, one a program of its own, one by a shell."""
        forked = os.fork()
        if forked == 0:
            time.sleep(1000)
        started = subprocess.Popen(["sleep", "1000"])
        shell = subprocess.run("sleep 1000 >/dev/null 2>&1 & echo $!", shell=True, capture_output=True, text=True)
        self.children += [forked, started.pid, int(shell.stdout)]

    def _fork_and_come_back(self) -> None:
        """As one writes it who forgets that the child goes on from here too."""
        child = os.fork()
        if child == 0:
            sys.exit(0)
        self.children.append(child)

    def _leave_threads(self) -> None:
        for daemon in (True, False):
            threading.Thread(target=threading.Event().wait, daemon=daemon).start()

    def _close_its_output(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            stream.close()
        for descriptor in (0, 1, 2):
            os.close(descriptor)

    def _take_signals(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)


class TwoWordsError(Exception):
    """Keeps one argument, is made with two: what pickle makes of it by itself cannot be unpickled."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} {other}")


class PicklableOnceError(Exception):
    """Unpickles in the process that raised it, and in no other."""

    def __reduce__(self) -> Any:
        return _only_in, (os.getpid(), str(self))


def _only_in(pid: int, text: str) -> Exception:
    if os.getpid() != pid:
        raise OSError("this is another process")
    return PicklableOnceError(text)


class UnspeakableError(Exception):
    """Can't be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


class NoEnv:
    """What a factory returned that is not an environment."""


class BadDictEnv(gym.Env):
    """A part of its observation is missing, or has another shape, from the second step on."""

    observation_space = gym.spaces.Dict(
        {"place": gym.spaces.Box(-1, 1, (2,), np.float32), "goal": gym.spaces.Box(-1, 1, (1,), np.float32)}
    )
    action_space = gym.spaces.Discrete(3)

    def __init__(self, second: Any = None) -> None:
        self._second = second
        self._steps = 0

    def _observation(self) -> Any:
        fits = {"place": np.zeros(2, np.float32), "goal": np.zeros(1, np.float32)}
        return fits if self._second is None or self._steps < 2 else self._second

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._steps = 0
        return self._observation(), {}

    def step(self, action: int) -> Any:
        self._steps += 1
        return self._observation(), 0.0, False, False, {}
