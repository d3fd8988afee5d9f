"""Small environments with one property each. Shipped from here to the simulators, which do not have this file."""

from __future__ import annotations

import copy
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
        return self._observation(), {"options": options} if options else {}

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


class CollisionError(Exception):
    """Made of other arguments than the text that it keeps."""

    def __init__(self, part: str, force: int) -> None:
        super().__init__(f"the {part} collided with {force} N")
        self.part, self.force = part, force


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


class BigEnv(CountingEnv):
    """Observes a megabyte, all of it different at each step and in each row."""

    def __init__(self, length: int = 3) -> None:
        super().__init__(length)
        self.observation_space = spaces.Box(0, 255, (512, 2048), np.uint8)

    def _observation(self) -> np.ndarray:
        return self.np_random.integers(0, 256, (512, 2048), np.uint8)


class ThreadEnv(CountingEnv):
    """Its info says which threads made, reset and stepped it."""

    def __init__(self) -> None:
        super().__init__()
        self.threads = {_thread()}

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict]:
        self.threads.add(_thread())
        return super().reset(**kwargs)

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.threads.add(_thread())
        return (*super().step(action)[:4], {"threads": sorted(self.threads)})


def _thread() -> str:
    return "main" if threading.current_thread() is threading.main_thread() else threading.current_thread().name


class BufferReusingEnv(CountingEnv):
    """Returns the same array every time, changed in place, and puts it into its info too."""

    def __init__(self, length: int = 4) -> None:
        super().__init__(length)
        self._buffer = np.zeros(2, np.float32)

    def _observation(self) -> np.ndarray:
        self._buffer[:] = self.steps, self.length
        return self._buffer

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        observation, reward, terminated, truncated, _ = super().step(action)
        info = {"buffer": self._buffer, "twice": {"deep": [1, "a"], "buffer": self._buffer}}
        return observation, reward, terminated, truncated, info


class SpaceEnv(gym.Env):
    """Samples a space for its observations and takes it for its actions; every value is in its info."""

    metadata: dict[str, Any] = {"render_modes": ["ansi"]}

    def __init__(self, space: spaces.Space, length: int = 4, render_mode: str | None = None) -> None:
        self.observation_space = copy.deepcopy(space)
        self.action_space = copy.deepcopy(space)
        self.length = length
        self.render_mode = render_mode
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self._sample(self.observation_space), {"options": options} if options else {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(action), (action, self.action_space)
        self.steps += 1
        terminated = self.steps == self.length
        observation = self._sample(self.observation_space)
        return observation, self.steps / 7, terminated, False, {"steps": np.int16(self.steps)}

    def _sample(self, space: spaces.Space) -> Any:
        """As the space does it; Text alone would depend on the process's hash seed."""
        if isinstance(space, spaces.Text):
            letters = self.np_random.choice(sorted(space.character_set), self.np_random.integers(1, space.max_length))
            return "".join(letters)
        if isinstance(space, spaces.Tuple):
            return tuple(self._sample(subspace) for subspace in space.spaces)
        return space.sample()

    def render(self) -> str:
        return f"step {self.steps}"


class EvenSpace(spaces.Space):
    """A space that Gymnasium does not know: even numbers."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(None, None, seed)

    def sample(self, mask: Any = None, probability: Any = None) -> int:
        return int(self.np_random.integers(50)) * 2

    def contains(self, x: Any) -> bool:
        return isinstance(x, (int, np.integer)) and x % 2 == 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EvenSpace)

    def __hash__(self) -> int:
        return 2


ARRAY_SPACES = {
    "float16": spaces.Box(-1, 1, (3,), np.float16),
    "float64": spaces.Box(-np.inf, np.inf, (2, 2), np.float64),
    "int8": spaces.Box(-5, 5, (4,), np.int8),
    "int64": spaces.Box(0, 2**40, (2,), np.int64),
    "image": spaces.Box(0, 255, (24, 32, 3), np.uint8),
    "scalar": spaces.Box(0, 1, (), np.float32),
    "discrete": spaces.Discrete(7, start=-3),
    "multi discrete": spaces.MultiDiscrete([3, 5, 2]),
    "multi binary": spaces.MultiBinary([2, 3]),
    "dict": spaces.Dict({"b": spaces.Box(0, 1, (2,), np.float32), "a": spaces.Discrete(4)}),
    "tuple": spaces.Tuple((spaces.Discrete(3), spaces.Box(-1, 1, (3,), np.float64))),
}
NESTED_SPACES = {
    "nested": spaces.Dict({"x": spaces.Tuple((spaces.Discrete(3), spaces.Dict({"y": spaces.MultiBinary(4)})))}),
    "tuple with text": spaces.Tuple((spaces.Text(5), spaces.Box(0, 1, (2,), np.float32))),
}
# Without a fixed shape: AsyncVectorEnv takes them with shared_memory=False only.
SHAPELESS_SPACES = {
    "text": spaces.Text(8),
    "sequence": spaces.Sequence(spaces.Box(0, 1, (2,), np.float32)),
    "stacked sequence": spaces.Sequence(spaces.Discrete(4), stack=True),
    "graph": spaces.Graph(spaces.Box(-1, 1, (2,)), spaces.Discrete(3)),
    "one of": spaces.OneOf((spaces.Discrete(2), spaces.Box(0, 1, (2,), np.float32))),
    "custom": EvenSpace(),
}
SPACES = {**ARRAY_SPACES, **NESTED_SPACES, **SHAPELESS_SPACES}


class OfSpace:
    """A factory by the name of a space, so that it travels to clean processes as well."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self) -> SpaceEnv:
        return SpaceEnv(SPACES[self.name])


class GoalEnv(gym.Env):
    """Walk on a line to a goal, with the observations that hindsight replay needs, and masks of allowed actions."""

    def __init__(self, size: int = 6) -> None:
        box = spaces.Box(-size, size, (1,), np.float32)
        self.observation_space = spaces.Dict({"observation": box, "achieved_goal": box, "desired_goal": box})
        self.action_space = spaces.Discrete(3)
        self.size = size
        self.place, self.goal, self.steps = 0, 0, 0

    def _observation(self) -> dict[str, np.ndarray]:
        place, goal = np.array([self.place], np.float32), np.array([self.goal], np.float32)
        return {"observation": place, "achieved_goal": place, "desired_goal": goal}

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.place, self.steps = 0, 0
        self.goal = int(self.np_random.integers(-self.size + 1, self.size))
        return self._observation(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        self.steps += 1
        self.place = int(np.clip(self.place + int(action) - 1, -self.size, self.size))
        observation = self._observation()
        reward = float(self.compute_reward(observation["achieved_goal"], observation["desired_goal"], {}))
        return observation, reward, reward == 0, self.steps >= 12, {"is_success": reward == 0}

    def compute_reward(self, achieved: np.ndarray, desired: np.ndarray, info: Any) -> np.ndarray:
        return -(np.abs(achieved - desired).sum(-1) > 0).astype(np.float32)

    def action_masks(self) -> np.ndarray:
        return np.array([self.place > -self.size, self.steps % 2 == 0, self.place < self.size])
