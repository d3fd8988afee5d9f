"""What scripts do with environments besides stepping them comes out as it does in their own process."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import comparing
import idioms
import pytest
from conftest import in_cluster
from processes import Way

pytestmark = in_cluster


@pytest.mark.parametrize("name", [name for name, _ in inspect.getmembers(idioms, inspect.isfunction)])
def test_an_idiom(name: str, trainer: Way, locally: Callable[..., Any]) -> None:
    idiom = getattr(idioms, name)
    comparing.assert_same(locally(idiom), idiom())
