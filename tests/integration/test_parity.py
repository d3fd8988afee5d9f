"""Remote equals local: the same seeds and actions give the same bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comparing
import numpy as np
import pytest
from conftest import OTHER_WAYS
from processes import Way

ENVS = ["CartPole-v1", "MountainCarContinuous-v0", "Acrobot-v1", "Pendulum-v1"]


def _steps(way: Way, env_id: str = "CartPole-v1") -> int:
    """Enough for many episode ends: Acrobot and MountainCar end theirs by time mostly, Pendulum every 200 steps.

    An actor call takes milliseconds, and brings what a stream brings: enough for one end where that comes soon.
    """
    if way.channel == "actor":
        return 210 if env_id == "Pendulum-v1" else 100
    return {"CartPole-v1": 400, "Pendulum-v1": 610}.get(env_id, 1000)


# By each connection and each channel; CartPole by the other pairs of them too.
every_env = pytest.mark.parametrize("env_id", ENVS)
# Without a mode an id gets its own vector env, as CartPole has one, else what "sync" gives it, as Acrobot does.
MODES = ["sync", "async", None]


@every_env
def test_make(env_id: str, trainer: Way, locally: Callable[..., Any]) -> None:
    check_make(env_id, trainer, locally)


@pytest.mark.parametrize(
    ("env_id", "mode"),
    [(env_id, mode) for env_id in ENVS for mode in MODES if mode or env_id in ("CartPole-v1", "Acrobot-v1")],
)
def test_make_vec(env_id: str, mode: str | None, trainer: Way, locally: Callable[..., Any]) -> None:
    check_make_vec(env_id, mode, trainer, locally)


@pytest.mark.parametrize("autoreset", ["NextStep", "SameStep", "Disabled"])
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_autoreset_modes(mode: str, autoreset: str, trainer: Way, locally: Callable[..., Any]) -> None:
    if (mode, autoreset) == ("async", "Disabled"):
        vector_kwargs = {
            "autoreset_mode": autoreset,
            "shared_memory": False,
        }  # Gymnasium 1.2 can't mask otherwise
    else:
        vector_kwargs = {"autoreset_mode": autoreset}
    call = ("CartPole-v1", 100 if trainer.channel == "actor" else 300, 3)
    local = locally(comparing.gymnasium_vector, *call, vectorization_mode=mode, vector_kwargs=vector_kwargs)
    remote = comparing.gymnasium_vector(*call, vectorization_mode=mode, vector_kwargs=vector_kwargs)
    comparing.assert_same(local, remote)


@every_env
@pytest.mark.parametrize("subproc", [False, True], ids=["dummy", "subproc"])
def test_sb3(env_id: str, subproc: bool, trainer: Way, locally: Callable[..., Any]) -> None:
    check_sb3(env_id, subproc, trainer, locally)


@pytest.mark.parametrize("trainer", OTHER_WAYS, ids=str, indirect=True, scope="session")
def test_cartpole_by_the_other_ways(trainer: Way, locally: Callable[..., Any]) -> None:
    check_make("CartPole-v1", trainer, locally)
    for mode in MODES:
        check_make_vec("CartPole-v1", mode, trainer, locally)
    for subproc in (False, True):
        check_sb3("CartPole-v1", subproc, trainer, locally)


def check_make(env_id: str, trainer: Way, locally: Callable[..., Any]) -> None:
    arguments = (env_id, _steps(trainer, env_id), 7)
    comparing.assert_same(locally(comparing.single, *arguments), comparing.single(*arguments))


def check_make_vec(env_id: str, mode: str | None, trainer: Way, locally: Callable[..., Any]) -> None:
    arguments = (env_id, _steps(trainer, env_id), 11)
    local = locally(comparing.gymnasium_vector, *arguments, vectorization_mode=mode)
    remote = comparing.gymnasium_vector(*arguments, vectorization_mode=mode)
    comparing.assert_same(local, remote)
    ends = sum(step[2].sum() + step[3].sum() for step in remote if len(step) == 5)
    assert ends >= 5 or (trainer.channel == "actor" and env_id != "CartPole-v1")


def check_sb3(env_id: str, subproc: bool, trainer: Way, locally: Callable[..., Any]) -> None:
    arguments = (env_id, _steps(trainer, env_id), 5, subproc)
    local, remote = locally(comparing.sb3_vector, *arguments), comparing.sb3_vector(*arguments)
    comparing.assert_same(local, remote)
    ends = sum(np.sum(step[2]) for step in remote if isinstance(step, tuple) and len(step) == 4)
    assert ends >= 5 or (trainer.channel == "actor" and env_id != "CartPole-v1")
