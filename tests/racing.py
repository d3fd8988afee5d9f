"""What two trainers do at the same moment, each in a process of its own."""

from __future__ import annotations

import logging
import time
from typing import Any

from processes import KEY

RESERVATIONS = 2  # rounds
RESERVERS_PATIENCE_S = 3.0
TRAINERS_PATIENCE_S = 20.0  # for processes that start beside all else that this machine does


def reserve_then_train(barrier: Any, answers: Any, two_are_left: Any, address: str) -> None:
    """Over one connection; between them, whoever started both leaves just two units free."""
    from remoterl import capacity

    with capacity.connected(address, KEY, 60.0):
        for number in range(RESERVATIONS):
            reserve_at_once(barrier, answers, number)
        assert two_are_left.wait(120)
        train_at_once(barrier, answers, address)


def reserve_at_once(barrier: Any, answers: Any, number: int) -> None:
    """Reserve nine of sixteen at the same moment as the other, tell whether it was granted, and give them back."""
    import remoterl

    barrier.wait(120)
    try:
        reservation = remoterl.reserve(9, timeout_s=RESERVERS_PATIENCE_S)
    except remoterl.CapacityError as error:
        answers.put((number, str(error)))
        reservation = None
    else:
        answers.put((number, ""))
    barrier.wait(120)  # nobody gives back before both have their answer
    if reservation is not None:
        assert remoterl.release(reservation)
    _wait_until_free(9)
    barrier.wait(120)


def train_at_once(barrier: Any, answers: Any, address: str) -> None:
    """Open a session of two at the same moment as the other, and tell what it got, and what was said."""
    import remoterl
    from remoterl import _process

    said: list[str] = []
    listener = logging.Handler(logging.WARNING)
    listener.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("remoterl").addHandler(listener)
    barrier.wait(120)
    got = remoterl.init(KEY, address=address, num_env_runners=2, timeout_s=TRAINERS_PATIENCE_S)
    session = _process.current_session()
    runners = [(one.simulator, one.pid) for one in session.runners] if got and session is not None else []
    answers.put((got, runners, list(said)))
    barrier.wait(120)  # nobody lets go before both have their answer
    remoterl.shutdown()
    _wait_until_free(2)


def _wait_until_free(num_env_runners: int) -> None:
    """The next round has all of them to race for."""
    import remoterl

    while not remoterl.check(num_env_runners):
        time.sleep(0.2)
