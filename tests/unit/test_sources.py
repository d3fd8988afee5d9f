"""Modules that are sent as they are: found beside the script, served where they arrive."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from remoterl.actors import sources
from remoterl.actors.sources import is_itself_beside, serve, sources_of

FILES = {
    "sent/__init__.py": "from .inner import part\nfrom .plain.deep import fails\n",
    "sent/inner/__init__.py": "",
    "sent/inner/part.py": "# -*- coding: latin-1 -*-\nNAME = 'gr\u00fcn'\n",
    "sent/plain/deep.py": "def fails():\n    raise ValueError('as it is told')\n",
    "sent/not-a-module.py": "",
    "single.py": "import sent\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, text in FILES.items():
        path = tmp_path / "beside" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("latin-1"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "beside")
    before = list(sys.meta_path)
    yield tmp_path
    sys.meta_path[:] = before
    sources._finder.sources.clear()
    for name in [name for name in sys.modules if name.split(".")[0] in ("sent", "single")]:
        del sys.modules[name]


def test_a_package_is_found_and_served(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as trainer:
        trainer.syspath_prepend(folder / "beside")
        found = {**sources_of("sent"), **sources_of("single")}
        assert sorted(found) == ["sent", "sent.inner", "sent.inner.part", "sent.plain.deep", "single"]
        assert not sources_of("pytest") and not sources_of("no_such_module") and not sources_of("sys")
        assert is_itself_beside("sent.plain.deep") and is_itself_beside("sent.plain") and is_itself_beside("single")
        assert not any(map(is_itself_beside, ("sent.none", "single.part", "pytest", "")))
    monkeypatch.chdir(folder / "elsewhere")
    (folder / "beside").rename(folder / "moved")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("single")
    serve(found)
    single = importlib.import_module("single")
    assert single.sent.part.NAME == "gr\u00fcn" and single.__file__ == str(folder / "beside" / "single.py")
    assert single.sent.__path__ == [str(folder / "beside" / "sent")]
    with pytest.raises(ValueError, match="told") as raised:
        single.sent.fails()
    assert "raise ValueError('as it is told')" in "".join(traceback.format_exception(raised.value))
    assert "def fails" in inspect.getsource(single.sent.fails)


def test_what_is_too_large_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.syspath_prepend(folder / "beside")
    monkeypatch.setattr(sources, "MAX_BYTES", 10)
    assert not sources_of("sent") and "sent is not sent along" in caplog.text


def test_a_folder_of_data_is_not_walked(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.syspath_prepend(folder / "beside")
    (folder / "beside" / "sent" / "broken.py").symlink_to(folder / "nowhere.py")
    assert "sent.inner" in sources_of("sent") and "sent.broken" not in sources_of("sent")
    monkeypatch.setattr(sources, "MAX_ENTRIES", 2)
    assert not sources_of("sent") and "more than 2 files" in caplog.text


def test_what_is_served_goes_before_an_older_copy_in_the_same_place(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as trainer:
        trainer.syspath_prepend(folder / "beside")
        found = sources_of("sent")
    monkeypatch.chdir(folder / "elsewhere")
    part = folder / "beside" / "sent" / "inner" / "part.py"
    part.write_text("NAME = 'older'\n")
    serve(found)
    assert importlib.import_module("sent.inner.part").NAME == "gr\u00fcn"
