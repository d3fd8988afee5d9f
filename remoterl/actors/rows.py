"""Rows: the environments of one vector env that live on one env runner, stepped by the rules of a local class.

Each class here repeats one local class's rules row by row, so that the trainer's side only has to put
batches beside each other. No Ray and no channel in here.

Sources: Gymnasium 1.2 `SyncVectorEnv`, `AsyncVectorEnv`, `AutoresetMode`; Stable-Baselines3 2.9
`DummyVecEnv`, `SubprocVecEnv`.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import os
import sys
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, NoReturn

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate

from remoterl.actors.apart import apart
from remoterl.actors.batching import (
    batched,
    column,
    have_in_common,
    leaves,
    misfit,
    stack,
    tabled,
    with_arrays,
    writeable,
)
from remoterl.actors.monitor import SB3_MONITOR, Monitor, require_gymnasium_env
from remoterl.actors.registry import portable_spec
from remoterl.messages import (
    A_PROCESS_EACH,
    ARRAY_SPACES,
    RemoteMethod,
    RemoteObject,
    RowError,
    RowsCalled,
    RowsOpened,
    RowsReset,
    RowsStepped,
    Semantics,
    Target,
    arrays_among,
    encode,
)
from remoterl.shipping import ship_exception, unship


class RowsError(Exception):
    """Some rows raised; `errors` holds all of them."""

    def __init__(self, errors: list[RowError]) -> None:
        super().__init__(f"{len(errors)} rows raised")
        self.errors = errors


# What is asked of an environment that has no episode yet without a need to start one.
OF_NO_EPISODE = frozenset(
    {
        "reset", "close", "spec", "metadata", "render_mode", "observation_space", "action_space", "has_wrapper_attr",
    }
)  # fmt: skip
LOOKS = frozenset({"render", "get_wrapper_attr", "has_wrapper_attr"})  # methods that leave an episode as it is


class Rows(ABC):
    """The environments of some consecutive rows of a vector env."""

    are_processes = False  # of the local class: each row has copies of its own of what it is given

    def __init__(self, factories: Sequence[Callable[[], Any]], row_numbers: Sequence[int]) -> None:
        self.row_numbers = tuple(row_numbers)
        self._pid = os.getpid()
        self.envs: list[Any] = [None] * len(factories)
        self._fresh_seeds: dict[int, int] = {}  # of revived rows, until their first reset
        self._bare: set[int] = set()  # revived rows that were never reset
        # Those reset to be looked at: the seed, and what the reset returned; None once anything else was done to them.
        self._dressed: dict[int, tuple[int | None, Any] | None] = {}
        self._share = False  # has any row returned an array or dict that another one returned?
        self._has_looked = False  # at a step
        self._looks = len(factories) > 1  # is what rows return copied at once: they share, or may do so, after a reset
        try:
            self._each(range(len(factories)), lambda row: self.envs.__setitem__(row, _made(factories[row])))
        except RowsError:
            with contextlib.suppress(RowsError):  # the first error is the cause
                self.close()
            raise

    def __len__(self) -> int:
        return len(self.envs)

    @cached_property
    def num_rows(self) -> int:
        """Sub-environments, those inside a hosted vector env counted."""
        return sum(env.num_envs if isinstance(env, VectorEnv) else 1 for env in self.envs)

    @abstractmethod
    def reset(
        self, seeds: Sequence[int | None], options: Sequence[dict | None], mask: Sequence[bool] | None
    ) -> RowsReset:
        """Reset the rows of the mask (None: all)."""

    @abstractmethod
    def step(self, actions: Any, rooms: Sequence[np.ndarray] = ()) -> RowsStepped:
        """Step every row, with the autoreset that the local class does.

        Args:
            rooms: bytes to which each array of the batch of observations may be written, if it has just that size.
        """

    def _own_rooms(self, rooms: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        """None in a child that an environment forked in this step: the trainer's memory is the parent's to write to."""
        return iter(rooms if rooms and os.getpid() == self._pid else ())

    def revive(self, seeds: Sequence[int | None], observations: Any) -> None:
        """These rows take the place of lost ones, whose episodes have just been reported as over (see `ReviveRows`)."""
        self._fresh_seeds = {row: seed for row, seed in enumerate(seeds) if seed is not None}
        self._bare = set(range(len(self))) - self._dressed.keys()

    def _look(self, returned: Sequence[Any], after_reset: bool = False) -> None:
        """What rows return is not copied in steps, unless they share it in a reset or in the first step."""
        self._share = self._share or have_in_common(returned)
        self._looks = self._share or (after_reset and len(self) > 1 and not self._has_looked)
        self._has_looked = not after_reset or self._has_looked

    def _dress(self, row: int) -> None:
        """Who looks at a revived row before it is reset sees the start of the episode that the reset will begin.

        Locally there is an ended episode to be rendered or asked about.
        """
        if row in self._bare:
            seed = self._fresh_seeds.get(row)
            self._dressed[row] = None
            with contextlib.suppress(Exception):  # without options, say: it is raised where the row is really reset
                self._dressed[row] = seed, self.envs[row].reset(seed=seed)
            self._bare.discard(row)

    def _touch(self, row: int) -> None:
        """A call or an assignment may have changed it: the next reset is to see that, and not to be spared."""
        if row in self._dressed:
            self._dressed[row] = None

    def _go_on(self, row: int) -> None:
        """It is stepped without a reset: the episode that was looked at goes on."""
        if row in self._dressed:
            del self._dressed[row]
            self._fresh_seeds.pop(row, None)

    def _undress(self, row: int) -> None:
        """Another reset comes: the episode that was only looked at ends here."""
        if row in self._dressed:
            del self._dressed[row]
            for wrapper in _wrappers(self.envs[row]):
                if isinstance(wrapper, _monitors()):
                    wrapper.needs_reset = True  # or it may refuse

    def _begin(self, row: int, **given: Any) -> Any:
        """Reset a row; a revived one on its fresh seed, or with what came of it when it was looked at."""
        seed = self._seed(row, given.get("seed"))
        if seed is not None:
            given["seed"] = seed
        dressed = self._dressed.get(row)
        if dressed is not None and dressed[0] == seed and not given.get("options"):
            del self._dressed[row]
            return dressed[1]
        self._undress(row)
        return self.envs[row].reset(**given)

    def _seed(self, row: int, seed: int | None) -> int | None:
        self._bare.discard(row)
        fresh = self._fresh_seeds.pop(row, None) if self._fresh_seeds else None
        return fresh if seed is None else seed

    def describe(self) -> RowsOpened:
        """Spaces and metadata; a list has one entry where all rows agree, else one a row."""
        first = self.envs[0]
        return RowsOpened(
            observation_spaces=_agreed([env.observation_space for env in self.envs]),
            action_spaces=_agreed([env.action_space for env in self.envs]),
            metadata=dict(first.metadata),
            render_modes=_agreed([getattr(env, "render_mode", None) for env in self.envs]),
            spec=None,
            description=str(first),
            distinct=len({id(env.unwrapped) for env in self.envs}),
            extra={},
        )

    def call(
        self, rows: Iterable[int], name: str, arguments: Callable[[], Any], call: bool | None, target: Target
    ) -> RowsCalled:
        """Read or call `name` on each row (numbers of the whole vector env).

        Args:
            arguments: makes them anew, for each row that is a process.
        """
        shared = None if self.are_processes else arguments()
        given = [array.copy() for array in arrays_among(*shared)] if shared else []

        def one(row: int) -> Any:
            args, kwargs = shared or arguments()
            if name.partition(".")[0] not in OF_NO_EPISODE:
                self._dress(row)
            attribute = self._attribute(row, name, target)
            if call or (call is None and callable(attribute)):
                return attribute(*args, **self._about_to_call(row, name, args, kwargs))
            return _read(attribute, name)

        results = self._each(self._local(rows), one)
        arrays = arrays_among(*shared) if shared else []
        written = any(ours.tobytes() != theirs.tobytes() for ours, theirs in zip(given, arrays, strict=True))
        return RowsCalled(results, arrays if written else None)

    def _about_to_call(self, row: int, name: str, args: Any, kwargs: Any) -> Any:
        """What becomes of the row's episode; returns the keyword arguments, with the seed of a revived row's reset."""
        if name == "reset":
            self._undress(row)
            seed = self._seed(row, kwargs.get("seed"))
            return kwargs if seed is None or args else {**kwargs, "seed": seed}
        if name == "step":
            self._go_on(row)
        elif name not in LOOKS:
            self._touch(row)
        return kwargs

    def _attribute(self, row: int, name: str, target: Target) -> Any:
        env, (first, *path) = self.envs[row], name.split(".")
        if target is Target.WRAPPERS:
            attribute = env.get_wrapper_attr(first)
        else:
            attribute = getattr(env if target is Target.OUTERMOST else env.unwrapped, first)
        for step in path:
            attribute = getattr(attribute, step)
        return attribute

    def set_attribute(self, rows: Sequence[int], name: str, values: Sequence[Any], target: Target) -> None:
        """`set_wrapper_attr`, or plain `setattr` on the outermost wrapper (as SB3 does) or the environment.

        Of a dotted name (`model.opt.timestep`) what stands before the last dot is read as `call` reads it.
        """
        path, _, last = name.rpartition(".")

        def one(row: int) -> None:
            env, value = self.envs[row], values[rows.index(self.row_numbers[row])]
            if name.partition(".")[0] not in OF_NO_EPISODE:
                self._dress(row)
            self._touch(row)
            if path:
                setattr(self._attribute(row, path, target), last, value)
            elif target is Target.WRAPPERS:
                env.set_wrapper_attr(name, value)
            else:
                setattr(env if target is Target.OUTERMOST else env.unwrapped, name, value)

        self._each(self._local(rows), one)

    def is_wrapped(self, rows: Iterable[int], wrapper_class: type) -> list[bool]:
        """As SB3's `is_wrapped`: a bool for each row."""
        return self._each(self._local(rows), lambda row: _is_wrapped(self.envs[row], wrapper_class))

    def render(self) -> list[Any]:
        """A frame (or what the render mode makes) for each row."""

        def one(row: int) -> Any:
            self._dress(row)
            return self.envs[row].render()

        return self._each(range(len(self)), one)

    def close(self) -> None:
        """Close every environment that was made."""
        self._each([row for row, env in enumerate(self.envs) if env is not None], lambda row: self.envs[row].close())

    def _local(self, rows: Iterable[int]) -> list[int]:
        return [self.row_numbers.index(row) for row in rows]

    def _each(self, rows: Iterable[int], one: Callable[[int], Any]) -> list[Any]:
        """Do one thing for each local row; go on after an exception, and raise all of them at the end."""
        results, errors = [], []
        for row in rows:
            try:
                results.append(one(row))
            except BaseException as error:
                errors.append(self._row_error(row, error))
        if errors:
            raise RowsError(errors)
        return results

    def _row_error(self, row: int, error: BaseException) -> RowError:
        return row_error(self.row_numbers[row], _name(self.envs[row]), error)

    def _name_misfits(self, error: Exception, fits: Callable[[int], Any]) -> NoReturn:
        """Raise where the rows' values could not be put beside each other: for the rows that do not fit."""
        errors = []
        for row in range(len(self)):
            try:
                fits(row)
            except Exception as misfit:
                errors.append(self._row_error(row, misfit))
        if errors:
            raise RowsError(errors) from error
        raise error


