"""The one thing that this process is to remoterl: a trainer with a session, a simulator, or nothing."""

from __future__ import annotations

import inspect
import multiprocessing
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import remoterl
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
# Those of `remoterl run`, say: a script's own init() finds its session, or opens it again, whatever its arguments.
_command: dict[str, Any] | None = None


def init(**arguments: Any) -> bool:
    """See `remoterl.init`."""
    global _arguments, _simulator
    config = make_config(**arguments)
    ensure_visible()
    if isinstance(config, TrainerConfig) and getattr(multiprocessing.current_process(), "_inheriting", False):
        logger.warning(
            "init() is left out, and returns False: a child process of multiprocessing (spawn, forkserver) reads the "
            "script again as it starts. What it makes is made in it."
        )
        return False
    with _lock:
        if _session is not None and _session.hub_is_lost:  # who asks again wants another
            _session.close()
        if is_initialized():
            if arguments == _arguments:
                return True
            if _command is not None and isinstance(config, TrainerConfig):
                logger.info("%s is left out: `remoterl run` has opened the session.", _scripts_own(arguments))
                return True
            raise AlreadyInitializedError(
                f"init(role={arguments['role']!r}) was called, but this process is initialized already, with other "
                "arguments. Call remoterl.shutdown() first."
            )
        if isinstance(config, TrainerConfig):
            if _command is not None:
                logger.info("%s opens the session again, as `remoterl run` had it.", _scripts_own(arguments))
                arguments = _command
            if not _open(arguments):
                logger.warning("init() returns False. A script that goes on makes its environments on this machine.")
            return _session is not None
        _arguments, _simulator = arguments, SimulatorRun(config)
    return _serve(_simulator)


def _open(arguments: dict[str, Any]) -> bool:
    global _arguments, _session
    config = make_config(**arguments)
    assert isinstance(config, TrainerConfig)
    _arguments, _session = arguments, open_session(config)
    if _session is not None and _command is not None:
        _session.is_of_a_command = True
    return _session is not None


def _scripts_own(arguments: dict[str, Any]) -> str:
    """A script's call under a command, with the names of the arguments that have no effect."""
    defaults = inspect.signature(remoterl.init).parameters
    command = _command or {}
    named = [name for name, value in arguments.items() if value not in (defaults[name].default, command.get(name))]
    return f"The script's own init({', '.join(named)})"


def _serve(simulator: SimulatorRun) -> bool:
    global _simulator
    try:
        return simulator.run()
    finally:
        _simulator = None


def init_of_a_command(**arguments: Any) -> bool:
    """`remoterl.init()` for a command, which ends where it is False. The session ends with the process."""
    global _command
    defaults = {name: one.default for name, one in inspect.signature(remoterl.init).parameters.items()}
    _command = {**defaults, **arguments}
    ensure_visible()
    with _lock:
        return _open(_command)


@contextmanager
def session_of_a_command(**arguments: Any) -> Iterator[bool]:
    """The same, closed at the end."""
    global _command
    try:
        yield init_of_a_command(**arguments)
    finally:
        _command = None
        shutdown()


def _after_fork_in_child() -> None:
    """A forked child (a local sub-process env, say) is not a trainer: it must not use its parent's connection."""
    global _session, _arguments, _command
    session, _session, _arguments, _command = _session, None, None, None
    if session is not None:
        session.forget_in_child()


after_fork_in_child(_after_fork_in_child)


def shutdown() -> None:
    """See `remoterl.shutdown`."""
    global _session
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
