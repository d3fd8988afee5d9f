"""The core of every remote vector env: rows to env runners, scatter, gather, errors. No framework in here.

A request goes to every env runner that hosts rows before the first reply is awaited. The faces
(`gymnasium`, `sb3`, `single`, `hosted`) put the replies into the shapes that their local classes have.
"""

from __future__ import annotations

import itertools
import pickle
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np
from gymnasium.vector import AutoresetMode

from remoterl import messages as m
from remoterl._logging import logger
from remoterl.channels.base import Channel
from remoterl.errors import NotShippableError, RemoteEnvError, RemoteRLError, RemoteTraceback, UnsupportedError
from remoterl.shipping import StaysLocal
from remoterl.shipping import ship as ship_or_signal

_vector_ids = itertools.count(1)
T = TypeVar("T")


@dataclass
class RunnerLink:
    """An env runner as the trainer holds it: where it is, how it is reached, how many rows it has."""

    channel: Channel
    actor: Any
    simulator: str
    node_id: str
    pid: int
    environments: frozenset[str]  # ids that its simulator knows by itself
    garbage: SimpleQueue[Any]  # vector envs that were garbage collected: (id, parts), closed by the session
    rows: int = 0
    mirrored: dict[str, Any] = field(default_factory=dict)  # env id -> the trainer's EnvSpec that it was sent

    @property
    def place(self) -> str:
        """For messages: which process where."""
        return f"simulator {self.simulator} (node {self.node_id[:8]}, pid {self.pid})"


@dataclass(frozen=True)
class Assignment:
    """Some consecutive rows on one env runner, and what has to be sent to it to make them."""

    runner: RunnerLink
    rows: range
    factories: bytes
    specs: bytes


