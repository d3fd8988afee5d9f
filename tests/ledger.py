"""An environment that keeps books: which actions it was given, and which transitions it returned."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


class LedgerEnv(gym.Env):
    """Observation: (steps in this episode, all actions so far, the last action, the reset's seed or -1), int64."""

    observation_space = gym.spaces.Box(-1, 2**31, (4,), np.int64)
    action_space = gym.spaces.Discrete(1000)

    def __init__(self, episode: int = 10_000) -> None:
        self.book: list[tuple[int, int]] = []  # (number, action)
        self._episode = episode
        self._steps = 0
        self._seed = -1

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._steps, self._seed = 0, -1 if seed is None else seed
        return self._observation(-1), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        self.book.append((len(self.book) + 1, int(action)))
        ended = self._steps >= self._episode
        return self._observation(int(action)), float(action), ended, False, {"number": len(self.book)}

    def _observation(self, action: int) -> np.ndarray:
        return np.array([self._steps, len(self.book), action, self._seed])
