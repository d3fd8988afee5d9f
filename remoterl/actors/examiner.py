"""The `Examiner` actor: `remoterl doctor`'s hand on a simulator, for as long as it looks.

A process of its own beside the env runners, holding no unit: what it tries can break nothing. A plain class.
"""

from __future__ import annotations

import importlib.metadata
import time
from typing import Any

import gymnasium

from remoterl import messages as m
from remoterl.actors import registry
from remoterl.actors.simulator import versions


class Examiner:
    """Answers what only the machine of a simulator knows."""

    def __init__(self) -> None:
        registry.load()

    def clock(self) -> float:
        """Seconds since the epoch, as this machine counts them."""
        return time.time()

    def versions(self) -> m.Versions:
        """Of this machine's packages."""
        return versions()

    def make(self, env_id: str) -> dict[str, str]:
        """Make and close the environment: its spaces and package as text, or `error`."""
        try:
            env: gymnasium.Env[Any, Any] = gymnasium.make(env_id, disable_env_checker=True)
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}
        found = {
            "observation_space": str(env.observation_space),
            "action_space": str(env.action_space),
            "package": _package_of(type(env.unwrapped)),
        }
        env.close()
        return found


def _package_of(kind: type) -> str:
    """`gymnasium 1.2.2`, or the module's name where it belongs to no package."""
    top = kind.__module__.split(".")[0]
    for name in importlib.metadata.packages_distributions().get(top, []):
        return f"{name} {importlib.metadata.version(name)}"
    return top
