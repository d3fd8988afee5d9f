"""Small environments with one property each. Shipped from here to the simulators, which do not have this file."""

from __future__ import annotations

import os
import socket
import threading
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class CountingEnv(gym.Env):
    """Observes how often it was stepped; truncates after `length` steps; its info says where it lives."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}

    def __init__(self, length: int = 5, render_mode: str | None = None) -> None:
        self.length = length
        self.render_mode = render_mode
        self.observation_space = spaces.Box(0, 1e6, (2,), np.float32)
        self.action_space = spaces.Discrete(3)
        self.steps = 0
        self.favourite = "blue"

    def _observation(self) -> np.ndarray:
        return np.array([self.steps, self.length], np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.steps = 0
        return self._observation(), {"seed": seed, "options": options}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.steps += 1
        info = {"pid": os.getpid(), "action": int(action), "word": "x" * self.steps}
        return self._observation(), float(action), False, self.steps >= self.length, info

    def render(self) -> np.ndarray:
        return np.full((4, 4, 3), self.steps, np.uint8)

    def where(self) -> tuple[str, int]:
        """Host and process that it lives in."""
        return socket.gethostname(), os.getpid()

    def add(self, left: int, right: int = 0) -> int:
        """A method to call."""
        return left + right + self.steps


class RaisingEnv(CountingEnv):
    """Raises where it is told to."""

    def __init__(self, where: str = "step", error: str = "ValueError", length: int = 5) -> None:
        super().__init__(length)
        self._where = where
        self._error = error
        if where == "init":
            self._raise()

    def _raise(self) -> None:
        if self._error == "unpicklable":
            raise UnpicklableError("the arm hit the table")
        raise {"ValueError": ValueError, "KeyError": KeyError}[self._error]("the arm hit the table")

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict]:
        if self._where == "reset":
            self._raise()
        return super().reset(**kwargs)

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        if self._where == "step" and self.steps == 2:
            self._raise()
        return super().step(action)


class UnpicklableError(Exception):
    """Holds a lock, so it can't travel."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class ExitingEnv(CountingEnv):
    """Ends its process at the third step."""

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        if self.steps == 2:
            os._exit(7)
        return super().step(action)


class NestedEnv(CountingEnv):
    """Dict and Tuple spaces, and infos of every type."""

    def __init__(self, length: int = 5) -> None:
        super().__init__(length)
        self.observation_space = spaces.Dict(
            {
                "image": spaces.Box(0, 255, (3, 3), np.uint8),
                "pose": spaces.Tuple((spaces.Box(-1, 1, (2,), np.float64), spaces.Discrete(9, start=2))),
            }
        )

    def _observation(self) -> Any:  # type: ignore[override]
        return {
            "image": np.full((3, 3), self.steps, np.uint8),
            "pose": (np.array([0.1, self.steps / 100]), np.int64(2 + self.steps % 9)),
        }

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        observation, reward, terminated, truncated, _ = super().step(action)
        info: dict[str, Any] = {
            "float": 0.5 * self.steps,
            "array": np.arange(self.steps % 2 + 1)[:1],
            "flag": True,
        }
        if self.steps % 2:
            info["odd"] = {"inner": self.steps, "name": f"step {self.steps}"}
        return observation, reward, terminated, truncated, info
