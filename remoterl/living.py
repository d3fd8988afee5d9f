"""What a simulator keeps of a trainer's classes and modules from one arrival to the next.

As code travels by value, all that it holds travels again with each vector env and each argument. Locally there is one
process, whose classes and globals go on. So each attribute comes with a digest of what it was as it left, and one that
has arrived like that before stays as the environments here have it since.
"""

from __future__ import annotations

import builtins
import itertools
import os
import sys
import uuid
import weakref
from collections.abc import Callable, Mapping
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

Key = tuple[str, int, int]  # of a trainer's module: its process's token, and pid (a fork has the same token), a number
Digests = Mapping[str, bytes | None]  # by names; None: there is no saying whether it is the same

_TOKEN = uuid.uuid4().hex
_numbers: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
_next_number = itertools.count()


# ---- on the trainer --------------------------------------------------------------------------------------


def number_of(obj: Any) -> int:
    """Of a class or module: the same as long as it lives, and of no other."""
    return _numbers.setdefault(obj, next(_next_number))


class Names:
    """A module's names, in which functions look: arrives as those of the one module that stands for it there."""

    def __init__(self, module: ModuleType) -> None:
        self.key: Key = (_TOKEN, os.getpid(), number_of(module))
        own = vars(module)
        self._own = {name: own[name] for name in ("__name__", "__package__", "__path__", "__file__") if name in own}

    def __reduce__(self) -> Any:
        return _names_of, (self.key, self._own)


def module_of(function: FunctionType) -> ModuleType | None:
    """That in which a function looks for names; None where it looks elsewhere, as after an `exec`."""
    names = function.__globals__
    module = sys.modules.get(str(names.get("__name__")))
    return module if type(module) is ModuleType and vars(module) is names else None


# ---- on the simulator ------------------------------------------------------------------------------------


class _Living(NamedTuple):
    module: ModuleType
    arrived: dict[str, bytes]  # digests of what it holds, as of their last arrivals


_modules: dict[Key, _Living] = {}
_classes: weakref.WeakKeyDictionary[type, dict[str, bytes]] = weakref.WeakKeyDictionary()


def start_anew() -> None:
    """What arrives next is set as it is, as in a new process."""
    _modules.clear()
    _classes.clear()


def living_module(key: Key, name: str) -> ModuleType:
    """What stands here for a module of the trainer's."""
    return _living(key, name).module


def _living(key: Key, name: str) -> _Living:
    if key not in _modules:
        _modules.setdefault(key, _Living(ModuleType(name), {}))
    return _modules[key]


def _names_of(key: Key, own: dict[str, Any]) -> dict[str, Any]:
    names = vars(living_module(key, own["__name__"]))
    names.update(own)
    return names


def set_module(module: ModuleType, state: tuple[Key, dict[str, Any], Digests]) -> None:
    """Let it hold what has arrived and is news."""
    key, values, digests = state
    vars(module).update(_news(values, digests, _living(key, module.__name__).arrived), __builtins__=vars(builtins))


def set_function(function: FunctionType, state: tuple[Callable[..., Any], Any, Key, dict[str, Any], Digests]) -> None:
    """The same for the names that it uses, and all of its own anew."""
    setter, own, key, values, digests = state
    function.__globals__.update(_news(values, digests, _living(key, str(function.__module__)).arrived))
    setter(function, own)


def set_class(kind: type, state: tuple[Callable[..., Any], tuple[dict[str, Any], Any], Digests]) -> None:
    """Let it have what has arrived and is news."""
    setter, (attributes, more), digests = state
    setter(kind, (_news(attributes, digests, _classes.setdefault(kind, {})), more))


def has_arrived(kind: type) -> bool:
    """Is it a class of the trainer's?"""
    return kind in _classes


def _news(values: dict[str, Any], digests: Digests, arrived: dict[str, bytes]) -> dict[str, Any]:
    """Those that did not arrive like this last time; `arrived` is told."""
    news = {
        name: value for name, value in values.items() if digests[name] is None or arrived.get(name) != digests[name]
    }
    for name in news:
        arrived.pop(name, None)
        if (digest := digests[name]) is not None:
            arrived[name] = digest
    return news