class GymnasiumRows(Rows):
    """Rows of a `SyncVectorEnv`."""

    _refuses_finished_rows = True  # to step one in DISABLED mode
    _resets_begin_anew = True  # a row that was reset is not finished, whatever it was before

    def __init__(
        self,
        factories: Sequence[Callable[[], gymnasium.Env]],
        row_numbers: Sequence[int],
        autoreset_mode: AutoresetMode,
    ) -> None:
        super().__init__(factories, row_numbers)
        self._mode = autoreset_mode
        self._space = self.envs[0].observation_space
        self._observations: list[Any] = [None] * len(self)
        self._buffer = create_empty_array(self._space, n=len(self), fn=np.zeros)
        self._finished = [False] * len(self)

    def reset(
        self, seeds: Sequence[int | None], options: Sequence[dict | None], mask: Sequence[bool] | None
    ) -> RowsReset:
        infos: list[tuple[int, dict[str, Any]]] = []
        returned: list[Any] = []

        def one(row: int) -> None:
            observation, info = self._begin(row, seed=seeds[row], options=options[row])
            returned.append((observation, info))
            if self._resets_begin_anew:
                self._finished[row] = False
            self._observations[row] = self._taken(observation)
            if info:
                infos.append((row, self._info_taken(info)))

        self._each([row for row in range(len(self)) if mask is None or mask[row]], one)
        self._look(returned, after_reset=True)
        try:
            return RowsReset(self._batch(), infos)
        except Exception as error:
            self._name_misfits(error, self._require_fit)

    def step(self, actions: Any, rooms: Sequence[np.ndarray] = ()) -> RowsStepped:
        num_rows = len(self.envs)
        rewards: list[Any] = [0.0] * num_rows
        terminations: list[Any] = [False] * num_rows
        truncations: list[Any] = [False] * num_rows
        observations, finished = self._observations, self._finished
        infos: list[tuple[int, dict[str, Any], Any]] = []
        errors: list[RowError] = []
        returned: list[Any] = []
        looks = self._looks
        dressed = self._dressed
        next_step = self._mode == AutoresetMode.NEXT_STEP
        same_step = self._mode == AutoresetMode.SAME_STEP
        refuses = self._refuses_finished_rows and not next_step and not same_step
        for row, env in enumerate(self.envs):
            try:
                if finished[row] and next_step:
                    observations[row], info = self._begin(row)
                else:
                    if finished[row] and refuses:
                        raise AssertionError(
                            f"row {self.row_numbers[row]} is finished and autoreset_mode is DISABLED: reset it first, "
                            "with options={'reset_mask': ...}"
                        )
                    if dressed:
                        self._go_on(row)
                    observation, rewards[row], terminations[row], truncations[row], info = env.step(actions[row])
                    observations[row] = observation
                    if same_step and (terminations[row] or truncations[row]):
                        info = self._final(info)
                        observations[row], reset_info = env.reset()
                        infos.append((row, reset_info, (observation, info)))
                        if looks:
                            self._take(row, infos, returned)
                        continue
                if info:
                    infos.append((row, info, None))
                if looks:
                    self._take(row, infos, returned)
            except BaseException as error:
                errors.append(self._row_error(row, error))
        if errors:
            raise RowsError(errors)
        if looks:
            self._look(returned)
        try:
            ends = column(terminations + truncations, np.bool_)
            terminated_rows, truncated_rows = ends[:num_rows], ends[num_rows:]
            self._finished = [ended or cut for ended, cut in zip(terminations, truncations, strict=True)]
            return RowsStepped(
                self._batch(rooms),
                self._rewards(rewards),
                terminated_rows,
                truncated_rows,
                tabled(infos, num_rows),
                [],
            )
        except Exception as error:

            def fits(row: int) -> None:
                self._require_fit(row)
                self._rewards([rewards[row]])
                column([terminations[row], truncations[row]], np.bool_)

            self._name_misfits(error, fits)

    def _take(self, row: int, infos: list[tuple[int, Any, Any]], returned: list[Any]) -> None:
        """Copy at once what a row has returned, and note what it was."""
        told = infos.pop() if infos and infos[-1][0] == row else None
        returned.append((self._observations[row], told))
        self._observations[row] = self._taken(self._observations[row])
        if told is not None:
            infos.append((row, self._info_taken(told[1]), self._taken(told[2])))

    def _taken(self, value: Any) -> Any:
        """What a row returned, before the next is stepped: the local class puts observations together at the end."""
        return value

    def _info_taken(self, info: Any) -> Any:
        """The same of an info, whose arrays Gymnasium puts into others at once."""
        return with_arrays(info, lambda array: array.copy())

    def _final(self, info: Any) -> Any:
        """An episode's last info, as it was before the reset."""
        return self._info_taken(info)

    def _rewards(self, values: list[Any]) -> np.ndarray:
        return column(values, np.float64)

    def revive(self, seeds: Sequence[int | None], observations: Any) -> None:
        super().revive(seeds, observations)
        self._finished = [True] * len(self)
        if observations is not None:
            self._observations = list(iterate(batch_space(self._space, len(self)), observations))

    def _batch(self, rooms: Sequence[np.ndarray] = ()) -> Any:
        return self._beside(self._space, self._observations, self._buffer, self._own_rooms(rooms))

    def _beside(self, space: spaces.Space, values: list[Any], buffer: Any, rooms: Iterator[np.ndarray]) -> Any:
        """As Gymnasium's `concatenate`."""
        if isinstance(space, spaces.Dict):
            return {
                key: self._beside(part, [value[key] for value in values], buffer[key], rooms)
                for key, part in space.items()
            }
        if isinstance(space, spaces.Tuple):
            return tuple(
                self._beside(part, [value[index] for value in values], buffer[index], rooms)
                for index, part in enumerate(space.spaces)
            )
        batch = batched(values, buffer, next(rooms, None))
        if batch is not None:
            return batch
        return concatenate(space, [self._stored(space, value) for value in values], buffer)

    def _stored(self, space: spaces.Space, value: Any) -> Any:
        """As it is when it is put beside the others."""
        return value

    def _require_fit(self, row: int) -> None:
        observation = self._observations[row]
        try:
            self._beside(self._space, [observation], create_empty_array(self._space, n=1, fn=np.zeros), iter(()))
        except Exception as error:
            raise misfit(error, observation, self._space) from error


