"""Replacing what a script calls, wherever it was imported, and putting back exactly what was there.

Three kinds of replacement, all of them an attribute of an owner that stays the same object:

* a method of a class, mostly `__init__` (the class object, and so every import and subclass of it, stays);
* a plain function: its `__code__` (the function object, and so every import of it, stays);
* a function that can't be changed from inside (Ray's are wrapped): the name in every module that holds it.

The undo log is written before each replacement and unwound in reverse, also after a failure half-way.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any, Literal


@dataclass(frozen=True)
class Patch:
    """One row of a table: what is replaced, and by what.

    Args:
        module, name: where the original is defined.
        how: `method` (of `Class.method`), `code` or `name`, as above.
        replacement: for `method` and `name`, a function (original) -> new function; for `code`, a function
            of the same signature that takes its names from the original's module.
    """

    module: str
    name: str
    how: Literal["method", "code", "name"]
    replacement: Callable[..., Any]


class UndoLog:
    """What was replaced: (owner, attribute, original), in order."""

    def __init__(self) -> None:
        self._entries: list[tuple[Any, str, Any]] = []
        self._renamed: list[tuple[Any, Any]] = []  # (replacement, original) of every `name` row

    def install(self, table: Sequence[Patch]) -> None:
        """Carry out every row; on a failure, everything in this log is put back first."""
        try:
            for patch in table:
                self._install(patch)
        except BaseException:
            self.undo()
            raise

    def undo(self, everywhere: bool = True) -> None:
        """Put everything back, in reverse. Idempotent.

        Args:
            everywhere: also in modules that were imported meanwhile, for which each of all modules is looked through.
        """
        while self._entries:
            owner, attribute, original = self._entries.pop()
            setattr(owner, attribute, original)
        if not everywhere:
            self._renamed.clear()
        while self._renamed:
            replacement, original = self._renamed.pop()
            for module, attribute in holders(replacement):
                setattr(module, attribute, original)

    def _install(self, patch: Patch) -> None:
        owner: Any = None
        original: Any = importlib.import_module(patch.module)
        for name in patch.name.split("."):
            owner, original = original, getattr(original, name)
        if patch.how == "method":
            defined = vars(owner).get(name)
            if isinstance(defined, classmethod):
                self._replace(owner, name, classmethod(patch.replacement(defined.__func__)))
            else:
                self._replace(owner, name, patch.replacement(original))
        elif patch.how == "code":
            _check_same_signature(original, patch.replacement)
            self._replace(original, "__code__", patch.replacement.__code__)
        else:
            replacement = patch.replacement(original)
            self._renamed.append((replacement, original))
            for module, attribute in holders(original):
                self._replace(module, attribute, replacement)

    def _replace(self, owner: Any, attribute: str, replacement: Any) -> None:
        original = getattr(owner, attribute)
        if isinstance(owner, type):
            original = vars(owner).get(attribute, original)  # a class method as it is, not bound
        self._entries.append((owner, attribute, original))
        setattr(owner, attribute, replacement)


def holders(value: Any) -> list[tuple[ModuleType, str]]:
    """Every (module, name) under which loaded modules hold this very object."""
    found = []
    for module in list(sys.modules.values()):
        if not isinstance(module, ModuleType):
            continue
        for attribute, held in vars(module).copy().items():
            if held is value:
                found.append((module, attribute))
    return found


def original_function(function: FunctionType, code: Any) -> FunctionType:
    """A function that does what `function` did before its `__code__` was replaced."""
    copy = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _check_same_signature(original: Any, replacement: Any) -> None:
    ours, theirs = replacement.__code__, original.__code__
    if ours.co_varnames[: ours.co_argcount] != theirs.co_varnames[: theirs.co_argcount] or ours.co_freevars:
        raise TypeError(
            f"{original.__module__}.{original.__qualname__} has another signature than the one remoterl knows; "
            "this version of the library is not supported yet."
        )


class AfterImport(importlib.abc.MetaPathFinder):
    """Calls a function once, right after a module is first imported. `remove` takes it off `sys.meta_path`.

    It waits on where somebody only asks whether the module exists (`importlib.util.find_spec`), or its import fails.

    Args:
        module: its full name.
        then: what is called.
        during: makes a context in which the module's own code runs.
    """

    def __init__(
        self,
        module: str,
        then: Callable[[], None],
        during: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._module = module
        self._then = then
        self._during = during
        self._asking = threading.local()  # the other finders, in whose answer we are not to look for ourselves

    def arm(self) -> None:
        """Call at once where the module is already there, else wait for its import."""
        if self._module in sys.modules:
            self._then()
        else:
            sys.meta_path.insert(0, self)

    def remove(self) -> None:
        """Stop waiting. Idempotent."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        """Let the other finders find it, and add our call behind the module's own code."""
        if fullname != self._module or getattr(self._asking, "now", False):
            return None
        self._asking.now = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._asking.now = False
        if spec is None or spec.loader is None:
            return None
        spec.loader = _ThenLoader(spec.loader, self._call, self._during)
        return spec

    def _call(self) -> None:
        if self in sys.meta_path:  # not removed meanwhile, nor called for another spec of this module
            self.remove()
            self._then()


class _ThenLoader(importlib.abc.Loader):
    def __init__(self, loader: Any, then: Callable[[], None], during: Callable[[], Any]) -> None:
        self._loader = loader
        self._then = then
        self._during = during

    def create_module(self, spec: Any) -> Any:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__.loader = module.__loader__ = self._loader  # type: ignore[union-attr]
        with self._during():
            self._loader.exec_module(module)
        self._then()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)
