"""constraints.txt: `make` installs by it, on every Python that pyproject.toml promises."""

from __future__ import annotations

import re
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from processes import ROOT

PINS = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]


@pytest.mark.parametrize("pin", PINS, ids=lambda pin: pin.name)
def test_a_pin_is_for_each_python_that_it_names(pin: Requirement) -> None:
    [oldest] = re.findall(r'^requires-python = ">=(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    if pin.marker and not pin.marker.evaluate({"python_version": oldest}):
        return
    try:
        installed = metadata.metadata(pin.name)
    except metadata.PackageNotFoundError:
        return  # of the documentation only
    assert oldest in SpecifierSet(installed["Requires-Python"] or ""), (
        f"{pin} needs Python {installed['Requires-Python']}"
    )