class VectorCore:
    """The rows of one vector env. Create it with `open`.

    Attributes:
        num_rows: rows over all env runners.
        opened: what each env runner told of its rows, in order of the rows.
    """

    def __init__(self, assignments: Sequence[Assignment], name: str) -> None:
        self._id = next(_vector_ids)
        self._parts = [(assignment.runner, assignment.rows) for assignment in assignments]
        self._name = name
        self._closed = False
        self._finalizer: Any = None
        self._channels = [runner.channel for runner, _ in self._parts]
        classes = {type(channel) for channel in self._channels}
        self._receive_all = (classes.pop() if len(classes) == 1 else Channel).receive_all
        self.num_rows = sum(len(rows) for _, rows in self._parts)
        self.opened: list[m.RowsOpened] = []

    @classmethod
    def open(
        cls,
        assignments: Sequence[Assignment],
        semantics: m.Semantics,
        autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP,
        name: str = "",
    ) -> VectorCore:
        """Make the environments; all env runners work at the same time.

        Raises:
            Exception: what a factory raised, as `gather` raises it; the rows that were made are closed.
        """
        core = cls(assignments, name)
        requests = [
            m.OpenRows(core._id, tuple(part.rows), part.factories, semantics, autoreset_mode, part.specs)
            for part in assignments
        ]
        for runner, rows in core._parts:
            runner.rows += len(rows)
        garbage = core._parts[0][0].garbage
        core._finalizer = weakref.finalize(core, garbage.put, (core._id, core._parts))
        core._finalizer.atexit = False
        try:
            core.opened = core.gather(core.scatter(requests))
        except BaseException:
            core.close()
            raise
        return core

    @property
    def closed(self) -> bool:
        """Was `close` called, or the session ended?"""
        return self._closed

    @property
    def ranges(self) -> list[range]:
        """The rows of each part, in order."""
        return [rows for _, rows in self._parts]

    def places(self) -> dict[str, list[int]]:
        """Simulator name -> the rows that run there."""
        places: dict[str, list[int]] = {}
        for runner, rows in self._parts:
            places.setdefault(runner.simulator, []).extend(rows)
        return places

    # ---- scatter and gather ------------------------------------------------------------------------------

    def scatter(self, requests: Sequence[Any]) -> list[Any]:
        """Send one request to each part, waiting for none; returns the tickets."""
        return [runner.channel.send(request) for (runner, _), request in zip(self._parts, requests, strict=True)]

    def gather(self, tickets: Sequence[Any], timeout_s: float | None = None) -> list[Any]:
        """Wait for all replies, in order of the rows.

        Raises:
            Exception: what the environments raised: the first row's exception, of its own type where it can
                be rebuilt here, with all rows' remote tracebacks as its cause.
            TimeoutError, EnvRunnerLostError: as `Channel.receive`; the other replies are thrown away.
        """
        replies = self._receive_all(self._channels, tickets, timeout_s)
        errors = [
            (runner, error)
            for (runner, _), reply in zip(self._parts, replies, strict=True)
            if isinstance(reply, m.RowsFailed)
            for error in reply.errors
        ]
        if errors:
            raise RowsRaised(errors).to_raise(self._name)
        return replies

    def reset(
        self, seeds: Sequence[int | None], options: Sequence[Any] | None, mask: Sequence[bool] | None = None
    ) -> list[Any]:
        """Send resets; seeds, options and mask have one entry a row. Returns the tickets."""
        return self.scatter(
            [
                m.ResetRows(
                    self._id,
                    tuple(seeds[row] for row in rows),
                    ship([options[row] for row in rows]) if options is not None else None,
                    None if mask is None else tuple(bool(mask[row]) for row in rows),
                )
                for rows in self.ranges
            ]
        )

    def step(self, actions: Any) -> list[Any]:
        """Send a step; `actions` has one action a row and can be sliced. Returns the tickets."""
        return self.scatter([m.StepRows(self._id, m.pack(actions[rows.start : rows.stop])) for rows in self.ranges])

    def step_whole(self, action: Any) -> list[Any]:
        """Send a step to the only row (`SINGLE`, `HOSTED`), the action as it is."""
        return self.scatter([m.StepRows(self._id, m.pack(action))])

    # ---- everything that is not a step ---------------------------------------------------------------------

    def call_async(self, name: str, args: Any = (), kwargs: Any = None, call: bool | None = None) -> list[Any]:
        """Send a call (or read) of every row's `name`; gather with `results`."""
        arguments = ship((args, kwargs or {}))
        return self.scatter([m.CallRows(self._id, tuple(rows), name, arguments, call) for rows in self.ranges])

    def results(self, tickets: Sequence[Any], timeout_s: float | None = None) -> list[Any]:
        """One result a row, in order."""
        return [result for reply in self.gather(tickets, timeout_s) for result in reply.results]

    def call(
        self,
        name: str,
        args: Any = (),
        kwargs: Any = None,
        call: bool | None = None,
        rows: Sequence[int] | None = None,
        target: m.Target = m.Target.WRAPPERS,
    ) -> list[Any]:
        """Call or read `name` on some rows (None: all); one result a row asked, in the order asked.

        What a call writes into an array among `args` is written here too, where one row was asked.
        """
        arguments = ship((args, kwargs or {}))

        def write_back(reply: m.RowsCalled) -> None:
            if reply.arrays is not None and len(reply.arrays) == 1:
                ours = [argument for argument in args if isinstance(argument, np.ndarray)]
                for array, theirs in zip(ours, reply.arrays[0], strict=True):
                    if array.flags.writeable:
                        array[...] = theirs

        return self._ask(rows, lambda asked: m.CallRows(self._id, asked, name, arguments, call, target), write_back)

    def read(self, name: str, rows: Sequence[int] | None = None, target: m.Target = m.Target.WRAPPERS) -> list[Any]:
        """Read an attribute of some rows (None: all).

        A method arrives as a function that calls it there; what can't be pickled as a `RemoteAttribute`.
        """
        asked = list(range(self.num_rows)) if rows is None else list(rows)
        values = self.call(name, call=False, rows=asked, target=target)
        return [self._as_read(value, row, target) for row, value in zip(asked, values, strict=True)]

    def set_attribute(
        self,
        name: str,
        values: Sequence[Any],
        rows: Sequence[int] | None = None,
        target: m.Target = m.Target.WRAPPERS,
    ) -> None:
        """Set an attribute on some rows (None: all), one value a row asked."""
        asked_rows = list(range(self.num_rows)) if rows is None else [self._row(row) for row in rows]
        by_row = dict(zip(asked_rows, values, strict=True))
        self._ask(
            asked_rows,
            lambda asked: m.SetAttribute(self._id, asked, name, ship([by_row[row] for row in asked]), target),
        )

    def is_wrapped(self, wrapper_class: type, rows: Sequence[int] | None = None) -> list[bool]:
        """A bool for each row asked."""
        shipped = ship(wrapper_class)
        return self._ask(rows, lambda asked: m.IsWrapped(self._id, asked, shipped))

    def render(self) -> list[Any]:
        """A frame for each row."""
        return self.results(self.scatter([m.RenderRows(self._id)] * len(self._parts)))

    def require_open(self) -> None:
        """Raise if this vector env can no longer be used."""
        if self._closed:
            raise RemoteRLError(f"{self._name or 'This remote vector env'} is closed.")

    def close(self, timeout_s: float | None = 30.0) -> None:
        """Close all environments and free their rows. Idempotent; an env runner that is gone is no error.

        Raises:
            Exception: what an environment's own `close` raised.
        """
        self.await_close(self.send_close(), None if timeout_s is None else time.monotonic() + timeout_s)

    def send_close(self) -> list[tuple[RunnerLink, Any]]:
        """The first half of `close`: tell every env runner, wait for none."""
        if self._closed:
            return []
        self._closed = True
        if self._finalizer is None or not self._finalizer.detach():
            return []
        return forget(self._id, self._parts)

    def await_close(self, tickets: Sequence[tuple[RunnerLink, Any]], deadline: float | None) -> None:
        """The second half of `close`; raises as it does."""
        errors = []
        for runner, ticket in tickets:
            timeout_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                reply = runner.channel.receive(ticket, timeout_s)
            except (RemoteRLError, TimeoutError) as error:
                logger.debug("while closing: %s", error)
                continue
            if isinstance(reply, m.RowsFailed):
                errors += [(runner, error) for error in reply.errors]
        if errors:
            raise RowsRaised(errors).to_raise(self._name)

    def abandon(self) -> None:
        """In a forked child: these rows are the parent's, so nothing is ever sent to them."""
        self._closed = True
        if self._finalizer is not None:
            self._finalizer.detach()

    def _ask(
        self,
        rows: Sequence[int] | None,
        request: Callable[[tuple[int, ...]], Any],
        look_at: Callable[[Any], None] | None = None,
    ) -> list[Any]:
        self.require_open()
        asked_rows = list(range(self.num_rows)) if rows is None else [self._row(row) for row in rows]
        wanted = set(asked_rows)
        parts, tickets = [], []
        for runner, own_rows in self._parts:
            asked = tuple(row for row in own_rows if row in wanted)
            if asked:
                parts.append((runner, asked))
                tickets.append(runner.channel.send(request(asked)))
        by_row: dict[int, Any] = {}
        errors: list[tuple[RunnerLink, m.RowError]] = []
        for (runner, asked), ticket in zip(parts, tickets, strict=True):
            reply = runner.channel.receive(ticket)
            if isinstance(reply, m.RowsFailed):
                errors += [(runner, error) for error in reply.errors]
            else:
                by_row.update(zip(asked, reply.results, strict=False))
                if look_at is not None:
                    look_at(reply)
        if errors:
            raise RowsRaised(errors).to_raise(self._name)
        return [by_row.get(row) for row in asked_rows]

    def _as_read(self, value: Any, row: int, target: m.Target) -> Any:
        if isinstance(value, m.RemoteObject):
            return RemoteAttribute(self, value, row, target)
        if not isinstance(value, m.RemoteMethod):
            return value

        def call(*args: Any, **kwargs: Any) -> Any:
            return self.call(value.name, args, kwargs, True, [row], target)[0]

        call.__name__ = call.__qualname__ = value.name
        return call

    def _row(self, row: int) -> int:
        if not -self.num_rows <= row < self.num_rows:
            raise IndexError(f"row {row} asked of a vector env with {self.num_rows} rows")
        return row % self.num_rows


