"""The `Simulator` actor: one on each simulator node, pinned there, knowing what the node offers and hosts.

A plain class, wrapped by `ray.remote` where it is created (`directory`). It only knows and tells; Ray places
env runners and supervises them.
"""

from __future__ import annotations

import os
import platform
import signal
import socket

import psutil

from remoterl import messages as m
from remoterl._protocol import digest, spoken
from remoterl._version import __version__
from remoterl.actors import registry


class Simulator:
    """Describes one simulator: name, labels, versions, environments, and its env runners' counters."""

    def __init__(self, name: str, node_id: str, labels: dict[str, str], units: int) -> None:
        registry.load()
        self._name = name
        self._node_id = node_id
        self._labels = dict(labels)
        self._units = units
        self._env_runners: dict[str, m.EnvRunnerInfo] = {}
        self._past_steps = 0
        self._draining = False

    def ping(self) -> str:
        """What it speaks; also the sign of life that a stale name in Ray's directory does not give."""
        return spoken()

    def report(self, env_runner: m.EnvRunnerInfo) -> None:
        """An env runner of this node tells of itself: at its start, and when its counters changed."""
        self._env_runners[env_runner.actor_id] = env_runner

    def describe(self) -> m.SimulatorInfo:
        """Everything, as of now; env runners whose process is gone are dropped first."""
        for actor_id, info in list(self._env_runners.items()):
            if not _lives(info):
                self._past_steps += info.steps
                del self._env_runners[actor_id]
        env_runners = tuple(self._env_runners.values())
        return m.SimulatorInfo(
            name=self._name,
            node_id=self._node_id,
            host=socket.gethostname(),
            labels=self._labels,
            versions=versions(),
            environments=registry.known_ids(),
            env_runners=env_runners,
            units=self._units,
            steps=self._past_steps + sum(info.steps for info in env_runners),
            draining=self._draining,
        )

    def drain(self) -> None:
        """The simulator is about to leave: it takes no new rows, and its env runners end, so that theirs move now."""
        self._draining = True
        for info in self._env_runners.values():
            if _lives(info):
                os.kill(info.pid, signal.SIGTERM)

    def free_units(self) -> dict[str, float]:
        """See `free_units`. Ray Client has no call for this, so a trainer asks any one simulator."""
        return free_units()


def free_units() -> dict[str, float]:
    """Free units of `env_runner` on every node of the cluster, as Ray's scheduler sees them; not by Ray Client."""
    from ray._private.state import available_resources_per_node

    return {node_id: resources.get("env_runner", 0.0) for node_id, resources in available_resources_per_node().items()}


def versions() -> m.Versions:
    """Versions of this process."""
    import gymnasium
    import ray

    return m.Versions(platform.python_version(), ray.__version__, __version__, gymnasium.__version__, digest())


def _lives(info: m.EnvRunnerInfo) -> bool:
    """Same pid and same start: the process runs on this actor's own machine, so this is exact."""
    try:
        return abs(psutil.Process(info.pid).create_time() - info.started) < 1.0
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
