"""What the cluster has to give, and waiting for it: units of `env_runner`, CPUs, GPUs. Needs an open Ray connection."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence

from remoterl._logging import logger
from remoterl.actors import directory
from remoterl.errors import CapacityError

RETRY_PERIOD_S = 0.5


def free_units(simulators: Sequence[directory.SimulatorHandle], deadline: float) -> dict[str, int]:
    """Node id -> free units of `env_runner`, as Ray's scheduler sees them."""
    import ray

    if not simulators:
        return {}
    try:
        free = ray.get(simulators[0].actor.free_units.remote(), timeout=max(1.0, deadline - time.monotonic()))
    except (ray.exceptions.RayError, AttributeError, ImportError) as error:
        logger.debug("Ray's view of free units can't be read (%s); counting env runners instead", error)
        free = {simulator.node_id: simulator.units - len(simulator.info.env_runners) for simulator in simulators}
    return {simulator.node_id: int(free.get(simulator.node_id, 0)) for simulator in simulators}


def require(needs: Mapping[str, float], what: str, timeout_s: float, quiet_s: float = 0.0) -> None:
    """Wait until `what` can be placed: its units are free, and the cluster has the CPUs and GPUs at all.

    An autoscaling cluster is not waited for here: its autoscaler starts what a pending request needs, and RLlib's
    own waiting is that request.

    Args:
        needs: Ray resource -> how much of it, all env runners and other actors of `what` together.
        timeout_s: how long to wait for what is missing.
        quiet_s: how long nothing is said of it, because units were given back just now.

    Raises:
        CapacityError: after `timeout_s`, with what is asked and what there is.
    """
    start = time.monotonic()
    deadline = start + timeout_s
    waiting = False
    while missing := _missing(needs, deadline):
        quiet = time.monotonic() < start + min(quiet_s, timeout_s / 2)
        if not quiet and is_autoscaling():
            logger.info("%s: %s. The autoscaler starts what is missing.", what, missing)
            return
        if time.monotonic() >= deadline:
            raise CapacityError(
                f"{what}: {missing}, and nothing changed within {timeout_s:.0f} s. Start another simulator "
                "(`remoterl simulate`), end another trainer, or ask for less (num_env_runners, "
                "evaluation_num_env_runners)."
            )
        if not waiting and not quiet:
            waiting = True
            logger.info("%s: %s. Waiting up to %.0f s ...", what, missing, timeout_s)
        time.sleep(RETRY_PERIOD_S)


def _missing(needs: Mapping[str, float], deadline: float) -> str:
    """What is not there, as text; empty where nothing is missing."""
    import ray

    missing = []
    wanted = int(needs.get(directory.RESOURCE, 0))
    if wanted:
        simulators = directory.find_simulators(deadline)
        free, total = sum(free_units(simulators, deadline).values()), sum(s.units for s in simulators)
        if free < wanted:
            missing.append(f"it asks for {wanted} env runners, the simulators have {free} free of {total}")
    there = ray.cluster_resources()
    for name, amount in needs.items():
        if name != directory.RESOURCE and amount > there.get(name, 0):
            missing.append(f"it asks for {amount:g} {name}, the cluster has {there.get(name, 0):g}")
    return "; ".join(missing)


def is_autoscaling() -> bool:
    """Does an autoscaler that can start nodes watch this cluster?

    Ray's monitor reports the node types of every cluster; where it can only look, each node is a type of its own.
    """
    from ray.experimental.internal_kv import _internal_kv_get

    report = json.loads(_internal_kv_get("__autoscaling_status") or b"{}").get("autoscaler_report") or {}
    types = [*(report.get("active_nodes") or ()), *(report.get("idle_nodes") or ())]
    return any(not re.fullmatch(r"node_[0-9a-f]{56}", name) for name in types)
