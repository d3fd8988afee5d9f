"""Whatever comes through a stream's socket: nothing of a stranger's is unpickled, nobody crashes, hangs or grows.

Hypothesis makes up what strangers and broken peers send, against the real listener, server and channel.
REMOTERL_TEST_EXAMPLES=5000 makes that many conversations a test, other ones each time, instead of the same few.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import pickletools
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import cloudpickle
import envs
import numpy as np
import psutil
import pytest
from gymnasium.vector import AutoresetMode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processes import wait_until

from remoterl import messages as m
from remoterl.actors import stream_listener
from remoterl.actors.env_runner import EnvRunner
from remoterl.actors.stream_listener import MAX_UNPROVEN, StreamListener
from remoterl.actors.stream_server import serve
from remoterl.channels import handshake
from remoterl.channels.codec import DEFINITION, PICKLED, PREFIX, Encoder
from remoterl.channels.stream import StreamChannel, Streams, UnreachableError, connect
from remoterl.errors import RemoteRLError
from remoterl.shipping import ship

EXAMPLES = int(os.environ.get("REMOTERL_TEST_EXAMPLES", "0"))
GREETING_BYTES = len(handshake.MAGIC) + handshake.NONCE_BYTES
ANSWER_BYTES = handshake.NONCE_BYTES + handshake.PROOF_BYTES
MOST_GROWTH_BYTES = 200_000_000
PATIENCE_S = 20.0  # for what may never hang


def examples(count: int) -> Any:
    return settings(
        max_examples=EXAMPLES or count,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture
def unpickled(monkeypatch) -> list[bytes]:
    """What this process unpickles, as it always would."""
    loads, seen = pickle.loads, []

    def recording(data: Any, **options: Any) -> Any:
        seen.append(bytes(data))
        return loads(data, **options)

    monkeypatch.setattr(pickle, "loads", recording)
    monkeypatch.setattr(cloudpickle, "loads", recording)
    return seen


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch) -> Iterator[None]:
    """No thread, no descriptor, no memory; and no thread ended by an exception."""
    died: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", died.append)
    process = psutil.Process()
    threads, descriptors, size_bytes = threading.active_count(), process.num_fds(), process.memory_info().rss
    yield
    gc.collect()  # a session's `Streams` go with it
    wait_until(lambda: threading.active_count() <= threads, PATIENCE_S, "threads are left")
    wait_until(lambda: process.num_fds() <= descriptors, PATIENCE_S, "descriptors are left")
    assert process.memory_info().rss < size_bytes + MOST_GROWTH_BYTES
    assert died == []


def call(offer: m.StreamOffer) -> socket.socket:
    return socket.create_connection((offer.host, offer.port), PATIENCE_S)


def drain(connected: socket.socket) -> bytes:
    """All that comes until the other end closes."""
    connected.settimeout(PATIENCE_S)
    received = b""
    with contextlib.suppress(ConnectionError):  # he may be cut off
        while more := connected.recv(65_536):
            received += more
    return received


# ---- strangers -------------------------------------------------------------------------------------------------


class Conversation(NamedTuple):
    """What a stranger does: he sends some, hears `hears` bytes, sends more, and stays, says no more, or hangs up."""

    first: bytes
    hears: int
    second: bytes
    ending: str  # "stay", "half close", "close", "reset"


GARBAGE = st.one_of(
    st.binary(max_size=200),
    st.sampled_from(
        [
            b"GET / HTTP/1.1\r\nHost: hub\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),  # how TLS begins
            pickle.dumps(print),
            PREFIX.pack(PICKLED, 2**63, 2**63),
            b"\xff" * 300_000,
        ]
    ),
)
GREETINGS = st.builds(lambda nonce: handshake.MAGIC + nonce, st.binary(min_size=32, max_size=32))
CONVERSATIONS = st.builds(
    Conversation,
    first=st.one_of(
        GARBAGE,
        GREETINGS,
        st.builds(lambda greeting, size: greeting[:size], GREETINGS, st.integers(0, GREETING_BYTES)),
        st.builds(lambda greeting, more: greeting + more, GREETINGS, GARBAGE),
        st.builds(
            lambda greeting, at, bit: greeting[:at] + bytes([greeting[at] ^ 1 << bit]) + greeting[at + 1 :],
            GREETINGS,
            st.integers(0, len(handshake.MAGIC) - 1),
            st.integers(0, 7),
        ),
    ),
    hears=st.sampled_from([0, 1, ANSWER_BYTES]),
    second=st.one_of(st.just(b""), GARBAGE, st.binary(min_size=32, max_size=32)),
    ending=st.sampled_from(["half close", "half close", "close", "reset", "stay"]),
)


@pytest.fixture
def listener(monkeypatch) -> Iterator[StreamListener]:
    """One for all conversations of a test, which serves its trainer afterwards."""
    monkeypatch.setattr(stream_listener, "HANDSHAKE_S", 0.1)  # for those who stay and say nothing
    monkeypatch.setattr(stream_listener, "OPEN_S", 3600.0)
    listener = StreamListener("127.0.0.1", "session")
    yield listener
    monkeypatch.setattr(stream_listener, "HANDSHAKE_S", PATIENCE_S)
    wait_until(lambda: serves(listener), PATIENCE_S)
    listener.close()


def serves(listener: StreamListener) -> bool:
    try:
        with connect(listener.offer(), PATIENCE_S) as trainer, listener.accepted(PATIENCE_S) as accepted:
            accepted.sendall(b"hello")
            return trainer.recv(5) == b"hello"
    except UnreachableError:  # strangers are still being waited for
        return False


def test_strangers(listener: StreamListener, unpickled: list[bytes]) -> None:
    offer = listener.offer()

    @examples(120)
    @given(CONVERSATIONS)
    def talk(conversation: Conversation) -> None:
        heard = converse(offer, conversation)
        assert len(heard) <= ANSWER_BYTES  # never the word that he is accepted

    talk()
    assert unpickled == []


def converse(offer: m.StreamOffer, conversation: Conversation) -> bytes:
    heard = b""
    with call(offer) as stranger, contextlib.suppress(OSError):
        stranger.sendall(conversation.first)
        while len(heard) < conversation.hears and (more := stranger.recv(conversation.hears - len(heard))):
            heard += more
        stranger.sendall(conversation.second)
        if conversation.ending == "reset":
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif conversation.ending != "close":
            if conversation.ending == "half close":
                stranger.shutdown(socket.SHUT_WR)
            heard += drain(stranger)
    return heard


@examples(40)
@given(at=st.integers(0, handshake.PROOF_BYTES - 1), bit=st.integers(0, 7))
def nearly_right(offer: m.StreamOffer, at: int, bit: int) -> None:
    """One who knows the secret, but for one bit."""
    with call(offer) as stranger:
        nonce = os.urandom(handshake.NONCE_BYTES)
        stranger.sendall(handshake.MAGIC + nonce)
        answer = stranger.recv(ANSWER_BYTES, socket.MSG_WAITALL)
        nonces = nonce + answer[: handshake.NONCE_BYTES]
        proof = bytearray(handshake._proof(offer.secret, b"trainer", offer.context.encode(), nonces))
        proof[at] ^= 1 << bit
        stranger.sendall(proof)
        assert drain(stranger) == b""


def test_a_proof_with_one_wrong_bit(listener: StreamListener, unpickled: list[bytes]) -> None:
    nearly_right(listener.offer())
    assert unpickled == []


def test_replays_of_a_genuine_session(listener: StreamListener, unpickled: list[bytes]) -> None:
    """What passed between a trainer and an env runner with this very secret, said again in pieces."""
    offer = listener.offer()
    trainer, env_runner = socket.socketpair()
    recorded = Recorder(trainer)
    with trainer, env_runner:
        ours = threading.Thread(target=_challenge, args=(env_runner, offer))
        ours.start()
        handshake.greet(recorded, offer.secret, offer.context.encode(), time.monotonic() + PATIENCE_S)  # type: ignore[arg-type]
        ours.join()
    greeting, proof = recorded.sent
    [answer, _] = recorded.received
    for first, hears, second in (
        (greeting, ANSWER_BYTES, proof),
        (greeting + proof, ANSWER_BYTES, b""),
        (greeting, ANSWER_BYTES, answer[handshake.NONCE_BYTES :]),  # the env runner's own proof, sent back to it
        (handshake.MAGIC + answer[: handshake.NONCE_BYTES], ANSWER_BYTES, proof),
    ):
        assert len(converse(offer, Conversation(first, hears, second, "half close"))) == ANSWER_BYTES
    assert unpickled == []


def _challenge(env_runner: socket.socket, offer: m.StreamOffer) -> None:
    deadline = time.monotonic() + PATIENCE_S
    handshake.challenge(env_runner, offer.secret, offer.context.encode(), deadline)
    handshake.accept(env_runner, deadline)


class Recorder:
    def __init__(self, connected: socket.socket) -> None:
        self._connected = connected
        self.settimeout = connected.settimeout
        self.sent: list[bytes] = []
        self.received: list[bytes] = []

    def sendall(self, data: bytes) -> None:
        self.sent.append(data)
        self._connected.sendall(data)

    def recv(self, size: int) -> bytes:
        self.received.append(self._connected.recv(size, socket.MSG_WAITALL))
        return self.received[-1]


def test_a_crowd(listener: StreamListener, unpickled: list[bytes]) -> None:
    """Hundreds who say nothing are waited for by a few threads at most, and then forgotten."""
    offer, threads = listener.offer(), threading.active_count()
    with contextlib.ExitStack() as crowd:
        for _ in range(300):
            one = crowd.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex((offer.host, offer.port))
            assert threading.active_count() <= threads + MAX_UNPROVEN
    assert unpickled == []


def test_no_descriptor_is_free(listener: StreamListener) -> None:
    """Where a connection can't be accepted, the next one can: the fixture's trainer comes after it."""
    accept = listener._sockets[0].accept
    failures = iter([OSError(24, "Too many open files"), ConnectionAbortedError(103, "gone")])

    class Failing:
        def __init__(self, one: socket.socket) -> None:
            self._one = one

        def __getattr__(self, name: str) -> Any:
            return getattr(self._one, name)

        def accept(self) -> Any:
            for error in failures:
                raise error
            return accept()

    listener._sockets[0] = Failing(listener._sockets[0])  # type: ignore[call-overload]
    call(listener.offer()).close()  # for whom the listener already waits


def test_strangers_do_not_keep_the_port_open(monkeypatch) -> None:
    monkeypatch.setattr(stream_listener, "OPEN_S", 0.2)
    offer, deadline = StreamListener("127.0.0.1", "session").offer(), time.monotonic() + PATIENCE_S
    with contextlib.suppress(ConnectionError):  # refused, or cut off in the queue
        while time.monotonic() < deadline:
            call(offer).close()
    assert time.monotonic() < deadline


# ---- peers that have authenticated -----------------------------------------------------------------------------

STEPPED = m.RowsStepped(np.zeros((3, 4), np.float32), np.ones(3), np.zeros(3, bool), np.zeros(3, bool), [], [])
MESSAGES = [
    m.StepRows(1, np.arange(3)),
    m.ResetRows(1, (1, 2), None, None),
    m.CallRows(1, (0,), "book", b"", None),
    m.CloseRows(1),
    STEPPED,
    STEPPED._replace(infos=[(1, {"key": 1.5}, None)]),
    m.RowsCalled([np.zeros(30_000), "text", None]),
    m.RowsReset({"image": np.zeros((300, 300), np.uint8)}, []),
]


def framed(message: Any) -> bytes:
    return b"".join(bytes(buffer) for buffer in Encoder().encode(message)[0])


def is_harmless(data: bytes) -> bool:
    """No pickle among these bytes asks for a table of billions of memos, for which this machine has no memory."""
    for start in range(len(data)):
        if data[start] in b"pqr":
            opcode = next(pickletools.genops(b"\x80\x05N" + data[start : start + 40] + b"\n"), None)
            if opcode is None or _largest_memo(data[start:]) > 100_000:
                return False
    return True


def _largest_memo(data: bytes) -> int:
    if data[0] == ord("r") and len(data) >= 5:
        return struct.unpack_from("<I", data, 1)[0]
    digits = data[1:12].partition(b"\n")[0]
    return int(digits) if data[0] == ord("p") and digits.isdigit() else 0


@st.composite
def mutated(draw: Callable[[Any], Any]) -> bytes:
    """Frames of messages, some bytes of which are others, missing, or too many."""
    data = bytearray(b"".join(framed(message) for message in draw(st.lists(st.sampled_from(MESSAGES), max_size=3))))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, min(len(data), 400)))
        if draw(st.booleans()):
            data[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
        else:
            del data[at + draw(st.integers(0, 40)) :]
    return bytes(data)


SIZES = st.one_of(st.integers(0, 100), st.sampled_from([65_536, 2**31, 2**32 - 1, 2**33, 2**34, 2**63, 2**64 - 1]))
HEADS = st.builds(
    lambda layout, pickle_bytes, body_bytes, rest: PREFIX.pack(layout, pickle_bytes, body_bytes) + rest,
    st.sampled_from([PICKLED, DEFINITION, 1, 2, 77]),
    SIZES,
    SIZES,
    st.one_of(st.binary(max_size=100), st.builds(bytes, st.integers(0, 70_000))),
)
# Buffers beside a pickle: how many, and how large.
BESIDES = st.builds(
    lambda count, sizes, body_bytes: (
        PREFIX.pack(PICKLED, 70_000, body_bytes) + struct.pack(f"<I{len(sizes)}Q", count, *sizes) + bytes(70_000)
    ),
    st.integers(0, 2**32 - 1),
    st.lists(SIZES, max_size=4),
    SIZES,
)
FRAMES = st.one_of(st.binary(max_size=100), HEADS, BESIDES, mutated(), mutated()).filter(is_harmless)


def test_an_env_runner_whose_trainer_sends_garbage() -> None:
    """It answers what it can read, and ends the stream at what is no frame."""

    @examples(100)
    @given(FRAMES)
    def talk(frames: bytes) -> None:
        with served() as trainer:
            with contextlib.suppress(OSError):
                trainer.sendall(frames)
                trainer.shutdown(socket.SHUT_WR)
            drain(trainer)

    talk()


@contextlib.contextmanager
def served(answer: Callable[[Any], Any] | None = None) -> Iterator[socket.socket]:
    """A trainer's end of a stream; the other is served by an env runner."""
    listener = StreamListener("127.0.0.1", "session")
    runner = EnvRunner(m.TrainerInfo("session", "script", "host", 1))
    with connect(listener.offer(), PATIENCE_S) as trainer:
        arguments = (listener.accepted(PATIENCE_S), answer or runner._answer, runner._unpicklable)
        thread = threading.Thread(target=serve, args=arguments, daemon=True)
        thread.start()
        yield trainer
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_a_trainer_whose_env_runner_sends_garbage() -> None:
    """Every request ends with a reply or an error of ours, and the other env runners' streams go on."""
    streams = Streams()
    with served() as socket_of_other:
        other = StreamChannel(socket_of_other, streams, "other env runner")
        request = m.OpenRows(
            1, (0,), ship([envs.CountingEnv]), m.Semantics.GYMNASIUM_SYNC, AutoresetMode.NEXT_STEP, b""
        )
        assert isinstance(other.receive(other.send(request), PATIENCE_S), m.RowsOpened)
        other.receive(other.send(m.ResetRows(1, (None,), None, None)), PATIENCE_S)

        @examples(100)
        @given(FRAMES, st.integers(0, 2))
        def talk(frames: bytes, requests: int) -> None:
            ours, theirs = tcp_pair()
            channel = StreamChannel(ours, streams, "broken env runner")
            tickets = [channel.send(m.StepRows(1, np.arange(3))) for _ in range(requests)]
            writer = threading.Thread(target=_send_and_close, args=(theirs, frames))
            writer.start()
            for ticket in tickets:
                with contextlib.suppress(RemoteRLError):
                    channel.receive(ticket, PATIENCE_S)
            step = m.StepRows(1, np.array([1]))
            replies = StreamChannel.receive_all([other], [other.send(step)], PATIENCE_S)
            assert isinstance(replies[0], m.RowsStepped)
            channel.close()
            writer.join(PATIENCE_S)
            assert not writer.is_alive()

        talk()
        other.close()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname(), PATIENCE_S)
        return ours, server.accept()[0]


