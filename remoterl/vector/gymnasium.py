"""Gymnasium's faces: `SyncVectorEnv` and `AsyncVectorEnv` whose sub-environments live on env runners.

Source of every rule: Gymnasium 1.2, `vector/sync_vector_env.py` and `vector/async_vector_env.py`.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import logger
from gymnasium.error import AlreadyPendingCallError, ClosedEnvironmentError, CustomSpaceError, NoAsyncCallError
from gymnasium.spaces.utils import is_space_dtype_shape_equiv
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.async_vector_env import AsyncState
from gymnasium.vector.utils import batch_differing_spaces, batch_space, create_shared_memory, iterate

from remoterl.channels.base import Late
from remoterl.errors import SpaceMismatchError
from remoterl.messages import ARRAY_SPACES, InfoTable, rows_of
from remoterl.vector import batches
from remoterl.vector.anew import make_anew
from remoterl.vector.core import CLOSE_S, Flight, VectorCore
from remoterl.vector.lent import Batch
from remoterl.vector.row_view import Views


class _RemoteRows(VectorEnv):
    """What both faces share; `_core` holds the rows."""

    _core: VectorCore
    call: Callable[..., tuple[Any, ...]]
    num_envs: int
    copy: bool
    observation_mode: Any
    autoreset_mode: AutoresetMode

    def _attach(self, core: VectorCore, arguments: Mapping[str, Any]) -> None:
        self._core = core
        for (
            name,
            value,
        ) in arguments.items():  # env_fns, copy, observation_mode, ... stay readable, as locally
            if name != "self":
                setattr(self, name, value)
        self.autoreset_mode = AutoresetMode(arguments["autoreset_mode"])
        self.num_envs = core.num_rows
        first = core.opened[0]
        self.metadata = {**first.metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = first.render_modes[0]
        self.single_action_space = first.action_spaces[0]
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._set_observation_spaces(self.observation_mode)
        self._check_spaces()
        self._whole = core.wanted = batches.empty(self.single_observation_space, self.num_envs)
        self._array_actions = isinstance(self.single_action_space, ARRAY_SPACES)
        self._adds_its_own = type(self)._add_info is not VectorEnv._add_info

    def _spaces_of_rows(self, kind: str) -> list[gymnasium.Space]:
        spaces = []
        for rows, opened in zip(self._core.ranges, self._core.opened, strict=True):
            own = getattr(opened, kind)
            spaces += own if len(own) == len(rows) else own * len(rows)
        return spaces

    def _set_observation_spaces(self, mode: Any) -> None:
        spaces = self._spaces_of_rows("observation_spaces")
        if isinstance(mode, tuple) and len(mode) == 2:
            self.observation_space, self.single_observation_space = mode
        elif mode == "same":
            self.single_observation_space = spaces[0]
            self.observation_space = batch_space(spaces[0], self.num_envs)
        elif mode == "different":
            self.single_observation_space = spaces[0]
            self.observation_space = batch_differing_spaces(spaces)
        else:
            raise ValueError(
                "Invalid `observation_mode`, expected: 'same' or 'different' or tuple of single and batch "
                f"observation space, actual got {mode}"
            )

    def _check_spaces(self) -> None:
        for row, space in enumerate(self._spaces_of_rows("observation_spaces")):
            if self.observation_mode == "same" and space != self.single_observation_space:
                raise SpaceMismatchError(
                    f"{self._local_name}(..., observation_mode='same') however the sub-environments observation "
                    f"spaces are not equivalent. single_observation_space={self.single_observation_space}, "
                    f"observation space of sub-environment {row}={space}. If this is intentional, use "
                    "`observation_mode='different'` instead."
                )
            if self.observation_mode != "same" and not is_space_dtype_shape_equiv(space, self.single_observation_space):
                raise SpaceMismatchError(
                    f"{self._local_name}(..., observation_mode='different' or custom space) however the "
                    "sub-environments observation spaces do not share a common shape and dtype, "
                    f"single_observation_space={self.single_observation_space}, sub-environment {row}={space}"
                )
        for row, space in enumerate(self._spaces_of_rows("action_spaces")):
            if space != self.single_action_space:
                raise SpaceMismatchError(
                    f"Sub-environment {row} has an action space different from the first one's, "
                    f"action_space={space}, single_action_space={self.single_action_space}. In order to batch "
                    "actions, the action spaces from all environments must be equal."
                )

    _local_name: str

    # ---- sending and receiving -----------------------------------------------------------------------------

    def _assert_is_running(self) -> None:
        if self.closed or self._core.closed:
            raise self._core.why_closed or ClosedEnvironmentError(
                f"Trying to operate on `{self._local_name}`, after a call to `close()` (or the end of its session)."
            )

    def _send_reset(self, seed: Any, options: dict[str, Any] | None) -> Flight:
        if seed is None:
            seed = [None] * self.num_envs
        elif isinstance(seed, int):
            seed = [seed + row for row in range(self.num_envs)]
        assert len(seed) == self.num_envs, (
            f"If seeds are passed as a list the length must match num_envs={self.num_envs} but got length={len(seed)}."
        )
        mask = None
        if options is not None and "reset_mask" in options:
            mask = options.pop("reset_mask")
            _check_mask(mask, self.num_envs)
        return self._core.reset(seed, None if options is None else [options] * self.num_envs, mask)

    def _receive_reset(self, flight: Flight, timeout: float | None = None) -> tuple[Any, dict[str, Any]]:
        replies = self._core.gather(flight, timeout)
        infos: dict[str, Any] = {}
        for rows, request, reply in zip(self._core.ranges, flight.requests, replies, strict=True):
            told = reply.infos
            if self._adds_its_own:
                told = _with_empty(told, [row for row in range(len(rows)) if self._is_told(request.mask, row)])
            for local_row, info, *_ in told:
                infos = self._add_info(infos, info, rows.start + local_row)
        return self._observe([reply.observations for reply in replies]), infos

    def _is_told(self, mask: Sequence[bool] | None, row: int) -> bool:
        """Does the local class add an info of this row to those of a reset by mask?"""
        return mask is None or mask[row]

    def _send_step(self, actions: Any) -> Flight:
        if not (self._array_actions and isinstance(actions, np.ndarray)):
            actions = list(iterate(self.action_space, actions))
        if len(actions) != self.num_envs:
            raise ValueError(
                f"expected one action for each of the {self.num_envs} sub-environments, got {len(actions)}"
            )
        return self._core.step(actions)

    def _receive_step(self, flight: Flight, timeout: float | None = None) -> tuple[Any, Any, Any, Any, dict]:
        observations, rewards, terminations, truncations, infos, _ = zip(
            *self._core.gather(flight, timeout), strict=True
        )
        concatenate = np.concatenate
        return (
            self._observe(observations, flight.batch),
            concatenate(rewards),
            concatenate(terminations),
            concatenate(truncations),
            self._infos(infos) if self._adds_its_own or any(infos) else {},
        )

    def _infos(self, parts: Sequence[Any]) -> dict[str, Any]:
        if not self._adds_its_own and (joined := _joined(parts)) is not None:
            return joined
        infos: dict[str, Any] = {}
        for rows, part in zip(self._core.ranges, parts, strict=True):
            told = rows_of(part)
            for local_row, info, final in _with_empty(told, range(len(rows))) if self._adds_its_own else told:
                infos = self._add_row_info(infos, info, final, rows.start + local_row)
        return infos

    def _add_row_info(self, infos: dict, info: dict, final: Any, row: int) -> dict:
        if final is not None:
            infos = self._add_info(infos, {"final_obs": final[0], "final_info": final[1]}, row)
        return self._add_info(infos, info, row)

    def _observe(self, parts: Sequence[Any], batch: Batch | None = None) -> Any:
        whole = self._whole
        if batch is not None and self.copy and (written := batch.whole(parts)) is not None:
            return written
        if type(whole) is np.ndarray:
            return np.concatenate(parts, out=np.empty_like(whole) if self.copy else whole, casting="unsafe")
        if self.copy:
            whole = batches.empty(self.single_observation_space, self.num_envs)
        return batches.join(self.single_observation_space, whole, self._core.ranges, parts)

    # ---- attributes ------------------------------------------------------------------------------------------

    @property
    def np_random_seed(self) -> Any:
        """The sub-environments' seeds."""
        return self.get_attr("np_random_seed")

    @property  # type: ignore[misc]
    def np_random(self) -> Any:
        """Copies of the sub-environments' random number generators."""
        return self.get_attr("np_random")

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """The attribute of every sub-environment (called, if it is callable)."""
        return self.call(name)

    def _as_read(self, values: list[Any]) -> tuple[Any, ...]:
        return tuple(self._core.as_read(values, range(self.num_envs)))

    def set_attr(self, name: str, values: Any) -> None:
        """Set the attribute of every sub-environment: one value for all, or a list or tuple of one each."""
        self._assert_is_running()
        if not isinstance(values, (list, tuple)):
            values = [values] * self.num_envs
        if len(values) != self.num_envs:
            raise ValueError(
                "Values must be a list or tuple with length equal to the number of environments. "
                f"Got `{len(values)}` values for {self.num_envs} environments."
            )
        self._core.set_attribute(name, values)

    def __reduce__(self) -> Any:
        raise TypeError(f"This remote {self._local_name} lives on simulators and can't be pickled or copied.")

    def __del__(self) -> None:
        """Nothing to do: the core frees its rows when it is collected, without waiting."""


