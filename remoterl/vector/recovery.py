"""What a vector env tells its trainer when rows were lost: a truncated episode, by each class's own rules.

Pure functions on messages; `core` decides when. The rules, by the mode of the vector env:

- NEXT_STEP and DISABLED (and one single environment): `truncated=True`, reward 0, the last observation seen. The next
  step (NEXT_STEP) or the next `reset` starts the new episode.
- SAME_STEP and Stable-Baselines3: the new episode's first observation, the last one seen as `final_obs` or
  `terminal_observation`.

A loss that shows in a call (`get_attr`) is told in the next step. A `reset` of all rows leaves nothing to tell; after
one of some rows, the next step still ends the episodes of all rows that were lost together.

`info["remoterl"]` says what happened: `lost` (True), `simulator` and `reason` of the loss, `moved_to` (a simulator).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from gymnasium import Space, spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from remoterl import messages as m
from remoterl.messages import ARRAY_SPACES

USUAL_CAUSE = (
    "An environment that ends its own process does that: a crash of native code, os._exit(), or more memory than there "
    "is. The simulator's output, or this script's, may show where."
)
GYMNASIUM = (
    m.Semantics.GYMNASIUM_SYNC,
    m.Semantics.GYMNASIUM_ASYNC,
    m.Semantics.GYMNASIUM_ASYNC_UNSHARED,
)
SB3 = (m.Semantics.SB3_DUMMY, m.Semantics.SB3_SUBPROC)


class Rescuer(Protocol):
    """Where a vector env gets other env runners from: the session."""

    @property
    def step_timeout_s(self) -> float | None:
        """Seconds that a step or a reset may take; None: any number."""

    @property
    def restarts(self) -> int:
        """How many env runners were replaced."""

    def replace(self, lost: Any, error: Exception, env_id: str) -> Any:
        """The env runner (`RunnerLink`) for the rows of a lost one, which is ended should it still live.

        Raises:
            EnvRunnerLostError: there is none; the message says why.
            HubLostError: the whole cluster is gone.
        """

    def give_up(self, runner: Any) -> None:
        """End an env runner that does not answer; its rows are lost."""

    def registered(self) -> Mapping[str, Any]:
        """What the trainer has registered, and a simulator lacks, by ids: as it goes with the rows that are made."""

    def news_for(self, runner: Any, registered: Mapping[str, Any]) -> bytes:
        """The trainer's registrations and sources that the env runner lacks, as `OpenRows` takes them.

        Args:
            registered: those of when the rows were made, which come back as what they were.
        """


def starts_at_once(semantics: m.Semantics, mode: AutoresetMode) -> bool:
    """Is the new episode's first observation due in the very step that tells of the loss?"""
    return semantics in SB3 or (_is_batched(semantics) and mode == AutoresetMode.SAME_STEP)


def derived_seeds(seeds: Sequence[Any], losses: int) -> tuple[Any, ...]:
    """Seeds for the rows' new episodes, from those of their last seeded reset: the same ones after the same losses."""
    return tuple(_derived(seed, losses) for seed in seeds)


def truncated_step(
    semantics: m.Semantics,
    mode: AutoresetMode,
    space: Space,
    num_rows: int,
    last: Any,
    fresh: m.RowsReset | None,
    told: Mapping[str, Any],
) -> m.RowsStepped:
    """The step in which some rows' episodes end because their env runner was lost.

    Args:
        semantics, mode: of the vector env.
        space: of one row's observations.
        num_rows: rows of the lost env runner.
        last: the batch of observations that the trainer has seen last.
        fresh: the rows' reset, where `starts_at_once`.
        told: for `info["remoterl"]`.
    """
    told = dict(told)
    if semantics is m.Semantics.SINGLE:  # the script holds the very object, here and in the next
        last = copy.deepcopy(last)
        return m.RowsStepped(last, 0.0, False, True, [(0, {"remoterl": told}, None)], [])  # type: ignore[arg-type]
    if semantics is m.Semantics.HOSTED:
        return _hosted(copy.deepcopy(last), told)
    if semantics in SB3:
        assert fresh is not None
        ends = {"TimeLimit.truncated": True, "remoterl": told}
        infos = [(row, {"terminal_observation": row_of(space, last, row), **ends}, None) for row in range(num_rows)]
        reward_type = np.float32 if semantics is m.Semantics.SB3_DUMMY else np.float64
        dones = np.ones(num_rows, np.bool_)
        return m.RowsStepped(fresh.observations, np.zeros(num_rows, reward_type), dones, None, infos, list(fresh.infos))
    rewards, terminations, truncations = (np.zeros(num_rows), np.zeros(num_rows, np.bool_), np.ones(num_rows, np.bool_))
    if mode == AutoresetMode.SAME_STEP:
        assert fresh is not None
        starts = dict(fresh.infos)
        infos_of_rows: list[tuple[int, dict[str, Any], Any]] = [
            (row, {**starts.get(row, {}), "remoterl": told}, (row_of(space, last, row), {})) for row in range(num_rows)
        ]
        return m.RowsStepped(fresh.observations, rewards, terminations, truncations, infos_of_rows, [])
    infos_of_rows = [(row, {"remoterl": told}, None) for row in range(num_rows)]
    return m.RowsStepped(last, rewards, terminations, truncations, infos_of_rows, [])


def row_of(space: Space, batch: Any, row: int) -> Any:
    """One row's observation of a batch, as a copy."""
    if isinstance(space, ARRAY_SPACES):
        return np.copy(batch[row])
    if isinstance(space, spaces.Dict):
        return {key: row_of(subspace, batch[key], row) for key, subspace in space.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(row_of(subspace, part, row) for subspace, part in zip(space.spaces, batch, strict=True))
    return copy.deepcopy(batch[row])


def _hosted(last: Any, told: dict[str, Any]) -> m.RowsStepped:
    leaf = last
    while not isinstance(leaf, np.ndarray):
        leaf = next(iter(leaf.values())) if isinstance(leaf, Mapping) else leaf[0]
    nothing = np.zeros(len(leaf))
    infos: dict[str, Any] = {}
    for row in range(len(leaf)):
        infos = VectorEnv._add_info(_Counts(len(leaf)), infos, {"remoterl": told}, row)  # type: ignore[arg-type]
    over = np.zeros(len(leaf), np.bool_)
    return m.RowsStepped(last, nothing, over, ~over, [(0, infos, None)], [])


class _Counts:
    """What `VectorEnv._add_info` needs of a vector env."""

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs

    _add_info = VectorEnv._add_info


def _is_batched(semantics: m.Semantics) -> bool:
    return semantics in GYMNASIUM


def _derived(seed: Any, losses: int) -> Any:
    if isinstance(seed, (list, tuple)):
        return [_derived(one, losses) for one in seed]
    if seed is None:
        return None
    return int(np.random.SeedSequence([int(seed), losses]).generate_state(1)[0] >> 1)  # 31 bits, for any environment