class RemoteAttribute:
    """An object in a remote environment that can't be pickled; its attributes and methods are asked for there."""

    def __init__(self, core: VectorCore, what: m.RemoteObject, row: int, target: m.Target) -> None:
        self._core, self._what, self._row, self._target = core, what, row, target

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._core.read(f"{self._what.name}.{name}", [self._row], self._target)[0]

    def __repr__(self) -> str:
        return f"<remote {self._what.type_name} {self._what.name!r} of row {self._row}>"


def forget(vector_id: int, parts: Sequence[tuple[RunnerLink, range]]) -> list[tuple[RunnerLink, Any]]:
    """Tell the env runners to close the rows. Never raises: what is gone needs no closing."""
    tickets = []
    for runner, rows in parts:
        runner.rows -= len(rows)
        try:
            tickets.append((runner, runner.channel.send(m.CloseRows(vector_id))))
        except Exception as error:
            logger.debug("while closing: %s", error)
    return tickets


class RowsRaised:
    """What some rows raised, and on which env runner each of them was."""

    def __init__(self, errors: Sequence[tuple[RunnerLink, m.RowError]]) -> None:
        self.errors = list(errors)

    def to_raise(self, name: str) -> BaseException:
        """The first row's exception, of its own type where it can be rebuilt here; its cause tells all of them.

        The exception keeps this object as its attribute `remote_rows`.
        """
        story = "\n\n".join(
            f"On {runner.place}, {_who(error, name)}:\n{error.traceback.rstrip()}" for runner, error in self.errors
        )
        runner, first = self.errors[0]
        exception = _rebuilt(first)
        if exception is None:
            exception = RemoteEnvError(
                f"{first.type_name}: {first.message} (raised by {_who(first, name)} on {runner.place})"
            )
        elif isinstance(exception, NotShippableError):
            exception = NotShippableError(f"On {runner.place}: {exception}")
        exception.__cause__ = RemoteTraceback(story)
        try:
            exception.remote_rows = self  # type: ignore[attr-defined]
        except AttributeError:  # an exception with __slots__
            pass
        return exception


def _rebuilt(error: m.RowError) -> BaseException | None:
    if error.exception is None:
        return None
    try:
        return pickle.loads(error.exception)
    except Exception as reason:
        logger.debug("the exception %s can't be rebuilt here: %s", error.type_name, reason)
        return None


def ship(value: Any) -> bytes:
    """Ship arguments and values of a call.

    Raises:
        UnsupportedError: they can't leave this process.
    """
    try:
        return ship_or_signal(value)
    except StaysLocal as error:
        raise UnsupportedError(
            f"The arguments of a call to a remote environment can't be sent there: {error}"
        ) from None


def _who(error: m.RowError, name: str) -> str:
    env = error.env or name
    return f"row {error.row}" + (f" of {env}" if env else "") if error.row >= 0 else f"the env runner {env}"
