"""A small environment of PettingZoo's parallel kind: two agents on a line, paid when they meet."""

from __future__ import annotations

import numpy as np
from gymnasium.spaces import Box, Discrete
from pettingzoo import ParallelEnv


class Meeting(ParallelEnv):
    metadata = {"name": "meeting_v0"}
    possible_agents = ["one", "other"]

    def observation_space(self, agent: str) -> Box:
        return Box(-10, 10, (2,), np.float32)

    def action_space(self, agent: str) -> Discrete:
        return Discrete(2)

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        self.agents, self._steps = list(self.possible_agents), 0
        self._places = {"one": -2.0, "other": 2.0}
        return self._observe(), {agent: {} for agent in self.agents}

    def step(self, actions: dict) -> tuple[dict, dict, dict, dict, dict]:
        self._steps += 1
        for agent, action in actions.items():
            self._places[agent] = float(np.clip(self._places[agent] + 2 * action - 1, -9, 9))
        met, late = self._places["one"] == self._places["other"], self._steps >= 20
        observations, agents = self._observe(), self.agents
        self.agents = [] if met or late else agents
        return (
            observations,
            dict.fromkeys(agents, float(met)),
            dict.fromkeys(agents, met),
            dict.fromkeys(agents, late),
            {agent: {} for agent in agents},
        )

    def _observe(self) -> dict[str, np.ndarray]:
        return {agent: np.array(list(self._places.values()), np.float32) for agent in self.agents}
