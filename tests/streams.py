"""Env runners of this process that serve streams from threads, for tests without Ray."""

from __future__ import annotations

import dataclasses
import socket
import threading
from collections.abc import Iterator

import pytest

from remoterl import messages as m
from remoterl.actors.env_runner import EnvRunner
from remoterl.actors.stream_listener import StreamListener
from remoterl.actors.stream_server import serve
from remoterl.channels.stream import StreamChannel, Streams, connect


class Server:
    """Env runners that serve from threads, as their actors do from theirs.

    `way`: by which their trainer comes, `local` or `network`.
    """

    def __init__(self, streams: Streams, way: str) -> None:
        self.streams = streams
        self._way = way
        self._threads: list[threading.Thread] = []
        self.channels: list[StreamChannel] = []

    def open(self) -> StreamChannel:
        listener = StreamListener("127.0.0.1", "session")
        offer = listener.offer()
        offer = offer if self._way == "local" else dataclasses.replace(offer, local="")
        connected = connect(offer, 5, self.streams.memory)
        assert (connected.family == socket.AF_UNIX) == (self._way == "local" and not offer.uses_tls)
        runner = EnvRunner(m.TrainerInfo("session", "script", "host", 1))
        arguments = (listener.accepted(5), runner._answer, runner._unpicklable)
        self._threads.append(threading.Thread(target=serve, args=arguments))
        self._threads[-1].start()
        self.channels.append(StreamChannel(connected, self.streams, f"env runner {len(self.channels)}"))
        return self.channels[-1]

    def close(self) -> None:
        for channel in self.channels:
            channel.close()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()


@pytest.fixture(params=["local", "network"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    server = Server(Streams(), request.param)
    yield server
    server.close()
