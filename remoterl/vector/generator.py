"""A remote environment's random number generator, as the script draws from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from remoterl import messages as m
from remoterl.vector.core import RemoteAttribute, VectorCore

NAME = "np_random"


class RemoteGenerator(np.random.Generator):
    """The environment's own generator: what is drawn here is drawn there, and the environment goes on from it.

    Wrappers draw from their environment's generator (Gymnasium's StickyAction, Stable-Baselines3's NoopResetEnv).
    """

    def __init__(self, core: VectorCore, row: int, target: m.Target) -> None:
        super().__init__(np.random.PCG64(0))  # never drawn from
        self._core, self._row, self._target = core, row, target

    @property
    def bit_generator(self) -> Any:
        """The remote one; its `state` can be read and set."""
        return RemoteAttribute(
            self._core, m.RemoteObject(f"{NAME}.bit_generator", "BitGenerator"), self._row, self._target
        )

    def shuffle(self, x: Any, axis: int = 0) -> None:
        """As NumPy's, in place, for lists too."""
        drawing = self._copy()
        drawing.shuffle(x, axis)
        self.bit_generator.state = drawing.bit_generator.state

    def _copy(self) -> np.random.Generator:
        return self._core.read(NAME, [self._row], self._target)[0]

    def __reduce__(self) -> Any:
        return self._copy().__reduce__()

    def __repr__(self) -> str:
        return f"<remote generator of row {self._row}>"

    __str__ = __repr__


def _drawn_there(name: str) -> Callable[..., Any]:
    def draw(self: RemoteGenerator, *args: Any, **kwargs: Any) -> Any:
        return self._core.call(f"{NAME}.{name}", args, kwargs, True, [self._row], self._target)[0]

    draw.__name__ = draw.__qualname__ = name
    return draw


for _name, _method in vars(np.random.Generator).items():
    if not _name.startswith("_") and callable(_method) and _name not in vars(RemoteGenerator):
        setattr(RemoteGenerator, _name, _drawn_there(_name))


def generator_of(core: VectorCore, row: int, target: m.Target) -> Any:
    """What the environment has as `np_random`: NumPy's generator as the remote one, anything else as a copy."""
    value = core.read(NAME, [row], target)[0]
    return RemoteGenerator(core, row, target) if type(value) is np.random.Generator else value
