"""A simulator with an environment of its own: trainers make it by its id, and never see this file.

greenhouse_trainer.py is one. Start this on as many machines as you like. Set REMOTERL_ADDRESS to the hub's address
(host:6379) and REMOTERL_API_KEY to the cluster's key; without an address, it starts a hub too. Ctrl-C or a signal
stops it.
"""

import gymnasium as gym
import numpy as np

import remoterl


class Greenhouse(gym.Env):
    """A day in a greenhouse, a quarter of an hour a step: keep it at 21 degrees, with as little heating as will do.

    Observations, (3,) float32: inside and outside temperature, in tens of degrees above 21; the part of the day that is
    over. Actions: heating off, half, full. Reward: minus the tens of degrees that are off, minus what heating costs.
    """

    observation_space = gym.spaces.Box(-10, 10, (3,), np.float32)
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._hours = 0.0
        self._season = self.np_random.uniform(0, 12)  # degrees, the day's mean
        self._inside = self.np_random.uniform(5, 30)
        return self._observe(), {}

    def step(self, action):
        self._hours += 0.25
        self._inside += 0.1 * (self._outside() - self._inside) + 1.5 * action + self.np_random.normal(0, 0.1)
        reward = -abs(self._inside - 21) / 10 - 0.05 * action
        return self._observe(), float(reward), False, False, {}

    def _outside(self):
        return self._season - 6 * np.cos(2 * np.pi * self._hours / 24)

    def _observe(self):
        return np.array([(self._inside - 21) / 10, (self._outside() - 21) / 10, self._hours / 24], np.float32)


gym.register("Greenhouse-v0", entry_point=Greenhouse, max_episode_steps=96)

if __name__ == "__main__":
    remoterl.init(role="simulator", labels={"offers": "greenhouse"})  # blocks here
    remoterl.shutdown()
