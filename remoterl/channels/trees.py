"""Observations that are dicts and tuples of arrays, as their arrays, and back. A single array is a tree of itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

# Of an array None; of a dict its keys and an outline for each; of a tuple the outlines.
Outline: TypeAlias = "tuple[tuple[str, ...] | None, tuple[Outline, ...]] | None"


def flatten(value: Any) -> tuple[Outline, list[np.ndarray]] | None:
    """The outline, and the arrays in its order; None where there is anything but arrays, tuples, dicts with names."""
    leaves: list[np.ndarray] = []
    try:
        return _outline(value, leaves), leaves
    except TypeError:
        return None


def _outline(value: Any, leaves: list[np.ndarray]) -> Outline:
    kind = type(value)
    if kind is np.ndarray:
        leaves.append(value)
        return None
    if kind is dict and all(type(key) is str for key in value):
        return tuple(value), tuple(_outline(one, leaves) for one in value.values())
    if kind is tuple:
        return None, tuple(_outline(one, leaves) for one in value)
    raise TypeError


def leaves_of(value: Any, outline: Outline) -> list[Any] | None:
    """What is where an outline has its arrays; None where the value has another outline."""
    if outline is None:
        return [value]
    keys, parts = outline
    if keys is None:
        if type(value) is not tuple or len(value) != len(parts):
            return None
        values: Sequence[Any] = value
    else:
        if type(value) is not dict or tuple(value) != keys:
            return None
        values = list(value.values())
    found: list[Any] = []
    for one, part in zip(values, parts, strict=True):
        leaves = [one] if part is None else leaves_of(one, part)
        if leaves is None:
            return None
        found += leaves
    return found


def build(outline: Outline, leaves: Iterator[Any]) -> Any:
    """The inverse of `flatten`; takes as many leaves as the outline has."""
    if outline is None:
        return next(leaves)
    keys, parts = outline
    values = [next(leaves) if part is None else build(part, leaves) for part in parts]
    return tuple(values) if keys is None else dict(zip(keys, values, strict=True))
