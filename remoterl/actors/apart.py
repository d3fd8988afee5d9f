"""Rows of a class that has a process for each: what their functions captured they do not share, as they do not there.

Here they live in one process, and arrive in one pickle. So their functions are copied, with all that pickling copies: a
dict of settings, a generator of random numbers. Classes and modules stay the same ones for all rows, and with them what
classes hold and what their methods name, of which a copy would be out of their sight. So do large arrays: of a dataset,
which is hardly ever written to, there may be no room for a copy a row.
"""

from __future__ import annotations

import dis
import io
import pickle
import sys
from collections.abc import Iterator, Sequence
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

from remoterl._logging import logger
from remoterl.functions import codes_in, functions_behind
from remoterl.shipping import Pickler, classes_by_value

STAY = (type, ModuleType, CodeType)
LARGE_BYTES = 1 << 20
READS = frozenset({"LOAD_GLOBAL"})
WRITES = frozenset({"STORE_GLOBAL", "DELETE_GLOBAL"})


def apart(factories: Sequence[Any]) -> list[Any]:
    """A copy of each; the same one again where it can't be copied."""
    if len(factories) == 1:
        return list(factories)
    shared = _held_by_classes()
    return [_copied(factory, shared) for factory in factories]


def _copied(factory: Any, shared: dict[int, Any]) -> Any:
    try:
        with io.BytesIO() as file:
            _Copier(file, shared).dump(factory)
            file.seek(0)
            return _Loader(file, shared).load()
    except Exception as error:
        logger.debug("rows share what %r captured: %s", factory, error)
        return factory


class _Copier(Pickler):
    """Leaves out what is shared: objects by their id."""

    def __init__(self, file: io.BytesIO, shared: dict[int, Any]) -> None:
        super().__init__(file, protocol=5)
        self._shared = shared

    def persistent_id(self, obj: Any) -> int | None:
        if isinstance(obj, STAY) or (type(obj) is np.ndarray and obj.nbytes >= LARGE_BYTES):
            self._shared[id(obj)] = obj
        return id(obj) if id(obj) in self._shared else None

    def reducer_override(self, obj: Any) -> Any:
        reduced = super().reducer_override(obj)
        if isinstance(obj, FunctionType) and reduced is not NotImplemented and any(_globals_in(obj, WRITES)):
            raise pickle.PicklingError(f"{obj.__qualname__} sets global names, which methods may read")
        return reduced


class _Loader(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, shared: dict[int, Any]) -> None:
        super().__init__(file)
        self._shared = shared

    def persistent_load(self, pid: int) -> Any:
        return self._shared[pid]


def _held_by_classes() -> dict[int, Any]:
    """By id, what classes hold that came by value, and what their functions use, and functions among that."""
    held: dict[int, Any] = {}
    values = [value for one in classes_by_value() for value in vars(one).values()]
    while values:
        value = values.pop()
        if id(value) in held or isinstance(value, STAY):
            continue
        held[id(value)] = value
        for function in functions_behind(value):
            module = sys.modules.get(function.__module__)
            if getattr(module, "__dict__", None) is not function.__globals__:  # it came by value, too
                values += _used_by(function)
    return held


def _used_by(function: FunctionType) -> Iterator[Any]:
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # it is empty
            continue
    for name in _globals_in(function, READS):
        yield function.__globals__.get(name)


def _globals_in(function: FunctionType, operations: frozenset[str]) -> Iterator[str]:
    """Names that a function reads or sets in its module, but for those of classes and modules that it reads."""
    known = {name for name, value in function.__globals__.items() if not isinstance(value, STAY)}
    for code in codes_in(function.__code__):
        if operations is READS and known.isdisjoint(code.co_names):  # to look at each instruction takes long
            continue
        for instruction in dis.get_instructions(code):
            if instruction.opname in operations:
                yield instruction.argval
