"""Every environment x every vector env class x every autoreset mode: remote equals local, bit for bit.

`test_parity` has other environments, in every class and mode by every way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comparing
import envs
import pytest
from conftest import WAYS
from processes import Way

# id: (steps, the package that registers it; trainers never import it)
REGISTERED: dict[str, tuple[int, tuple[str, ...]]] = {
    "FrozenLake-v1": (60, ()),
    "Taxi-v3": (30, ()),
    "Blackjack-v1": (40, ()),
    "LunarLander-v3": (120, ()),
    "HalfCheetah-v5": (30, ()),
    "ALE/Pong-v5": (10, ("ale_py",)),
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
# How a mode resets and how the classes differ is decided by what an env runner is told, whichever way: by both ways
# every environment is driven by one of Gymnasium's classes, and by each of them by one of SB3's.
by_the_first_way = pytest.mark.parametrize("trainer", WAYS[:1], ids=str, indirect=True, scope="session")
by_the_second_way = pytest.mark.parametrize("trainer", WAYS[1:], ids=str, indirect=True, scope="session")


@pytest.mark.parametrize(("what", "steps", "modules"), CASES)
def test_sync(what: Any, steps: int, modules: Any, trainer: Way, locally: Callable[..., Any]) -> None:
    check_sync(what, steps, modules, "SameStep", locally)


@by_the_first_way
@pytest.mark.parametrize(
    ("what", "steps", "modules", "mode"),
    [
        pytest.param(*case.values, mode, id=f"{case.id}-{mode}")
        for case in CASES
        for mode in ("NextStep", "Disabled")
        if mode == "NextStep" or case.id in REGISTERED  # spaces make no difference to how a mode resets
    ],
)
def test_sync_in_other_modes(
    what: Any, steps: int, modules: Any, mode: str, trainer: Way, locally: Callable[..., Any]
) -> None:
    check_sync(what, steps, modules, mode, locally)


def check_sync(what: Any, steps: int, modules: Any, mode: str, locally: Callable[..., Any]) -> None:
    call = (what, "SyncVectorEnv", steps, 21, {"autoreset_mode": mode}, modules)
    comparing.assert_same(locally(comparing.vector_class, *call), comparing.vector_class(*call))


@by_the_second_way
@pytest.mark.parametrize(("what", "steps", "modules"), CASES)
def test_async(what: Any, steps: int, modules: Any, trainer: Way, locally: Callable[..., Any]) -> None:
    shared = getattr(what, "name", what) not in NOT_SHARED
    arguments = {"autoreset_mode": "SameStep" if shared else "NextStep", "shared_memory": shared}
    call = (what, "AsyncVectorEnv", steps, 4, arguments, modules)
    comparing.assert_same(locally(comparing.vector_class, *call), comparing.vector_class(*call))


# SB3 takes no spaces without a fixed shape, and its DummyVecEnv no nested ones.
NOT_SB3 = (*envs.SHAPELESS_SPACES, "tuple with text", "MiniGrid-Empty-5x5-v0")
SB3_CASES = [case for case in CASES if case.id not in NOT_SB3 and case.id not in (*envs.NESTED_SPACES, "nested")]


@by_the_first_way
@pytest.mark.parametrize(("what", "steps", "modules"), [case for case in CASES if case.id not in NOT_SB3])
def test_sb3(what: Any, steps: int, modules: Any, trainer: Way, locally: Callable[..., Any]) -> None:
    check_sb3(what, steps, modules, "SubprocVecEnv", locally)


@by_the_second_way
@pytest.mark.parametrize(("what", "steps", "modules"), SB3_CASES)
def test_sb3_in_its_process(what: Any, steps: int, modules: Any, trainer: Way, locally: Callable[..., Any]) -> None:
    check_sb3(what, steps, modules, "DummyVecEnv", locally)


def check_sb3(what: Any, steps: int, modules: Any, class_name: str, locally: Callable[..., Any]) -> None:
    call = (what, class_name, steps, 9, modules)
    comparing.assert_same(locally(comparing.sb3_class, *call), comparing.sb3_class(*call))
