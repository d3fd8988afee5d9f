"""remoterl: reinforcement-learning environments that live on other machines, natively on Ray.

A trainer script calls `init(api_key, role="trainer", ...)` once; from then on the environments it makes with
Gymnasium or Stable-Baselines3 run on simulators: processes that called `init(api_key, role="simulator")`.
`shutdown()` brings everything back to local. Importing this package is light and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from remoterl._version import __version__

if TYPE_CHECKING:
    from remoterl.errors import (
        AlreadyInitializedError,
        AuthenticationError,
        ConfigurationError,
        EnvRunnerLostError,
        NotShippableError,
        RemoteEnvError,
        RemoteRLError,
        SpaceMismatchError,
        UnknownEnvironmentError,
        UnsupportedError,
        VersionMismatchError,
    )

__all__ = [
    "AlreadyInitializedError",
    "AuthenticationError",
    "ConfigurationError",
    "EnvRunnerLostError",
    "NotShippableError",
    "RemoteEnvError",
    "RemoteRLError",
    "SpaceMismatchError",
    "UnknownEnvironmentError",
    "UnsupportedError",
    "VersionMismatchError",
    "__version__",
    "init",
    "is_initialized",
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
) -> bool:
    """Connect this process, as a trainer or as a simulator.

    As a trainer: place `num_workers` x `num_env_runners` env runners over the simulators and patch Gymnasium
    and Stable-Baselines3, so that every environment made from now on runs there. RLlib ignores both numbers.
    As a simulator: join as a Ray node, host env runners, and block until SIGINT, SIGTERM or `shutdown()`.

    Args:
        api_key: the cluster's Ray authentication token; else `REMOTERL_API_KEY`, else what Ray itself finds.
        role: "trainer" or "simulator".
        num_workers: trainer: how many workers the env runners are for.
        num_env_runners: trainer: env runners for each worker. Where fewer are free, those are taken, with a
            warning.
        max_env_runners: simulator: how many env runners it will host at most.
        address: "ray://host:10001" (Ray Client), "host:6379" or "auto" (in-cluster), "local" (a private cluster,
            for this process only); else `REMOTERL_ADDRESS`, else `RAY_ADDRESS`, else a Ray that runs on this
            machine. A simulator that finds none starts the hub too.
        name: simulator: its name; by default the host's name and a short id.
        labels: simulator: labels of its Ray node.
        channel: trainer: how steps travel; "auto" chooses.
        timeout_s: seconds to reach the hub and the simulators.
        runtime_env: trainer: handed to Ray as it is.

    Returns:
        True: connected (simulator: it served, and left in order). False: the hub or the simulators could not be
        reached within `timeout_s`; one log line says what to do.

    Raises:
        ConfigurationError: a wrong argument (a ValueError too); nothing was started.
        AuthenticationError: the key is wrong, or missing where one is needed.
        VersionMismatchError: Ray, Python or remoterl differ from the cluster's.
        AlreadyInitializedError: a second call with another role or other arguments.
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


def __getattr__(name: str) -> Any:
    if name in __all__:
        from remoterl import errors

        return getattr(errors, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
