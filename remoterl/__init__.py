"""remoterl: reinforcement-learning environments that live on other machines, natively on Ray.

A trainer script calls `init(api_key, role="trainer", ...)` once; from then on the environments it makes with
Gymnasium or Stable-Baselines3 run on simulators: processes that called `init(api_key, role="simulator")`.
`shutdown()` brings everything back to local. Importing this package is light and changes nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from remoterl._version import __version__

_started_in = ""  # the working directory, mostly; a script may leave it before its code is sent (Hydra's `chdir`)
with contextlib.suppress(OSError):  # it may be gone
    _started_in = os.getcwd()

if TYPE_CHECKING:
    from remoterl.errors import (
        AlreadyInitializedError,
        AuthenticationError,
        CapacityError,
        ConfigurationError,
        EnvRunnerLostError,
        HubLostError,
        NotShippableError,
        RemoteEnvError,
        RemoteRLError,
        SpaceMismatchError,
        StepTimeoutError,
        UnknownEnvironmentError,
        UnsupportedError,
        VersionMismatchError,
    )
    from remoterl.messages import Reservation

__all__ = [
    "AlreadyInitializedError",
    "AuthenticationError",
    "CapacityError",
    "ConfigurationError",
    "EnvRunnerLostError",
    "HubLostError",
    "NotShippableError",
    "RemoteEnvError",
    "RemoteRLError",
    "Reservation",
    "SpaceMismatchError",
    "StepTimeoutError",
    "UnknownEnvironmentError",
    "UnsupportedError",
    "VersionMismatchError",
    "__version__",
    "check",
    "describe",
    "init",
    "is_initialized",
    "release",
    "reserve",
    "shutdown",
]


def init(
    api_key: str | None = None,
    role: Literal["trainer", "simulator"] = "trainer",
    *,
    num_workers: int = 1,
    num_env_runners: int = 2,
    max_env_runners: int = 32,
    address: str | None = None,
    name: str | None = None,
    labels: Mapping[str, str] | None = None,
    channel: Literal["auto", "stream", "actor"] = "auto",
    timeout_s: float = 30.0,
    runtime_env: dict[str, Any] | None = None,
    reservation: Reservation | str | None = None,
    max_restarts: int = 1000,
    restart_timeout_s: float = 60.0,
    step_timeout_s: float | None = 600.0,
    rejoin_timeout_s: float = 600.0,
) -> bool:
    """Connect this process, as a trainer or as a simulator.

    As a trainer: place `num_workers` x `num_env_runners` env runners over the simulators and patch Gymnasium
    and Stable-Baselines3, so that every environment made from now on runs there. RLlib ignores both numbers.
    As a simulator: join as a Ray node, host env runners, and block until SIGINT, SIGTERM or `shutdown()`.

    Args:
        api_key: the cluster's Ray authentication token; else `REMOTERL_API_KEY`, else `RAY_AUTH_TOKEN`, else what
            `remoterl register` keeps for that hub, else Ray's token file.
        role: "trainer" or "simulator".
        num_workers: trainer: how many workers the env runners are for.
        num_env_runners: trainer: env runners for each worker. Where fewer are free, those are taken, with a
            warning.
        max_env_runners: simulator: how many env runners it will host at most.
        address: "ray://host:10001" (Ray Client), "host:6379" or "auto" (in-cluster), "local" (a private cluster,
            for this process only); else `REMOTERL_ADDRESS`, else `RAY_ADDRESS`, else what `remoterl
            register` keeps, else a Ray that runs on this machine. A simulator that finds none starts the hub too.
        name: simulator: its name; by default the host's name and a short id.
        labels: simulator: labels of its Ray node. Trainer: only simulators that match are used; Ray's label
            selectors: "value", "!value", "in(one,two)", "!in(one,two)"; RLlib's env runners keep to
            them too.
        channel: trainer: how steps travel; "auto" chooses.
        timeout_s: seconds to reach the hub and the simulators.
        runtime_env: trainer: handed to Ray as it is.
        reservation: trainer: what `reserve()` returned, or its id; its env runners are taken, whatever
            `num_workers` and `num_env_runners` say.
        max_restarts: trainer: how many lost env runners the session replaces before a loss raises
            `EnvRunnerLostError`; -1: any number.
        restart_timeout_s: trainer: seconds to find a place for a lost env runner's rows.
        step_timeout_s: trainer: seconds that a step, a reset or any other call to an environment may take before it
            raises `StepTimeoutError`; None: any.
        rejoin_timeout_s: simulator: seconds that it tries to come back once it has lost the hub; 0: it does not.

    Returns:
        True: connected (simulator: it served, and left in order). False: the hub or the simulators could not be
        reached within `timeout_s`; one log line says what to do.

    Raises:
        ConfigurationError: a wrong argument (a ValueError too); nothing was started.
        AuthenticationError: the key is wrong, or missing where one is needed.
        VersionMismatchError: Ray, Python or remoterl differ from the cluster's.
        AlreadyInitializedError: a second call with another role or other arguments.
        CapacityError: the reservation is over, or another trainer has taken it.
    """
    from remoterl import _process

    return _process.init(
        api_key=api_key,
        role=role,
        num_workers=num_workers,
        num_env_runners=num_env_runners,
        max_env_runners=max_env_runners,
        address=address,
        name=name,
        labels=labels,
        channel=channel,
        timeout_s=timeout_s,
        runtime_env=runtime_env,
        reservation=reservation,
        max_restarts=max_restarts,
        restart_timeout_s=restart_timeout_s,
        step_timeout_s=step_timeout_s,
        rejoin_timeout_s=rejoin_timeout_s,
    )


def shutdown() -> None:
    """Bring everything back to local and leave nothing behind. Idempotent; a Ray that was open before stays.

    In a simulator's process it ends the blocking `init()`, from another thread.
    """
    from remoterl import _process

    _process.shutdown()


def is_initialized() -> bool:
    """Is there a live session (trainer) or a serving simulator in this process?"""
    from remoterl import _process

    return _process.is_initialized()


def describe(
    labels: Mapping[str, str] | None = None,
    *,
    address: str | None = None,
    api_key: str | None = None,
    timeout_s: float = 10.0,
) -> dict[str, Any]:
    """What the cluster has: its simulators (of these labels, a selector) and the trainers that use them.

    Uses this process's session or Ray connection, else connects for as long as the call takes, as `init` finds
    address and key.

    Returns:
        Plain dicts, lists, strings and numbers. `simulators`: name, node_id, host, labels, versions, units and
        free_units of `env_runner`, environments (ids), steps, and env_runners (pid, rows, steps, channel, trainer).
        `trainers`: session_id, name, host, pid, restarts (of lost env runners), env_runners, rows, steps, channels.
        `unused_simulators`: name, node_id, labels, units and free_units of nodes that an autoscaler or `ray up` started
        and that no trainer has used yet; what else they have is known then.
        `simulators_without_actor`: names of nodes that do not answer.

    Raises:
        ConfigurationError, AuthenticationError, VersionMismatchError: as `init`.
        RemoteRLError: the hub can't be reached within `timeout_s`.
    """
    from remoterl import capacity
    from remoterl.labels import check_selector

    selector = check_selector(labels)
    with capacity.connected(address, api_key, timeout_s):
        return capacity.describe(selector, timeout_s)


def check(
    num_env_runners: int,
    labels: Mapping[str, str] | None = None,
    *,
    address: str | None = None,
    api_key: str | None = None,
    timeout_s: float = 10.0,
) -> bool:
    """Are so many env runners free now, on simulators of these labels? Nothing is held; `reserve` does that.

    Raises:
        RemoteRLError: as `describe`, and the others that it names.
    """
    from remoterl import capacity
    from remoterl.config import positive_int
    from remoterl.labels import check_selector

    wanted, selector = positive_int("num_env_runners", num_env_runners), check_selector(labels)
    with capacity.connected(address, api_key, timeout_s):
        return capacity.check(wanted, selector, timeout_s)


def reserve(
    num_env_runners: int,
    labels: Mapping[str, str] | None = None,
    ttl_s: float = 30.0,
    *,
    address: str | None = None,
    api_key: str | None = None,
    timeout_s: float = 10.0,
) -> Reservation:
    """Hold so many env runners for `init(reservation=...)`, in this process or another: all of them or none.

    What nobody took within `ttl_s` is let go, whether this process still lives or not; what a trainer took is its own
    until its session ends.

    Args:
        ttl_s: seconds until an unused reservation ends.
        timeout_s: seconds to reach the hub, and then to wait for the units. Where an autoscaler watches the
            cluster, it starts simulators meanwhile.

    Raises:
        CapacityError: the units were not free within `timeout_s`; the message says how many are. Else as `describe`.
    """
    from remoterl import capacity
    from remoterl.config import positive_int, positive_number
    from remoterl.labels import check_selector

    wanted, selector = positive_int("num_env_runners", num_env_runners), check_selector(labels)
    ttl_s = positive_number("ttl_s", ttl_s)
    with capacity.connected(address, api_key, timeout_s):
        return capacity.reserve(wanted, selector, ttl_s, timeout_s)


def release(
    reservation: Reservation | str,
    *,
    address: str | None = None,
    api_key: str | None = None,
    timeout_s: float = 10.0,
) -> bool:
    """Give a reservation's env runners back; env runners that already run in it end.

    Returns:
        False where there is no such reservation (any more).

    Raises:
        RemoteRLError: as `describe`, and the others that it names.
    """
    from remoterl import capacity

    reservation_id = capacity.id_of(reservation)
    with capacity.connected(address, api_key, timeout_s):
        return capacity.release(reservation_id)


def __getattr__(name: str) -> Any:
    if name == "Reservation":
        from remoterl.messages import Reservation

        return Reservation
    if name in __all__:
        from remoterl import errors

        return getattr(errors, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
