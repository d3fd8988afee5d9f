"""What the cluster has to give, asking for it, and waiting for it: units of `env_runner`, CPUs, GPUs.

Needs an open Ray connection; `connected` gives the public functions one.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

from remoterl import messages as m
from remoterl._logging import ensure_visible, logger
from remoterl._protocol import spoken
from remoterl.actors import directory
from remoterl.actors import simulator as simulators_view
from remoterl.actors.reservations import Reservations, make_group, remove_group
from remoterl.cluster.connection import connect
from remoterl.config import find_address, find_api_key, positive_number
from remoterl.errors import CapacityError, ConfigurationError, HubLostError, RemoteRLError, VersionMismatchError

RETRY_PERIOD_S = 0.5
PROGRESS_PERIOD_S = 10.0
STALLED_S = 120.0  # after which units that wait for others are given back: another trainer may wait for them
ALL_THERE = "local.cluster.node"  # `ray up` on machines that are there has started all it has
RESERVATIONS = "reservations"  # the actor's name, in the namespace `remoterl`


# ---- what `remoterl` offers as calls -------------------------------------------------------------------------


@contextmanager
def connected(address: str | None, api_key: str | None, timeout_s: float) -> Iterator[None]:
    """The connection that this process has (a session's, or the script's own), else one for as long as this lasts.

    Raises:
        ConfigurationError: the address is `local`, and there is no connection yet.
        RemoteRLError: the hub can't be reached within `timeout_s`; a log line before says why.
    """
    ensure_visible()
    import ray

    hub = find_address(address)
    if hub is not None and hub.kind == "local" and not ray.is_initialized():
        raise ConfigurationError(
            "address='local' is a trainer's private cluster, which nobody else can ask. Give the hub's address."
        )
    connection = connect(
        hub,
        api_key=find_api_key(api_key, address=hub),
        timeout_s=positive_number("timeout_s", timeout_s),
        address_was_argument=address is not None,
    )
    if connection is None:
        raise RemoteRLError("The cluster can't be reached; the line above says why.")
    try:
        yield
    finally:
        connection.close()


def describe(selector: Mapping[str, str], timeout_s: float) -> dict[str, Any]:
    """See `remoterl.describe`. It makes no `Simulator` actor: with one, an idle node is not idle to an autoscaler."""
    deadline = time.monotonic() + timeout_s
    simulators = directory.find_simulators(deadline, create=False, labels=selector)
    unused = directory.unused_nodes(selector)
    known = {*(simulator.node_id for simulator in simulators), *(node["NodeID"] for node in unused)}
    silent = [node["NodeName"] for node in directory.simulator_nodes(selector) if node["NodeID"] not in known]
    return summarize(simulators, unused, silent, free_units(simulators, deadline, unused))


def check(wanted: int, selector: Mapping[str, str], timeout_s: float) -> bool:
    """See `remoterl.check`."""
    deadline = time.monotonic() + timeout_s
    simulators = directory.find_simulators(deadline, create=False, labels=selector)
    return sum(free_units(simulators, deadline, directory.unused_nodes(selector)).values()) >= wanted


def reserve(wanted: int, selector: Mapping[str, str], ttl_s: float, timeout_s: float) -> m.Reservation:
    """See `remoterl.reserve`."""
    import ray

    keeper = _keeper()
    reservation_id = ray.get(keeper.reserve.remote(wanted, selector, ttl_s, timeout_s))
    if reservation_id is None:
        deadline = time.monotonic() + timeout_s
        simulators, unused = directory.find_simulators(deadline, False, selector), directory.unused_nodes(selector)
        free = sum(free_units(simulators, deadline, unused).values())
        total = sum(one.units for one in simulators) + sum(directory.units_of(node) for node in unused)
        raise CapacityError(
            f"{wanted} env runners can't be reserved: the {len(simulators) + len(unused)} simulators"
            + (f" with {_shown(selector)}" if selector else "")
            + f" have {free} free of {total}, and that did not change within {timeout_s:g} s. Ask for fewer, end "
            "another trainer, or start another simulator (`remoterl simulate`)."
        )
    return m.Reservation(reservation_id, wanted, dict(selector), ttl_s)


def release(reservation_id: str) -> bool:
    """See `remoterl.release`."""
    import ray

    return ray.get(_keeper().release.remote(reservation_id))


# ---- what a session holds ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Grant:
    """Units that are this trainer's alone, by placement groups.

    `bundles`: of each unit, its group and the number of its bundle there. `nodes`: of each unit, where it is; empty
    while Ray looks for another place for it. `labels`: the selector that was reserved by.
    """

    bundles: tuple[tuple[Any, int], ...]
    nodes: tuple[str, ...]
    reservation: str | None = None
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    _handed_out: list[int] = dataclasses.field(default_factory=list)

    @classmethod
    def of(
        cls, groups: Sequence[Any], reservation: str | None = None, labels: Mapping[str, str] | None = None
    ) -> Grant:
        """All units of these groups, where they are now."""
        from ray.util.placement_group import placement_group_table

        table = placement_group_table()
        bundles, nodes = [], []
        for group in groups:
            places = table[group.id.hex()]["bundles_to_node_id"]
            bundles += [(group, bundle) for bundle in sorted(places)]
            nodes += [places[bundle] for bundle in sorted(places)]
        return cls(tuple(bundles), tuple(nodes), reservation, labels or {})

    def free_units(self) -> list[int]:
        """Those that no actor is in, as Ray's scheduler sees them."""
        import ray

        free = ray.available_resources()
        names = [f"{directory.RESOURCE}_group_{bundle}_{group.id.hex()}" for group, bundle in self.bundles]
        return [unit for unit, name in enumerate(names) if free.get(name, 0) >= 1]

    def take(self, at_most: int | None = None) -> list[int]:
        """Free units, for actors that start right away: Ray's scheduler does not see those in there at once.

        Each in its turn: first those that were never handed out, then those whose turn is the longest ago.
        """
        free = self.free_units()
        given = [unit for unit in self._handed_out if unit in free]
        taken = [*(unit for unit in free if unit not in given), *given][:at_most]
        self._handed_out[:] = [*(unit for unit in given if unit not in taken), *taken]
        return taken

    def looked_at_again(self) -> Grant:
        """With the nodes of now: Ray moves the bundles of a simulator that is gone to another, where it can."""
        return dataclasses.replace(self, nodes=Grant.of(self._groups()).nodes)

    def strategy(self, unit: int) -> Any:
        """Ray's scheduling strategy for an actor in this unit."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        group, bundle = self.bundles[unit]
        return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)

    def without(self, strategy: Any) -> Grant:
        """Let the group of this strategy's unit go, which holds no other."""
        unit = self.unit_of(strategy)
        if unit is None:
            return self
        remove_group(self.bundles[unit][0])
        bundles, nodes = list(self.bundles), list(self.nodes)
        del bundles[unit], nodes[unit]
        return dataclasses.replace(self, bundles=tuple(bundles), nodes=tuple(nodes), _handed_out=[])

    def unit_of(self, strategy: Any) -> int | None:
        """The unit that an actor of this strategy is in; None where it is none of these."""
        if strategy is None:
            return None
        wanted = strategy.placement_group.id, strategy.placement_group_bundle_index
        units = (unit for unit, (group, bundle) in enumerate(self.bundles) if (group.id, bundle) == wanted)
        return next(units, None)

    def _groups(self) -> list[Any]:
        return list({group.id: group for group, _ in self.bundles}.values())

    def give_back(self) -> None:
        """Let the units go; env runners in them end."""
        import ray

        if self.reservation is not None:
            ray.get(_keeper().release.remote(self.reservation), timeout=10.0)
        else:
            for group in self._groups():
                remove_group(group)


