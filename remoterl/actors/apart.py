"""Rows of a class that has a process for each: what their functions captured they do not share, as they do not there.

Here they live in one process, and arrive in one pickle. So their functions are copied, with all that pickling copies: a
dict of settings, a generator of random numbers. Classes and modules stay the same ones for all rows, and with them what
classes hold and what their methods name, of which a copy would be out of their sight. So do large arrays: of a dataset,
which is hardly ever written to, there may be no room for a copy a row. Where the rest is very large too, nothing is
copied.
"""

from __future__ import annotations

import dis
import io
import pickle
import struct
import sys
from collections.abc import Iterator, Sequence
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

from remoterl._logging import logger
from remoterl.functions import codes_in, functions_behind
from remoterl.shipping import Pickler, TooLargeError, classes_by_value

STAY = (type, ModuleType, CodeType)
LARGE_BYTES = 1 << 20
MOST_BYTES = 16 << 20  # of one function, pickled with all that it captured
READS = frozenset({"LOAD_GLOBAL"})
WRITES = frozenset({"STORE_GLOBAL", "DELETE_GLOBAL"})


def apart(factories: Sequence[Any]) -> list[Any]:
    """A copy of each; the same one again where it can't be copied, and for all after one that is too large."""
    if len(factories) == 1:
        return list(factories)
    held = list(_held_by_classes().values())
    copies: list[Any] = []
    for factory in factories:
        try:
            copies.append(_copied(factory, held))
        except TooLargeError as error:
            logger.debug("rows share what %r captured: %s", factory, error)
            break
        except Exception as error:
            logger.debug("rows share what %r captured: %s", factory, error)
            copies.append(factory)
    return [*copies, *factories[len(copies) :]]


def _copied(factory: Any, held: Sequence[Any]) -> Any:
    with _File() as file:
        file.write(_prelude(len(held)))
        copier = _Copier(file, held)
        copier.dump(factory)
        file.seek(0)
        loader = _Loader(file, held, copier.kept)
        loader.load()
        return loader.load()


class _File(io.BytesIO):
    def write(self, data: Any) -> int:
        if self.tell() + memoryview(data).nbytes > MOST_BYTES:
            raise TooLargeError(f"it takes more than {MOST_BYTES} bytes")
        return super().write(data)


class _Copier(Pickler):
    """Leaves out what is shared: `held`, and what it finds and lists in `kept`, by its id.

    What is held is in its memo from the start. To be asked for each object (`persistent_id`) takes long for a million.
    """

    def __init__(self, file: io.BytesIO, held: Sequence[Any]) -> None:
        super().__init__(file, protocol=5)
        self.memo = {id(value): (place, value) for place, value in enumerate(held)}
        self.kept: dict[int, Any] = {}

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, STAY) or (type(obj) is np.ndarray and obj.nbytes >= LARGE_BYTES):
            self.kept[id(obj)] = obj
            return _kept, (id(obj),)
        reduced = super().reducer_override(obj)
        if isinstance(obj, FunctionType) and reduced is not NotImplemented and any(_globals_in(obj, WRITES)):
            raise pickle.PicklingError(f"{obj.__qualname__} sets global names, which methods may read")
        return reduced


class _Loader(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, held: Sequence[Any], kept: dict[int, Any]) -> None:
        super().__init__(file)
        self._held = held
        self._kept = kept

    def persistent_load(self, place: int) -> Any:
        return self._held[place]

    def find_class(self, module: str, name: str) -> Any:
        is_ours = module == __name__ and name == _kept.__name__
        return self._kept.__getitem__ if is_ours else super().find_class(module, name)


def _kept(identity: int) -> Any:
    """Stands in a pickle for what the loader looks up."""
    raise pickle.UnpicklingError(f"{identity} is known to its own loader alone")


def _prelude(count: int) -> bytes:
    """A pickle of nothing, by which a loader gets so many objects into its memo; an unpickler's can't be set."""
    puts = (
        pickle.BININT + struct.pack("<i", place) + pickle.BINPERSID + pickle.MEMOIZE + pickle.POP
        for place in range(count)
    )
    return b"".join([pickle.PROTO, b"\x05", *puts, pickle.NONE, pickle.STOP])


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
