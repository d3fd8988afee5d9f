"""Putting the batches of several env runners beside each other, leaf by leaf of the observation space."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from gymnasium import Space, spaces
from gymnasium.vector.utils import create_empty_array

from remoterl.messages import ARRAY_SPACES


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
    # A copy, as Gymnasium's own: the parts' arrays may be where later steps arrive.
    return copy.deepcopy(tuple(chain.from_iterable(parts)))