class UnsharedAsyncRows(GymnasiumRows):
    """Rows of an `AsyncVectorEnv(shared_memory=False)`.

    Its worker knows of a reset after an episode's end only with shared memory: the next step resets once more.
    """

    _refuses_finished_rows = False
    _resets_begin_anew = False

    def _taken(self, value: Any) -> Any:
        return copy.deepcopy(value)  # the worker pickles it

    def _info_taken(self, info: Any) -> Any:
        return self._taken(info)

    def _final(self, info: Any) -> Any:
        return info  # pickled after the reset

    def _rewards(self, values: list[Any]) -> np.ndarray:
        return np.array(values, dtype=np.float64)  # of rewards of shape (1,) two axes

    def revive(self, seeds: Sequence[int | None], observations: Any) -> None:
        super().revive(seeds, observations)
        if observations is None:  # a reset of all rows comes next
            self._finished = [False] * len(self)


class AsyncRows(UnsharedAsyncRows):
    """Rows of an `AsyncVectorEnv`, which writes observations into memory of their space's type and size."""

    _resets_begin_anew = True

    def reset(
        self, seeds: Sequence[int | None], options: Sequence[dict | None], mask: Sequence[bool] | None
    ) -> RowsReset:
        if mask is not None and any(one is None for one in self._observations):
            zeros = iterate(batch_space(self._space, len(self)), copy.deepcopy(self._buffer))
            for row, zero in enumerate(zeros):
                if self._observations[row] is None:  # never reset: the memory is as it was made
                    self._observations[row] = zero
        return super().reset(seeds, options, mask)

    def _stored(self, space: spaces.Space, value: Any) -> Any:
        """As Gymnasium's `write_to_shared_memory` does it: any type is cast, any shape of the right size will do."""
        if not isinstance(space, ARRAY_SPACES):
            return value
        memory = np.empty(space.shape or (), space.dtype)
        np.copyto(memory.reshape(-1), np.asarray(value, dtype=space.dtype).flatten())
        return memory


