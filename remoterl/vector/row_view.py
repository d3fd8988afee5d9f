"""One row of a remote vector env, seen as a `gymnasium.Env`: `env.unwrapped`, `vec_env.envs[3]`."""

from __future__ import annotations

from typing import Any

import gymnasium

from remoterl.messages import Target
from remoterl.vector.core import VectorCore
from remoterl.vector.generator import generator_of

_THE_ENVIRONMENTS = frozenset(
    {"observation_space", "action_space", "metadata", "render_mode", "spec", "_np_random", "_np_random_seed"}
)


class RowView(gymnasium.Env):
    """A view: it owns nothing, and every attribute is read and set, every method called, where the row lives.

    Args:
        core: the vector env's rows.
        row: which of them.
        target: `WRAPPERS` for the environment with its wrappers, `UNWRAPPED` for the one under them.
    """

    def __init__(self, core: VectorCore, row: int, target: Target) -> None:
        self._core = core
        self._row = row
        self._target = target
        # One object for the row's lifetime: scripts tell environments apart by the identity of `unwrapped`.
        self._unwrapped = None if target is Target.UNWRAPPED else RowView(core, row, Target.UNWRAPPED)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self._call("reset", seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        return self._call("step", action)

    def render(self) -> Any:
        return self._call("render")

    def close(self) -> None:
        self._call("close")

    @property
    def unwrapped(self) -> gymnasium.Env:
        return self._unwrapped or self

    def get_wrapper_attr(self, name: str) -> Any:
        return self._core.read(name, [self._row], self._target)[0]

    def has_wrapper_attr(self, name: str) -> bool:
        return self._call("has_wrapper_attr", name)

    def set_wrapper_attr(self, name: str, value: Any, *, force: bool = True) -> bool:
        return self._call("set_wrapper_attr", name, value, force=force)

    @property
    def np_random_seed(self) -> int:
        return self.get_wrapper_attr("np_random_seed")

    @property
    def np_random(self) -> Any:
        return generator_of(self._core, self._row, self._target)

    @np_random.setter
    def np_random(self, value: Any) -> None:
        self._write("np_random", value)

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        # The outermost wrapper's own method, not the first that any wrapper below defines differently.
        target = Target.UNWRAPPED if self._target is Target.UNWRAPPED else Target.OUTERMOST
        return self._core.call(name, args, kwargs, True, [self._row], target)[0]

    def _write(self, name: str, value: Any) -> None:
        target = Target.UNWRAPPED if self._target is Target.UNWRAPPED else Target.OUTERMOST
        self._core.set_attribute(name, [value], [self._row], target)

    def __getattribute__(self, name: str) -> Any:
        # The environment's own, not the class attributes of gymnasium.Env.
        if name in _THE_ENVIRONMENTS:
            return self.get_wrapper_attr(name)
        return super().__getattribute__(name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_target" not in self.__dict__:
            raise AttributeError(name)
        return self.get_wrapper_attr(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("_core", "_row", "_target", "_unwrapped") or isinstance(getattr(type(self), name, None), property):
            object.__setattr__(self, name, value)
        else:
            self._write(name, value)

    def __reduce__(self) -> Any:
        raise TypeError(f"{self} lives on a simulator and can't be pickled or copied.")

    def __str__(self) -> str:
        return f"<row {self._row} of a remote vector env, {self._target.value}>"

    __repr__ = __str__
