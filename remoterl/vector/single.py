"""The faces of one remote environment, and of a vector env that lives whole on one env runner."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.error import ClosedEnvironmentError
from gymnasium.vector import VectorEnv

from remoterl.messages import RowsStepped, Target
from remoterl.vector.core import VectorCore
from remoterl.vector.generator import generator_of
from remoterl.vector.row_view import RowView


class RemoteEnv(gymnasium.Env):
    """A `gymnasium.Env` that lives on an env runner, the wrappers of its spec included.

    What `reset` and `step` return are the very Python types that the environment made. Attributes are read
    and set, methods called, in its outermost wrapper; `unwrapped` is a view of the environment under its wrappers.
    """

    _KEPT = frozenset({"observation_space", "action_space", "metadata", "render_mode", "spec"})
    _OWN = _KEPT | {"_core", "_description", "_unwrapped"}

    def __init__(self, core: VectorCore) -> None:
        self._core = core
        opened = core.opened[0]
        self.observation_space = opened.observation_spaces[0]
        self.action_space = opened.action_spaces[0]
        self.metadata = opened.metadata
        self.render_mode = opened.render_modes[0]
        self.spec = opened.spec
        self._description = opened.description
        self._unwrapped = RowView(core, 0, Target.UNWRAPPED, self)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As `gymnasium.Env.reset`."""
        self._assert_is_running()
        [reply] = self._core.gather(self._core.reset([seed], None if options is None else [options]))
        return reply.observations, reply.infos[0][1]

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As `gymnasium.Env.step`."""
        self._assert_is_running()
        [reply] = self._core.gather(self._core.step_whole(action))
        return reply.observations, reply.rewards, reply.terminations, reply.truncations, _only_info(reply)

    def render(self) -> Any:
        """A frame, a list of frames or text, as the render mode says."""
        self._assert_is_running()
        return self._core.render()[0]

    def close(self) -> None:
        """Close the environment and free its row. May be called twice."""
        self._core.close()

    @property
    def unwrapped(self) -> gymnasium.Env:
        """The environment under all its wrappers, remote as well."""
        return self._unwrapped

    def get_wrapper_attr(self, name: str) -> Any:
        """The attribute of the outermost wrapper (or environment) that has it; a method can be called."""
        if name == "np_random":
            return self.np_random
        return self.__dict__[name] if name in self.__dict__ else self._read(name, Target.WRAPPERS)

    def has_wrapper_attr(self, name: str) -> bool:
        """Has any wrapper, or the environment, this attribute?"""
        self._assert_is_running()
        return name in self.__dict__ or self._core.call("has_wrapper_attr", (name,), call=True)[0]

    def set_wrapper_attr(self, name: str, value: Any, *, force: bool = True) -> bool:
        """Set the attribute where it is found."""
        self._assert_is_running()
        done = self._core.call("set_wrapper_attr", (name, value), {"force": force}, call=True)[0]
        self._was_set(name, value)
        return done

    @property
    def np_random_seed(self) -> int:
        """The seed that the environment was last reset with."""
        return self._read("np_random_seed", Target.WRAPPERS)

    @property
    def np_random(self) -> Any:
        """The environment's random number generator: what is drawn from it is drawn there."""
        self._assert_is_running()
        return generator_of(self._core, 0, Target.WRAPPERS)

    @np_random.setter
    def np_random(self, value: Any) -> None:
        self._write("np_random", value, Target.UNWRAPPED)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_core" not in self.__dict__:
            raise AttributeError(name)
        return self._read(name, Target.OUTERMOST)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._OWN or isinstance(getattr(type(self), name, None), property):
            super().__setattr__(name, value)
        else:
            self._write(name, value, Target.OUTERMOST)

    def _was_set(self, name: str, value: Any) -> None:
        """It was set to this value, in the environment or one of its wrappers: what is kept here follows."""
        if name in self._KEPT:
            now = self._read(name, Target.WRAPPERS)
            self.__dict__[name] = value if now == value else now
            self._unwrapped._was_set(name, value)

    def _read(self, name: str, target: Target) -> Any:
        self._assert_is_running()
        return self._core.read(name, target=target)[0]

    def _write(self, name: str, value: Any, target: Target) -> None:
        self._assert_is_running()
        self._core.set_attribute(name, [value], target=target)

    def _assert_is_running(self) -> None:
        if self._core.closed:
            raise self._core.why_closed or ClosedEnvironmentError(
                f"Trying to operate on {self}, after a call to `close()` (or the end of its session)."
            )

    def __reduce__(self) -> Any:
        raise TypeError(f"{self} lives on a simulator and can't be pickled or copied.")

    def __str__(self) -> str:
        return f"<RemoteEnv{self._description}>"

    __repr__ = __str__


