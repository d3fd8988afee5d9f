"""What rows return, beside each other: observations, infos and numbers of one step as arrays.

Of what is not as it should be it says so; the rules of the local classes are in `rows`.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from gymnasium import spaces

from remoterl.messages import InfoTable


def leaves(space: spaces.Space) -> list[tuple[Any, spaces.Space]]:
    """The parts that Stable-Baselines3 makes an array of each: a key and a space, `None` for a space of one part."""
    if isinstance(space, spaces.Dict):
        return list(space.spaces.items())
    return list(enumerate(space.spaces)) if isinstance(space, spaces.Tuple) else [(None, space)]


def have_in_common(returned: Iterable[Any]) -> bool:
    """Have two rows returned one and the same array or dict, or views of one array?"""
    seen: set[int] = set()
    for value in returned:
        own = set(_memories(value))
        if not seen.isdisjoint(own):
            return True
        seen |= own
    return False


def _memories(value: Any) -> Iterator[int]:
    """What of a value can be changed in place, by its id: arrays (of a view the one that it views), lists and dicts."""
    if isinstance(value, np.ndarray):
        while isinstance(value.base, np.ndarray):
            value = value.base
        yield id(value)
    elif isinstance(value, (dict, list)) and value:
        yield id(value)
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else ():
        yield from _memories(inner)


def with_arrays(info: Any, made_of: Callable[[np.ndarray], Any]) -> Any:
    """An info, and dicts in it, with something else in place of each array."""
    if type(info) is not dict:
        return made_of(info) if isinstance(info, np.ndarray) else info
    return {key: with_arrays(value, made_of) for key, value in info.items()}


def writeable(array: np.ndarray) -> np.ndarray:
    return array if array.flags.writeable else array.copy()


def misfit(error: Exception, observation: Any, space: spaces.Space) -> Exception:
    """An observation that its space has no room for, as an exception of the type that NumPy raised."""
    kind = next((kind for kind in (TypeError, KeyError, IndexError) if isinstance(error, kind)), ValueError)
    return kind(
        f"The observation does not fit its space: expected one of {space}, got {_outline(observation)} "
        f"({type(error).__name__}: {error})"
    )


def _outline(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_outline(item)}" for key, item in value.items()) + "}"
    return f"{type(value).__name__} {reprlib.repr(value)}"


def batched(values: list[Any], batch: Any, room: np.ndarray | None = None) -> np.ndarray | None:
    """Observations of just the batch's shape and dtype beside each other; None where they are not all that.

    `batch`, or the room where that has its size, may be what is written to and returned. For small observations this
    costs as much as stepping a row or two.
    """
    if type(batch) is not np.ndarray:
        return None
    if batch.nbytes <= _SMALL_BYTES:
        try:
            small = np.array(values)
        except ValueError:  # not of one shape
            return None
        return small if small.dtype == batch.dtype and small.shape == batch.shape else None
    if batch.ndim < 2:
        return None
    shape, dtype = batch.shape[1:], batch.dtype
    for value in values:
        if type(value) is not np.ndarray or value.shape != shape or value.dtype != dtype:
            return None
    if room is not None and room.nbytes == batch.nbytes:
        batch = np.ndarray(batch.shape, dtype, room)
    np.concatenate(values, out=batch.reshape(-1, *shape[1:]))
    return batch


def tabled(infos: list[tuple[int, dict[str, Any], Any]], num_rows: int) -> list[Any] | InfoTable:
    """The infos as a table, where they are one: a number in a pickled dict costs ten times as much."""
    if not infos or len(infos) != num_rows:
        return infos
    keys, types = tuple(infos[0][1]), tuple(map(type, infos[0][1].values()))
    if not _NUMBERS.issuperset(types) or not all(map(_is_plain, keys)):
        return infos
    for _, info, final in infos:
        if final is not None or tuple(info) != keys or tuple(map(type, info.values())) != types:
            return infos
        if int in types and any(type(value) is int and abs(value) > _EXACT for value in info.values()):
            return infos
    return InfoTable(keys, types, np.array([list(info.values()) for _, info, _ in infos], np.float64))


def _is_plain(key: Any) -> bool:
    """Has the key no meaning of its own to Gymnasium's vector envs?"""
    return type(key) is str and key[:1] != "_" and key not in ("final_obs", "final_info")


def column(values: list[Any], dtype: Any) -> np.ndarray:
    """One value a row, each as an assignment into an array of this dtype converts it."""
    if _SCALARS.issuperset(map(type, values)):
        return np.array(values, dtype=dtype)
    column = np.zeros(len(values), dtype=dtype)
    for row, value in enumerate(values):
        column[row] = value
    return column


def stack(values: list[Any]) -> np.ndarray:
    """`np.stack` of one scalar a row, whose dtype is the one that all of them have in common."""
    kinds = set(map(type, values))
    return np.array(values) if len(kinds) == 1 and kinds <= _SCALARS else np.stack(values)


_NUMBERS = frozenset({float, np.float64, np.float32, int, bool})  # what a float64 holds exactly ...
_EXACT = 2**53 - 1  # ... whole numbers up to here
_SMALL_BYTES = 16_384  # what NumPy copies in no time: it is the look at each array that costs
_SCALARS = frozenset({float, int, bool, np.float64, np.float32, np.bool_})
