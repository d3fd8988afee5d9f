"""Environments and callbacks for the RLlib tests. This module lies beside the tests: simulators can't import it."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.connectors.connector_v2 import ConnectorV2


class ConfiguredEnv(gym.Env):
    """Takes its size from an `EnvContext`, and shows the worker's index as its observation."""

    def __init__(self, context: Any) -> None:
        self.observation_space = gym.spaces.Box(-100, 100, (context["size"],), np.float32)
        self.action_space = gym.spaces.Discrete(2)
        self._index = context.worker_index

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._steps = 0
        return np.full(self.observation_space.shape, self._index, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._steps += 1
        return np.full(self.observation_space.shape, self._index, np.float32), 1.0, self._steps == 10, False, {}


class PlainEnv(ConfiguredEnv):
    """The same as Gymnasium makes it."""

    def __init__(self, size: int = 3) -> None:
        super().__init__(type("Context", (dict,), {"worker_index": 0})(size=size))


class PlainVectorEnv(gym.vector.SyncVectorEnv):
    """A vector env of its own kind, as a spec's `vector_entry_point` names one."""

    def __init__(self, num_envs: int, size: int = 3) -> None:
        super().__init__([lambda: PlainEnv(size) for _ in range(num_envs)])


def node_of(env_runner: Any) -> str:
    """On which node an env runner sits, asked of Ray."""
    import ray

    return ray.get_runtime_context().get_node_id()


class SaysWhereItRan(ConnectorV2):
    """A connector that changes nothing and keeps the nodes it ran on."""

    def __init__(self, *spaces: Any, **kwargs: Any) -> None:
        super().__init__(*spaces, **kwargs)
        self.nodes: set[str] = set()

    def __call__(self, *, batch: dict, **kwargs: Any) -> dict:
        self.nodes.add(node_of(None))
        return batch


class SaysWhere(RLlibCallback):
    """Puts into each result on which nodes the algorithm and its env runners sit."""

    def on_train_result(self, *, algorithm: Any, result: dict, **kwargs: Any) -> None:
        import ray

        result["places"] = {
            "algorithm": ray.get_runtime_context().get_node_id(),
            "env_runners": algorithm.env_runner_group.foreach_env_runner(node_of, local_env_runner=False),
            "learners": [each.get() for each in algorithm.learner_group.foreach_learner(node_of).result_or_errors],
        }
