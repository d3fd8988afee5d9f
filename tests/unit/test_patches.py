from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from remoterl.patches.base import AfterImport, Patch, UndoLog, holders, original_function
from remoterl.patches.becoming import _parts_used


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "toy_library.py").write_text(
        "def make(name, size=3, **kwargs):\n    return ('local', name, size, kwargs)\n"
        "def wrapped(): return 'local'\n"
        "class Thing:\n    def __init__(self, value): self.value = value\n"
    )
    (tmp_path / "toy_user.py").write_text("from toy_library import make, wrapped, Thing\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("toy_library")
    for name in ("toy_library", "toy_user"):
        sys.modules.pop(name, None)


def remote_make(name, size=3, **kwargs):  # type: ignore[no-untyped-def]
    return ("remote", name, size, kwargs)


def remote_init(original):  # type: ignore[no-untyped-def]
    def __init__(self, value):  # type: ignore[no-untyped-def]  # noqa: N807
        original(self, value)
        self.value += 1

    return __init__


TABLE = (
    Patch("toy_library", "make", "code", remote_make),
    Patch("toy_library", "Thing.__init__", "method", remote_init),
    Patch("toy_library", "wrapped", "name", lambda original: lambda: "remote"),
)


def test_names_imported_before_and_after(library: ModuleType) -> None:
    make, wrapped, thing_class, code = library.make, library.wrapped, library.Thing, library.make.__code__
    before = dict(vars(thing_class))
    log = UndoLog()
    log.install(TABLE)
    user = importlib.import_module("toy_user")  # imported while patched
    assert make("x", q=1) == user.make("x", q=1) == ("remote", "x", 3, {"q": 1})
    assert original_function(make, code)("x", 5) == ("local", "x", 5, {})
    assert user.wrapped() == library.wrapped() == "remote"
    assert thing_class(1).value == user.Thing(1).value == 2
    log.undo()
    log.undo()
    assert user.make is library.make is make and make("x") == ("local", "x", 3, {})
    assert user.wrapped is library.wrapped is wrapped
    assert dict(vars(thing_class)) == before and make.__code__ is code


def test_a_failure_half_way_undoes_what_was_done(library: ModuleType) -> None:
    code = library.make.__code__
    log = UndoLog()
    with pytest.raises(AttributeError):
        log.install([*TABLE, Patch("toy_library", "absent", "code", remote_make)])
    assert library.make.__code__ is code and library.wrapped() == "local" and library.Thing(1).value == 1


def test_another_signature_is_refused(library: ModuleType) -> None:
    def other(identifier, size=3, **kwargs):  # type: ignore[no-untyped-def]
        return None

    with pytest.raises(TypeError, match="another signature"):
        UndoLog().install([Patch("toy_library", "make", "code", other)])


def test_holders_are_found_by_identity(library: ModuleType) -> None:
    user = importlib.import_module("toy_user")
    assert (library, "wrapped") in holders(library.wrapped) and (user, "wrapped") in holders(library.wrapped)


def test_after_import(library: ModuleType) -> None:
    meta_path, called = list(sys.meta_path), []
    later = AfterImport("toy_user", lambda: called.append(sys.modules["toy_user"].make))
    later.arm()
    assert called == []
    user = importlib.import_module("toy_user")
    assert called == [user.make] and sys.meta_path == meta_path
    assert user.__spec__.loader is user.__loader__ and type(user.__loader__).__name__ == "SourceFileLoader"
    at_once = AfterImport("toy_user", lambda: called.append("at once"))
    at_once.arm()
    assert called[-1] == "at once"
    waiting = AfterImport("toy_never", lambda: None)
    waiting.arm()
    waiting.remove()
    waiting.remove()
    assert sys.meta_path == meta_path


@pytest.mark.parametrize("before", ["asked whether it exists", "an import that fails"])
def test_after_import_waits_for_one_that_succeeds(library: ModuleType, before: str, monkeypatch) -> None:
    meta_path, called = list(sys.meta_path), []
    AfterImport("toy_user", lambda: called.append("imported")).arm()
    if before == "asked whether it exists":
        assert importlib.util.find_spec("toy_user") is not None
    else:
        with monkeypatch.context() as patched, pytest.raises(ImportError):
            patched.delattr(library, "make")
            importlib.import_module("toy_user")
    assert called == []
    importlib.import_module("toy_user")
    assert called == ["imported"] and sys.meta_path == meta_path


def decorated(method):  # type: ignore[no-untyped-def]
    @functools.wraps(method)
    def call(self):  # type: ignore[no-untyped-def]
        return self.of_the_decorator, method(self)

    return call


class Base:
    """Has parts of its own."""


class Subclass(Base):
    def plain(self):  # type: ignore[no-untyped-def]
        return [(lambda: self.in_a_lambda[row])() for row in range(3)]  # type: ignore[attr-defined]

    @decorated
    @decorated
    def behind(self):  # type: ignore[no-untyped-def]
        return self.behind_it  # type: ignore[attr-defined]

    @staticmethod
    def static(other):  # type: ignore[no-untyped-def]
        return other.static_part

    @functools.cached_property
    def kept(self):  # type: ignore[no-untyped-def]
        return self.cached_part  # type: ignore[attr-defined]

    @property
    @functools.lru_cache  # noqa: B019
    def read(self):  # type: ignore[no-untyped-def]
        return sum(self.read_part for _ in range(3))  # type: ignore[attr-defined]


def test_parts_of_a_base_are_found_wherever_a_subclass_uses_them() -> None:
    parts = {"in_a_lambda", "of_the_decorator", "behind_it", "static_part", "cached_part", "read_part"}
    assert _parts_used(Subclass, Base, frozenset({*parts, "unused"})) == sorted(parts)
    assert _parts_used(Base, Base, frozenset(parts)) == []