class RemoteSyncVectorEnv(_RemoteRows, SyncVectorEnv):
    """A `SyncVectorEnv` whose rows step on env runners, all at the same time.

    Observations, rewards (float64), terminations and truncations (bool) have the row on axis 0; infos have
    Gymnasium's `_key` masks; everything is equal to the local class, bit for bit.
    """

    LOCAL_PARTS = frozenset(
        {"_env_obs", "_observations", "_rewards", "_terminations", "_truncations", "_autoreset_envs"}
    )
    LOCAL_CLASS = SyncVectorEnv
    _local_name = "SyncVectorEnv"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        make_anew(self, SyncVectorEnv, args, kwargs)

    def set_up(self, core: VectorCore, arguments: Mapping[str, Any]) -> None:
        """In place of the local class's `__init__`, whose arguments these are."""
        self._attach(core, arguments)
        self._views = Views(core)

    @property
    def envs(self) -> list[gymnasium.Env]:
        """A view of each sub-environment, in which attributes and methods are remote."""
        return self._views

    @envs.setter
    def envs(self, value: Any) -> None:
        self._views.refuse()

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._assert_is_running()
        return self._receive_reset(self._send_reset(seed, options))

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self._assert_is_running()
        return self._receive_step(self._send_step(actions))

    def render(self) -> tuple[Any, ...] | None:
        self._assert_is_running()
        return tuple(self._core.render())

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        self._assert_is_running()
        return self._as_read(self._core.call(name, args, kwargs))

    def close_extras(self, **kwargs: Any) -> None:
        self._core.close()