def _send_and_close(theirs: socket.socket, frames: bytes) -> None:
    with theirs, contextlib.suppress(OSError):
        theirs.sendall(frames)


def test_what_is_said_of_garbage() -> None:
    streams = Streams()
    for frames, words in (
        (PREFIX.pack(PICKLED, 2**63, 2**63), "announced .* bytes"),
        (PREFIX.pack(PICKLED, 70_000, 0) + struct.pack("<I", 2**31) + bytes(70_000), "without its sizes"),
        (PREFIX.pack(PICKLED, 70_000, 9) + struct.pack("<IQ", 1, 8) + bytes(70_000), "announced 9 bytes, then 8"),
        (PREFIX.pack(DEFINITION, 4, 0) + b"what", "defined no layout"),
        (framed(m.CloseRows(1)) * 2, "answered what was not asked"),
    ):
        ours, theirs = tcp_pair()
        channel = StreamChannel(ours, streams, "broken env runner")
        ticket = channel.send(m.CloseRows(1))
        theirs.sendall(frames)
        if "not asked" in words:
            channel.receive(ticket, PATIENCE_S)
            ticket = None
        else:
            with pytest.raises(RemoteRLError, match=f"broken env runner is lost .*{words}"):
                channel.receive(ticket, PATIENCE_S)
        with pytest.raises(RemoteRLError, match="broken env runner"):
            channel.receive(channel.send(m.CloseRows(1)), PATIENCE_S)
        channel.close()
        theirs.close()


def test_a_trainer_that_reaches_somebody_else(unpickled: list[bytes]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        offer = m.StreamOffer("127.0.0.1", server.getsockname()[1], bytes(32), "session", False)

        def answer(data: bytes) -> None:
            connected, _ = server.accept()
            with connected, contextlib.suppress(OSError):
                connected.sendall(data)
                connected.shutdown(socket.SHUT_WR)
                drain(connected)

        @examples(50)
        @given(st.one_of(GARBAGE, st.binary(min_size=ANSWER_BYTES, max_size=ANSWER_BYTES + 1)))
        def reach(data: bytes) -> None:
            thread = threading.Thread(target=answer, args=(data,))
            thread.start()
            with pytest.raises(UnreachableError):
                connect(offer, PATIENCE_S)
            thread.join(PATIENCE_S)
            assert not thread.is_alive()

        reach()
    assert unpickled == []