def take(reservation: str) -> Grant:
    """The reserved units, from now on for as long as this process's Ray job lives.

    Raises:
        CapacityError: it was let go, or another trainer has it.
    """
    import ray

    taken = ray.get(_keeper().take.remote(reservation, ray.get_runtime_context().get_job_id()))
    if isinstance(taken, str):
        raise CapacityError(f"The reservation {reservation} can't be used: {taken}. Reserve again (remoterl.reserve).")
    group, labels = taken
    return Grant.of([group], reservation, labels)


def wait_for_autoscaler(
    num_env_runners: int,
    labels: Mapping[str, str],
    deadline: float,
    go_on: Callable[[], None],
    stalled_s: float = math.inf,
) -> Grant | None:
    """Ask Ray for all these units, which makes its autoscaler start what is missing, and wait for them.

    A placement group each: Ray's autoscaler starts nothing for a group that is more than it may ever start.

    Args:
        go_on: called before each look; where it raises, all are given back.

    Returns:
        Those that are there at `deadline`, None where none is; nothing more is asked for then. None as well where for
        `stalled_s` nothing came: all are given back.
    """
    import ray

    pending: list[Any] = []
    there: list[Any] = []
    started = last = came = time.monotonic()
    at_most = f", {deadline - started:.0f} s at most" if math.isfinite(deadline) else ""
    shown = ""
    try:
        for _ in range(num_env_runners):
            pending.append(make_group(1, labels))
        while True:
            go_on()
            created = _created()
            new = [group for group in pending if group.id.hex() in created]
            pending = [group for group in pending if group.id.hex() not in created]
            there += new
            now = time.monotonic()
            came = now if new else came
            if not pending or now >= deadline:
                break
            if now - came >= stalled_s:
                pending, there = pending + there, []
                break
            nodes = len(directory.simulator_nodes(labels))
            progress = f"{len(there)} on {nodes} simulators so far; {_autoscalers_progress()}"
            if progress != shown or now - last >= PROGRESS_PERIOD_S:
                shown, last = progress, now
                logger.info(
                    "Waiting for %d env runners, %.0f s so far%s: %s",
                    num_env_runners, now - started, at_most, progress,
                )  # fmt: skip
            time.sleep(max(0.0, min(RETRY_PERIOD_S, deadline - now)))
        return Grant.of(there) if there else None
    except BaseException as error:
        pending = [] if isinstance(error, HubLostError) else pending + there  # Ray would wait for the hub
        raise
    finally:
        if ray.is_initialized():  # otherwise Ray would start a cluster of its own on this machine
            for group in pending:
                remove_group(group)


