"""One row of a remote vector env, seen as a `gymnasium.Env`: `env.unwrapped`, `vec_env.envs[3]`."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NoReturn

import gymnasium

from remoterl.errors import UnsupportedError
from remoterl.messages import Target
from remoterl.vector.core import VectorCore
from remoterl.vector.generator import generator_of

_SPACES = frozenset({"observation_space", "action_space"})
_THE_ENVIRONMENTS = frozenset({"metadata", "render_mode", "spec", "_np_random", "_np_random_seed"})
_OWN = frozenset({"_core", "_row", "_target", "_unwrapped", "_spaces", "_wrapped"})


class RowView(gymnasium.Env):
    """A view: it owns nothing, and every attribute is read and set, every method called, where the row lives.

    Args:
        core: the vector env's rows.
        row: which of them.
        target: `WRAPPERS` for the environment with its wrappers, `UNWRAPPED` for the one under them.
        wrapped: of an unwrapped one, the environment with its wrappers here; its `_was_set` hears of what is set.
    """

    def __init__(self, core: VectorCore, row: int, target: Target, wrapped: gymnasium.Env | None = None) -> None:
        self._core = core
        self._row = row
        self._target = target
        # Weak: a cycle would keep an environment that nobody holds any more, and its row, until it is collected.
        self._wrapped: Callable[[], Any] = (lambda: None) if wrapped is None else weakref.ref(wrapped)
        self._spaces: dict[str, Any] = {}  # copies, made once: they draw, and are seeded, here
        # One object for the row's lifetime: scripts tell environments apart by the identity of `unwrapped`.
        self._unwrapped = None if target is Target.UNWRAPPED else RowView(core, row, Target.UNWRAPPED, self)

    # What else an environment's own methods take, wrappers may not; a view passes it on.

    def reset(self, *args: Any, seed: int | None = None, options: Any = None, **more: Any) -> Any:
        given = {"seed": seed, "options": options}  # an environment need not know both
        more.update((name, value) for name, value in given.items() if value is not None)
        return self._core.reset_by_view(self._row, args, more, self._own)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        return self._core.step_by_view(self._row, args, kwargs, self._own)

    def render(self, *args: Any, **kwargs: Any) -> Any:
        return self._call("render", *args, **kwargs)

    def close(self, *args: Any, **kwargs: Any) -> None:
        self._call("close", *args, **kwargs)

    @property
    def unwrapped(self) -> gymnasium.Env:
        return self._unwrapped or self

    def get_wrapper_attr(self, name: str) -> Any:
        if name == "np_random" or name in _SPACES:
            return getattr(self, name)
        return self._core.read(name, [self._row], self._target)[0]

    def has_wrapper_attr(self, name: str) -> bool:
        return self._call("has_wrapper_attr", name)

    def set_wrapper_attr(self, name: str, value: Any, *, force: bool = True) -> bool:
        done = self._call("set_wrapper_attr", name, value, force=force)
        self._was_set(name, value)
        return done

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
        return self._core.call(name, args, kwargs, True, [self._row], self._own)[0]

    def _write(self, name: str, value: Any) -> None:
        self._core.set_attribute(name, [value], [self._row], self._own)
        self._was_set(name, value)
        if (wrapped := self._wrapped()) is not None:
            wrapped._was_set(name, value)

    def _was_set(self, name: str, _: Any) -> None:
        """Here, or in the environment under this one: what is kept of it is read anew."""
        self._spaces.pop(name, None)
        if self._unwrapped is not None:
            self._unwrapped._spaces.pop(name, None)

    @property
    def _own(self) -> Target:
        """The outermost wrapper's own, not the first that any wrapper below defines differently."""
        return Target.UNWRAPPED if self._target is Target.UNWRAPPED else Target.OUTERMOST

    def _space(self, name: str) -> Any:
        if name not in self._spaces:
            space = self._core.read(name, [self._row], self._target)[0]
            shown = getattr(self._wrapped(), name, None)
            # No wrapper has another: locally it is one object, which both draw from.
            self._spaces[name] = shown if shown == space else space
        return self._spaces[name]

    def __getattribute__(self, name: str) -> Any:
        # The environment's own, not the class attributes of gymnasium.Env.
        if name in _THE_ENVIRONMENTS:
            return self.get_wrapper_attr(name)
        if name in _SPACES:
            return self._space(name)
        return super().__getattribute__(name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_target" not in self.__dict__:
            raise AttributeError(name)
        return self._core.read(name, [self._row], self._own)[0]

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN or isinstance(getattr(type(self), name, None), property):
            object.__setattr__(self, name, value)
        else:
            self._write(name, value)

    def __reduce__(self) -> Any:
        raise TypeError(f"{self} lives on a simulator and can't be pickled or copied.")

    def __str__(self) -> str:
        return f"<row {self._row} of a remote vector env, {self._target.value}>"

    __repr__ = __str__


class Views(list[gymnasium.Env]):
    """A vector env's `envs`: a view of each row. Locally they are what steps; here none can take another's place."""

    def __init__(self, core: VectorCore) -> None:
        super().__init__(RowView(core, row, Target.WRAPPERS) for row in range(core.num_rows))

    def refuse(self, *_: Any) -> NoReturn:
        """Raise UnsupportedError: what would be put here would not be stepped."""
        raise UnsupportedError(
            "The environments of a remote vector env can't be replaced by others: they step on simulators. Wrap them "
            "in the function that makes each (lambda: Wrapper(gym.make(...)))."
        )

    __setitem__ = __delitem__ = __iadd__ = append = insert = extend = pop = remove = clear = refuse
