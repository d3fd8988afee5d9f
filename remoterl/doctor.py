"""What `remoterl doctor` looks at, one finding after the other: OK, or what to do."""

from __future__ import annotations

import dataclasses
import math
import socket
import statistics
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any, cast

from remoterl import capacity
from remoterl import messages as m
from remoterl.actors import directory
from remoterl.actors.examiner import Examiner
from remoterl.actors.simulator import versions
from remoterl.channels.actor import ActorChannel
from remoterl.channels.base import Channel, Late
from remoterl.channels.opening import REACH_IF_ASKED_S, REACH_S
from remoterl.channels.stream import StreamChannel, Streams, UnreachableError, connect
from remoterl.cluster import probe
from remoterl.cluster.connection import running_address
from remoterl.config import Address, ChannelName, find_address, find_api_key
from remoterl.errors import ConfigurationError, EnvRunnerLostError, RemoteRLError

MAX_CLOCK_OFFSET_S = 5.0
ROUND_TRIPS, LOOKS_AT_CLOCK = 20, 5
MANY_ROWS = 128  # more than a trainer of one machine usually wants
# What a further env runner costs the trainer in a step (docs/performance.md, `c`); by a network the way takes longer,
# but the messages of all travel at the same time.
AN_ENV_RUNNER_S = {"stream": 75e-6}
AN_ENV_RUNNER_BY_CALLS_S = 540e-6
ANSWER_TIMEOUT_S = 60.0  # an examiner's process starts, and an environment's imports may take long


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `advice` is what to do where it is not OK, or could be better."""

    check: str
    ok: bool
    found: str
    advice: str = ""


def examine(
    address_argument: str | None, env_id: str | None, timeout_s: float, channel: ChannelName = "auto"
) -> Iterator[Finding]:
    """Look at everything in order; what depends on something that is wrong is left out.

    `channel` as for `init`: where no stream can be opened, `auto` only says so, and `actor` does not try.
    """
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
    try:
        for finding in _examine_hub(address, key):
            reached = (reached and finding.ok) or finding.check == "key checked"
            yield finding
    except ConfigurationError as error:
        yield Finding("TLS", False, str(error), "Correct it where the message says.")
        return
    if not reached:
        return
    try:
        with capacity.connected(str(address), key, timeout_s):
            yield Finding("connection", True, "Ray takes this process: same Ray and Python")
            yield from _examine_cluster(address, env_id, timeout_s, channel)
    except RemoteRLError as error:
        yield Finding("connection", False, str(error), "See the message.")


def _examine_hub(address: Address, key: str | None) -> Iterator[Finding]:
    start = time.monotonic()
    answer = probe.ask(address, key)
    took = f"{(time.monotonic() - start) * 1e3:.0f} ms"
    if answer is probe.Answer.UNREACHABLE:
        probe.refuse_other_tls(address)
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


def _examine_cluster(address: Address, env_id: str | None, timeout_s: float, channel: ChannelName) -> Iterator[Finding]:
    import ray

    if address.kind == "gcs":
        yield from _examine_ports(ray.nodes())
    nodes = directory.simulator_nodes()
    free = capacity.free_units_of(nodes, timeout_s)
    simulators = {node["NodeID"] for node in nodes}
    yield _judge_capacity(
        sum(free.values()), sum(directory.units_of(node) for node in nodes), len(nodes), capacity.is_autoscaling()
    )
    nodes += [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in simulators]
    examiners = [_examiner(node) for node in nodes]
    looks: list[Look] = []
    for node, examiner in zip(nodes, examiners, strict=True):
        name = directory.name_of(node)
        try:
            if node["NodeID"] in simulators:
                look = Look(name, examiner, free[node["NodeID"]], node["NodeManagerAddress"])
                yield from _examine_simulator(look, env_id, channel)
                looks.append(look)
            else:
                yield from _examine_node(name, examiner)
        except (ray.exceptions.RayError, Late, EnvRunnerLostError) as error:
            yield _silent(name, node["NodeID"] in simulators, error)
        finally:
            ray.kill(examiner)
    if env_id is not None:
        yield from _compare(env_id, looks)


def _judge_capacity(free: int, total: int, num_simulators: int, is_autoscaling: bool) -> Finding:
    if num_simulators == 0 and is_autoscaling:
        return Finding(
            "simulators", True, "none at the moment; an autoscaler watches this cluster",
            "init() with a timeout_s of minutes makes it start some. Their machines can be looked at then.",
        )  # fmt: skip
    if num_simulators == 0:
        return Finding("simulators", False, "the cluster has none", "Start one: remoterl simulate.")
    return Finding(
        "env runners", free > 0 or is_autoscaling, f"{free} free of {total} on {num_simulators} simulators",
        "" if free else "End a trainer (`remoterl status` shows them), or start another simulator.",
    )  # fmt: skip


@dataclasses.dataclass
class Look:
    """What was seen of a simulator, for what can only be said of all together."""

    name: str
    examiner: Any
    free_units: int
    host: str  # its address: simulators may share a machine
    cores: int = 1
    made: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    round_trip_s: Mapping[str, float] = dataclasses.field(default_factory=dict)  # of each channel that it has


def _examiner(node: Mapping[str, Any]) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return cast(Any, ray.remote(Examiner)).options(num_cpus=0, scheduling_strategy=here).remote()


def _silent(name: str, is_simulator: bool, error: Exception) -> Finding:
    """A node that has no answer; a hub that only Ray is installed on has none, and serves."""
    if not is_simulator and "No module named 'remoterl'" in str(error):
        return Finding(
            f"versions of {name}", True, "remoterl is not installed there",
            "Install it there, too, for reservations, jobs, and Tune through Ray Client.",
        )  # fmt: skip
    return Finding(
        f"{'simulator' if is_simulator else 'node'} {name}", False, f"it does not answer ({type(error).__name__})",
        "Look at its output, and start it again.",
    )  # fmt: skip


def _examine_simulator(look: Look, env_id: str | None, channel: ChannelName) -> Iterator[Finding]:
    import ray

    if not (yield from _examine_node(look.name, look.examiner)):
        return
    yield from _examine_channels(look, channel)
    if env_id is not None:
        look.cores = ray.get(look.examiner.cores.remote(), timeout=ANSWER_TIMEOUT_S)
        look.made = ray.get(look.examiner.make.remote(env_id), timeout=ANSWER_TIMEOUT_S)
        yield _made(look.name, env_id, look.made)


def _examine_node(name: str, examiner: Any) -> Generator[Finding, None, bool]:
    """Its versions and clock; does it speak to this version of remoterl at all?"""
    import ray

    here, there = versions(), ray.get(examiner.versions.remote(), timeout=ANSWER_TIMEOUT_S)
    yield _judge_versions(name, here, there)
    offsets = []
    for _ in range(LOOKS_AT_CLOCK):
        before = time.time()
        clock = ray.get(examiner.clock.remote(), timeout=ANSWER_TIMEOUT_S)
        offsets.append(clock - (before + time.time()) / 2)
    yield _judge_clock(name, statistics.median(offsets))
    return (there.remoterl, there.protocol) == (here.remoterl, here.protocol)


def _judge_versions(name: str, here: m.Versions, there: m.Versions) -> Finding:
    ours = dataclasses.asdict(here)
    shown = [
        f"{field} {version}" + ("" if version == ours[field] else f" ({ours[field]} here)")
        for field, version in dataclasses.asdict(there).items()
    ]
    return Finding(
        f"versions of {name}", here == there, ", ".join(shown),
        "" if here == there else "Install the same versions on both.",
    )  # fmt: skip


def _judge_clock(name: str, offset: float) -> Finding:
    right = abs(offset) <= MAX_CLOCK_OFFSET_S
    return Finding(
        f"clock of {name}", right, f"{offset:+.2f} s from here's",
        "" if right else "Set both machines' clocks by a time server (NTP): logs and certificates go by them.",
    )  # fmt: skip


def _examine_channels(look: Look, wanted: ChannelName) -> Iterator[Finding]:
    import ray

    by_actor = _round_trip_s(ActorChannel(look.examiner, look.name))
    look.round_trip_s = {"actor call": by_actor}
    yield Finding(f"round trip to {look.name}", True, f"{_time(by_actor)} by actor call")
    if wanted == "actor":
        return
    try:
        offer = ray.get(look.examiner.open_stream.remote(), timeout=ANSWER_TIMEOUT_S)
        connected = connect(offer, REACH_S if wanted == "auto" else REACH_IF_ASKED_S)
    except (UnreachableError, ray.exceptions.RayTaskError) as error:
        yield Finding(
            f"stream to {look.name}", wanted == "auto", str(error).strip().splitlines()[-1],
            "Open its ports to this machine (REMOTERL_STREAM_PORTS=21000-21031 on the simulator fixes them); until "
            "then, channel='auto' takes actor calls.",
        )  # fmt: skip
        return
    look.examiner.serve_stream.remote()
    stream = StreamChannel(connected, Streams(), look.name)
    try:
        by_stream = _round_trip_s(stream)
    finally:
        stream.close()
    look.round_trip_s = {**look.round_trip_s, "stream": by_stream}
    yield Finding(f"stream to {look.name}", True, f"{_time(by_stream)} there and back")


def _round_trip_s(channel: Channel) -> float:
    """Median of a small vector step's messages."""
    trips = []
    for _ in range(ROUND_TRIPS):
        start = time.perf_counter()
        channel.receive(channel.send(m.StepRows(0, None)), ANSWER_TIMEOUT_S)
        trips.append(time.perf_counter() - start)
    return statistics.median(trips)


