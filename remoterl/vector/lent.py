"""Arrays for the observations of all rows of a vector env (one, or a dict or tuple of them), written by its env runners
and lent to the script.

They lie in memory that the session shares with its env runners on this machine. A script may hold what `step` returned
for as long as it likes: an array is written to again when nobody holds it, or a view of it, any more. A child that the
script forks may hold it too, which nobody here can see; from then on the script gets copies.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from remoterl.channels.codec import PLAIN_KINDS, Room
from remoterl.channels.framing import SMALL_BYTES
from remoterl.channels.shared_memory import SharedMemory, forks
from remoterl.channels.trees import Outline, build, flatten, leaves_of

MOST_LENT = 4  # a script that holds on to so many gets copies from then on
ALIGNMENT_BYTES = 64  # of arrays beside each other
ANYTHING = object()


class Batch:
    """Memory for the observations of one step: an array, or a dict or tuple of them.

    Attributes:
        rooms: for the rows of each part.

    Args:
        outline: of the observations.
        arrays: in its order, with the row on axis 0.
        places: of the rooms.
        ranges: the rows of each part.
        is_lent: the script gets the arrays themselves, and no copies.
    """

    def __init__(
        self,
        outline: Outline,
        arrays: list[np.ndarray],
        places: Sequence[np.ndarray],
        ranges: Sequence[range],
        is_lent: bool,
    ) -> None:
        self._outline = outline
        self._arrays = arrays
        self._is_lent = is_lent
        self.rooms = [
            Room(place, [array[rows.start : rows.stop] for array in arrays])
            for place, rows in zip(places, ranges, strict=True)
        ]

    def whole(self, parts: Sequence[Any]) -> Any:
        """The observations, for the script; None where a part was not written to its room."""
        for part, room in zip(parts, self.rooms, strict=True):
            leaves = leaves_of(part, self._outline)
            if leaves is None or not all(map(operator.is_, leaves, room.arrays)):
                return None
        return build(self._outline, iter(self._arrays if self._is_lent else [array.copy() for array in self._arrays]))


@dataclass
class _Place:
    """Memory for the arrays of one step.

    Attributes:
        rooms: where those of each part are.
        arrays: the last ones there, while anybody holds them.
    """

    memory: memoryview
    rooms: list[np.ndarray]
    is_lent: bool  # else the script gets copies
    arrays: Sequence[Callable[[], np.ndarray | None]] = ()


class LentBatches:
    """The arrays of one vector env, made when they are needed.

    Args:
        memory: of the session.
        ranges: the rows of each part, in order.
        outline: of its observations.
        like: of each of their arrays, one row.
    """

    def __init__(
        self, memory: SharedMemory, ranges: Sequence[range], outline: Outline, like: Sequence[np.ndarray]
    ) -> None:
        self._memory = memory
        self._ranges = ranges
        self._outline = outline
        num_rows = ranges[-1].stop
        sizes = np.array([num_rows * one.nbytes for one in like])
        ends = np.cumsum(sizes + -sizes % ALIGNMENT_BYTES)
        starts = np.concatenate([[0], ends[:-1]])
        self._size_bytes = int(ends[-1])
        self._kinds = [((num_rows, *one.shape), one.dtype, int(start)) for one, start in zip(like, starts, strict=True)]
        row_bytes = sizes // num_rows
        self._offsets = [np.stack([starts + rows.start * row_bytes, len(rows) * row_bytes], axis=1) for rows in ranges]
        self._places: list[_Place] = []
        self._forks = forks()
        self._lends = True

    def next(self) -> Batch | None:
        """One that nobody holds; None where there is no memory for it."""
        if self._lends and self._forks != forks():  # a child may hold them, and another one may come
            self._places, self._lends = [], False
        place = next((one for one in self._places if not any(array() is not None for array in one.arrays)), None)
        if place is None:
            try:
                at, memory = self._memory.make(self._size_bytes)
            except (OSError, ValueError):
                return None
            rooms = [offsets + np.array([at, 0]) for offsets in self._offsets]
            place = _Place(memory, rooms, self._lends and len(self._places) < MOST_LENT)
            self._places.append(place)
        arrays = [np.ndarray(shape, dtype, place.memory, start) for shape, dtype, start in self._kinds]
        place.arrays = [weakref.ref(array) for array in arrays]
        return Batch(self._outline, arrays, place.rooms, self._ranges, place.is_lent)


def lent_for(
    memory: SharedMemory, ranges: Sequence[range], parts: Sequence[Any], wanted: Any = ANYTHING
) -> LentBatches | None:
    """For observations like these, a batch from each part.

    Args:
        memory, ranges: as for `LentBatches`.
        parts: the last observations.
        wanted: what the script gets, which has to have the same outline, dtypes and shapes.

    Returns:
        None where they are small, or no arrays of one kind with the row on axis 0, or others than those wanted.
    """
    flat = flatten(parts[0])
    if flat is None:
        return None
    outline, first = flat
    if not all(one.ndim and one.size and one.dtype.kind in PLAIN_KINDS for one in first):
        return None
    like = [one[0, ...] for one in first]
    expected = [(part, len(rows)) for part, rows in zip(parts, ranges, strict=True)]
    if wanted is not ANYTHING:
        expected.append((wanted, ranges[-1].stop))
    if not all(_are_rows(batch, num_rows, outline, like) for batch, num_rows in expected):
        return None
    if max(map(len, ranges)) * sum(one.nbytes for one in like) <= SMALL_BYTES:
        return None
    return LentBatches(memory, ranges, outline, like)


def _are_rows(batch: Any, num_rows: int, outline: Outline, like: Sequence[np.ndarray]) -> bool:
    leaves = leaves_of(batch, outline)
    return leaves is not None and all(
        type(leaf) is np.ndarray and leaf.dtype == one.dtype and leaf.shape == (num_rows, *one.shape)
        for leaf, one in zip(leaves, like, strict=True)
    )
