"""The env runner: one process on a simulator, holding one unit of `env_runner`, hosting rows of vector envs.

A plain class; `session` wraps it with `ray.remote` where it is created, as an actor of the trainer's job,
so that Ray ends it with the trainer. It answers messages (see `messages`) whichever channel brings them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import psutil

from remoterl import living
from remoterl import messages as m
from remoterl._protocol import spoken
from remoterl.actors import children, directory, registry, shortcuts, warned
from remoterl.actors.rows import Rows, RowsError, open_rows, row_error
from remoterl.errors import RemoteEnvError
from remoterl.shipping import unship

if TYPE_CHECKING:
    from remoterl.actors.stream_listener import StreamListener

REPORT_PERIOD_S = 1.0
REMIND_PERIOD_S = 5.0  # of what did not change: the `Simulator` actor may be another one by now
REPORT_TIMEOUT_S = 10.0
# How late Linux may wake the thread that steps environments: 50 us by itself, after each `sleep` of theirs, or wait
# for a device.
TIMER_SLACK_NS = 1_000
ACCEPT_S = 10.0  # the trainer's half of the handshake is over when it asks to be served


class EnvRunner:
    """Hosts the rows of any number of vector envs of one trainer.

    Args:
        trainer: who it works for.
        simulator: handle of the node's `Simulator` actor, which is told of rows and steps; None in tests.
    """

    def __init__(self, trainer: m.TrainerInfo, simulator: Any = None) -> None:
        registry.load()
        if simulator is not None:  # this process is an env runner's
            registry.find_without_their_modules()
        self._own_ids = registry.known_ids()
        self._trainer = trainer
        self._pid = os.getpid()
        self._rows: dict[int, Rows] = {}
        self._steps = 0
        self._channel = "actor"
        self._listener: StreamListener | None = None
        self._handlers: dict[type, Callable[[Any], Any]] = {
            m.OpenRows: self._open,
            m.ResetRows: self._reset,
            m.ReviveRows: self._revive,
            m.CallRows: self._call,
            m.SetAttribute: self._set_attribute,
            m.IsWrapped: self._is_wrapped,
            m.RenderRows: self._render,
            m.CloseRows: self._close,
            m.FindSpec: self._find_spec,
        }
        if simulator is not None:
            children.end_with_this_process()
            _wake_punctually()
            shortcuts.take()
            threading.Thread(target=self._report, args=(simulator,), name="report", daemon=True).start()

    def open_stream(self) -> m.StreamOffer:
        """Listen for this trainer's stream; a listener of before is closed.

        Raises:
            OSError: no port is free, or Ray's TLS is on and its certificates can't be read.
        """
        import ray

        from remoterl.actors.stream_listener import StreamListener

        if self._listener is not None:
            self._listener.close()
        self._listener = StreamListener(ray.util.get_node_ip_address(), self._trainer.session_id)
        return self._listener.offer()

    def serve_stream(self) -> None:
        """Answer what comes through the stream, and end when the trainer has closed it or is gone.

        A trainer does not come back to a stream that it lost. Where it was cut off, Ray Client's server would keep this
        env runner for ten minutes more.
        """
        import ray

        from remoterl.actors.stream_server import serve

        assert self._listener is not None
        connected = self._listener.accepted(ACCEPT_S)
        self._channel = "stream"
        serve(connected, self._answer, self._unpicklable)
        ray.actor.exit_actor()

    def ready(self) -> m.EnvRunnerInfo:
        """Answered as soon as the process is up."""
        return self._info()

    def handle(self, payload: bytes) -> bytes:
        """Answer one encoded request with one encoded reply; an error is a reply too (`RowsFailed`)."""
        request = reply = None
        try:
            request = m.decode(payload)
            reply = self._answer(request)
            return m.encode(reply)
        except Exception as error:
            return m.encode(self._unpicklable(request, reply, error))

    def _answer(self, request: Any, rooms: Sequence[Any] = ()) -> Any:
        """`rooms`: memory, as bytes, to which the arrays of a step's observations may be written."""
        reply: Any
        try:
            reply = (
                self._step(request, rooms) if type(request) is m.StepRows else self._handlers[type(request)](request)
            )
        except RowsError as error:
            reply = m.RowsFailed(error.errors)
        except BaseException as error:
            reply = m.RowsFailed([_general_error(error)])
        if os.getpid() != self._pid:  # an environment forked, and this is the child, come back from there
            os._exit(0)
        return reply

    def _unpicklable(self, request: Any, reply: Any, error: Exception) -> m.RowsFailed:
        """In place of a reply that could not be pickled, or for a request that could not be unpickled."""
        if request is None:
            return m.RowsFailed([_general_error(error)])
        culprit = self._culprit(request, reply, error)
        culprit.__cause__ = error
        return m.RowsFailed([_general_error(culprit)])

    def _culprit(self, request: Any, reply: Any, error: Exception) -> Exception:
        """What of a reply could not be pickled, by row and key."""
        rows = self._rows.get(getattr(request, "vector_id", -1))
        infos = getattr(reply, "infos", [])
        for local_row, info, *_ in [] if isinstance(infos, m.InfoTable) else infos:
            for key, value in info.items():
                try:
                    m.encode(value)
                except Exception:
                    row = rows.row_numbers[local_row] if rows is not None else local_row
                    kind = type(value).__name__
                    return RemoteEnvError(f"info[{key!r}] of row {row} is a {kind}, which can't be pickled: {error}")
        return RemoteEnvError(f"What the environment returned can't be pickled: {error}")

    def _open(self, request: m.OpenRows) -> m.RowsOpened:
        self._trainer = dataclasses.replace(self._trainer, restarts=request.restarts)
        if request.semantics in m.A_PROCESS_EACH and not self._rows.keys() - {request.vector_id}:
            living.start_anew()  # locally new processes would
        registry.add_news(request.news, self._own_ids)
        if (earlier := self._rows.pop(request.vector_id, None)) is not None:  # the trainer was interrupted as it asked
            earlier.close()
        found: list[m.Warned] = []
        with warned.collected(found), registry.may_register_again():
            rows = open_rows(request.semantics, request.factories, request.rows, request.autoreset_mode)
        self._rows[request.vector_id] = rows
        return rows.describe()._replace(warned=found)

    def _reset(self, request: m.ResetRows) -> m.RowsReset:
        rows = self._rows[request.vector_id]
        options = _one_a_row(request.options, rows) if request.options else [None] * len(rows)
        return rows.reset(request.seeds, options, request.mask)

    def _revive(self, request: m.ReviveRows) -> m.RowsReset:
        self._rows[request.vector_id].revive(request.seeds, request.observations)
        return m.RowsReset(None, [])

    def _step(self, request: m.StepRows, rooms: Sequence[Any]) -> m.RowsStepped:
        rows = self._rows[request.vector_id]
        reply = rows.step(m.unpack(request.actions), rooms)
        self._steps += rows.num_rows
        return reply

    def _call(self, request: m.CallRows) -> m.RowsCalled:
        def arguments() -> Any:
            return unship(request.arguments)

        rows = self._rows[request.vector_id]
        return rows.call(request.rows, request.name, arguments, request.call, request.target)

    def _set_attribute(self, request: m.SetAttribute) -> m.RowsCalled:
        rows = self._rows[request.vector_id]
        rows.set_attribute(request.rows, request.name, _one_a_row(request.values, rows), request.target)
        return m.RowsCalled([])

    def _is_wrapped(self, request: m.IsWrapped) -> m.RowsCalled:
        try:
            wrapper_class = pickle.loads(request.wrapper_class)
        except ImportError:  # a class that this simulator does not have wraps none of its environments
            return m.RowsCalled([False] * len(request.rows))
        return m.RowsCalled(self._rows[request.vector_id].is_wrapped(request.rows, wrapper_class))

    def _render(self, request: m.RenderRows) -> m.RowsCalled:
        return m.RowsCalled(self._rows[request.vector_id].render())

    def _close(self, request: m.CloseRows) -> m.RowsCalled:
        rows = self._rows.pop(request.vector_id, None)
        if rows is not None:
            rows.close()
        return m.RowsCalled([])

    def _find_spec(self, request: m.FindSpec) -> m.SpecFound:
        registry.add_news(request.news, self._own_ids)
        found: list[m.Warned] = []
        try:
            with warned.collected(found):
                spec = _resolve(request.env_id)
            registry.require_loaded(spec)
            return m.SpecFound(registry.portable_spec(spec), found)
        except (gymnasium.error.UnregisteredEnv, gymnasium.error.Error, ModuleNotFoundError):
            return m.SpecFound(None)

    def _info(self) -> m.EnvRunnerInfo:
        import ray

        process = psutil.Process()
        return m.EnvRunnerInfo(
            actor_id=ray.get_runtime_context().get_actor_id() or "",
            pid=process.pid,
            started=process.create_time(),
            trainer=self._trainer,
            rows=sum(rows.num_rows for rows in list(self._rows.values())),
            steps=self._steps,
            channel=self._channel,
            speaks=spoken(),
        )

    def _report(self, simulator: Any) -> None:
        """Tell the node's `Simulator` actor; the one that another trainer made for the node ends with that trainer."""
        import ray

        told, told_at = None, 0.0
        stop = threading.Event()
        while True:
            info = self._info()
            if info != told or time.monotonic() - told_at >= REMIND_PERIOD_S:
                try:
                    ray.get(simulator.report.remote(info), timeout=REPORT_TIMEOUT_S)
                    told, told_at = info, time.monotonic()
                except ray.exceptions.GetTimeoutError:  # it is busy
                    told = None
                except ray.exceptions.RayError:  # it is gone, or another env runner was faster to make the new one
                    told = None
                    simulator = directory.actor_of_this_node() or simulator
            stop.wait(REPORT_PERIOD_S)


def _one_a_row(shipped: bytes, rows: Rows) -> list[Any]:
    """A list of one value a row; where rows are processes locally, none has the same object as another."""
    values, seen = unship(shipped), set()
    for row, value in enumerate(values if rows.are_processes else ()):
        if id(value) in seen and value is not None:
            values[row] = unship(shipped)[row]
        seen.add(id(value))
    return values


def _resolve(env_id: str) -> Any:
    """The EnvSpec of `[module:]id`, with Gymnasium's own rules for versions and its own warnings."""
    from gymnasium.envs import registration

    return registration._find_spec(env_id)


def _general_error(error: BaseException) -> m.RowError:
    return row_error(-1, f"(process {os.getpid()}, Python {sys.version.split()[0]})", error)


def _wake_punctually() -> None:
    with contextlib.suppress(OSError):  # not Linux, or no permission
        Path("/proc/self/timerslack_ns").write_text(str(TIMER_SLACK_NS))
