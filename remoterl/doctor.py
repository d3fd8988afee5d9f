"""What `remoterl doctor` looks at, one finding after the other: OK, or what to do."""

from __future__ import annotations

import dataclasses
import socket
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any, cast

from remoterl import capacity
from remoterl.actors import directory
from remoterl.actors.examiner import Examiner
from remoterl.actors.simulator import versions
from remoterl.cluster import probe
from remoterl.cluster.connection import running_address
from remoterl.config import Address, find_address, find_api_key
from remoterl.errors import ConfigurationError, RemoteRLError

MAX_CLOCK_OFFSET_S = 5.0
ROUND_TRIPS = 20
ANSWER_TIMEOUT_S = 60.0  # an examiner's process starts, and an environment's imports may take long


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `advice` is empty where it is OK."""

    check: str
    ok: bool
    found: str
    advice: str = ""


def examine(address_argument: str | None, env_id: str | None, timeout_s: float) -> Iterator[Finding]:
    """Look at everything in order; what depends on something that is wrong is left out."""
    try:
        address = find_address(address_argument) or running_address()
        key = find_api_key(None, address=address)
    except ConfigurationError as error:
        yield Finding("address", False, str(error), "Correct it where the message says it comes from.")
        return
    if address is None or address.kind == "local":
        yield Finding(
            "address",
            False,
            f"the address is {address}",
            "Give --address, set REMOTERL_ADDRESS, or: remoterl register.",
        )
        return
    if address.kind == "auto":
        found = running_address()
        if found is None:
            yield Finding("address", False, "no Ray runs on this machine", "Give the hub's address instead of auto.")
            return
        address = found
    yield Finding("address", True, str(address))
    reached = True
    for finding in _examine_hub(address, key):
        reached = (reached and finding.ok) or finding.check == "key checked"
        yield finding
    if not reached:
        return
    try:
        with capacity.connected(str(address), key, timeout_s):
            yield Finding("connection", True, "Ray takes this process: same Ray and Python")
            yield from _examine_cluster(address, env_id, timeout_s)
    except RemoteRLError as error:
        yield Finding("connection", False, str(error), "See the message.")


def _examine_hub(address: Address, key: str | None) -> Iterator[Finding]:
    start = time.monotonic()
    answer = probe.ask(address, key)
    took = f"{(time.monotonic() - start) * 1e3:.0f} ms"
    if answer is probe.Answer.UNREACHABLE:
        yield Finding(
            "hub", False, f"nobody answers at {address}",
            "Does the hub run (`remoterl hub`), are host and port right, does a firewall stand between?",
        )  # fmt: skip
    elif answer is probe.Answer.WRONG_PORT:
        yield Finding(
            "hub", False, f"{address} is another kind of port",
            "Trainers: ray:// and the client port (10001). Simulators: the hub's port (6379) without ray://.",
        )  # fmt: skip
    elif answer is probe.Answer.REFUSED_KEY:
        given = "the key is refused" if key else "a key is needed and none was found"
        yield Finding("key", False, given, "Set REMOTERL_API_KEY to the hub's key, or: remoterl register.")
    else:
        yield Finding("hub", True, f"answers in {took}")
        if key and probe.ask(address, "not-" + key) is probe.Answer.REFUSED_KEY:
            yield Finding("key checked", True, "the hub takes this key and no other")
        else:
            yield Finding(
                "key checked", False, "the hub takes any key: whoever reaches it can run code on every machine",
                "Start it with `remoterl hub`, or with RAY_AUTH_MODE=token.",
            )  # fmt: skip


def _examine_cluster(address: Address, env_id: str | None, timeout_s: float) -> Iterator[Finding]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if address.kind == "gcs":
        yield from _examine_ports(ray.nodes())
    nodes = directory.simulator_nodes()
    report = capacity.describe(None, timeout_s)
    described = {one["node_id"]: one for one in report["simulators"]}
    if not nodes:
        yield Finding(
            "simulators", False, "the cluster has none",
            "Start one: remoterl simulate" + (" (or ask for env runners: an autoscaler watches this cluster)."
            if capacity.is_autoscaling() else "."),
        )  # fmt: skip
        return
    free, total = (sum(one[key] for one in described.values()) for key in ("free_units", "units"))
    yield Finding(
        "env runners", free > 0, f"{free} free of {total} on {len(nodes)} simulators",
        "" if free else "End a trainer (`remoterl status` shows them), or start another simulator.",
    )  # fmt: skip
    examiners = {
        node["NodeID"]: cast(Any, ray.remote(Examiner))
        .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        .remote()
        for node in nodes
    }
    spaces: dict[str, list[str]] = {}
    for node in nodes:
        name = described.get(node["NodeID"], {}).get("name") or node["NodeName"]
        examiner = examiners[node["NodeID"]]
        try:
            yield from _examine_simulator(name, examiner)
            if env_id is not None:
                made = ray.get(examiner.make.remote(env_id), timeout=ANSWER_TIMEOUT_S)
                yield _made(name, env_id, made)
                if "error" not in made:
                    signature = f"{made['observation_space']}, {made['action_space']}, {made['package']}"
                    spaces.setdefault(signature, []).append(name)
        except ray.exceptions.RayError as error:
            yield Finding(
                f"simulator {name}", False, f"it does not answer ({type(error).__name__})",
                "Look at its output, and start it again.",
            )  # fmt: skip
        finally:
            ray.kill(examiner)
    if len(spaces) > 1:
        differing = "; ".join(f"{', '.join(names)}: {signature}" for signature, names in spaces.items())
        yield Finding(f"{env_id} everywhere", False, differing, "Install the same version of its package everywhere.")


def _examine_simulator(name: str, examiner: Any) -> Iterator[Finding]:
    import ray

    here, there = versions(), ray.get(examiner.versions.remote(), timeout=ANSWER_TIMEOUT_S)
    differing = [
        f"{field} {theirs} there, {ours} here"
        for (field, ours), theirs in zip(dataclasses.asdict(here).items(), dataclasses.astuple(there), strict=True)
        if ours != theirs
    ]
    yield Finding(
        f"versions of {name}", not differing, "; ".join(differing) or "the same as here",
        "Install the same versions on both." if differing else "",
    )  # fmt: skip
    trips, offsets = [], []
    for _ in range(ROUND_TRIPS):
        before = time.time()
        clock = ray.get(examiner.clock.remote(), timeout=ANSWER_TIMEOUT_S)
        after = time.time()
        trips.append(after - before)
        offsets.append(clock - (before + after) / 2)
    offset = statistics.median(offsets)
    right = abs(offset) <= MAX_CLOCK_OFFSET_S
    yield Finding(
        f"clock of {name}", right, f"{offset:+.2f} s from here's",
        "" if right else "Set both machines' clocks by a time server (NTP): logs and certificates go by them.",
    )  # fmt: skip
    yield Finding(f"round trip to {name}", True, f"{statistics.median(trips) * 1e3:.1f} ms by actor call")


def _made(name: str, env_id: str, made: Mapping[str, str]) -> Finding:
    if "error" in made:
        return Finding(
            f"{env_id} on {name}", False, made["error"],
            "Install its package there, and register it: remoterl simulate --register MODULE (or REMOTERL_REGISTER).",
        )  # fmt: skip
    return Finding(
        f"{env_id} on {name}", True,
        f"observations {made['observation_space']}, actions {made['action_space']}, from {made['package']}",
    )  # fmt: skip


def _examine_ports(nodes: list[dict[str, Any]]) -> Iterator[Finding]:
    """Machines of a cluster reach each other directly; a trainer through Ray Client needs the hub only."""
    for node in (one for one in nodes if one["Alive"]):
        closed = []
        for service in ("NodeManagerPort", "ObjectManagerPort"):
            try:
                socket.create_connection((node["NodeManagerAddress"], node[service]), timeout=3.0).close()
            except OSError as error:
                closed.append(f"{node['NodeManagerAddress']}:{node[service]} ({error.strerror or error})")
        yield Finding(
            f"ports of {node['NodeName']}", not closed, f"not reached: {', '.join(closed)}" if closed else "reached",
            "Open them; --ports FIRST-LAST on each machine keeps them in a range." if closed else "",
        )  # fmt: skip
