"""How trainer and env runner prove to each other that they hold the same one-time secret, before anything else.

Four messages of fixed size, so that nobody can make the other side buffer or parse anything:

    trainer -> env runner   MAGIC, trainer's nonce
    env runner -> trainer   env runner's nonce, HMAC(secret, "env runner", context, both nonces)
    trainer -> env runner   HMAC(secret, "trainer", context, both nonces)
    env runner -> trainer   ACCEPTED

The secret came through Ray, by an actor call that the cluster authenticated. A recorded conversation is worth nothing:
each side's answer covers the other's fresh nonce. From there on the bytes are as protected as Ray's own, which
is by TLS where the cluster has it.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import time
from typing import NoReturn

MAGIC = b"remoterl stream 1\n"
ACCEPTED = b"\x01"
SECRET_BYTES = NONCE_BYTES = PROOF_BYTES = 32


class HandshakeError(Exception):
    """The other end is not the one that was meant, or too slow, or speaks something else. Names no secret."""


def greet(connected: socket.socket, secret: bytes, context: bytes, deadline: float) -> None:
    """The trainer's half.

    Args:
        connected: to the env runner, blocking.
        secret: of this one connection.
        context: what the connection is for; both ends must mean the same.
        deadline: `time.monotonic()` of the end of patience.

    Raises:
        HandshakeError: the other end did not prove that it knows the secret, or refused us.
        OSError: the connection broke.
    """
    nonce = secrets.token_bytes(NONCE_BYTES)
    _send(connected, MAGIC + nonce, deadline)
    answer = _receive(connected, NONCE_BYTES + PROOF_BYTES, deadline)
    nonces = nonce + answer[:NONCE_BYTES]
    if not hmac.compare_digest(answer[NONCE_BYTES:], _proof(secret, b"env runner", context, nonces)):
        _fail("the other end is not this session's env runner")
    _send(connected, _proof(secret, b"trainer", context, nonces), deadline)
    if _receive(connected, len(ACCEPTED), deadline) != ACCEPTED:
        _fail("the env runner did not accept the connection")


def challenge(connected: socket.socket, secret: bytes, context: bytes, deadline: float) -> None:
    """The env runner's half, but for the last word: `accept`, which can be said to one peer only. Raises as `greet`."""
    greeting = _receive(connected, len(MAGIC) + NONCE_BYTES, deadline, MAGIC)
    nonce = secrets.token_bytes(NONCE_BYTES)
    nonces = greeting[len(MAGIC) :] + nonce
    _send(connected, nonce + _proof(secret, b"env runner", context, nonces), deadline)
    proof = _receive(connected, PROOF_BYTES, deadline)
    if not hmac.compare_digest(proof, _proof(secret, b"trainer", context, nonces)):
        _fail("the other end is not this session's trainer")


def accept(connected: socket.socket, deadline: float) -> None:
    """The last word of the env runner's half."""
    _send(connected, ACCEPTED, deadline)


def _proof(secret: bytes, who: bytes, context: bytes, nonces: bytes) -> bytes:
    return hmac.digest(secret, b"\0".join((MAGIC, who, context, nonces)), "sha256")


def _send(connected: socket.socket, data: bytes, deadline: float) -> None:
    connected.settimeout(_remaining(deadline))
    connected.sendall(data)


def _receive(connected: socket.socket, size: int, deadline: float, prefix: bytes = b"") -> bytes:
    """Exactly `size` bytes; what does not begin with `prefix` is refused at its first wrong byte."""
    received = b""
    while len(received) < size:
        connected.settimeout(_remaining(deadline))
        try:
            more = connected.recv(size - len(received))
        except TimeoutError:
            _fail("the other end was too slow")
        if not more:
            _fail("the other end closed the connection")
        received += more
        if received[: len(prefix)] != prefix[: len(received)]:
            _fail("the other end speaks something else")
    return received


def _remaining(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        _fail("the other end was too slow")
    return remaining


def _fail(reason: str) -> NoReturn:
    raise HandshakeError(reason)
