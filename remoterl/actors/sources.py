"""Modules beside the trainer's script that are imported only where they are used: in a function, by an entry point.

What the script has imported is pickled by value. Of these the sources are sent, once an env runner lacked them; there
they are found by their names, after all that is installed.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, NamedTuple

from remoterl._logging import logger
from remoterl.beside import is_beside_the_script, is_found_beside

MAX_BYTES = 20_000_000  # of a package: what is larger holds more than code
MAX_ENTRIES = 20_000  # files and folders in a package, which are all looked at


class Source(NamedTuple):
    """A module's file, as the trainer has it."""

    path: str
    data: bytes


def lies_beside_the_script(module_name: str) -> bool:
    """Does this module, imported or not, lie beside the script, as far as its top package says it?"""
    top = module_name.split(".")[0]
    return is_beside_the_script(sys.modules[top]) if top in sys.modules else is_found_beside(_found(top))


def is_itself_beside(module_name: str) -> bool:
    """Is there a file or a folder of this very module beside the script?"""
    top, *rest = module_name.split(".")
    if not lies_beside_the_script(top):
        return False
    if not rest:
        return True
    *parents, last = rest
    return any(
        Path(folder, *rest).is_dir() or any(Path(folder, *parents).glob(f"{last}.*")) for folder in _folders_of(top)
    )


def sources_of(top: str) -> dict[str, Source]:
    """Of a module, or of a whole package, by full names; nothing where it does not lie beside the script."""
    if not lies_beside_the_script(top):
        return {}
    paths: dict[str, Path] = {}
    size_bytes = 0
    for name, path in _paths_of(top):
        paths[name] = path
        size_bytes += path.stat().st_size
        if size_bytes > MAX_BYTES:
            logger.warning("%s is not sent along: its modules have more than %d MB.", top, MAX_BYTES // 1_000_000)
            return {}
    return {name: Source(str(path), path.read_bytes()) for name, path in paths.items()}


def _paths_of(top: str) -> Iterator[tuple[str, Path]]:
    folders = _folders_of(top)
    origin = getattr(_found(top), "origin", None)
    if not folders and origin is not None and origin.endswith(".py"):
        yield top, Path(origin).absolute()
    for folder in folders:
        for path in _files_in(folder):
            parts = (top, *path.relative_to(folder).with_suffix("").parts)
            if all(map(str.isidentifier, parts)):
                yield ".".join(parts).removesuffix(".__init__"), path


def _files_in(folder: Path) -> list[Path]:
    """Its `.py` files, at any depth; none where there is much else, as in a folder of data that is no package."""
    found: list[Path] = []
    entries = 0
    for place, folders, names in os.walk(folder):
        folders[:] = filter(str.isidentifier, folders)  # others hold no modules
        entries += len(folders) + len(names)
        if entries > MAX_ENTRIES:
            logger.warning("%s is not sent along: it has more than %d files.", folder, MAX_ENTRIES)
            return []
        paths = (Path(place, name) for name in names if name.endswith(".py"))
        found += [path for path in paths if path.is_file()]  # no broken links
    return sorted(found)


def _folders_of(top: str) -> list[Path]:
    spec = _found(top)
    folders = spec.submodule_search_locations if spec is not None else None
    return [Path(folder).absolute() for folder in folders or ()]


def _found(top: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None


def serve(sources: Mapping[str, Source]) -> None:
    """In an env runner: let them be imported from here on."""
    if sources and _finder not in sys.meta_path:
        sys.meta_path.append(_finder)
        sys.meta_path.insert(0, _inner_finder)
    _finder.sources.update(sources)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self) -> None:
        self.sources: dict[str, Source] = {}

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if (source := self.sources.get(fullname)) is not None:
            return importlib.util.spec_from_file_location(fullname, source.path, loader=_Loader(source))
        if any(name.startswith(f"{fullname}.") for name in self.sources):  # a package without __init__.py
            return ModuleSpec(fullname, None, is_package=True)
        return None


class _InnerFinder(importlib.abc.MetaPathFinder):
    """Of packages that were served: before an older copy, if the trainer's folder has its like on this machine."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        parent = sys.modules.get(fullname.rpartition(".")[0])
        is_served = isinstance(getattr(getattr(parent, "__spec__", None), "loader", None), _Loader)
        return _finder.find_spec(fullname) if is_served else None


class _Loader(importlib.abc.ExecutionLoader):
    def __init__(self, source: Source) -> None:
        self._source = source

    def get_filename(self, fullname: str) -> str:
        return self._source.path

    def get_source(self, fullname: str) -> str:
        return importlib.util.decode_source(self._source.data)

    def is_package(self, fullname: str) -> bool:
        return Path(self._source.path).name == "__init__.py"


_finder = _Finder()
_inner_finder = _InnerFinder()
