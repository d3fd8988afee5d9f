"""What is stepped: environments from a few microseconds to five milliseconds a step, from 32 bytes to a megabyte."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class ConstantEnv(gymnasium.Env):
    """Steps in no time (or sleeps) and observes the same bytes: what is left is the way there and back."""

    def __init__(self, size_bytes: int = 32, sleep_s: float = 0.0) -> None:
        self.observation_space = spaces.Box(0, 255, (size_bytes,), np.uint8)
        self.action_space = spaces.Discrete(2)
        self._observation = np.zeros(size_bytes, np.uint8)
        self._sleep_s = sleep_s

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return self._observation, {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        if self._sleep_s:
            time.sleep(self._sleep_s)
        return self._observation, 0.0, False, False, {}


def registered(env_id: str) -> Callable[[], gymnasium.Env]:
    """Makes an environment of Gymnasium's registry."""

    def make() -> gymnasium.Env:
        if env_id.startswith("ALE/"):
            import ale_py  # noqa: F401 - registers them

        return gymnasium.make(env_id)

    return make


def factory(work: str) -> Callable[[], gymnasium.Env]:
    """The environment of a work: a registered id, `sleep-MILLISECONDS` or `bytes-SIZE`."""
    kind, _, number = work.partition("-")
    if kind == "sleep":
        return lambda: ConstantEnv(sleep_s=int(number) / 1000)
    if kind == "bytes":
        return lambda: ConstantEnv(int(number))
    return registered(work)
