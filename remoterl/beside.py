"""What lies beside the trainer's script: code of its own, which travels, where installed packages go by name."""

from __future__ import annotations

import os
import site
import sys
import sysconfig
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import BYTECODE_SUFFIXES, SOURCE_SUFFIXES, ModuleSpec
from types import ModuleType
from typing import Any

import remoterl

_by_value_lock = threading.Lock()
_holders: Counter[tuple[str, str]] = Counter()  # (pickler, module) -> how many want it by value just now
# The script's folders -> module name -> (id of the module, is it beside the script)
_beside_by_name: dict[tuple[str, ...], dict[str, tuple[int, bool]]] = {}


@contextmanager
def beside_the_script_by_value(pickler: ModuleType) -> Iterator[None]:
    """Let `pickler` send modules beside the script by value; what a script registered itself stays so.

    Args:
        pickler: cloudpickle, or the copy of it that Ray carries (`ray.cloudpickle`).
    """
    modules = _modules_beside()
    with _by_value_lock:
        held = [(pickler, module) for module in modules if _hold_by_value(pickler, module)]
    try:
        yield
    finally:
        with _by_value_lock:
            for pickler, module in held:
                _holders[pickler.__name__, module.__name__] -= 1
                if _holders[pickler.__name__, module.__name__] == 0:
                    pickler.unregister_pickle_by_value(module)


def _hold_by_value(pickler: ModuleType, module: ModuleType) -> bool:
    """Register the module, or count one more who wants it so; False where the script registered it itself."""
    key = pickler.__name__, module.__name__
    if not _holders[key]:
        if module.__name__ in pickler.list_registry_pickle_by_value():
            return False
        pickler.register_pickle_by_value(module)
    _holders[key] += 1
    return True


def _modules_beside() -> list[ModuleType]:
    known = _beside_by_name.setdefault(_script_folders(), {})
    found = []
    for name, module in sys.modules.copy().items():  # a copy: other code may run meanwhile, and import
        if (cached := known.get(name)) is None or cached[0] != id(module):
            # A module object under its own name; aliases would be registered twice.
            is_beside = getattr(module, "__name__", None) == name and is_beside_the_script(module)
            cached = known[name] = id(module), is_beside
        if cached[1]:
            found.append(module)
    return found


# What simulators have, or, as torch, must not get in copies: also where a checkout of it is the working directory.
_EVERYWHERE = frozenset({"cloudpickle", "gymnasium", "numpy", "ray", "remoterl", "stable_baselines3", "torch"})


def is_beside_the_script(module: ModuleType) -> bool:
    """Is this module Python code in the folder of the main script or in a working directory, uninstalled?"""
    path = getattr(module, "__file__", None)
    name = getattr(module, "__name__", "__main__")
    if name == "__main__" or name.split(".")[0] in _EVERYWHERE:
        return False
    return is_beside(path) if isinstance(path, str) else is_found_beside(getattr(module, "__spec__", None))


def is_found_beside(spec: Any) -> bool:
    """Does what was found for a module's name lie beside the script? A package without `__init__.py` is its folders."""
    if not isinstance(spec, ModuleSpec):
        return False
    places = [spec.origin or ""] if spec.has_location else list(spec.submodule_search_locations or ())
    return bool(places) and all(map(is_beside, places))


def is_beside(path: str) -> bool:
    """Is this Python code, or a folder, in that of the main script or in a working directory, uninstalled?"""
    path = os.path.abspath(path)
    is_code = path.endswith((*SOURCE_SUFFIXES, *BYTECODE_SUFFIXES)) or os.path.isdir(path)
    return is_code and path.startswith(_script_folders()) and not is_installed(path)


def is_installed(path: str) -> bool:
    """Does this absolute path belong to Python or to an installed package?"""
    return path.startswith(_INSTALLED)


def _script_folders() -> tuple[str, ...]:
    folders = {os.getcwd()}
    if remoterl._started_in:
        folders.add(remoterl._started_in)
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    if main:
        folders.add(os.path.dirname(os.path.abspath(main)))
    return tuple(os.path.join(folder, "") for folder in folders)


def _installed_folders() -> tuple[str, ...]:
    paths = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib", "scripts")}
    paths.update(site.getsitepackages())
    paths.add(site.getusersitepackages())
    paths.update({sys.prefix, sys.exec_prefix} - {os.getcwd()})
    return tuple(os.path.join(os.path.abspath(path), "") for path in paths if path)


_INSTALLED = _installed_folders()
