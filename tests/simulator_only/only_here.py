"""An environment package that is on the simulators' path only: trainers must never import it."""

from __future__ import annotations

import os

import gymnasium as gym
import numpy as np


class OnlyHereEnv(gym.Env):
    """Stays where it is."""

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, size: int = 3) -> None:
        self.observation_space = gym.spaces.Box(-1, 1, (size,), np.float32)
        self.action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, self.observation_space.shape).astype(np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        observation = self.np_random.uniform(-1, 1, self.observation_space.shape).astype(np.float32)
        return observation, 1.0, False, False, {"pid": os.getpid()}

    def where_remoterl_is(self) -> str:
        import remoterl

        return os.path.dirname(remoterl.__file__)


gym.register("OnlyHere-v0", entry_point=OnlyHereEnv, max_episode_steps=10)
gym.register("OnlyHereByName-v0", entry_point="only_here:OnlyHereEnv", kwargs={"size": 5})
gym.register("BothKnow-v0", entry_point=OnlyHereEnv, kwargs={"size": 7})