class StableBaselinesRows(Rows):
    """Rows of an SB3 `DummyVecEnv` (values are written into buffers) or `SubprocVecEnv` (values are stacked)."""

    def __init__(self, factories: Sequence[Callable[[], Any]], row_numbers: Sequence[int], buffers: bool) -> None:
        super().__init__([_of_gymnasium(factory) for factory in factories], row_numbers)
        self._buffers = buffers
        self._space = self.envs[0].observation_space
        self._batches: dict[Any, np.ndarray] = {}  # written anew at each step: a reply is sent before the next one
        self._observations: list[Any] = [None] * len(self)
        for key, space in leaves(self._space) if buffers else ():
            if space.shape is None:
                with contextlib.suppress(RowsError):
                    self.close()
                where = "" if key is None else f" ({key!r} of the observation)"
                raise TypeError(f"DummyVecEnv has no arrays for {space}{where}; SubprocVecEnv takes it")

    def reset(
        self, seeds: Sequence[int | None], options: Sequence[dict | None], mask: Sequence[bool] | None
    ) -> RowsReset:
        infos: list[tuple[int, dict[str, Any]]] = []
        returned: list[Any] = []

        def one(row: int) -> None:
            maybe_options = {"options": options[row]} if options[row] else {}
            observation, info = self._begin(row, seed=seeds[row], **maybe_options)
            returned.append((observation, info))
            self._observations[row] = copy.deepcopy(observation)
            infos.append((row, self._info_taken(info)))

        self._each(range(len(self)), one)
        self._look(returned, after_reset=True)
        try:
            return RowsReset(self._batch(), infos)
        except Exception as error:
            self._name_misfits(error, self._require_fit)

    def step(self, actions: Any, rooms: Sequence[np.ndarray] = ()) -> RowsStepped:
        rewards: list[Any] = [0.0] * len(self)
        dones: list[Any] = [False] * len(self)
        observations = self._observations
        infos: list[tuple[int, dict[str, Any], Any]] = []
        reset_infos: list[tuple[int, dict[str, Any]]] = []
        errors: list[RowError] = []
        returned: list[Any] = []
        looks = self._looks
        for row, env in enumerate(self.envs):
            try:
                observation, rewards[row], terminated, truncated, info = env.step(actions[row])
                dones[row] = done = terminated or truncated
                time_limit = truncated and not terminated
                if info or done or time_limit is not False:
                    info["TimeLimit.truncated"] = time_limit
                    if done:
                        info["terminal_observation"] = observation
                        observation, reset_info = env.reset()
                        reset_infos.append((row, self._info_taken(reset_info) if looks else reset_info))
                    infos.append((row, self._info_taken(info) if looks else info, None))
                if looks:
                    returned.append((observation, info))
                    observation = copy.deepcopy(observation)
                observations[row] = observation
            except BaseException as error:
                errors.append(self._row_error(row, error))
        if errors:
            raise RowsError(errors)
        if looks:
            self._look(returned)
        try:
            if self._buffers:
                columns = column(rewards, np.float32), column(dones, np.bool_)
            else:
                columns = stack(rewards), stack(dones)
            told = tabled(infos, len(self))
            if type(told) is list:  # the local classes copy or pickle them, which makes read-only arrays writeable
                told = [(row, with_arrays(info, writeable), None) for row, info, _ in told]
            return RowsStepped(self._batch(rooms), *columns, None, told, reset_infos)
        except Exception as error:

            def fits(row: int) -> None:
                self._require_fit(row)
                column([rewards[row]], np.float32)
                column([dones[row]], np.bool_)

            self._name_misfits(error, fits)

    def _info_taken(self, info: Any) -> Any:
        """What a row returned, before the next one is stepped: a process pickles it."""
        return info if self._buffers else copy.deepcopy(info)

    def _batch(self, rooms: Sequence[np.ndarray] = ()) -> Any:
        free = self._own_rooms(rooms)
        parts = {key: self._leaf(key, space, next(free, None)) for key, space in leaves(self._space)}
        if isinstance(self._space, spaces.Dict):
            return parts
        return tuple(parts.values()) if isinstance(self._space, spaces.Tuple) else parts[None]

    def _leaf(self, key: Any, space: spaces.Space, room: np.ndarray | None) -> np.ndarray:
        values = self._observations if key is None else [observation[key] for observation in self._observations]
        batch = self._batches.get(key)
        if batch is None:
            batch = self._batches[key] = np.zeros((len(values), *(space.shape or ())), dtype=space.dtype)
        fitting = batched(values, batch, room)
        if fitting is not None:
            return fitting
        if not self._buffers:
            return np.stack(values)
        for row, value in enumerate(values):
            batch[row] = value
        return batch

    def _require_fit(self, row: int) -> None:
        observation = self._observations[row]
        try:
            for key, space in leaves(self._space):
                value = observation if key is None else observation[key]
                if self._buffers:
                    np.zeros((1, *(space.shape or ())), space.dtype)[0] = value
                elif np.shape(value) != space.shape:
                    raise ValueError("np.stack takes arrays of one and the same shape only")
        except Exception as error:
            raise misfit(error, observation, self._space) from error