def _made(name: str, env_id: str, made: Mapping[str, Any]) -> Finding:
    if "error" in made:
        return Finding(
            f"{env_id} on {name}", False, made["error"],
            "It can be made there, but not stepped: try it on that machine." if made["makes"] else
            "Install its package there, and register it: remoterl simulate --register MODULE (or REMOTERL_REGISTER).",
        )  # fmt: skip
    return Finding(
        f"{env_id} on {name}", True,
        f"observations {made['observation_space']}, actions {made['action_space']}, from {made['package']}; "
        f"a step takes {_time(made['step_s'])}",
    )  # fmt: skip


def _compare(env_id: str, looks: Sequence[Look]) -> Iterator[Finding]:
    """What the simulators that can make it have in common, and numbers for all of them."""
    able = [look for look in looks if "step_s" in look.made]
    spaces: dict[str, list[str]] = {}
    for look in able:
        signature = ", ".join(look.made[key] for key in ("observation_space", "action_space", "package"))
        spaces.setdefault(signature, []).append(look.name)
    if len(spaces) > 1:
        differing = "; ".join(f"{', '.join(names)}: {signature}" for signature, names in spaces.items())
        yield Finding(f"{env_id} everywhere", False, differing, "Install the same version of its package everywhere.")
    if able:
        channel = "stream" if all("stream" in look.round_trip_s for look in able) else "actor call"
        yield Finding(
            "suggestion", True,
            suggest(
                max(look.made["step_s"] for look in able),
                max(look.round_trip_s[channel] for look in able),
                channel,
                count_places(able),
            ),
        )  # fmt: skip