def _created() -> set[str]:
    """The ids of the placement groups that have their units."""
    from ray.util.placement_group import placement_group_table

    return {group_id for group_id, group in placement_group_table().items() if group["state"] == "CREATED"}


def _keeper() -> Any:
    """The cluster's `Reservations` actor, made where there is none: at the hub, which no autoscaler takes down."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    keeper: Any
    try:
        keeper = ray.get_actor(RESERVATIONS, namespace=directory.NAMESPACE)
    except ValueError:
        (hub,) = (node for node in ray.nodes() if node["Alive"] and "node:__internal_head__" in node["Resources"])
        keeper = (
            cast(Any, ray.remote(Reservations))
            .options(
                name=RESERVATIONS,
                namespace=directory.NAMESPACE,
                get_if_exists=True,
                lifetime="detached",
                num_cpus=0,
                max_concurrency=64,
                scheduling_strategy=NodeAffinitySchedulingStrategy(hub["NodeID"], soft=False),
            )
            .remote()
        )
    try:
        try:
            theirs: str = ray.get(keeper.ping.remote(), timeout=30.0)
        except ray.exceptions.ActorAlreadyExistsError:  # another process made it just now; get_if_exists has this gap
            keeper = ray.get_actor(RESERVATIONS, namespace=directory.NAMESPACE)
            theirs = ray.get(keeper.ping.remote(), timeout=30.0)
    except ray.exceptions.RayError as error:
        raise RemoteRLError(
            f"The hub can't hold reservations; remoterl must be installed there too. Ray said: {error}"
        ) from error
    if theirs != spoken():
        raise VersionMismatchError(
            f"The hub runs remoterl {theirs}, this process runs {spoken()}. Install the same version on "
            "both sides, and start the hub again."
        )
    return keeper


def id_of(reservation: m.Reservation | str) -> str:
    """A reservation's id, whichever was given.

    Raises:
        ConfigurationError: it is neither.
    """
    text = getattr(reservation, "id", reservation)
    if not isinstance(text, str):
        raise ConfigurationError(f"a reservation or its id was expected, got {type(reservation).__name__}.")
    return text


def _shown(selector: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in selector.items())


# ---- what there is -------------------------------------------------------------------------------------------


def free_units(
    simulators: Sequence[directory.SimulatorHandle], deadline: float, unused: Sequence[Mapping[str, Any]] = ()
) -> dict[str, int]:
    """Node id -> free units of `env_runner`, as Ray's scheduler sees them. `unused`: see `directory.unused_nodes`."""
    import ray

    try:
        free = _schedulers_view(simulators, unused, max(1.0, deadline - time.monotonic()))
    except (ray.exceptions.RayError, AttributeError, ImportError, RemoteRLError) as error:
        logger.debug("Ray's view of free units can't be read (%s); counting env runners instead", error)
        free = {node["NodeID"]: directory.units_of(node) for node in unused}
        free |= {simulator.node_id: simulator.units - len(simulator.info.env_runners) for simulator in simulators}
    draining = {simulator.node_id for simulator in simulators if simulator.info.draining}
    nodes = [*(simulator.node_id for simulator in simulators), *(node["NodeID"] for node in unused)]
    return {node: 0 if node in draining else int(free.get(node, 0)) for node in nodes}