class WholeRows(Rows):
    """One environment, or one vector env, as it is: nothing is batched, every Python type stays."""

    _unstarted = False  # revived and not reset yet

    def revive(self, seeds: Sequence[int | None], observations: Any) -> None:
        super().revive(seeds, observations)
        self._unstarted = True

    def reset(
        self, seeds: Sequence[int | None], options: Sequence[dict | None], mask: Sequence[bool] | None
    ) -> RowsReset:
        self._unstarted = False
        [(observation, info)] = self._each([0], lambda row: self._begin(row, seed=seeds[0], options=options[0]))
        return RowsReset(observation, [(0, info)])

    def step(self, actions: Any, rooms: Sequence[np.ndarray] = ()) -> RowsStepped:
        if self._unstarted and isinstance(self.envs[0], VectorEnv):  # its own autoreset, on the step after the end
            reset, nothing = self.reset([None], [None], None), np.zeros(self.num_rows)
            over = nothing.astype(np.bool_)
            return RowsStepped(reset.observations, nothing, over, over.copy(), [(0, reset.infos[0][1], None)], [])
        self._go_on(0)
        try:
            observation, reward, terminated, truncated, info = self.envs[0].step(actions)
        except BaseException as error:
            raise RowsError([self._row_error(0, error)]) from error
        infos = [(0, info, None)] if info or type(info) is not dict else []
        return RowsStepped(observation, reward, terminated, truncated, infos, [])

    def describe(self) -> RowsOpened:
        env = self.envs[0]
        if not isinstance(env, VectorEnv):
            return super().describe()._replace(spec=portable_spec(env.spec))
        return RowsOpened(
            observation_spaces=[env.single_observation_space],
            action_spaces=[env.single_action_space],
            metadata=dict(env.metadata),
            render_modes=[getattr(env, "render_mode", None)],
            spec=None,
            description=str(env),
            distinct=1,
            extra={
                "num_envs": env.num_envs,
                "observation_space": env.observation_space,
                "action_space": env.action_space,
            },
        )

    def _attribute(self, row: int, name: str, target: Target) -> Any:
        if isinstance(self.envs[0], VectorEnv):
            target = Target.OUTERMOST  # a vector env has no get_wrapper_attr
        return super()._attribute(row, name, target)


