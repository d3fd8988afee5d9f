"""The core of every remote vector env: rows to env runners, scatter, gather, errors. No framework in here.

A request goes to every env runner that hosts rows before the first reply is awaited. The faces
(`gymnasium`, `sb3`, `single`, `hosted`) put the replies into the shapes that their local classes have. Where an env
runner is lost, its rows are made anew on another one, and the trainer is told of a truncated episode (`recovery`).
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import pickle
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from remoterl import messages as m
from remoterl._logging import logger
from remoterl.actors.sources import is_itself_beside
from remoterl.channels.base import Channel, Late
from remoterl.channels.codec import Landing
from remoterl.channels.shared_memory import SharedMemory
from remoterl.errors import (
    EnvRunnerLostError,
    NotShippableError,
    RemoteEnvError,
    RemoteRLError,
    RemoteTraceback,
    StepTimeoutError,
    UnsupportedError,
)
from remoterl.shipping import StaysLocal
from remoterl.shipping import ship as ship_or_signal
from remoterl.vector import recovery
from remoterl.vector.lent import ANYTHING, Batch, LentBatches, lent_for
from remoterl.vector.recovery import Rescuer

CLOSE_S = 30.0  # for environments to close themselves, where the caller says nothing
ATTEMPTS = 3  # to make a part's rows anew before the loss is an error
UNSENT = object()  # in place of a ticket: the part was lost, and the trainer has not heard of it yet
REPLIES = frozenset({m.RowsOpened, m.RowsReset, m.RowsStepped, m.RowsCalled})
OF_EPISODES = frozenset({m.ResetRows, m.StepRows})
OBSERVATIONS = frozenset({m.RowsReset, m.RowsStepped})
GYMNASIUMS = "WARN: "  # what its logger says, in a colour
_part_ids = itertools.count(1)


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
    strategy: Any = None  # Ray's, where its unit was granted to the trainer
    rows: int = 0
    replaced_by: RunnerLink | None = None
    cause: str = ""  # Ray's account of how it was lost
    mirrored: dict[str, Any] = field(default_factory=dict)  # env id -> the trainer's, as it was sent
    sources: dict[str, Any] = field(default_factory=dict)  # top package -> what was sent of it

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
    news: bytes


@dataclass
class Part:
    """Some consecutive rows, and where they are now."""

    runner: RunnerLink
    rows: range
    id: int  # of these rows on their env runner
    factories: bytes
    is_made: bool = True  # False: its environments are not there, although its env runner is
    losses: int = 0
    told: dict[str, Any] | None = None  # of a loss that the trainer has not heard of yet

    def __post_init__(self) -> None:
        self.where = slice(self.rows.start, self.rows.stop)


class Flight(NamedTuple):
    """Requests that are under way, one a part. In place of a ticket: why nothing was sent."""

    requests: Sequence[Any]
    tickets: Sequence[Any]
    complete: bool  # all tickets are tickets
    channels: Sequence[Channel]  # where they were sent: a part may have moved since
    batch: Batch | None = None  # to which a step's observations may be written


class VectorCore:
    """The rows of one vector env. Create it with `open`.

    Attributes:
        num_rows: rows over all env runners.
        opened: what each env runner told of its rows, in order of the rows.
        wanted: what the observations of all rows are like, where they have to be like that to be lent.
    """

    def __init__(
        self,
        assignments: Sequence[Assignment],
        semantics: m.Semantics,
        autoreset_mode: AutoresetMode,
        name: str,
        rescuer: Rescuer | None,
    ) -> None:
        self._parts = [
            Part(assignment.runner, assignment.rows, next(_part_ids), assignment.factories)
            for assignment in assignments
        ]
        self._semantics = semantics
        self._mode = autoreset_mode
        self._name = name
        self._rescuer = rescuer
        self._registered = rescuer.registered() if rescuer is not None else {}
        self._closed = False
        self.why_closed: Exception | None = None  # where the session did not end in order
        self._finalizer: Any = None
        self.num_rows = sum(len(part.rows) for part in self._parts)
        self.opened: list[m.RowsOpened] = []
        self.wanted: Any = ANYTHING
        self._seeds: list[Any] = [None] * self.num_rows  # of the last reset that brought any
        self._seen: Sequence[Any] = [None] * len(self._parts)  # each part's last answer that has observations
        self._viewed: dict[int, Any] = {}  # the last observation of each row that the script steps by a view of it
        self._owed: dict[int, dict[str, Any]] = {}  # such rows, lost and not reset since, and what is told of it
        self._nowhere: list[Any] = [None] * len(self._parts)
        self._step_is_out = False  # and has not been gathered in full
        self._pick_channels()

    def _pick_channels(self) -> None:
        self._channels = [part.runner.channel for part in self._parts]
        classes = {type(channel) for channel in self._channels}
        self._receive_all = (classes.pop() if len(classes) == 1 else Channel).receive_all
        self._land_elsewhere()
        # After a loss new ones, since whoever was given up may write to the old ones.
        self._batches: LentBatches | None = None
        # Until the first observations say whether there are to be any.
        self._memory = next((one.memory for one in self._channels if one.memory is not None), None)

    @classmethod
    def open(
        cls,
        assignments: Sequence[Assignment],
        semantics: m.Semantics,
        autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP,
        name: str = "",
        rescuer: Rescuer | None = None,
    ) -> VectorCore:
        """Make the environments; all env runners work at the same time.

        Args:
            rescuer: where lost rows can go on; None: a loss is an error.

        Raises:
            Exception: what a factory raised, as `gather` raises it; the rows that were made are closed.
            EnvRunnerLostError: an env runner is gone.
        """
        core = cls(assignments, semantics, autoreset_mode, name, rescuer)
        requests = [core._open_request(part, given.news) for part, given in zip(core._parts, assignments, strict=True)]
        for part in core._parts:
            part.runner.rows += len(part.rows)
        garbage = core._parts[0].runner.garbage
        core._finalizer = weakref.finalize(core, garbage.put, core._parts)
        core._finalizer.atexit = False
        try:
            core.opened = core.gather(core.scatter(requests))
            for opened in core.opened:
                warn_again(opened.warned)
        except BaseException:
            with contextlib.suppress(Exception):  # the first error is the cause
                core.close()
            raise
        return core

    def _open_request(self, part: Part, news: bytes) -> m.OpenRows:
        restarts = self._rescuer.restarts if self._rescuer is not None else 0
        return m.OpenRows(part.id, tuple(part.rows), part.factories, self._semantics, self._mode, news, restarts)

    @property
    def closed(self) -> bool:
        """Was `close` called, or the session ended?"""
        return self._closed

    @property
    def ranges(self) -> list[range]:
        """The rows of each part, in order."""
        return [part.rows for part in self._parts]

    def places(self) -> dict[str, list[int]]:
        """Simulator name -> the rows that run there."""
        places: dict[str, list[int]] = {}
        for part in self._parts:
            places.setdefault(part.runner.simulator, []).extend(part.rows)
        return places

    def require_an_environment_each(self) -> None:
        """Look for functions that returned an environment that another row has already.

        Raises:
            ValueError: as the local class does.
            UnsupportedError: it would not, since each row is a process.
        """
        if sum(opened.distinct for opened in self.opened) == self.num_rows:
            return
        if self._semantics in m.A_PROCESS_EACH:
            raise UnsupportedError(
                f"Functions given to {self._semantics.value} returned an environment that another of its rows has. "
                "Locally each row has a process, and so its own; on a simulator, rows share one. Make a new one "
                "at every call (lambda: gym.make(...)), and keep it in no global name."
            )
        raise ValueError(
            "You tried to create multiple environments, but the function to create them returned the same instance "
            "instead of creating different objects. Replace `lambda: env` by a function that creates a new instance at "
            "every call (using `gym.make()` for instance)."
        )

    # ---- scatter and gather ------------------------------------------------------------------------------

    def scatter(
        self, requests: Sequence[Any], landings: Sequence[Landing | None] | None = None, batch: Batch | None = None
    ) -> Flight:
        """Send one request to each part, waiting for none. A loss shows when the flight is gathered.

        Args:
            landings: where each part's reply may land.
            batch: to which the observations may be written.
        """
        tickets: list[Any] = []
        complete = True
        for part, request, landing in zip(self._parts, requests, landings or self._nowhere, strict=True):
            ticket = self._send(part, request, landing)
            if ticket is UNSENT or isinstance(ticket, Exception):
                complete = False
            tickets.append(ticket)
        return Flight(requests, tickets, complete, self._channels, batch)

    def _send(self, part: Part, request: Any, landing: Landing | None = None) -> Any:
        """A ticket, or in its place why there is none."""
        if part.told is not None or not part.is_made:
            waits = not part.is_made or type(request) in OF_EPISODES
            if waits and not part.runner.channel.lost:
                return UNSENT  # the episode that an action was for is over; a reset begins on fresh seeds
        try:
            return part.runner.channel.send(request, landing)
        except (EnvRunnerLostError, Late) as error:
            return error

    def gather(self, flight: Flight, timeout_s: float | None = None) -> list[Any]:
        """Wait for all replies, in order of the rows. Rows that were lost are made anew (see `recovery`).

        Raises:
            Exception: what the environments raised: the first row's exception, of its own type where it can
                be rebuilt here, with all rows' remote tracebacks as its cause.
            Late: no reply within `timeout_s`; what comes late is thrown away.
            StepTimeoutError: it took longer than the session's `step_timeout_s`.
            EnvRunnerLostError: an env runner was lost, and its rows could not be made anew.
        """
        limit_s = self._limit(timeout_s)
        if flight.complete:
            receive_all = self._receive_all if flight.channels is self._channels else Channel.receive_all
            replies = receive_all(flight.channels, flight.tickets, limit_s)
        else:
            replies = self._receive_some(flight, limit_s)
        for reply in replies:
            if type(reply) not in REPLIES:
                replies = self._mend(flight, replies, timeout_s, limit_s)
                break
        if type(replies[0]) in OBSERVATIONS:
            self._seen = replies
            if type(replies[0]) is m.RowsStepped:
                self._step_is_out = False
        return replies

    def _last_seen(self, index: int) -> Any:
        """A part's last observations; None before the first reset."""
        seen = self._seen[index]
        return None if seen is None else seen.observations

    def _land_elsewhere(self) -> None:
        """Through another connection, or after a step that was given up: what is still to come of it must not arrive on
        the last observations that the trainer has seen."""
        self._landings = [Landing() for _ in self._parts]

    def reset(
        self, seeds: Sequence[int | None], options: Sequence[Any] | None, mask: Sequence[bool] | None = None
    ) -> Flight:
        """Send resets; seeds, options and mask have one entry a row."""
        self._owed = {row: told for row, told in self._owed.items() if not (mask is None or mask[row])}
        self._seeds = [
            before if seed is None or not (mask is None or mask[row]) else seed
            for row, (seed, before) in enumerate(zip(seeds, self._seeds, strict=True))
        ]
        return self.scatter(
            [
                m.ResetRows(
                    part.id,
                    tuple(seeds[row] for row in part.rows),
                    ship([options[row] for row in part.rows]) if options is not None else None,
                    None if mask is None else tuple(bool(mask[row]) for row in part.rows),
                )
                for part in self._parts
            ]
        )

    def step(self, actions: Any) -> Flight:
        """Send a step; `actions` has one action a row and can be sliced."""
        if self._step_is_out:
            self._land_elsewhere()
        self._step_is_out = True
        if self._memory is not None:
            self._decide_whether_to_lend(self._memory)
        batch = self._batches.next() if self._batches is not None else None
        requests = []
        is_plain = type(actions) is np.ndarray and actions.dtype != object
        rooms = self._nowhere if batch is None else batch.rooms
        for part, landing, room in zip(self._parts, self._landings, rooms, strict=True):
            own = actions[part.where]
            shipped = own if is_plain else m.pack(own)
            landing.room = room
            requests.append(m.StepRows(part.id, shipped, None if room is None else room.places))
        return self.scatter(requests, self._landings, batch)

    def _decide_whether_to_lend(self, memory: SharedMemory) -> None:
        seen = [self._last_seen(index) for index in range(len(self._parts))]
        if not any(one is None for one in seen):
            self._batches = lent_for(memory, self.ranges, seen, self.wanted)
            self._memory = None

    def step_whole(self, action: Any) -> Flight:
        """Send a step to the only row (`SINGLE`, `HOSTED`), the action as it is."""
        return self.scatter([m.StepRows(self._parts[0].id, m.pack(action))])

    # ---- losses ----------------------------------------------------------------------------------------------

    def _limit(self, timeout_s: float | None = None) -> float | None:
        ours = self._rescuer.step_timeout_s if self._rescuer is not None else None
        if ours is None or timeout_s is None:
            return ours or timeout_s
        return min(ours, timeout_s)

    def _receive_some(self, flight: Flight, timeout_s: float | None) -> list[Any]:
        tickets = flight.tickets
        under_way = [
            (channel, ticket)
            for channel, ticket in zip(flight.channels, tickets, strict=True)
            if ticket is not UNSENT and not isinstance(ticket, Exception)
        ]
        received = iter(Channel.receive_all([one for one, _ in under_way], [one for _, one in under_way], timeout_s))
        return [ticket if ticket is UNSENT or isinstance(ticket, Exception) else next(received) for ticket in tickets]

    def _mend(self, flight: Flight, replies: list[Any], timeout_s: float | None, limit_s: float | None) -> list[Any]:
        """Replies for those that did not come."""
        late = [part for part, reply in zip(self._parts, replies, strict=True) if isinstance(reply, Late)]
        if late:
            if limit_s == timeout_s:
                raise next(reply for reply in replies if isinstance(reply, Late))
            raise self._too_late(late, flight.requests[0])
        mended = list(replies)
        for index, (request, reply) in enumerate(zip(flight.requests, replies, strict=True)):
            if isinstance(reply, EnvRunnerLostError) and self._channels[index] is not flight.channels[index]:
                reply = UNSENT  # a call that came between has moved the part already
            if reply is UNSENT or isinstance(reply, EnvRunnerLostError):
                mended[index] = self._rescue(index, request, reply)
            elif type(reply) not in REPLIES and type(reply) is not m.RowsFailed:
                raise RemoteRLError(
                    f"The env runner on {self._parts[index].runner.place} answered a {type(request).__name__} with a "
                    f"{type(reply).__name__}, which is no answer. Does it run this version of remoterl?"
                )
        errors = [
            (part.runner, error)
            for part, reply in zip(self._parts, mended, strict=True)
            if isinstance(reply, m.RowsFailed)
            for error in reply.errors
        ]
        if errors:
            raise RowsRaised(errors).to_raise(self._name)
        for part, request, got, reply in zip(self._parts, flight.requests, replies, mended, strict=True):
            # Not before: where another part's error is raised, the trainer hears of nothing else. And who answered
            # before it was lost is told of in the next step.
            if reply is not got and (type(request) is m.StepRows or _is_of_all(request)):
                part.told = None
                for row in part.rows:
                    self._owed.pop(row, None)
        return mended

    def _too_late(self, late: Sequence[Part], request: Any) -> StepTimeoutError:
        """Whoever is stuck will never be of use again: its env runner is ended, with all its rows."""
        rows = self._give_up(late)
        again = "" if type(request) is m.OpenRows else "Their environments are made anew at the next reset(). "
        return StepTimeoutError(
            f"No answer within step_timeout_s={self._limit():g} from rows {rows}. {again}If they need longer, give "
            "init() more."
        )

    def _give_up(self, late: Sequence[Part]) -> str:
        """End their env runners; returns which rows of what they are, for a message."""
        assert self._rescuer is not None
        for part in late:
            self._rescuer.give_up(part.runner)
        rows = ", ".join(f"{part.rows.start} to {part.rows.stop - 1} on {part.runner.place}" for part in late)
        return f"{rows} of {self._called(late[0])}"

    def _called(self, part: Part) -> str:
        """The environment's id, or the first row's own description."""
        index = self._parts.index(part)
        return self._name or (self.opened[index].description if self.opened else "the vector env")

    def _rescue(self, index: int, request: Any, error: Any) -> Any:
        """The answer to a request whose env runner is lost (or, UNSENT, was lost in an earlier call)."""
        if self._rescuer is None or type(request) is m.OpenRows:
            raise error
        part = self._parts[index]
        attempts = 0
        while attempts < ATTEMPTS:
            try:
                if error is not UNSENT:
                    self._move(part, error)
                if not part.is_made:
                    self._make(part)
                    if type(request) not in OF_EPISODES:  # which begin the episode, or tell of the one before
                        self._revive(index)
                if type(request) is m.StepRows and self._last_seen(index) is not None:
                    return self._tell(index)
                if _is_a_step(request) and self._owed.keys() >= set(request.rows):
                    return m.RowsCalled([self._told_by_view(row) for row in request.rows])
                if type(request) is m.ResetRows:  # of some rows: the others stay where the trainer saw them last
                    last = None if _is_of_all(request) else self._last_seen(index)
                    self._ask_part(part, m.ReviveRows(part.id, self._new_seeds(part), last))
                return self._ask_part(part, request._replace(vector_id=part.id))
            except _LostAgain as again:
                error = again.__cause__
                attempts += again.was_asked  # what died before it was asked did not die of the environment
        raise EnvRunnerLostError(
            f"The env runner of rows {part.rows.start} to {part.rows.stop - 1} of {self._called(part)} was "
            f"lost {ATTEMPTS} times in one and the same call. The last time: {error} "
            f"{recovery.USUAL_CAUSE}"
        ) from error

    def _move(self, part: Part, error: EnvRunnerLostError) -> None:
        """To another env runner, which does not have the rows yet."""
        assert self._rescuer is not None
        lost = last = part.runner
        while last.replaced_by is not None and last.replaced_by.channel.lost:  # while this vector env was not used
            last = last.replaced_by
        new = self._rescuer.replace(last, error, self._name)
        lost.rows -= len(part.rows)
        new.rows += len(part.rows)
        part.runner, part.id, part.losses, part.is_made = new, next(_part_ids), part.losses + 1, False
        reason = str(error).partition(";")[0] + (f": {last.cause}" if last.cause else "")
        part.told = {"lost": True, "simulator": lost.simulator, "reason": reason, "moved_to": new.simulator}
        self._owed.update((row, part.told) for row in part.rows if row in self._viewed)
        self._pick_channels()

    def _make(self, part: Part) -> None:
        assert self._rescuer is not None
        news = self._rescuer.news_for(part.runner, self._registered)
        opened = self._ask_part(part, self._open_request(part, news))
        if isinstance(opened, m.RowsFailed):
            raise RowsRaised([(part.runner, row) for row in opened.errors]).to_raise(self._name)
        part.is_made = True

    def _revive(self, index: int) -> None:
        part, last = self._parts[index], self._last_seen(index)
        if last is not None or not self._viewed.keys().isdisjoint(part.rows):
            self._ask_part(part, m.ReviveRows(part.id, self._new_seeds(part), last))

    def _tell(self, index: int) -> m.RowsStepped | m.RowsFailed:
        """The step in which the trainer hears that the part's episodes are over."""
        part = self._parts[index]
        seeds, last = self._new_seeds(part), self._last_seen(index)
        if recovery.starts_at_once(self._semantics, self._mode):
            fresh = self._ask_part(part, m.ResetRows(part.id, seeds, None, None))
        else:
            fresh = self._ask_part(part, m.ReviveRows(part.id, seeds, last))
        if isinstance(fresh, m.RowsFailed):
            return fresh
        space = self.opened[index].observation_spaces[0]
        told = part.told or {}
        return recovery.truncated_step(self._semantics, self._mode, space, len(part.rows), last, fresh, told)

    def _new_seeds(self, part: Part) -> tuple[Any, ...]:
        return recovery.derived_seeds([self._seeds[row] for row in part.rows], part.losses)

    def _ask_part(self, part: Part, request: Any) -> Any:
        channel = part.runner.channel
        try:
            ticket = channel.send(request)
        except Late:
            raise self._too_late([part], request) from None
        except EnvRunnerLostError as error:
            raise _LostAgain(False) from error
        try:
            return channel.receive(ticket, self._limit())
        except Late:
            raise self._too_late([part], request) from None
        except EnvRunnerLostError as error:
            raise _LostAgain(True) from error

    # ---- everything that is not a step ---------------------------------------------------------------------

    def call_async(self, name: str, args: Any = (), kwargs: Any = None, call: bool | None = None) -> Flight:
        """Send a call (or read) of every row's `name`; gather with `results`."""
        arguments = ship((args, kwargs or {}))
        return self.scatter([m.CallRows(part.id, tuple(part.rows), name, arguments, call) for part in self._parts])

    def results(self, flight: Flight, timeout_s: float | None = None) -> list[Any]:
        """One result a row, in order."""
        return [result for reply in self.gather(flight, timeout_s) for result in reply.results]

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

        What calls write into an array among the arguments is written here too, where one env runner has all the rows
        that were asked, and it would be locally.
        """
        arguments = ship((args, kwargs or {}))
        asked_rows = set(range(self.num_rows)) if rows is None else {self._row(row) for row in rows}
        is_in_one_place = any(asked_rows.issubset(part.rows) for part in self._parts)

        def write_back(reply: m.RowsCalled) -> None:
            if is_in_one_place and reply.arrays is not None:
                for array, theirs in zip(m.arrays_among(args, kwargs or {}), reply.arrays, strict=True):
                    if array.flags.writeable:
                        array[...] = theirs

        return self._ask(rows, lambda part, asked: m.CallRows(part, asked, name, arguments, call, target), write_back)

    def reset_by_view(self, row: int, args: Any, kwargs: Any, target: m.Target) -> Any:
        """`reset` of one environment alone."""
        if (seed := kwargs.get("seed")) is not None:
            self._seeds = [seed if one == row else before for one, before in enumerate(self._seeds)]
        [result] = self.call("reset", args, kwargs, True, [row], target)
        self._owed.pop(row, None)
        self._viewed[row] = result[0] if isinstance(result, tuple) else result  # an environment of an older kind
        return result

    def step_by_view(self, row: int, args: Any, kwargs: Any, target: m.Target) -> Any:
        """`step` of one environment alone; after a loss, until its `reset`, the truncated one of `recovery`."""
        if row in self._owed:
            return self._told_by_view(row)
        [result] = self.call("step", args, kwargs, True, [row], target)
        self._viewed[row] = result[0]
        return result

    def _told_by_view(self, row: int) -> Any:
        return copy.deepcopy(self._viewed[row]), 0.0, False, True, {"remoterl": dict(self._owed[row])}

    def read(self, name: str, rows: Sequence[int] | None = None, target: m.Target = m.Target.WRAPPERS) -> list[Any]:
        """Read an attribute of some rows (None: all).

        A method arrives as a function that calls it there; what can't be pickled as a `RemoteAttribute`.
        """
        asked = list(range(self.num_rows)) if rows is None else list(rows)
        return self.as_read(self.call(name, call=False, rows=asked, target=target), asked, target)

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
            list(by_row),
            lambda part, asked: m.SetAttribute(part, asked, name, ship([by_row[row] for row in asked]), target),
        )

    def is_wrapped(self, wrapper_class: type, rows: Sequence[int] | None = None) -> list[bool]:
        """A bool for each row asked."""
        shipped = ship(wrapper_class)
        return self._ask(rows, lambda part, asked: m.IsWrapped(part, asked, shipped))

    def render(self) -> list[Any]:
        """A frame for each row."""
        return self.results(self.scatter([m.RenderRows(part.id) for part in self._parts]))

    def require_open(self) -> None:
        """Raise if this vector env can no longer be used."""
        if self._closed:
            raise self.why_closed or RemoteRLError(f"{self._name or 'This remote vector env'} is closed.")

    def close(self, timeout_s: float | None = CLOSE_S) -> None:
        """Close all environments and free their rows. Idempotent; an env runner that is gone is no error.

        One that does not answer is ended, with all its rows; but not where a caller's own `timeout_s` was shorter.

        Raises:
            Exception: what an environment's own `close` raised.
        """
        limit_s = self._limit(timeout_s)
        late = self.await_close(self.send_close(), None if limit_s is None else time.monotonic() + limit_s)
        if late and self._rescuer is not None and (timeout_s == CLOSE_S or limit_s != timeout_s):
            parts = [part for part in self._parts if part.runner in late]
            rows = self._give_up(parts)
            logger.warning("No answer to close() within %g s from rows %s. Their env runner is ended.", limit_s, rows)

    def send_close(self) -> list[tuple[RunnerLink, Any]]:
        """The first half of `close`: tell every env runner, wait for none."""
        if self._closed:
            return []
        self._closed = True
        if self._finalizer is None or not self._finalizer.detach():
            return []
        return forget(self._parts)

    def await_close(self, tickets: Sequence[tuple[RunnerLink, Any]], deadline: float | None) -> list[RunnerLink]:
        """The second half of `close`; raises as it does. Returns who has not answered."""
        errors, late = [], []
        for runner, ticket in tickets:
            timeout_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                reply = runner.channel.receive(ticket, timeout_s)
            except Late:
                late.append(runner)
                continue
            except RemoteRLError as error:
                logger.debug("while closing: %s", error)
                continue
            if isinstance(reply, m.RowsFailed):
                errors += [(runner, error) for error in reply.errors]
        if errors:
            raise RowsRaised(errors).to_raise(self._name)
        return late

    def abandon(self, why: Exception | None = None) -> None:
        """Close without a word to the rows: in a forked child they are the parent's, without a hub out of reach."""
        self.why_closed = why
        self._closed = True
        if self._finalizer is not None:
            self._finalizer.detach()

    def _ask(
        self,
        rows: Sequence[int] | None,
        request: Callable[[int, tuple[int, ...]], Any],
        look_at: Callable[[Any], None] | None = None,
    ) -> list[Any]:
        """Answers of some rows, each as often as asked; `request` makes it from a part's id and its rows."""
        self.require_open()
        asked_rows = list(range(self.num_rows)) if rows is None else [self._row(row) for row in rows]
        sent = []
        for index, part in enumerate(self._parts):
            places = [place for place, row in enumerate(asked_rows) if row in part.rows]
            if places:
                message = request(part.id, tuple(asked_rows[place] for place in places))
                sent.append((index, places, message, self._send(part, message)))
        answers: list[Any] = [None] * len(asked_rows)
        errors: list[tuple[RunnerLink, m.RowError]] = []
        for index, places, message, ticket in sent:
            reply = self._answer(index, message, ticket)
            if isinstance(reply, m.RowsFailed):
                errors += [(self._parts[index].runner, error) for error in reply.errors]
            else:
                for place, answer in zip(places, reply.results, strict=False):
                    answers[place] = answer
                if look_at is not None:
                    look_at(reply)
        if errors:
            raise RowsRaised(errors).to_raise(self._name)
        return answers

    def _answer(self, index: int, message: Any, ticket: Any) -> Any:
        if ticket is UNSENT or isinstance(ticket, EnvRunnerLostError):
            return self._rescue(index, message, ticket)
        try:
            if isinstance(ticket, Late):  # it could not even be sent
                raise ticket
            return self._parts[index].runner.channel.receive(ticket, self._limit())
        except Late:
            raise self._too_late([self._parts[index]], message) from None
        except EnvRunnerLostError as error:
            return self._rescue(index, message, error)

    def as_read(self, values: Sequence[Any], rows: Sequence[int], target: m.Target = m.Target.WRAPPERS) -> list[Any]:
        """What was read of rows, where it can't be pickled as what `read` gives."""
        return [self._as_read(value, row, target) for value, row in zip(values, rows, strict=True)]

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
    """An object that stays in a remote environment: its attributes are read and set, its methods called, there."""

    _core: VectorCore
    _what: m.RemoteObject
    _row: int
    _target: m.Target

    def __init__(self, core: VectorCore, what: m.RemoteObject, row: int, target: m.Target) -> None:
        self.__dict__.update(_core=core, _what=what, _row=row, _target=target)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._core.read(f"{self._what.name}.{name}", [self._row], self._target)[0]

    def __setattr__(self, name: str, value: Any) -> None:
        self._core.set_attribute(f"{self._what.name}.{name}", [value], [self._row], self._target)

    def __repr__(self) -> str:
        return f"<remote {self._what.type_name} {self._what.name!r} of row {self._row}>"


