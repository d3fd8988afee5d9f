"""The `actor` channel: a Ray actor call a request. Works wherever Ray does, Ray Client included."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, cast

from remoterl.channels.base import Channel
from remoterl.channels.codec import Landing
from remoterl.errors import RemoteRLError
from remoterl.messages import decode, encode

LOOK_UP_S = 5.0  # Ray waits for ever for an env runner and a hub that are both gone


class ActorChannel(Channel):
    """Requests and replies as bytes through `EnvRunner.handle`.

    Args:
        actor: handle of the env runner.
        description: names the env runner in errors: its simulator, node and process.
    """

    name = "actor"

    def __init__(self, actor: Any, description: str) -> None:
        super().__init__(description)
        self._actor = actor

    def send(self, request: Any, landing: Landing | None = None) -> Any:
        import ray

        payload = encode(request)
        if self.lost:
            raise self._gone("it was given up")
        self._require_connection()
        try:
            return self._actor.handle.remote(payload)
        except (ray.exceptions.RayError, ConnectionError, RuntimeError) as error:
            raise self._gone(error) from error

    def receive(self, ticket: Any, timeout_s: float | None = None) -> Any:
        import ray

        self._require_connection()
        try:
            return self._decode(_get(ticket, timeout_s, [self]))
        except ray.exceptions.GetTimeoutError as error:
            raise self._late(timeout_s) from error
        except ray.exceptions.RayTaskError as error:  # the actor lives: a fault of our own in its answer
            raise RemoteRLError(f"The {self._description} could not answer: {error}") from error
        except (ray.exceptions.RayError, ConnectionError) as error:
            raise self._gone(error) from error

    @classmethod
    def receive_all(
        cls, channels: Sequence[Channel], tickets: Sequence[Any], timeout_s: float | None = None
    ) -> list[Any]:
        import ray

        ours = cast("Sequence[ActorChannel]", channels)
        ours[0]._require_connection()
        try:  # one request to Ray for all of them: through Ray Client each is a round trip
            replies = _get(list(tickets), timeout_s, channels)
        except ray.exceptions.GetTimeoutError:  # whose is late?
            return super().receive_all(channels, tickets, 0.0)
        except (ray.exceptions.RayError, ConnectionError):  # whose was it? ask one by one
            return super().receive_all(channels, tickets, timeout_s)
        return [channel._decode(reply) for channel, reply in zip(ours, replies, strict=True)]

    def _decode(self, reply: bytes) -> Any:
        try:
            return decode(reply)
        except Exception as error:
            try:
                decode(reply)
            except Exception:
                raise self._undecodable(error) from error
            raise  # a signal's handler did, and not the reply

    def _require_connection(self) -> None:
        import ray

        if not ray.is_initialized():  # otherwise Ray would start a cluster of its own on this machine
            raise self._gone(ConnectionError("this process is no longer connected to Ray"))


def _get(tickets: Any, timeout_s: float | None, channels: Sequence[Channel]) -> Any:
    """`ray.get`, which ends too where one of the channels is interrupted."""
    import ray

    deadline = float("inf") if timeout_s is None else time.monotonic() + timeout_s
    while True:
        left = deadline - time.monotonic()
        try:
            return ray.get(tickets, timeout=max(0.0, min(left, LOOK_UP_S)))
        except ray.exceptions.GetTimeoutError:
            if left <= LOOK_UP_S:
                raise
            if any(channel.lost for channel in channels):
                raise ConnectionError("it was given up") from None