def open_rows(semantics: Semantics, factories: bytes, rows: Sequence[int], mode: AutoresetMode) -> Rows:
    """Make the environments of some rows under the rules of `semantics`.

    Raises:
        NotShippableError: a module that a factory needs is missing here.
        RowsError: factories raised.
    """
    fns = unship(factories)
    if semantics in A_PROCESS_EACH:
        fns = apart(fns)
    made = _rows(semantics, fns, rows, mode)
    made.are_processes = semantics in A_PROCESS_EACH
    return made


def _rows(semantics: Semantics, fns: Sequence[Any], rows: Sequence[int], mode: AutoresetMode) -> Rows:
    if semantics is Semantics.GYMNASIUM_SYNC:
        return GymnasiumRows(fns, rows, mode)
    if semantics is Semantics.GYMNASIUM_ASYNC:
        return AsyncRows(fns, rows, mode)
    if semantics is Semantics.GYMNASIUM_ASYNC_UNSHARED:
        return UnsharedAsyncRows(fns, rows, mode)
    if semantics is Semantics.SB3_DUMMY:
        return StableBaselinesRows(fns, rows, buffers=True)
    if semantics is Semantics.SB3_SUBPROC:
        return StableBaselinesRows(fns, rows, buffers=False)
    return WholeRows(fns, rows)