def warn_again(warned: Sequence[m.Warned]) -> None:
    """Warn here of what warned there, by this process's filters and Gymnasium's level.

    Raises:
        Warning: where a filter makes it an error.
    """
    for one in warned:
        if gymnasium.logger.min_level > gymnasium.logger.WARN and GYMNASIUMS in one.text:
            continue
        warnings.warn_explicit(one.text, one.category, one.filename, one.lineno, one.module or "<unknown>", _warned)


_warned: dict[Any, Any] = {}  # what Python's filters know of them


def forget(parts: Sequence[Part]) -> list[tuple[RunnerLink, Any]]:
    """Tell the env runners to close the rows. Never raises: what is gone needs no closing."""
    tickets = []
    for part in parts:
        part.runner.rows -= len(part.rows)
        try:
            tickets.append((part.runner, part.runner.channel.send(m.CloseRows(part.id))))
        except Exception as error:
            logger.debug("while closing: %s", error)
    return tickets


def _is_of_all(request: Any) -> bool:
    """Is it a reset after which no row is in an episode of before?"""
    return type(request) is m.ResetRows and (request.mask is None or all(request.mask))


def _is_a_step(request: Any) -> bool:
    return type(request) is m.CallRows and request.name == "step" and request.call is True


class _LostAgain(Exception):
    """The env runner that took the lost rows is lost too; the cause says how."""

    def __init__(self, was_asked: bool) -> None:
        super().__init__()
        self.was_asked = was_asked