def count_places(looks: Sequence[Look]) -> int:
    """Free units that have a core each; simulators on one machine share its cores."""
    cores = {look.host: look.cores for look in looks}
    units: Counter[str] = Counter()
    for look in looks:
        units[look.host] += look.free_units
    return sum(min(units[host], cores[host]) for host in cores)


def suggest(step_s: float, round_trip_s: float, channel: str, places: int) -> str:
    """How many env runners and rows for an environment, and why; for Gymnasium's and SB3's vector envs.

    An env runner steps its rows one after the other, and each costs the trainer a message, so a step of a vector env
    takes about `rows / env runners x step + env runners x message + way`: shortest with `sqrt(rows x step / message)`
    env runners. That many for `MANY_ROWS` rows, at most as have a place; and on each at least so many rows that they
    step as long as the way and the messages take.

    Args:
        step_s: of the environment, where it is slowest.
        round_trip_s: of a message, where it is slowest.
        channel: its name.
        places: free units that have a core each (an environment that waits for something else needs none).
    """
    message_s = min(round_trip_s, AN_ENV_RUNNER_S.get(channel, AN_ENV_RUNNER_BY_CALLS_S))
    env_runners = max(1, min(places, round(math.sqrt(MANY_ROWS * step_s / message_s))))
    rows_each = max(1, math.ceil(max(round_trip_s, env_runners * message_s) / step_s))
    rows = min(env_runners * rows_each, MANY_ROWS)
    reason = f"{rows_each} rows step as long as the messages take"
    if rows_each == 1:
        reason = "a row steps longer than the messages take"
    elif rows_each > MANY_ROWS:
        reason = f"even {MANY_ROWS} rows step faster than the messages travel"
    return (
        f"num_env_runners={env_runners} with {rows} rows or more: a step takes {_time(step_s)}, the way there and "
        f"back {_time(round_trip_s)} by {channel}, so {reason}; {places} free units have a core each"
    )


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} us" if seconds < 1e-3 else f"{seconds * 1e3:.1f} ms"


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