class HostedVectorEnv(VectorEnv):
    """A vector env of the environment's own making (`vector_entry_point`), whole on one env runner.

    Its rows share one random stream, so they can't be spread without changing its results. Attributes are read and
    set, methods called, there.
    """

    _OWN = frozenset(
        {
            "metadata", "render_mode", "spec", "closed", "num_envs", "single_observation_space", "single_action_space",
            "observation_space", "action_space", "_core", "_description",
        }
    )  # fmt: skip

    def __init__(self, core: VectorCore) -> None:
        self._core = core
        opened = core.opened[0]
        self.metadata = opened.metadata
        self.render_mode = opened.render_modes[0]
        self.single_observation_space = opened.observation_spaces[0]
        self.single_action_space = opened.action_spaces[0]
        self.num_envs = opened.extra["num_envs"]
        self.observation_space = opened.extra["observation_space"]
        self.action_space = opened.extra["action_space"]
        self._description = opened.description

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._assert_is_running()
        [reply] = self._core.gather(self._core.reset([seed], None if options is None else [options]))
        return reply.observations, reply.infos[0][1]

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self._assert_is_running()
        [reply] = self._core.gather(self._core.step_whole(actions))
        return reply.observations, reply.rewards, reply.terminations, reply.truncations, _only_info(reply)

    def render(self) -> Any:
        self._assert_is_running()
        return self._core.render()[0]

    def close_extras(self, **kwargs: Any) -> None:
        self._core.close()

    @property
    def np_random_seed(self) -> Any:
        """The seed that the environment was last reset with."""
        self._assert_is_running()
        return self._core.read("np_random_seed")[0]

    @property
    def np_random(self) -> Any:
        """The environment's random number generator: what is drawn from it is drawn there."""
        self._assert_is_running()
        return generator_of(self._core, 0, Target.UNWRAPPED)

    @np_random.setter
    def np_random(self, value: Any) -> None:
        self._write("np_random", value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_core" not in self.__dict__:
            raise AttributeError(name)
        self._assert_is_running()
        return self._core.read(name)[0]

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._OWN or isinstance(getattr(type(self), name, None), property):
            super().__setattr__(name, value)
        else:
            self._write(name, value)

    def _write(self, name: str, value: Any) -> None:
        self._assert_is_running()
        self._core.set_attribute(name, [value], target=Target.UNWRAPPED)

    def _assert_is_running(self) -> None:
        if self.closed or self._core.closed:
            raise self._core.why_closed or ClosedEnvironmentError(
                f"Trying to operate on {self._description}, after a call to `close()` (or the end of its session)."
            )

    def __reduce__(self) -> Any:
        raise TypeError(f"{self} lives on a simulator and can't be pickled or copied.")

    def __del__(self) -> None:
        """Nothing to do: the core frees its rows when it is collected, without waiting."""

    def __repr__(self) -> str:
        return f"HostedVectorEnv({self._description})"


def _only_info(reply: RowsStepped) -> Any:
    """An empty dict is not sent."""
    return reply.infos[0][1] if reply.infos else {}
