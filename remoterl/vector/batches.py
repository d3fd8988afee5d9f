"""Putting the batches of several env runners beside each other, leaf by leaf of the observation space."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from gymnasium import Space, spaces
from gymnasium.vector.utils import create_empty_array

from remoterl.channels.codec import Landing
from remoterl.channels.framing import SMALL_BYTES
from remoterl.messages import RowsStepped

ARRAY_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


class Columns(NamedTuple):
    """The arrays of all rows, in which small steps land as they arrive: what they hold is the last step that did.

    Attributes:
        step: observations, rewards, terminations and truncations, the row on axis 0.
        landings: one for each part's rows of them.
    """

    step: RowsStepped
    landings: tuple[Landing, ...]

    @classmethod
    def like(cls, replies: Sequence[RowsStepped]) -> Columns | None:
        """For steps like this one; None where they can't land: not plain arrays of one kind, or too large."""
        arrays = list(zip(*(reply[:4] for reply in replies), strict=True))
        if all(part is None for part in arrays[3]):  # Stable-Baselines3 has no truncations
            del arrays[3]
        if not all(map(_fit, arrays)) or sum(parts[0].nbytes for parts in arrays) > SMALL_BYTES // 2:
            return None
        wholes = [np.concatenate(parts) for parts in arrays]
        landings, start = [], 0
        for reply in replies:
            stop = start + len(reply.rewards)
            landings.append(Landing(_step([whole[start:stop] for whole in wholes])))
            start = stop
        return cls(_step(wholes), tuple(landings))

    def hold(self, replies: Sequence[RowsStepped]) -> bool:
        """Is this the step that these replies tell of?"""
        for reply, landing in zip(replies, self.landings, strict=True):  # noqa: SIM110 - as a generator: three times
            if reply.rewards is not landing.step.rewards:
                return False
        return True


def _step(arrays: list[np.ndarray]) -> RowsStepped:
    observations, rewards, terminations, *truncations = arrays
    return RowsStepped(observations, rewards, terminations, truncations[0] if truncations else None, [], [])


def _fit(parts: Sequence[Any]) -> bool:
    """Are these arrays with one entry a row, which only have to be put beside each other?"""
    first = parts[0]
    return all(
        type(part) is np.ndarray and part.ndim and part.dtype == first.dtype and part.shape[1:] == first.shape[1:]
        for part in parts
    )


def empty(space: Space, num_rows: int) -> Any:
    """A batch of `num_rows` zero observations, in the layout of Gymnasium's `create_empty_array`."""
    return create_empty_array(space, n=num_rows, fn=np.zeros)


def join(space: Space, whole: Any, rows: Sequence[range], parts: Sequence[Any]) -> Any:
    """Write the parts, each a batch of consecutive rows, into `whole`.

    Args:
        space: of a single observation.
        whole: what `empty` made, for all rows; its arrays are written in place.
        rows: the rows of each part.
        parts: a batch for each.

    Returns:
        `whole`, with tuples made new where the space has no arrays (Text, Sequence, Graph, OneOf, custom).
    """
    if isinstance(space, ARRAY_SPACES):
        for own_rows, part in zip(rows, parts, strict=True):
            whole[own_rows.start : own_rows.stop] = part
        return whole
    if isinstance(space, spaces.Dict):
        return {key: join(subspace, whole[key], rows, [part[key] for part in parts]) for key, subspace in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(
            join(subspace, whole[index], rows, [part[index] for part in parts])
            for index, subspace in enumerate(space.spaces)
        )
    return tuple(chain.from_iterable(parts))
