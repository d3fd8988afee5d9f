"""What two trainers do at the same moment, each in a process of its own."""

from __future__ import annotations

from typing import Any

from processes import KEY


def reserve_at_once(barrier: Any, answers: Any, address: str, rounds: int, num_env_runners: int) -> None:
    """Each round: reserve at the same moment as the other, tell whether it was granted, and give it back."""
    import remoterl
    from remoterl import capacity

    with capacity.connected(address, KEY, 60.0):
        for number in range(rounds):
            barrier.wait(120)
            try:
                reservation = remoterl.reserve(num_env_runners, timeout_s=2.0)
            except remoterl.CapacityError as error:
                answers.put((number, str(error)))
                reservation = None
            else:
                answers.put((number, ""))
            barrier.wait(120)  # nobody gives back before both have their answer
            if reservation is not None:
                assert remoterl.release(reservation)
            barrier.wait(120)


def train_at_once(barrier: Any, answers: Any, address: str, num_env_runners: int) -> None:
    """Open a session at the same moment as the other, and tell which processes are its env runners."""
    import remoterl
    from remoterl import _process

    barrier.wait(120)
    if remoterl.init(KEY, address=address, num_env_runners=num_env_runners, timeout_s=15.0):
        session = _process.current_session()
        assert session is not None
        answers.put([(runner.simulator, runner.pid) for runner in session.runners])
    else:
        answers.put([])
    barrier.wait(120)
    remoterl.shutdown()
