"""Both ends of a stream prove that they know its secret; nobody else gets a word out of them."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from remoterl.channels import handshake
from remoterl.channels.handshake import MAGIC, HandshakeError, challenge, greet

SECRET, CONTEXT = b"s" * 32, b"session"


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    trainer, env_runner = socket.socketpair()
    with trainer, env_runner:
        yield trainer, env_runner


def soon() -> float:
    return time.monotonic() + 10


def in_thread(function, *args) -> Future:
    pool = ThreadPoolExecutor(1)
    future = pool.submit(function, *args)
    pool.shutdown(wait=False)
    return future


def serve(env_runner: socket.socket, secret: bytes = SECRET, context: bytes = CONTEXT) -> None:
    try:
        challenge(env_runner, secret, context, soon())
        handshake.accept(env_runner, soon())
    finally:
        env_runner.close()


def test_who_knows_the_secret_is_accepted(pair) -> None:
    served = in_thread(serve, pair[1])
    greet(pair[0], SECRET, CONTEXT, soon())
    served.result(10)


@pytest.mark.parametrize(("secret", "context"), [(b"t" * 32, CONTEXT), (SECRET, b"another session")])
def test_another_secret_or_session_is_refused_by_both(pair, secret: bytes, context: bytes) -> None:
    served = in_thread(serve, pair[1])
    with pytest.raises(HandshakeError, match="not this session's env runner"):
        greet(pair[0], secret, context, soon())
    pair[0].close()
    with pytest.raises(HandshakeError):
        served.result(10)


def test_an_env_runner_refuses_a_trainer_that_knows_nothing(pair) -> None:
    served = in_thread(serve, pair[1])
    pair[0].sendall(MAGIC + bytes(32) + bytes(32))
    with pytest.raises(HandshakeError, match="not this session's trainer"):
        served.result(10)
    assert len(pair[0].recv(1000)) == 64  # a nonce and a proof for this nonce alone


def test_a_recorded_conversation_is_worth_nothing(pair) -> None:
    """What a trainer once said, said again."""
    said: list[bytes] = []

    class Recorder:
        def __init__(self, connected: socket.socket) -> None:
            self._connected = connected
            self.recv, self.settimeout = connected.recv, connected.settimeout

        def sendall(self, data: bytes) -> None:
            said.append(data)
            self._connected.sendall(data)

    served = in_thread(serve, pair[1])
    greet(Recorder(pair[0]), SECRET, CONTEXT, soon())  # type: ignore[arg-type]
    served.result(10)
    replay, env_runner = socket.socketpair()
    with replay:
        served = in_thread(serve, env_runner)
        replay.sendall(b"".join(said))
        with pytest.raises(HandshakeError, match="not this session's trainer"):
            served.result(10)


def test_an_echo_is_not_a_proof(pair) -> None:
    """A peer that only sends back what it gets knows nothing."""

    def echo() -> None:
        while data := pair[1].recv(1000):
            pair[1].sendall(data)

    threading.Thread(target=echo, daemon=True).start()
    with pytest.raises(HandshakeError):
        greet(pair[0], SECRET, CONTEXT, time.monotonic() + 0.5)


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\x80\x05cos\nsystem\n.", b"\0" * 100_000])
def test_garbage_is_refused_at_its_first_byte(pair, garbage: bytes) -> None:
    served = in_thread(challenge, pair[1], SECRET, CONTEXT, soon())
    pair[0].sendall(garbage[:1])
    with pytest.raises(HandshakeError, match="something else"):
        served.result(10)


def test_a_slow_peer_has_one_deadline_for_everything(pair) -> None:
    served = in_thread(challenge, pair[1], SECRET, CONTEXT, time.monotonic() + 0.3)
    for byte in MAGIC:  # each byte would be in time
        if served.done():
            break
        pair[0].sendall(bytes([byte]))
        time.sleep(0.05)
    with pytest.raises(HandshakeError, match="too slow"):
        served.result(10)


def test_a_peer_that_leaves(pair) -> None:
    pair[0].close()
    with pytest.raises(HandshakeError, match="closed"):
        challenge(pair[1], SECRET, CONTEXT, soon())
