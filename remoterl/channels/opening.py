"""Which channel a trainer gets to each env runner: `stream` where its address can be reached, else `actor`."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from remoterl.channels.actor import ActorChannel
from remoterl.channels.base import Channel
from remoterl.channels.shared_memory import SharedMemory
from remoterl.channels.stream import StreamChannel, Streams, UnreachableError, connect
from remoterl.config import ChannelName
from remoterl.errors import RemoteRLError

REACH_S = 0.8  # for all env runners together: they are tried at the same time
REACH_IF_ASKED_S = 5.0  # where there is no other way
OFFER_S = 10.0
MAX_THREADS = 32


def open_channels(
    actors: Sequence[Any], descriptions: Sequence[str], wanted: ChannelName, streams: Streams
) -> tuple[list[Channel], str]:
    """A channel to each env runner.

    Args:
        actors: handles of env runners that are up.
        descriptions: name them in errors.
        wanted: `auto` takes the stream where it can be opened.
        streams: of the session.

    Returns:
        The channels, and which they are in words, for the log line.

    Raises:
        RemoteRLError: `stream` was asked for, and an env runner can't be reached; the message says what to do.
    """
    channels: list[Channel] = [
        ActorChannel(actor, description) for actor, description in zip(actors, descriptions, strict=True)
    ]
    if wanted == "actor" or not actors:
        return channels, _describe(channels)
    patience_s = REACH_S if wanted == "auto" else REACH_IF_ASKED_S
    offers = [actor.open_stream.remote() for actor in actors]
    with ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="remoterl-stream") as pool:
        sockets = list(pool.map(lambda offer: _try(offer, patience_s, streams.memory), offers))
    failures: list[str] = []
    for index, (actor, description, connected) in enumerate(zip(actors, descriptions, sockets, strict=True)):
        if isinstance(connected, str):
            # One that died meanwhile is no matter of ports: its first request finds it lost, as at any later time.
            if wanted == "auto" or not _is_dead(actor):
                failures.append(f"the {description}: {connected}")
            continue
        stream = StreamChannel(connected, streams, description)
        channels[index] = stream
        # Done when the env runner is: with its stream, its process or its node, and Ray tells.
        actor.serve_stream.remote().future().add_done_callback(lambda _, stream=stream: stream.interrupt())
    if failures and wanted == "stream":
        for channel in channels:
            channel.close()
        raise RemoteRLError(
            f"channel='stream' was asked for, but {len(failures)} of {len(actors)} env runners can't be reached by "
            f"one: {failures[0]}. Open the simulators' ports to this machine (REMOTERL_STREAM_PORTS=21000-21031 on "
            "a simulator fixes them for a firewall), or take channel='actor', which needs nothing but Ray."
        )
    return channels, _describe(channels) + (f" (no stream to {failures[0]})" if failures else "")


def _describe(channels: Sequence[Channel]) -> str:
    names = [channel.name for channel in channels]
    if len(set(names)) == 1:
        return f"channel {names[0]!r}"
    return " and ".join(f"channel {name!r} to {names.count(name)}" for name in sorted(set(names)))


def _try(offer: Any, patience_s: float, memory: SharedMemory | None) -> Any:
    import ray

    try:
        return connect(ray.get(offer, timeout=OFFER_S), patience_s, memory)
    except (UnreachableError, ray.exceptions.RayError) as error:
        return str(error).strip().splitlines()[-1]


def _is_dead(actor: Any) -> bool:
    import ray

    try:
        ray.get(actor.ready.remote(), timeout=OFFER_S)
    except ray.exceptions.RayError as error:
        return isinstance(error, ray.exceptions.RayActorError)
    return False