def row_error(row: int, env: str, error: BaseException) -> RowError:
    """What a trainer is told of an exception.

    `SystemExit` and `KeyboardInterrupt` are told too, but not as themselves: what an environment does to its own
    process must not end the trainer's script.

    Raises:
        SystemExit: Ray is ending this process, and the environment was interrupted by that.
    """
    if hasattr(error, "ray_terminate_msg"):
        raise error
    try:
        message = str(error)
    except Exception as unspeakable:
        message = f"(its __str__ raised {type(unspeakable).__name__})"
    return RowError(
        row=row,
        env=env,
        exception=ship_exception(error) if isinstance(error, Exception) else None,
        type_name=type(error).__name__,
        message=message,
        traceback="".join(traceback.format_exception(error)),
        lacks=_lacking(error),
    )


_CAUSES = 10  # one of the other: more than there are


def _lacking(error: BaseException | None) -> str:
    """The module for want of which it was raised, if it was: by Python, or by whoever caught that."""
    for _ in range(_CAUSES):
        if error is None or (isinstance(error, ModuleNotFoundError) and error.name):
            break
        error = error.__cause__ or error.__context__
    return (error.name or "") if isinstance(error, ModuleNotFoundError) else ""


def _of_gymnasium(factory: Callable[[], Any]) -> Callable[[], gymnasium.Env]:
    """Stable-Baselines3's classes take nothing else, whether `make_vec_env` called them or the script."""
    return lambda: require_gymnasium_env(factory())


