"""The seam between vector envs and the wire: what every channel to an env runner can do, and no more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any


class Channel(ABC):
    """One trainer's way to one env runner. Requests are answered in the order in which they were sent.

    A reply belongs to the ticket that `send` gave for its request; a ticket that is dropped is an answer
    that is thrown away, never read as a later one.
    """

    name: str
    lost = False  # set once the env runner turned out to be gone

    @abstractmethod
    def send(self, request: Any) -> Any:
        """Send a request (see `messages`) without waiting; returns the ticket of its reply."""

    @abstractmethod
    def receive(self, ticket: Any, timeout_s: float | None = None) -> Any:
        """Wait for a reply.

        Raises:
            TimeoutError: no reply within `timeout_s` seconds (None: wait for ever).
            EnvRunnerLostError: the env runner, its node or the connection is gone.
        """

    @classmethod
    def receive_all(
        cls, channels: Sequence[Channel], tickets: Sequence[Any], timeout_s: float | None = None
    ) -> list[Any]:
        """Wait for one reply from each of several channels of this class; raises what `receive` would."""
        return [channel.receive(ticket, timeout_s) for channel, ticket in zip(channels, tickets, strict=True)]
