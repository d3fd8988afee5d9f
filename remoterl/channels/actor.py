"""The `actor` channel: a Ray actor call a request. Works wherever Ray does, Ray Client included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from remoterl.channels.base import Channel
from remoterl.errors import EnvRunnerLostError
from remoterl.messages import decode, encode


class ActorChannel(Channel):
    """Requests and replies as bytes through `EnvRunner.handle`.

    Args:
        actor: handle of the env runner.
        description: names the env runner in errors: its simulator, node and process.
    """

    name = "actor"

    def __init__(self, actor: Any, description: str) -> None:
        self._actor = actor
        self._description = description

    def send(self, request: Any) -> Any:
        try:
            return self._actor.handle.remote(encode(request))
        except Exception as error:  # Ray Client raises several types of its own once it is disconnected
            raise self._lost(error) from error

    def receive(self, ticket: Any, timeout_s: float | None = None) -> Any:
        import ray

        try:
            return decode(ray.get(ticket, timeout=timeout_s))
        except ray.exceptions.GetTimeoutError as error:
            raise TimeoutError(f"no answer from the {self._description} within {timeout_s} s") from error
        except (ray.exceptions.RayError, ConnectionError) as error:
            raise self._lost(error) from error

    @classmethod
    def receive_all(
        cls, channels: Sequence[Channel], tickets: Sequence[Any], timeout_s: float | None = None
    ) -> list[Any]:
        import ray

        try:  # one request to Ray for all of them: through Ray Client each is a round trip
            return [decode(reply) for reply in ray.get(list(tickets), timeout=timeout_s)]
        except (ray.exceptions.RayError, ConnectionError):  # whose was it? ask one by one
            return super().receive_all(channels, tickets, timeout_s)

    def _lost(self, error: Exception) -> EnvRunnerLostError:
        return EnvRunnerLostError(
            f"The {self._description} is lost ({type(error).__name__}); its environments are gone with it. "
            "Look at that simulator's output for the reason; make the vector env again to go on."
        )