def free_units_of(nodes: Sequence[Mapping[str, Any]], timeout_s: float) -> dict[str, int]:
    """Node id -> free units, without a word to these nodes, whatever they run."""
    return free_units((), time.monotonic() + timeout_s, nodes)


def _schedulers_view(simulators: Sequence[Any], unused: Sequence[Any], timeout_s: float) -> dict[str, float]:
    """By whoever can tell: Ray Client can't."""
    import ray

    if simulators:
        return ray.get(simulators[0].actor.free_units.remote(), timeout=timeout_s)
    if not unused:
        return {}
    if not ray.util.client.ray.is_connected():
        return simulators_view.free_units()
    return ray.get(_keeper().free_units.remote(), timeout=timeout_s)


def require(
    needs: Mapping[str, float],
    what: str,
    timeout_s: float,
    go_on: Callable[[], None],
    quiet_s: float = 0.0,
    labels: Mapping[str, str] | None = None,
    grant: Grant | None = None,
) -> None:
    """Wait until `what` can be placed: its units are free, and the cluster has the CPUs and GPUs at all.

    Where an autoscaler starts what is missing, units are waited for without an end: it may be minutes until a machine
    is up. CPUs and GPUs are not waited for then, RLlib's own waiting makes it start those.

    Args:
        needs: Ray resource -> how much of it, all env runners and other actors of `what` together.
        timeout_s: how long to wait for what is missing.
        go_on: called before each look; what it raises ends the waiting.
        quiet_s: how long nothing is said of it, because units were given back just now.
        labels: a selector; only units of simulators that match count.
        grant: a reservation, which all units are to come from instead.

    Raises:
        CapacityError: after `timeout_s`, with what is asked and what there is; at once, where it is more than reserved.
    """
    start = time.monotonic()
    deadline = start + timeout_s
    if grant is not None:
        _require_granted(int(needs.get(directory.RESOURCE, 0)), grant, what, deadline, go_on)
        needs = {name: amount for name, amount in needs.items() if name != directory.RESOURCE}
    waiting = False
    go_on()
    while missing := _missing(needs, deadline, labels or {}):
        quiet = time.monotonic() < start + min(quiet_s, timeout_s / 2)
        if not quiet and is_autoscaling():
            logger.info("%s: %s. The autoscaler starts what is missing.", what, missing)
            if units := int(needs.get(directory.RESOURCE, 0)):
                _wait_without_end(units, labels or {}, go_on)
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
        go_on()


def _wait_without_end(units: int, labels: Mapping[str, str], go_on: Callable[[], None]) -> None:
    """Until so many units were free at once; two trainers that hold what the other lacks let each other through."""
    while True:
        patience_s = _chance.uniform(1.0, 1.5) * STALLED_S
        if grant := wait_for_autoscaler(units, labels, math.inf, go_on, patience_s):
            grant.give_back()
            return
        logger.info(
            "No unit came for %.0f s: those that are there are free for others for a moment, then all %d are asked for "
            "again.",
            patience_s, units,
        )  # fmt: skip
        again_at = time.monotonic() + _chance.uniform(0.5, 1.0) * PROGRESS_PERIOD_S
        while time.monotonic() < again_at:
            go_on()
            time.sleep(RETRY_PERIOD_S)


_chance = random.Random()  # not the script's, which it may have seeded


def _require_granted(wanted: int, grant: Grant, what: str, deadline: float, go_on: Callable[[], None]) -> None:
    """Wait until so many reserved units are free: those of env runners that have just ended will be."""
    total = len(grant.nodes)
    while wanted > total or (free := len(grant.free_units())) < wanted:
        if wanted > total or time.monotonic() >= deadline:
            there = f"{total}" if wanted > total else f"{free} free of {total}"
            raise CapacityError(
                f"{what}: it asks for {wanted} env runners, the reservation has {there}. Ask for less "
                "(num_env_runners, evaluation_num_env_runners), stop another algorithm, or reserve more."
            )
        time.sleep(RETRY_PERIOD_S)
        go_on()


