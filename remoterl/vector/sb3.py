"""Stable-Baselines3's faces: `DummyVecEnv` and `SubprocVecEnv` whose environments live on env runners.

Imported only where the script has Stable-Baselines3. Source of every rule: Stable-Baselines3 2.9,
`common/vec_env/dummy_vec_env.py` and `subproc_vec_env.py`.
"""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.monitor import ResultsWriter
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv
from stable_baselines3.common.vec_env.util import obs_space_info

from remoterl.errors import RemoteRLError
from remoterl.messages import Target, rows_of
from remoterl.vector.anew import make_anew
from remoterl.vector.core import Flight, VectorCore
from remoterl.vector.lent import Batch
from remoterl.vector.row_view import Views


class RemoteRows(VecEnv):
    """What both faces share; `_core` holds the rows."""

    _core: VectorCore
    _local_name: str
    _kept: dict[int, dict[str, Any]] | None = None  # where they are kept: copies of the last step's infos, by row

    def set_up(self, core: VectorCore, arguments: Mapping[str, Any]) -> None:
        """In place of the local class's `__init__`, whose arguments these are."""
        self._core = core
        self._flight: Flight | None = None
        self.actions: Any = None  # of the last step
        self.waiting = False  # was `step_async` called, and `step_wait` not yet?
        core.require_an_environment_each()
        first = core.opened[0]
        VecEnv.__init__(self, core.num_rows, first.observation_spaces[0], first.action_spaces[0])
        self.closed = False
        self._logs: list[ResultsWriter] = []  # of `make_vec_env(monitor_dir=...)`, one a row, on this machine

    def reset(self) -> Any:
        self._assert_is_running()
        self._flight, self.waiting = (
            None,
            False,
        )  # a step that is still under way is thrown away, as VecEnv.reset promises
        replies = self._core.gather(self._core.reset(self._seeds, self._options))
        reset_infos: list[dict[str, Any]] = [{}] * self.num_envs
        for rows, reply in zip(self._core.ranges, replies, strict=True):
            for local_row, info in reply.infos:
                reset_infos[rows.start + local_row] = info
        self.reset_infos = reset_infos
        self._reset_seeds()
        self._reset_options()
        return self._observe([reply.observations for reply in replies])

    def step_async(self, actions: np.ndarray) -> None:
        self._assert_is_running()
        if len(actions) != self.num_envs:
            raise ValueError(f"expected one action for each of the {self.num_envs} environments, got {len(actions)}")
        self.actions = actions
        self._flight, self.waiting = self._core.step(actions), True

    def step_wait(self) -> Any:
        """Wait for the step, wherever it was sent.

        Raises:
            RemoteRLError: there was no `step_async`.
        """
        self._assert_is_running()
        flight, self._flight, self.waiting = self._flight, None, False
        if flight is None:
            raise RemoteRLError("step_wait() was called without step_async() before it.")
        replies = self._core.gather(flight)
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": False} for _ in range(self.num_envs)]
        observations, rewards, dones, _, all_infos, all_reset_infos = zip(*replies, strict=True)
        if (kept := self._kept) is not None:
            kept.clear()
        for rows, some_dones, some_infos, reset_infos in zip(
            self._core.ranges, dones, all_infos, all_reset_infos, strict=True
        ):
            for local_row, info, _ in rows_of(some_infos):
                infos[rows.start + local_row] = info
                if kept is not None:
                    kept[rows.start + local_row] = info.copy()
                if self._logs and some_dones[local_row] and "episode" in info:
                    self._logs[rows.start + local_row].write_row(info["episode"])
            for local_row, info in reset_infos:
                self.reset_infos[rows.start + local_row] = info
        return (
            self._observe(observations, flight.batch),
            np.concatenate(rewards),
            np.concatenate(dones),
            self._infos(infos),
        )

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._flight, self.waiting = None, False
            for log in self._logs:
                log.close()
            self._core.close()

    def keep_logs(self, folder: str, start_index: int, extra_keys: tuple[str, ...], override_existing: bool) -> None:
        """Write the episodes of each row's Monitor to `folder` on this machine, as SB3's Monitor would."""
        os.makedirs(folder, exist_ok=True)
        specs, starts = self._core.read("spec"), self._core.read("t_start")
        self._logs = [
            ResultsWriter(
                os.path.join(folder, str(start_index + row)),
                header={"t_start": starts[row], "env_id": str(specs[row].id if specs[row] is not None else None)},
                extra_keys=extra_keys,
                override_existing=override_existing,
            )
            for row in range(self.num_envs)
        ]

    def _infos(self, infos: list[dict[str, Any]]) -> Any:
        return infos

    def _observe(self, parts: Sequence[Any], batch: Batch | None = None) -> Any:
        if batch is not None and (written := batch.whole(parts)) is not None:
            return self._named(written) if type(written) is dict else written
        space = self.observation_space
        if isinstance(space, spaces.Dict):
            return self._named((key, self._beside([part[key] for part in parts])) for key in space.spaces)
        if isinstance(space, spaces.Tuple):
            return tuple(self._beside([part[index] for part in parts]) for index in range(len(space.spaces)))
        return self._beside(parts)

    def _beside(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        try:
            return np.concatenate(parts)
        except ValueError as error:
            shapes = ", ".join(
                f"{part.shape[1:]} from rows {rows.start} to {rows.stop - 1}"
                for rows, part in zip(self._core.ranges, parts, strict=True)
            )
            raise ValueError(
                f"The observations do not fit beside each other: expected one shape from all rows of "
                f"{self.observation_space}, got {shapes}."
            ) from error

    _named: Any = dict

    # ---- attributes and methods of the environments ---------------------------------------------------------

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        self._assert_is_running()
        return self._core.read(attr_name, self._rows(indices))

    def has_attr(self, attr_name: str) -> bool:
        self._assert_is_running()
        return all(self._core.call("has_wrapper_attr", (attr_name,), call=True))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        self._assert_is_running()
        rows = self._rows(indices)
        self._core.set_attribute(attr_name, [value] * len(rows), rows, Target.OUTERMOST)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        self._assert_is_running()
        return self._core.call(method_name, method_args, method_kwargs, True, self._rows(indices))

    def env_is_wrapped(self, wrapper_class: type[gymnasium.Wrapper], indices: Any = None) -> list[bool]:
        self._assert_is_running()
        return self._core.is_wrapped(wrapper_class, self._rows(indices))

    def get_images(self) -> Sequence[np.ndarray | None]:
        self._assert_is_running()
        if self.render_mode != "rgb_array":
            warnings.warn(
                f"The render mode is {self.render_mode}, but this method assumes it is `rgb_array` to obtain images.",
                stacklevel=2,
            )
            return [None] * self.num_envs
        return self._core.render()

    def render(self, mode: str | None = None) -> np.ndarray | None:
        return VecEnv.render(self, mode)

    def __reduce__(self) -> Any:
        raise TypeError(f"This remote {self._local_name} lives on simulators and can't be pickled or copied.")

    def _rows(self, indices: Any) -> list[int]:
        return [int(index) for index in self._get_indices(indices)]

    def _assert_is_running(self) -> None:
        if self._core.closed:
            raise self._core.why_closed or RemoteRLError(
                f"This remote {self._local_name} is closed (by close() or the end of its session)."
            )


class RemoteDummyVecEnv(RemoteRows, DummyVecEnv):
    """A `DummyVecEnv` whose environments step on env runners: rewards float32, dones bool, infos a list."""

    LOCAL_PARTS = frozenset({"buf_obs", "buf_rews", "buf_dones", "buf_infos", "_save_obs", "_obs_from_buf"})
    LOCAL_CLASS = DummyVecEnv
    _local_name = "DummyVecEnv"
    _named = OrderedDict

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        make_anew(self, DummyVecEnv, args, kwargs)

    def set_up(self, core: VectorCore, arguments: Mapping[str, Any]) -> None:
        super().set_up(core, arguments)
        self.keys, _, _ = obs_space_info(self.observation_space)  # raises for nested ones, as locally
        self.metadata = dict(core.opened[0].metadata)
        self._views = Views(core)
        # As the environments made them in the last step, for callbacks; what is written to them goes nowhere.
        self.buf_rews, self.buf_dones = np.zeros(self.num_envs, np.float32), np.zeros(self.num_envs, np.bool_)
        self._kept = {row: {} for row in range(self.num_envs)}

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions: the environments step in `step_wait`, as locally."""
        self._assert_is_running()
        self.actions = actions

    def step_wait(self) -> Any:
        """As `RemoteRows.step_wait`; of more actions than environments it takes the first ones.

        Raises:
            IndexError: there are fewer.
        """
        self._assert_is_running()
        if self.actions is None:
            raise RemoteRLError("step_wait() was called without step_async() before it.")
        if len(self.actions) < self.num_envs:
            raise IndexError(
                f"expected one action for each of the {self.num_envs} environments, got {len(self.actions)}"
            )
        self._flight = self._core.step(self.actions)
        observations, rewards, dones, infos = super().step_wait()
        self.buf_rews, self.buf_dones = rewards.copy(), dones.copy()  # a wrapper may write to those that it is given
        return observations, rewards, dones, infos

    @property
    def buf_infos(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Of the last step, as the environments made them: wrappers write to those that `step` returned."""
        assert self._kept is not None
        return [self._kept.get(row, {"TimeLimit.truncated": False}) for row in range(self.num_envs)]

    def _beside(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        first = parts[0].dtype  # the buffers' locally; further env runners' rows may have another
        return super()._beside([part if part.dtype == first else part.astype(first) for part in parts])

    @property
    def envs(self) -> list[gymnasium.Env]:
        """A view of each environment, in which attributes and methods are remote."""
        return self._views

    @envs.setter
    def envs(self, value: Any) -> None:
        self._views.refuse()


class RemoteSubprocVecEnv(RemoteRows, SubprocVecEnv):
    """A `SubprocVecEnv` whose environments step on env runners: arrays as the environments made them."""

    LOCAL_PARTS = frozenset({"remotes", "work_remotes", "processes", "_get_target_remotes"})
    LOCAL_CLASS = SubprocVecEnv
    _local_name = "SubprocVecEnv"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        make_anew(self, SubprocVecEnv, args, kwargs)

    def set_up(self, core: VectorCore, arguments: Mapping[str, Any]) -> None:
        multiprocessing.get_context(arguments["start_method"])  # raises for an unknown one, as locally
        super().set_up(core, arguments)

    def step_wait(self) -> Any:
        if not isinstance(self.reset_infos, list):
            self.reset_infos = list(self.reset_infos)
        observations, rewards, dones, infos = super().step_wait()
        self.reset_infos = tuple(self.reset_infos)  # type: ignore[assignment]
        return observations, rewards, dones, infos

    def reset(self) -> Any:
        observations = super().reset()
        self.reset_infos = tuple(self.reset_infos)  # type: ignore[assignment]
        return observations

    def _infos(self, infos: list[dict[str, Any]]) -> Any:
        return tuple(infos)
