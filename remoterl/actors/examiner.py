"""The `Examiner` actor: `remoterl doctor`'s hand on a node, for as long as it looks.

A process of its own beside the env runners, holding no unit: what it tries can break nothing. A plain class.
"""

from __future__ import annotations

import importlib.metadata
import os
import statistics
import time
from typing import TYPE_CHECKING, Any

import gymnasium

from remoterl import messages as m
from remoterl.actors import registry
from remoterl.actors.simulator import versions

if TYPE_CHECKING:
    from remoterl.actors.stream_listener import StreamListener

ACCEPT_S = 10.0
MAX_STEPS, MAX_STEPPING_S = 50, 0.2


class Examiner:
    """Answers what only the node itself knows. Its two channels are opened as an env runner's are."""

    def __init__(self) -> None:
        registry.load()
        self._listener: StreamListener | None = None

    def clock(self) -> float:
        """Seconds since the epoch, as this machine counts them."""
        return time.time()

    def versions(self) -> m.Versions:
        """Of this machine's packages."""
        return versions()

    def cores(self) -> int:
        """How many this process may use."""
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def handle(self, payload: bytes) -> bytes:
        """What an env runner's `actor` channel carries, sent back as it came."""
        return payload

    def open_stream(self) -> m.StreamOffer:
        """Listen, where and as an env runner does.

        Raises:
            OSError: no port is free, or Ray's TLS is on and its certificates can't be read.
        """
        import ray

        from remoterl.actors.stream_listener import StreamListener

        self._listener = StreamListener(ray.util.get_node_ip_address(), "doctor")
        return self._listener.offer()

    def serve_stream(self) -> None:
        """Send back what comes through the stream, until the other end closes it."""
        from remoterl.actors.stream_server import serve

        assert self._listener is not None
        serve(self._listener.accepted(ACCEPT_S), lambda request, _: request, lambda *_: False)

    def make(self, env_id: str) -> dict[str, Any]:
        """Make the environment, step it for a moment and close it.

        Returns:
            `observation_space`, `action_space` and `package` as text, `step_s` (see `time_of_a_step`); or `error`, and
            `makes` (bool): could it be made?
        """
        makes = False
        try:
            env: gymnasium.Env[Any, Any] = gymnasium.make(env_id, disable_env_checker=True)
            makes = True
            found = {
                "observation_space": " ".join(str(env.observation_space).split()),
                "action_space": " ".join(str(env.action_space).split()),
                "package": _package_of(type(env.unwrapped)),
                "step_s": time_of_a_step(env),
            }
            env.close()
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}", "makes": makes}
        return found


def time_of_a_step(env: gymnasium.Env[Any, Any]) -> float:
    """Median seconds of a step with random actions, resets left out.

    `MAX_STEPS` steps, or as many as fit into `MAX_STEPPING_S`, but one.
    """
    env.action_space.seed(0)
    env.reset(seed=0)
    times: list[float] = []
    start = time.perf_counter()
    while not times or (len(times) < MAX_STEPS and time.perf_counter() - start < MAX_STEPPING_S):
        action = env.action_space.sample()
        before = time.perf_counter()
        _, _, terminated, truncated, _ = env.step(action)
        times.append(time.perf_counter() - before)
        if terminated or truncated:
            env.reset()
    return statistics.median(times)


def _package_of(kind: type) -> str:
    """`gymnasium 1.2.2`, or the module's name where it belongs to no package."""
    top = kind.__module__.split(".")[0]
    for name in importlib.metadata.packages_distributions().get(top, []):
        return f"{name} {importlib.metadata.version(name)}"
    return top
