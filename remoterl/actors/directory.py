"""Who is there: finds the simulators of a cluster, and creates `Simulator` actors where they are missing.

Membership is Ray's: a simulator is an alive node with the resource `env_runner`. Needs an open Ray connection,
of either kind.
"""

from __future__ import annotations

import time
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

from remoterl import messages as m
from remoterl._logging import logger
from remoterl._protocol import spoken
from remoterl.actors.simulator import Simulator
from remoterl.errors import VersionMismatchError
from remoterl.labels import matches

NAMESPACE = "remoterl"
RESOURCE = "env_runner"
NAME_LABEL = "remoterl-name"
PING_TIMEOUT_S = 10.0
SILENT_S = 20.0  # Ray declares a node dead 12 to 15 s after its raylet was killed


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
    return sorted((node for node in nodes if matches(node["Labels"], labels or {})), key=name_of)


def find_simulators(
    deadline: float | None = None,
    create: bool = True,
    labels: Mapping[str, str] | None = None,
    refuse_others: bool = True,
    among: Container[str] | None = None,
) -> list[SimulatorHandle]:
    """Every simulator that answers until `deadline` (`time.monotonic()`); those that don't are left out, with a line.

    `labels` (a selector, see `labels`) leaves out those that don't match, `among` those that it has no node id of. A
    node that has no `Simulator` actor yet gets one, unless `create` is False: then it is left out.

    Raises:
        VersionMismatchError: a simulator runs another version of remoterl. Without `refuse_others` it is left out.
    """
    import ray

    nodes = [node for node in simulator_nodes(labels) if among is None or node["NodeID"] in among]
    found = [(node, actor) for node in nodes if (actor := _actor_of(node, create)) is not None]
    versions = [actor.ping.remote() for _, actor in found]
    infos = [actor.describe.remote() for _, actor in found]
    deadline = min(deadline or float("inf"), time.monotonic() + PING_TIMEOUT_S)
    simulators: list[SimulatorHandle] = []
    asked = list(zip(found, versions, infos, strict=True))
    for (node, actor), version, info in sorted(asked, key=lambda one: _is_silent(one[0][0])):
        # One that was silent a moment ago has the time that others take: Ray is slow to say that a machine is gone.
        up_to = time.monotonic() if simulators and _is_silent(node) else deadline
        try:
            try:
                theirs = ray.get(version, timeout=max(0.1, up_to - time.monotonic()))
            except (ray.exceptions.ActorAlreadyExistsError, ray.exceptions.ActorDiedError):
                # Another trainer made it just now, or has just ended, and the actor with it that it had made.
                actor = _actor_of(node, create)
                if actor is None:
                    raise
                version, info = actor.ping.remote(), actor.describe.remote()
                theirs = ray.get(version, timeout=max(0.1, up_to - time.monotonic()))
            check_version(theirs, name_of(node))
            described = ray.get(info, timeout=max(0.1, up_to - time.monotonic()))
        except ray.exceptions.RayError as error:
            _leave_out(node, "The simulator %s does not answer, it is left out: %s", _brief(error))
            continue
        except VersionMismatchError as error:
            if refuse_others:
                raise
            _leave_out(node, "The simulator %s is left out: %s", error)
            continue
        simulators.append(SimulatorHandle(name_of(node), node["NodeID"], units_of(node), actor, described))
    return sorted(simulators, key=lambda simulator: simulator.name)


def unused_nodes(labels: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """The nodes that match and have no `Simulator` actor: no trainer has env runners of its own there, RLlib may.

    Nodes of a simulator process are not among them: theirs has its actor, or does not answer.
    """
    return [
        node
        for node in simulator_nodes(labels)
        if NAME_LABEL not in node["Labels"] and _actor_of(node, create=False) is None
    ]


def actor_of_this_node() -> Any:
    """The `Simulator` actor of the node that this process runs on; None where it is not ours to make one."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    for node in simulator_nodes():
        if node["NodeID"] == here:
            return _actor_of(node, create=True)
    return None


def create_simulator_actor(node: dict[str, Any], *, detached: bool) -> Any:
    """The `Simulator` actor of a node, made if there is none yet.

    Two who make it at the same time: the slower one's calls to it raise `ActorAlreadyExistsError`.

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
    return (
        ray.remote(Simulator).options(**options).remote(name_of(node), node["NodeID"], labels_of(node), units_of(node))
    )


def actor_name(node: dict[str, Any]) -> str:
    """The actor's name in the namespace `remoterl`; a node that comes back is another node to Ray."""
    return f"simulator:{name_of(node)}:{node['NodeID'][:8]}"


def _actor_of(node: dict[str, Any], create: bool) -> Any:
    import ray

    try:
        return ray.get_actor(actor_name(node), namespace=NAMESPACE)
    except ValueError:
        # A simulator process makes its own, detached: one of ours would end with this trainer.
        own_process = NAME_LABEL in node["Labels"]
        return create_simulator_actor(node, detached=False) if create and not own_process else None


def labels_of(node: Mapping[str, Any]) -> dict[str, str]:
    """Those that somebody gave it, without Ray's and ours."""
    return {key: value for key, value in node["Labels"].items() if not key.startswith(("ray.io/", NAME_LABEL))}


def units_of(node: Mapping[str, Any]) -> int:
    """How many env runners it has a place for."""
    return int(node["Resources"][RESOURCE])


def name_of(node: Mapping[str, Any]) -> str:
    """How users know the node."""
    return node["Labels"].get(NAME_LABEL) or node["NodeName"] or node["NodeID"][:8]


_silent_since: dict[str, float] = {}  # node id -> when it did not answer, monotonic


def _leave_out(node: dict[str, Any], line: str, why: object) -> None:
    """It counts as silent from now on, and is told of once for as long as it does."""
    if not _is_silent(node):
        _silent_since[node["NodeID"]] = time.monotonic()
        logger.warning(line, name_of(node), why)


def _is_silent(node: dict[str, Any]) -> bool:
    return time.monotonic() - _silent_since.get(node["NodeID"], float("-inf")) < SILENT_S


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[-1]}"


def check_version(theirs: str, simulator: str) -> None:
    """Refuse a simulator, or an env runner there, that speaks something else.

    Raises:
        VersionMismatchError: it names both.
    """
    if theirs != spoken():
        raise VersionMismatchError(
            f"The simulator {simulator!r} runs remoterl {theirs}, this process runs {spoken()}. "
            "Install the same version on both sides, and start the simulator again."
        )
