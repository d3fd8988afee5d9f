"""The one thing that this process is to remoterl: a trainer with a session, a simulator, or nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from remoterl._forks import after_fork_in_child
from remoterl._logging import ensure_visible, logger
from remoterl.config import TrainerConfig, make_config
from remoterl.errors import AlreadyInitializedError
from remoterl.session import Session, open_session
from remoterl.simulator import SimulatorRun

_lock = threading.RLock()
_arguments: dict[str, Any] | None = None
_session: Session | None = None
_simulator: SimulatorRun | None = None
_of_a_command = False  # the session is `remoterl run`'s, say: a script's own init() finds it, whatever its arguments


def init(**arguments: Any) -> bool:
    """See `remoterl.init`."""
    global _arguments, _session, _simulator
    config = make_config(**arguments)
    ensure_visible()
    with _lock:
        if _session is not None and _session.hub_is_lost:  # who asks again wants another
            _session.close()
        if is_initialized():
            if arguments == _arguments:
                return True
            if _of_a_command and isinstance(config, TrainerConfig):
                logger.info("The script's own init() is left out: `remoterl run` has opened the session.")
                return True
            raise AlreadyInitializedError(
                f"init(role={arguments['role']!r}) was called, but this process is initialized already, with other "
                "arguments. Call remoterl.shutdown() first."
            )
        _arguments = arguments
        if isinstance(config, TrainerConfig):
            _session = open_session(config)
            if _session is None and not _of_a_command:
                logger.warning("init() returns False. A script that goes on makes its environments on this machine.")
            return _session is not None
        _simulator = SimulatorRun(config)
    return _serve(_simulator)


def _serve(simulator: SimulatorRun) -> bool:
    global _simulator
    try:
        return simulator.run()
    finally:
        _simulator = None


@contextmanager
def session_of_a_command(**arguments: Any) -> Iterator[bool]:
    """What `remoterl.init()` returns to a command, which ends where it is False; closed at the end."""
    import remoterl

    global _of_a_command
    _of_a_command = True
    try:
        yield remoterl.init(role="trainer", **arguments)
    finally:
        shutdown()


def _after_fork_in_child() -> None:
    """A forked child (a local sub-process env, say) is not a trainer: it must not use its parent's connection."""
    global _session, _arguments
    session, _session, _arguments = _session, None, None
    if session is not None:
        session.forget_in_child()


after_fork_in_child(_after_fork_in_child)


def shutdown() -> None:
    """See `remoterl.shutdown`."""
    global _session, _of_a_command
    _of_a_command = False
    simulator = _simulator
    if simulator is not None:
        simulator.stop()
    with _lock:
        session, _session = _session, None
        if session is not None:
            session.close()


def is_initialized() -> bool:
    """See `remoterl.is_initialized`."""
    return _simulator is not None or (_session is not None and not _session.closed)


def current_session() -> Session | None:
    """The trainer's live session, if any."""
    return _session if _session is not None and not _session.closed else None