class RemoteAsyncVectorEnv(_RemoteRows, AsyncVectorEnv):
    """An `AsyncVectorEnv` whose rows step on env runners; `step_async` and its kin as the local class has them."""

    LOCAL_PARTS = frozenset({"parent_pipes", "processes", "error_queue", "_poll_pipe_envs", "_raise_if_errors"})
    LOCAL_CLASS = AsyncVectorEnv
    _local_name = "AsyncVectorEnv"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        make_anew(self, AsyncVectorEnv, args, kwargs)

    def set_up(self, core: VectorCore, arguments: Mapping[str, Any]) -> None:
        """In place of the local class's `__init__`, whose arguments these are."""
        self._state = AsyncState.DEFAULT
        self._flight: Flight | None = None
        context = multiprocessing.get_context(arguments["context"])  # raises for an unknown one, as locally
        core.require_an_environment_each()
        self._attach(core, arguments)
        if arguments["shared_memory"]:
            _refuse_spaces_that_no_memory_can_share(self.single_observation_space, context)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.reset_async(seed=seed, options=options)
        return self.reset_wait()

    def reset_async(self, seed: Any = None, options: dict[str, Any] | None = None) -> None:
        self._begin("reset_async")
        self._flight = self._send_reset(seed, options)
        self._state = AsyncState.WAITING_RESET

    def reset_wait(self, timeout: float | None = None) -> tuple[Any, dict[str, Any]]:
        return self._end(AsyncState.WAITING_RESET, timeout, self._receive_reset)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: Any) -> None:
        self._begin("step_async")
        self._flight = self._send_step(actions)
        self._state = AsyncState.WAITING_STEP

    def step_wait(self, timeout: float | None = None) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        return self._end(AsyncState.WAITING_STEP, timeout, self._receive_step)

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        self.call_async(name, *args, **kwargs)
        return self.call_wait()

    def call_async(self, name: str, *args: Any, **kwargs: Any) -> None:
        if name in ("reset", "step", "close", "_setattr", "_check_spaces"):
            raise ValueError(f"Trying to call function `{name}` with `call`, use `{name}` directly instead.")
        self._begin("call_async")
        self._flight = self._core.call_async(name, args, kwargs)
        self._state = AsyncState.WAITING_CALL

    def call_wait(self, timeout: float | None = None) -> tuple[Any, ...]:
        return self._end(AsyncState.WAITING_CALL, timeout, lambda *wait: self._as_read(self._core.results(*wait)))

    def render(self) -> tuple[Any, ...] | None:
        return self.call("render")

    def set_attr(self, name: str, values: Any) -> None:
        self._begin("set_attr")
        super().set_attr(name, values)

    def _is_told(self, mask: Sequence[bool] | None, row: int) -> bool:
        return True  # its worker answers with an empty one

    def _add_row_info(self, infos: dict, info: dict, final: Any, row: int) -> dict:
        if final is not None:
            info = {"final_info": final[1], "final_obs": final[0], **info}
        return self._add_info(infos, info, row)

    def close_extras(  # type: ignore[override]
        self, timeout: float | None = None, terminate: bool = False
    ) -> None:
        if self._state != AsyncState.DEFAULT:
            logger.warn(f"Calling `close` while waiting for a pending call to `{self._state.value}` to complete.")
        self._flight, self._state = None, AsyncState.DEFAULT
        self._core.close(0.0 if terminate else CLOSE_S if timeout is None else timeout)

    def _begin(self, call: str) -> None:
        self._assert_is_running()
        if self._state != AsyncState.DEFAULT:
            raise AlreadyPendingCallError(
                f"Calling `{call}` while waiting for a pending call to `{self._state.value}` to complete"
                f"{'' if call == 'reset_async' else '.'}",
                str(self._state.value),
            )

    def _end(self, state: AsyncState, timeout: float | None, receive: Callable[..., Any]) -> Any:
        self._assert_is_running()
        if self._state != state:
            raise NoAsyncCallError(
                f"Calling `{state.value}_wait` without any prior call to `{state.value}_async`.", state.value
            )
        flight, self._flight, self._state = self._flight, None, AsyncState.DEFAULT
        try:
            return receive(flight, timeout)
        except Late as error:
            raise multiprocessing.TimeoutError(
                f"The call to `{state.value}_wait` has timed out after {timeout} second(s)."
            ) from error
        except TimeoutError:  # the session's limit, an environment's own error, or the script's alarm
            raise
        except Exception as error:
            _log_as_the_local_class_does(error)
            raise


