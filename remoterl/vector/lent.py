"""Arrays for the observations of all rows of a vector env, written by its env runners and lent to the script.

They lie in memory that the session shares with its env runners on this machine. A script may hold what `step` returned
for as long as it likes: an array is written to again when nobody holds it, or a view of it, any more. A child that the
script forks would see what is written; from then on the script gets copies.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from remoterl.channels.codec import PLAIN_KINDS, Room
from remoterl.channels.framing import SMALL_BYTES
from remoterl.channels.shared_memory import SharedMemory, forks

MOST_LENT = 4  # a script that holds on to so many gets copies from then on


class Batch:
    """An array for one step.

    Attributes:
        rooms: for the rows of each part.
    """

    def __init__(self, array: np.ndarray, at: int, ranges: Sequence[range], is_lent: bool) -> None:
        self._array = array
        self._is_lent = is_lent
        row_bytes = array.nbytes // len(array)
        self.rooms = [Room(at + rows.start * row_bytes, array[rows.start : rows.stop]) for rows in ranges]

    def whole(self, parts: Sequence[Any]) -> np.ndarray | None:
        """The array, for the script; None where a part was not written to its room."""
        for part, room in zip(parts, self.rooms, strict=True):
            if part is not room.array:
                return None
        return self._array if self._is_lent else self._array.copy()


@dataclass
class _Place:
    """Memory for one array. `array`: the last one there, while anybody holds it."""

    at: int
    memory: memoryview
    is_lent: bool  # else the script gets copies
    array: Callable[[], np.ndarray | None] = lambda: None


class LentBatches:
    """The arrays of one vector env, made when they are needed.

    Args:
        memory: of the session.
        ranges: the rows of each part, in order.
        like: an observation of any row.
    """

    def __init__(self, memory: SharedMemory, ranges: Sequence[range], like: np.ndarray) -> None:
        self._memory = memory
        self._ranges = ranges
        self._shape, self._dtype = (ranges[-1].stop, *like.shape), like.dtype
        self._size_bytes = ranges[-1].stop * like.nbytes
        self._places: list[_Place] = []
        self._forks = forks()
        self._lends = True

    def next(self) -> Batch | None:
        """One that nobody holds; None where there is no memory for it."""
        if self._lends and self._forks != forks():  # a child may hold them, and another one may come
            self._places, self._lends = [], False
        place = next((one for one in self._places if one.array() is None), None)
        if place is None:
            try:
                at, memory = self._memory.make(self._size_bytes)
            except (OSError, ValueError):
                return None
            place = _Place(at, memory, self._lends and len(self._places) < MOST_LENT)
            self._places.append(place)
        array = np.ndarray(self._shape, self._dtype, place.memory)
        place.array = weakref.ref(array)
        return Batch(array, place.at, self._ranges, place.is_lent)


def lent_for(memory: SharedMemory, ranges: Sequence[range], parts: Sequence[Any]) -> LentBatches | None:
    """For observations like these, a batch from each part; None where they are small, or no arrays of one kind."""
    first = parts[0]
    if type(first) is not np.ndarray or first.dtype.kind not in PLAIN_KINDS or not first.ndim:
        return None
    if not all(
        type(part) is np.ndarray and part.dtype == first.dtype and part.shape == (len(rows), *first.shape[1:])
        for part, rows in zip(parts, ranges, strict=True)
    ):
        return None
    if max(part.nbytes for part in parts) <= SMALL_BYTES:
        return None
    return LentBatches(memory, ranges, first[0, ...])