class RowsRaised:
    """What some rows raised, and on which env runner each of them was."""

    def __init__(self, errors: Sequence[tuple[RunnerLink, m.RowError]]) -> None:
        self.errors = list(errors)

    def to_raise(self, name: str) -> BaseException:
        """The first row's exception, of its own type where it can be rebuilt here; its cause tells all of them.

        The exception keeps this object as its attribute `remote_rows`.
        """
        places: dict[str, list[str]] = {}  # by traceback: often all rows fail alike
        for runner, error in self.errors:
            places.setdefault(error.traceback.rstrip(), []).append(f"On {runner.place}, {_who(error, name)}:")
        story = "\n\n".join("\n".join([*where, traceback]) for traceback, where in places.items())
        runner, first = self.errors[0]
        exception = _rebuilt(first)
        if exception is None:
            exception = RemoteEnvError(
                f"{first.type_name}: {first.message} (raised by {_who(first, name)} on {runner.place})"
            )
        elif isinstance(exception, NotShippableError):
            exception = NotShippableError(f"On {runner.place}: {exception}")
        elif type(exception) is ModuleNotFoundError and is_itself_beside(first.lacks):
            exception = ModuleNotFoundError(f"{str(exception).rstrip('.')}. {_HOW_IT_TRAVELS}", name=exception.name)
        exception.__cause__ = RemoteTraceback(story)
        try:
            exception.remote_rows = self  # type: ignore[attr-defined]
        except AttributeError:  # an exception with __slots__
            pass
        return exception


_HOW_IT_TRAVELS = (
    "It lies beside this script: import it at the top of the script and not in a function, so that it is sent along, "
    "or give init() runtime_env={'working_dir': '.'}."
)


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