def _with_empty(told: Sequence[Any], rows: Iterable[int]) -> list[Any]:
    """(row, info, final) of each of these local rows, which may have sent none, because it was empty."""
    sent = {one[0]: one for one in told}
    return [sent.get(row, (row, {}, None)) for row in rows]


def _joined(parts: Sequence[Any]) -> dict[str, Any] | None:
    """The infos of all rows, where every part's are one table with the same columns."""
    first = parts[0]
    for part in parts:
        if type(part) is not InfoTable or part.keys != first.keys or part.types != first.types:
            return None
    columns = np.concatenate([part.values for part in parts]).T.copy()
    marks = np.ones(columns.shape, np.bool_)
    infos: dict[str, Any] = {}
    for key, kind, column, mark in zip(first.keys, first.types, columns, marks, strict=True):
        infos[key], infos[f"_{key}"] = column.astype(kind, copy=False), mark
    return infos


def _refuse_spaces_that_no_memory_can_share(space: gymnasium.Space, context: Any) -> None:
    """`AsyncVectorEnv(shared_memory=True)` refuses some spaces; a script may count on that."""
    try:
        create_shared_memory(space, n=1, ctx=context)
    except CustomSpaceError as error:
        raise ValueError(
            "Using `AsyncVector(..., shared_memory=True)` caused an error, you can disable this feature with "
            "`shared_memory=False` however this is slower."
        ) from error


def _log_as_the_local_class_does(error: Exception) -> None:
    raised = getattr(error, "remote_rows", None)
    if raised is None:
        return
    for _, row_error in raised.errors:
        logger.error(f"Received the following error from Worker-{row_error.row} - Shutting it down")
        logger.error(row_error.traceback)
    logger.error("Raising the last exception back to the main process.")


def _check_mask(mask: Any, num_envs: int) -> None:
    if not isinstance(mask, np.ndarray):
        raise AssertionError(f"`options['reset_mask': mask]` must be a numpy array, got {type(mask)}")
    if mask.shape != (num_envs,):
        raise AssertionError(f"`options['reset_mask': mask]` must have shape `({num_envs},)`, got {mask.shape}")
    if mask.dtype != np.bool_:
        raise AssertionError(f"`options['reset_mask': mask]` must have `dtype=np.bool_`, got {mask.dtype}")
    if not np.any(mask):
        raise AssertionError(f"`options['reset_mask': mask]` must contain a boolean array, got reset_mask={mask}")
