"""How a trainer's registrations are sent, without Ray."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import pytest
from gymnasium.envs.registration import EnvSpec, WrapperSpec, load_env_creator

from remoterl.actors import registry
from remoterl.actors.registry import SpecShipper, with_local_code
from remoterl.shipping import ship, unship

GRID = """
import gymnasium
SIZE = 8
class Grid(gymnasium.Env):
    def size(self): return SIZE
"""


@pytest.fixture
def grids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module beside the script."""
    module = ModuleType("grids")
    module.__file__ = str(tmp_path / "grids.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "grids", module)
    exec(GRID, vars(module))
    return module


def test_an_id_stands_for_the_code_of_now(grids: Any) -> None:
    shipper, spec = SpecShipper(), EnvSpec("Grid-v0", entry_point="grids:Grid", kwargs={"n": 1})

    def shipped() -> Any:
        return shipper.ship([spec])["Grid-v0"]

    def set_size() -> None:
        grids.SIZE = 16

    def run_its_cell_again() -> None:
        exec(GRID, vars(grids))

    last = shipped()
    for change in (set_size, run_its_cell_again, lambda: spec.kwargs.update(n=2)):
        assert shipped() is last
        change()
        assert shipped() != last
        last = shipped()


def test_a_wrapper_has_one_name_wherever_it_arrives(grids: Any) -> None:
    wrapper = WrapperSpec("Grid", "grids:Grid", {})
    data = ship(with_local_code(EnvSpec("Grid-v0", entry_point="grids:Grid", additional_wrappers=(wrapper,))))
    [first], [again] = unship(data).additional_wrappers, unship(data).additional_wrappers
    assert first == again != wrapper and load_env_creator(first.entry_point) is grids.Grid


def test_what_is_installed_is_pickled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(registry, "ship", lambda spec, ship=registry.ship: asked.append(spec.id) or ship(spec))
    specs = [spec for spec in gymnasium.registry.values() if str(spec.entry_point).startswith("gymnasium.")]
    shipper = SpecShipper()
    first = shipper.ship(specs)
    assert shipper.ship(specs) == first and asked == [spec.id for spec in specs]


def test_only_the_module_of_what_is_made_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("walks", "swims"):
        (tmp_path / f"{name}.py").write_text(f"print('{name}')\nraise SystemExit\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    specs = [EnvSpec("Walk-v0", entry_point="walks:Walk"), EnvSpec("Swim-v0", entry_point="swims:Swim")]
    shipper = SpecShipper()
    shipped = shipper.ship(specs)
    assert not capsys.readouterr().out
    for asked in ("Walk-v0", "Walk", "walks:Walk-v0"):
        assert shipper.ship(specs, asked) == shipped and capsys.readouterr().out == "walks\n"
    assert unship(shipped["Swim-v0"]).entry_point == "swims:Swim"
    module = ModuleType("swims")
    module.__file__ = str(tmp_path / "swims.py")
    exec("class Swim: pass", vars(module))
    monkeypatch.setitem(sys.modules, "swims", module)
    assert unship(shipper.ship(specs)["Swim-v0"]).entry_point is vars(module)["Swim"]
