"""The seam between vector envs and the wire: what every channel to an env runner can do, and no more."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from remoterl.channels.codec import Landing
from remoterl.channels.shared_memory import SharedMemory
from remoterl.errors import EnvRunnerLostError, RemoteRLError


class Late(TimeoutError):
    """No answer in time. A class of its own: a script's handler of an alarm may raise `TimeoutError`, as it likes."""


class Channel(ABC):
    """One trainer's way to one env runner. Requests are answered in the order in which they were sent.

    A reply belongs to the ticket that `send` gave for its request; a ticket that is dropped is an answer
    that is thrown away, never read as a later one.

    Args:
        description: names the env runner in errors: its simulator, node and process.
    """

    name: str
    lost = False  # set once the env runner turned out to be gone
    memory: SharedMemory | None = None  # to which the env runner can write observations

    def __init__(self, description: str) -> None:
        self._description = description

    @abstractmethod
    def send(self, request: Any, landing: Landing | None = None) -> Any:
        """Send a request (see `messages`) without waiting; returns the ticket of its reply.

        Args:
            landing: where the reply may be received, if it is a small step, so that no memory is made for it.

        Raises:
            Late: the env runner does not take it within the session's `step_timeout_s`.
            EnvRunnerLostError: the env runner, its node or the connection is gone.
        """

    @abstractmethod
    def receive(self, ticket: Any, timeout_s: float | None = None) -> Any:
        """Wait for a reply.

        Raises:
            Late: no reply within `timeout_s` seconds (None: wait for ever).
            EnvRunnerLostError: the env runner, its node or the connection is gone.
        """

    @classmethod
    def receive_all(
        cls, channels: Sequence[Channel], tickets: Sequence[Any], timeout_s: float | None = None
    ) -> list[Any]:
        """Wait for one reply from each of several channels.

        Called on a subclass, the channels are all of it; on `Channel`, they may be of any.

        Returns:
            In place of a reply that does not come: the `Late` or `EnvRunnerLostError` of `receive`.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        replies: list[Any] = []
        for channel, ticket in zip(channels, tickets, strict=True):
            try:
                replies.append(
                    channel.receive(ticket, None if deadline is None else max(0.0, deadline - time.monotonic()))
                )
            except (Late, EnvRunnerLostError) as error:
                replies.append(error)
        return replies

    def interrupt(self) -> None:
        """Whoever waits for the env runner finds it lost, soon. From any thread."""
        self.lost = True

    def close(self) -> None:
        """Let go of the env runner: nothing is sent from here on. Idempotent."""
        self.lost = True

    def abandon(self) -> None:
        """In a forked child: let go of what is the parent's, without a word to the env runner."""
        self.lost = True

    def _late(self, timeout_s: float | None) -> Late:
        return Late(f"no answer from the {self._description} (or its peers) within {timeout_s} s")

    def _gone(self, reason: Exception | str) -> EnvRunnerLostError:
        self.lost = True
        if isinstance(reason, Exception):
            reason = type(reason).__name__
        return EnvRunnerLostError(
            f"The {self._description} is lost ({reason}); its environments are gone with it. "
            "Look at that simulator's output for the reason."
        )

    def _undecodable(self, error: Exception) -> RemoteRLError:
        return RemoteRLError(
            f"What an environment on the {self._description} returned is of a class that this machine cannot "
            f"load ({error}). Install its package here, or let the environment return plain data."
        )