def _made(factory: Callable[[], Any]) -> Any:
    env = factory()
    for name in ("observation_space", "action_space"):
        if not hasattr(env, name):
            raise AttributeError(f"The factory returned a {type(env).__name__}, which has no {name}")
    return env


def _name(env: Any) -> str:
    """Its id, else its class; empty where there is none yet."""
    if env is None:
        return ""
    spec = getattr(env, "spec", None)
    return spec.id if isinstance(spec, EnvSpec) else type(getattr(env, "unwrapped", env)).__name__


def _read(attribute: Any, name: str) -> Any:
    if inspect.isroutine(attribute) or (callable(attribute) and not _travels(attribute)):
        return RemoteMethod(name)
    if isinstance(attribute, EnvSpec):
        return portable_spec(attribute)
    if isinstance(attribute, (gymnasium.Env, VectorEnv)) or not _travels(attribute):
        return RemoteObject(name, type(attribute).__name__)
    return attribute


def _travels(value: Any) -> bool:
    if isinstance(value, (int, float, str, bytes, np.ndarray, type(None))):
        return True
    try:
        encode(value)
    except Exception:
        return False
    return True


def _agreed(values: list[Any]) -> list[Any]:
    return values[:1] if all(value == values[0] for value in values[1:]) else values


def _is_wrapped(env: Any, wrapper_class: type) -> bool:
    classes = _monitors() if wrapper_class is Monitor else wrapper_class
    return any(isinstance(wrapper, classes) for wrapper in _wrappers(env))


def _monitors() -> Any:
    """Ours, and SB3's: an environment's own package, say, has that. It is replaced in what a trainer sends alone."""
    sb3s = sys.modules.get(SB3_MONITOR)
    return (Monitor,) if sb3s is None else (Monitor, sb3s.Monitor)


def _wrappers(env: Any) -> Iterator[Any]:
    while isinstance(env, gymnasium.Wrapper):
        yield env
        env = env.env
