"""Who steps: each contender makes a vector env of a work in this process and gives a function that steps it once."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.works import factory

Step = Callable[[Any], Any]


@dataclass(frozen=True)
class Cell:
    """One thing to measure: a contender at a work of a size."""

    contender: str
    work: str
    rows: int
    env_runners: int = 2

    def __str__(self) -> str:
        return f"{self.contender}, {self.work}, {self.rows} rows, {self.env_runners} env runners"


def gymnasium_sync(cell: Cell) -> Step:
    from gymnasium.vector import SyncVectorEnv

    return _gymnasium(SyncVectorEnv, cell)


def gymnasium_async(cell: Cell) -> Step:
    from gymnasium.vector import AsyncVectorEnv

    return _gymnasium(AsyncVectorEnv, cell)


def processes_without_messages(cell: Cell) -> Step:
    """As many processes as there are env runners, each a SyncVectorEnv of its share of rows, which never talk.

    What a machine's cores can do at most, where a step of this process's stands for one of all rows.
    """
    share = cell.rows // cell.env_runners
    step = gymnasium_sync(Cell(cell.contender, cell.work, share))
    beside: list[Any] = []

    def step_share(actions: Any) -> Any:
        if not beside:  # started with the first step: before, the machine is waited for until it is idle
            for _ in range(cell.env_runners - 1):
                beside.append(multiprocessing.get_context("fork").Process(target=step_on, args=(actions,), daemon=True))
                beside[-1].start()
        return step(actions[:share])

    def step_on(actions: Any) -> None:
        while True:
            step(actions[:share])

    return step_share


def _gymnasium(vector_class: type, cell: Cell) -> Step:
    env = vector_class([factory(cell.work)] * cell.rows)
    env.reset(seed=0)
    return env.step


def sb3_dummy(cell: Cell) -> Step:
    from stable_baselines3.common.vec_env import DummyVecEnv

    return _sb3(DummyVecEnv, cell)


def sb3_subproc(cell: Cell) -> Step:
    from stable_baselines3.common.vec_env import SubprocVecEnv

    # Forked, 32 processes start in a second instead of a minute; they step as fast.
    return _sb3(SubprocVecEnv, cell, start_method="fork")


def _sb3(vec_env_class: type, cell: Cell, **kwargs: Any) -> Step:
    from stable_baselines3.common.env_util import make_vec_env

    make: Any = factory(cell.work)
    env = make_vec_env(make, cell.rows, seed=0, vec_env_cls=vec_env_class, vec_env_kwargs=kwargs)
    env.reset()
    return env.step


def single(cell: Cell) -> Step:
    """`gymnasium.make` and one row, reset whenever an episode ends."""
    import gymnasium

    env = gymnasium.make(cell.work)
    env.reset(seed=0)

    def step(actions: Any) -> None:
        _, _, terminated, truncated, _ = env.step(actions[0])
        if terminated or truncated:
            env.reset()

    return step


def actor_an_env(cell: Cell) -> Step:
    """What people write by hand: a Ray actor for each environment, `ray.get` over all their steps."""
    import ray

    class Actor:
        def __init__(self, make: Any) -> None:
            self._env = make()
            self._env.reset(seed=0)

        def step(self, action: Any) -> Any:
            observation, reward, terminated, truncated, info = self._env.step(action)
            if terminated or truncated:
                observation, info = self._env.reset()
            return observation, reward, terminated, truncated, info

    remote: Any = ray.remote(Actor)
    actors = [remote.options(num_cpus=0).remote(factory(cell.work)) for _ in range(cell.rows)]

    def step(actions: Any) -> Any:
        results = ray.get([actor.step.remote(action) for actor, action in zip(actors, actions, strict=True)])
        return [np.stack(column) for column in list(zip(*results, strict=True))[:4]]

    return step


def remote_gym(cell: Cell) -> Step:
    import remote_gym  # noqa: F401

    raise NotImplementedError("one remote environment a server: no vector env to compare")


def envpool(cell: Cell) -> Step:
    import envpool as pool

    env = pool.make_gymnasium(cell.work.removeprefix("ALE/"), num_envs=cell.rows)
    env.reset()
    return env.step


LOCAL: dict[str, Callable[[Cell], Step]] = {
    "Gymnasium SyncVectorEnv": gymnasium_sync,
    "Gymnasium AsyncVectorEnv": gymnasium_async,
    "processes without messages": processes_without_messages,
    "SB3 DummyVecEnv": sb3_dummy,
    "SB3 SubprocVecEnv": sb3_subproc,
    "gymnasium.make": single,
    "EnvPool": envpool,
    "remote-gym": remote_gym,
}
FACES = {"Gymnasium": gymnasium_sync, "SB3": sb3_dummy, "make": single}
# `remoterl FACE CHANNEL CONNECTION`: the same local class, patched
REMOTE = [
    f"remoterl {face} {channel} {connection}"
    for face in FACES
    for channel in ("stream", "actor")
    for connection in ("driver", "client")
]
BY_HAND = "one Ray actor an env"


def open_contender(cell: Cell, addresses: dict[str, str]) -> Step:
    """Make the contender's vector env; `addresses` are the cluster's, by connection.

    Raises:
        ImportError, NotImplementedError: it does not exist here; the message says why.
    """
    if cell.contender in LOCAL:
        return LOCAL[cell.contender](cell)
    if cell.contender == BY_HAND:
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=os.environ["REMOTERL_API_KEY"])  # read at import
        import ray

        ray.init(addresses["driver"], log_to_driver=False)
        return actor_an_env(cell)
    import remoterl

    _, face, channel, connection = cell.contender.split()
    assert remoterl.init(
        address=addresses[connection],
        num_env_runners=cell.env_runners,
        channel=channel,  # type: ignore[arg-type]
    )
    return FACES[face](cell)
