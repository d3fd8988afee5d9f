"""Every environment x every vector env class x every autoreset mode: remote equals local, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comparing
import envs
import pytest
from processes import Way

# id: (steps, the package that registers it; trainers never import it)
REGISTERED: dict[str, tuple[int, tuple[str, ...]]] = {
    "FrozenLake-v1": (60, ()),
    "Taxi-v3": (30, ()),
    "Blackjack-v1": (40, ()),
    "LunarLander-v3": (120, ()),
    "HalfCheetah-v5": (30, ()),
    "ALE/Pong-v5": (20, ("ale_py",)),
    "MiniGrid-Empty-5x5-v0": (40, ("minigrid",)),
}
OWN: dict[str, Any] = {
    "buffer": envs.BufferReusingEnv,
    "nested": envs.NestedEnv,
    **{name: envs.OfSpace(name) for name in envs.SPACES},
}
CASES = [
    *(pytest.param(env_id, steps, modules, id=env_id) for env_id, (steps, modules) in REGISTERED.items()),
    *(pytest.param(factory, 14, (), id=name) for name, factory in OWN.items()),
]
# What Gymnasium 1.2 has no shared memory for.
NOT_SHARED = (*envs.SHAPELESS_SPACES, *envs.NESTED_SPACES, "float16", "MiniGrid-Empty-5x5-v0")
MODES = ["NextStep", "SameStep", "Disabled"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("what", "steps", "modules"), CASES)
def test_sync(what: Any, steps: int, modules: Any, mode: str, trainer: Way, locally: Callable[..., Any]) -> None:
    call = (what, "SyncVectorEnv", steps, 21, {"autoreset_mode": mode}, modules)
    comparing.assert_same(locally(comparing.vector_class, *call), comparing.vector_class(*call))


@pytest.mark.parametrize(("what", "steps", "modules"), CASES)
def test_async(what: Any, steps: int, modules: Any, trainer: Way, locally: Callable[..., Any]) -> None:
    shared = getattr(what, "name", what) not in NOT_SHARED
    arguments = {"autoreset_mode": "SameStep" if shared else "NextStep", "shared_memory": shared}
    call = (what, "AsyncVectorEnv", steps, 4, arguments, modules)
    comparing.assert_same(locally(comparing.vector_class, *call), comparing.vector_class(*call))


# SB3 takes no nested spaces and none without a fixed shape.
SB3_CASES = [case for case in CASES if case.id not in (*envs.NESTED_SPACES, *envs.SHAPELESS_SPACES, "nested")]


@pytest.mark.parametrize("class_name", ["DummyVecEnv", "SubprocVecEnv"])
@pytest.mark.parametrize(("what", "steps", "modules"), [case for case in SB3_CASES if "MiniGrid" not in case.id])
def test_sb3(what: Any, steps: int, modules: Any, class_name: str, trainer: Way, locally: Callable[..., Any]) -> None:
    call = (what, class_name, steps, 9, modules)
    comparing.assert_same(locally(comparing.sb3_class, *call), comparing.sb3_class(*call))