def _missing(needs: Mapping[str, float], deadline: float, labels: Mapping[str, str]) -> str:
    """What is not there, as text; empty where nothing is missing."""
    import ray

    missing = []
    wanted = int(needs.get(directory.RESOURCE, 0))
    if wanted:
        simulators = directory.find_simulators(deadline, labels=labels)
        free, total = sum(free_units(simulators, deadline).values()), sum(s.units for s in simulators)
        if free < wanted:
            which = f"the simulators with {_shown(labels)}" if labels else "the simulators"
            missing.append(f"it asks for {wanted} env runners, {which} have {free} free of {total}")
    there = ray.cluster_resources()
    for name, amount in needs.items():
        if name != directory.RESOURCE and amount > there.get(name, 0):
            missing.append(f"it asks for {amount:g} {name}, the cluster has {there.get(name, 0):g}")
    return "; ".join(missing)


def is_autoscaling() -> bool:
    """Does an autoscaler that can start nodes watch this cluster?

    Ray's first autoscaler reports the node types of every cluster; where it can only look, each node is a type of its
    own. Its second (which `ray up` takes by default) reports to Ray alone; there, nodes that it knows have a group.
    """
    import ray
    from ray.experimental.internal_kv import _internal_kv_get

    if _internal_kv_get("__autoscaler_v2_enabled", namespace="__autoscaler") == b"1":
        groups = [node["Labels"].get("ray.io/node-group", "") for node in ray.nodes() if node["Alive"]]
        return any(group not in ("", ALL_THERE) for group in groups)
    report = _autoscalers_report()
    types = [*(report.get("active_nodes") or ()), *(report.get("idle_nodes") or ())]
    return any(name != ALL_THERE and not re.fullmatch(r"node_[0-9a-f]{56}", name) for name in types)


def _autoscalers_progress() -> str:
    """What the autoscaler is doing about it, in words."""
    report = _autoscalers_report()
    starting: dict[str, int] = dict(report.get("pending_launches") or {})
    for _, node_type, _ in report.get("pending_nodes") or ():
        starting[node_type] = starting.get(node_type, 0) + 1
    failed = [str(node_type) for _, node_type in report.get("failed_nodes") or ()]
    words = [f"{count} x {node_type} starting" for node_type, count in starting.items()]
    words += [f"failed to start: {', '.join(failed)}"] if failed else []
    return "; ".join(words) or "the autoscaler starts what is missing"


def _autoscalers_report() -> dict[str, Any]:
    from ray.experimental.internal_kv import _internal_kv_get

    return json.loads(_internal_kv_get("__autoscaling_status") or b"{}").get("autoscaler_report") or {}


def summarize(
    simulators: Sequence[directory.SimulatorHandle],
    unused: Sequence[Mapping[str, Any]],
    silent: Sequence[str],
    free: Mapping[str, int],
) -> dict[str, Any]:
    """What `--json` prints: plain lists and dicts. Of RLlib's env runners only the units are known."""
    trainers: dict[str, dict[str, Any]] = {}
    described = []
    for simulator in simulators:
        env_runners = []
        for runner in simulator.info.env_runners:
            trainer = trainers.setdefault(
                runner.trainer.session_id,
                {
                    **dataclasses.asdict(runner.trainer),
                    "env_runners": 0,
                    "rows": 0,
                    "steps": 0,
                    "channels": [],
                },
            )
            trainer["env_runners"] += 1
            trainer["restarts"] = max(trainer["restarts"], runner.trainer.restarts)
            trainer["rows"] += runner.rows
            trainer["steps"] += runner.steps
            trainer["channels"] = sorted({*trainer["channels"], runner.channel})
            env_runners.append({**dataclasses.asdict(runner), "trainer": runner.trainer.session_id})
        described.append(
            {
                "name": simulator.name,
                "node_id": simulator.node_id,
                "host": simulator.info.host,
                "labels": simulator.info.labels,
                "versions": dataclasses.asdict(simulator.info.versions),
                "units": simulator.units,
                "free_units": free[simulator.node_id],
                "environments": sorted(simulator.info.environments),
                "steps": simulator.info.steps,
                "env_runners": env_runners,
            }
        )
    return {
        "simulators": described,
        "trainers": list(trainers.values()),
        "unused_simulators": [
            {
                "name": directory.name_of(node),
                "node_id": node["NodeID"],
                "labels": directory.labels_of(node),
                "units": directory.units_of(node),
                "free_units": free[node["NodeID"]],
            }
            for node in unused
        ],
        "simulators_without_actor": list(silent),
    }
