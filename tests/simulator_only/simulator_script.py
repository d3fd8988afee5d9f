"""A simulator's own script, with an environment in its `__main__`."""

import sys

import gymnasium as gym
import numpy as np
import only_here  # noqa: F401

import remoterl


class InMainEnv(gym.Env):
    observation_space = gym.spaces.Box(0, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.ones(1, np.float32), 2.5, False, False, {"module": type(self).__module__}


gym.register("InMain-v0", entry_point=InMainEnv)

if __name__ == "__main__":
    remoterl.init(role="simulator", name=sys.argv[1], labels={"kind": "script"})
    remoterl.shutdown()
