"""Who is there: finds the simulators of a cluster, and creates `Simulator` actors where they are missing.

Membership is Ray's: a simulator is an alive node with the resource `env_runner`. Needs an open Ray connection,
of either kind.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from remoterl import messages as m
from remoterl._logging import logger
from remoterl._version import __version__
from remoterl.actors.simulator import Simulator
from remoterl.errors import VersionMismatchError
from remoterl.labels import matches

NAMESPACE = "remoterl"
RESOURCE = "env_runner"
NAME_LABEL = "remoterl-name"
PING_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class SimulatorHandle:
    """An alive simulator node and its actor."""

    name: str
    node_id: str
    units: int
    actor: Any
    info: m.SimulatorInfo


def simulator_nodes(labels: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """The alive nodes that offer `env_runner` units and match, as `ray.nodes()` describes them, ordered by name."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get(RESOURCE, 0) >= 1]
    return sorted((node for node in nodes if matches(node["Labels"], labels or {})), key=_name)


def find_simulators(
    deadline: float | None = None, create: bool = True, labels: Mapping[str, str] | None = None
) -> list[SimulatorHandle]:
    """Every simulator that answers until `deadline` (`time.monotonic()`); those that don't are left out, with a line.

    `labels` (a selector, see `labels`) leaves out those that don't match. A node that has no `Simulator` actor yet gets
    one, unless `create` is False: then it is left out.

    Raises:
        VersionMismatchError: a simulator runs another version of remoterl.
    """
    import ray

    found = [(node, actor) for node in simulator_nodes(labels) if (actor := _actor_of(node, create)) is not None]
    versions = [actor.ping.remote() for _, actor in found]
    infos = [actor.describe.remote() for _, actor in found]
    deadline = min(deadline or float("inf"), time.monotonic() + PING_TIMEOUT_S)
    simulators = []
    for (node, actor), version, info in zip(found, versions, infos, strict=True):
        try:
            _check_version(ray.get(version, timeout=max(0.1, deadline - time.monotonic())), _name(node))
            described = ray.get(info, timeout=max(0.1, deadline - time.monotonic()))
        except ray.exceptions.RayError as error:
            if node["NodeID"] not in _warned:
                _warned.add(node["NodeID"])
                logger.warning("The simulator %s does not answer, it is left out: %s", _name(node), _brief(error))
            continue
        simulators.append(
            SimulatorHandle(_name(node), node["NodeID"], int(node["Resources"][RESOURCE]), actor, described)
        )
    return simulators


def create_simulator_actor(node: dict[str, Any], *, detached: bool) -> Any:
    """The `Simulator` actor of a node, made if there is none yet (both are one atomic call to Ray).

    A simulator process makes its own detached. One that a trainer makes for a node that came up without
    (by the autoscaler, say) is not: a detached actor would keep Ray from ever taking the idle node down.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    options = {
        "name": actor_name(node),
        "namespace": NAMESPACE,
        "get_if_exists": True,
        "num_cpus": 0,
        "max_concurrency": 4,
        "lifetime": "detached" if detached else None,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
    }
    labels = {key: value for key, value in node["Labels"].items() if not key.startswith(("ray.io/", NAME_LABEL))}
    return (
        ray.remote(Simulator)
        .options(**options)
        .remote(_name(node), node["NodeID"], labels, int(node["Resources"][RESOURCE]))
    )


def actor_name(node: dict[str, Any]) -> str:
    """The actor's name in the namespace `remoterl`; a node that comes back is another node to Ray."""
    return f"simulator:{_name(node)}:{node['NodeID'][:8]}"


def _actor_of(node: dict[str, Any], create: bool) -> Any:
    import ray

    try:
        return ray.get_actor(actor_name(node), namespace=NAMESPACE)
    except ValueError:
        # A simulator process makes its own, detached: one of ours would end with this trainer.
        own_process = NAME_LABEL in node["Labels"]
        return create_simulator_actor(node, detached=False) if create and not own_process else None


def _name(node: dict[str, Any]) -> str:
    return node["Labels"].get(NAME_LABEL) or node["NodeName"] or node["NodeID"][:8]


_warned: set[str] = set()


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[-1]}"


def _check_version(theirs: str, simulator: str) -> None:
    if theirs != __version__:
        raise VersionMismatchError(
            f"The simulator {simulator!r} runs remoterl {theirs}, this process runs {__version__}. "
            "Install the same version on both sides."
        )
