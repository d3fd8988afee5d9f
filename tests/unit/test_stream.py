"""The stream channel against a real env runner in this process: listener, connection, and what is asked through it."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import ipaddress
import os
import pickle
import resource
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import envs
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from processes import wait_until
from streams import Server

from remoterl import messages as m
from remoterl.actors import stream_listener, stream_server
from remoterl.actors.stream_listener import StreamListener
from remoterl.channels import cores, handshake, stream
from remoterl.channels.stream import StreamChannel, UnreachableError, connect
from remoterl.errors import EnvRunnerLostError
from remoterl.shipping import ship


@pytest.fixture
def listener() -> Iterator[StreamListener]:
    listener = StreamListener("127.0.0.1", "session")
    yield listener
    listener.close()


def ask(channel: StreamChannel, request: Any, timeout_s: float | None = 20) -> Any:
    return channel.receive(channel.send(request), timeout_s)


def open_rows(channel: StreamChannel, vector_id: int, factory: Callable[[], Any], rows: int = 2) -> None:
    mode = AutoresetMode.NEXT_STEP
    opened = ask(
        channel,
        m.OpenRows(vector_id, tuple(range(rows)), ship([factory] * rows), m.Semantics.GYMNASIUM_SYNC, mode, b""),
    )
    assert isinstance(opened, m.RowsOpened), opened
    ask(channel, m.ResetRows(vector_id, (None,) * rows, None, None))


# ---- who is let in -------------------------------------------------------------------------------------------


def test_an_offer_is_good_for_one_connection(listener: StreamListener) -> None:
    connect(listener.offer(), 5).close()
    listener.accepted(5).close()
    with pytest.raises(UnreachableError):
        connect(listener.offer(), 1)


def test_another_machine_has_no_such_name(listener: StreamListener) -> None:
    offer = dataclasses.replace(listener.offer(), local="remoterl-of-another-machine")
    with connect(offer, 5) as connected:
        assert connected.family == socket.AF_INET


def test_garbage_and_strangers_do_not_keep_the_trainer_out(listener: StreamListener) -> None:
    offer = listener.offer()
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", handshake.MAGIC + bytes(64), b"\xff" * 1_000_000):
        with socket.create_connection((offer.host, offer.port), 5) as stranger, contextlib.suppress(OSError):
            stranger.sendall(garbage)
            while stranger.recv(1000):
                pass
    with pytest.raises(UnreachableError, match="not this session's env runner"):
        connect(m.StreamOffer(offer.host, offer.port, bytes(32), offer.context, False), 5)
    connect(offer, 5).close()


def test_nothing_is_unpickled_before_the_handshake(listener: StreamListener, monkeypatch) -> None:
    called = []
    for module in ("framing", "codec"):
        monkeypatch.setattr(f"remoterl.channels.{module}.pickle.loads", lambda *a, **k: called.append(a))
    offer = listener.offer()
    with socket.create_connection((offer.host, offer.port), 5) as stranger, contextlib.suppress(OSError):
        stranger.sendall(pickle.dumps(print))
        assert stranger.recv(1000) == b""
    assert called == []


def test_idle_connections_are_few_and_the_trainer_comes_in_beside_them(listener: StreamListener) -> None:
    offer = listener.offer()
    with contextlib.ExitStack() as stack:
        idle = [
            stack.enter_context(socket.create_connection((offer.host, offer.port), 5))
            for _ in range(stream_listener.MAX_UNPROVEN + 1)
        ]
        idle[0].settimeout(stream_listener.HANDSHAKE_S / 2)
        while idle[0].recv(100):  # the challenge, and then it is closed for the last one
            pass
        connect(dataclasses.replace(offer, local=""), 5).close()
        listener.accepted(5).close()


def test_a_slow_stranger_is_dropped(listener: StreamListener, monkeypatch) -> None:
    monkeypatch.setattr(stream_listener, "HANDSHAKE_S", 0.2)
    offer = listener.offer()
    with socket.create_connection((offer.host, offer.port), 5) as slow:
        slow.sendall(handshake.MAGIC[:3])
        slow.settimeout(10)
        assert slow.recv(1) == b""


def test_the_port_closes_with_the_listener(listener: StreamListener) -> None:
    offer = listener.offer()
    listener.close()
    listener.close()
    with pytest.raises(UnreachableError, match="can't be reached"):
        connect(offer, 1)


def test_ports_can_be_fixed(monkeypatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("REMOTERL_STREAM_PORTS", f"{port}-{port + 9}")
        listener = StreamListener("127.0.0.1", "session")
        assert port < listener.offer().port <= port + 9
        listener.close()
        monkeypatch.setenv("REMOTERL_STREAM_PORTS", str(port))
        with pytest.raises(OSError, match=f"REMOTERL_STREAM_PORTS={port}"):
            StreamListener("127.0.0.1", "session")
    for wrong in ("many", "0", "5-4", "70000"):
        monkeypatch.setenv("REMOTERL_STREAM_PORTS", wrong)
        with pytest.raises(OSError, match="must be a port or a range"):
            StreamListener("127.0.0.1", "session")


def test_a_secret_is_not_in_a_repr(listener: StreamListener) -> None:
    assert "secret" not in repr(listener.offer())


# ---- TLS ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def certificates(tmp_path: Path) -> dict[str, dict[str, str]]:
    """Ray's variables for a cluster (`ours`) and for one under another authority (`theirs`)."""
    return {name: _make_certificates(tmp_path / name) for name in ("ours", "theirs")}


def _make_certificates(folder: Path) -> dict[str, str]:
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder.mkdir()
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)]) for text in (folder.name, "node")]
    now = datetime.datetime.now(datetime.timezone.utc)
    pems = []
    for key, name, is_authority in zip(keys, names, (True, False), strict=True):
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(names[0])
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
            )
            .sign(keys[0], hashes.SHA256())
        )
        pems.append(certificate.public_bytes(serialization.Encoding.PEM))
    files = {
        "RAY_TLS_CA_CERT": pems[0],
        "RAY_TLS_SERVER_CERT": pems[1],
        "RAY_TLS_SERVER_KEY": keys[1].private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return {"RAY_USE_TLS": "1", **{name: str(folder / name) for name in files}}


@contextlib.contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


def test_tls_both_ways(certificates, server: Server) -> None:
    with environment(certificates["ours"]):
        channel = server.open()
        open_rows(channel, 1, envs.CountingEnv)
        assert isinstance(channel.frames.socket, ssl.SSLSocket)
        assert channel.frames.socket.version() in ("TLSv1.2", "TLSv1.3")
        big = ask(channel, m.CallRows(1, (0,), "add", ship(((np.ones(1_000_000),), {})), True))
        assert big.results[0].sum() == 1_000_000


def test_tls_on_one_side_only_is_refused(certificates, listener: StreamListener) -> None:
    with environment(certificates["ours"]), pytest.raises(UnreachableError, match="this process uses TLS"):
        connect(listener.offer(), 5)
    with environment(certificates["ours"]):
        with_tls = StreamListener("127.0.0.1", "session")
    offer = with_tls.offer()
    with pytest.raises(UnreachableError, match="the env runner's Ray uses TLS"):
        connect(offer, 5)
    with environment(certificates["theirs"]), pytest.raises(UnreachableError, match="certificate"):
        connect(offer, 5)
    without_tls = m.StreamOffer(offer.host, offer.port, offer.secret, offer.context, False)
    with pytest.raises(UnreachableError):  # a trainer that leaves TLS out all the same
        connect(without_tls, 5)
    with_tls.close()


# ---- what goes through -------------------------------------------------------------------------------------------


def test_several_vector_envs_at_once(server: Server) -> None:
    channel = server.open()
    for vector_id in (1, 2, 3):
        open_rows(channel, vector_id, envs.CountingEnv, rows=vector_id)
    tickets = [channel.send(m.StepRows(i, np.full(i, i - 1))) for i in (1, 2, 3)]
    for i, ticket in reversed(list(zip((1, 2, 3), tickets, strict=True))):
        assert channel.receive(ticket).rewards.tolist() == [i - 1] * i


def test_a_late_answer_is_never_read_as_another(server: Server) -> None:
    channel = server.open()

    class Slow(envs.CountingEnv):
        def step(self, action: int) -> Any:
            time.sleep(0.3 if self.steps == 0 else 0)
            return super().step(action)

    open_rows(channel, 1, Slow, rows=1)
    with pytest.raises(TimeoutError, match="env runner 0"):
        ask(channel, m.StepRows(1, np.array([2])), timeout_s=0.01)
    assert ask(channel, m.StepRows(1, np.array([1]))).rewards.tolist() == [1]


def test_what_cannot_travel_is_told_and_the_stream_goes_on(server: Server) -> None:
    class Leaky(envs.CountingEnv):
        def step(self, action: int) -> Any:
            return (*super().step(action)[:4], {"handle": threading.Lock()})

    channel = server.open()
    open_rows(channel, 1, Leaky)
    failed = ask(channel, m.StepRows(1, np.zeros(2, int)))
    assert isinstance(failed, m.RowsFailed) and "info['handle'] of row 0 is a lock" in failed.errors[0].message
    assert isinstance(ask(channel, m.CallRows(9, (), "x", b"", None)), m.RowsFailed)
    assert ask(channel, m.CloseRows(1)).results == []


def test_two_full_pipes_do_not_wait_for_each_other(server: Server) -> None:
    """Replies that nobody has read yet, and requests that the other end can't read before they are."""
    channel = server.open()
    open_rows(channel, 1, envs.CountingEnv, rows=1)
    big = np.zeros(8_000_000, np.uint8)
    tickets = [channel.send(m.CallRows(1, (0,), "add", ship(((big,), {})), True)) for _ in range(4)]
    for ticket in tickets:
        assert channel.receive(ticket, 60).results[0].size == 8_000_000


def test_a_big_reply_does_not_hold_up_another_runners(server: Server) -> None:
    big, small = server.open(), server.open()
    for channel in (big, small):
        open_rows(channel, 1, envs.CountingEnv, rows=1)
    big_ticket = big.send(m.CallRows(1, (0,), "add", ship(((np.zeros(30_000_000, np.uint8),), {})), True))
    assert ask(small, m.StepRows(1, np.array([1]))).rewards.tolist() == [1]
    assert big.receive(big_ticket, 60).results[0].size == 30_000_000
    replies = StreamChannel.receive_all([big, small], [c.send(m.StepRows(1, np.array([2]))) for c in (big, small)], 20)
    assert [reply.rewards.tolist() for reply in replies] == [[2], [2]]


def test_many_threads(server: Server) -> None:
    channels = [server.open() for _ in range(2)]
    failures: list[str] = []

    def work(vector_id: int) -> None:
        try:
            for channel in channels:
                open_rows(channel, vector_id, envs.CountingEnv)
            for step in range(100):
                reply = StreamChannel.receive_all(
                    channels, [c.send(m.StepRows(vector_id, np.full(2, step % 3))) for c in channels], 30
                )
                assert [r.rewards.tolist() for r in reply] == [[step % 3 if (step + 1) % 6 else 0] * 2] * 2, (
                    step,
                    reply,
                )
        except BaseException as error:
            failures.append(f"{vector_id}: {error!r}")

    threads = [threading.Thread(target=work, args=(vector_id,)) for vector_id in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []


def test_who_awaits_several_holds_up_nobody(server: Server, tmp_path: Path) -> None:
    """While it sleeps until the last of its replies is there, others get theirs."""
    go = str(tmp_path / "go")

    class Waiting(envs.CountingEnv):
        def step(self, action: int) -> Any:
            wait_until(Path(go).exists, 60, "the test says go")
            return super().step(action)

    first, last = channels = [server.open() for _ in range(2)]
    open_rows(first, 1, envs.CountingEnv, rows=1)
    open_rows(first, 2, envs.CountingEnv, rows=1)
    open_rows(last, 1, Waiting, rows=1)
    replies: list[Any] = []

    def work() -> None:
        tickets = [channel.send(m.StepRows(1, np.array([2]))) for channel in channels]
        replies.extend(StreamChannel.receive_all(channels, tickets, 60))

    thread = threading.Thread(target=work)
    thread.start()
    wait_until(lambda: server.streams._hears_one, 60, "the other thread sleeps")
    assert ask(first, m.StepRows(2, np.array([1])), 60).rewards.tolist() == [1]
    assert replies == []
    Path(go).touch()
    thread.join(60)
    assert [reply.rewards.tolist() for reply in replies] == [[2], [2]]


@pytest.mark.parametrize("how", ["interrupt", "close"])
def test_everybody_who_waits_hears_that_the_peer_is_gone(server: Server, how: str) -> None:
    class Hanging(envs.CountingEnv):
        def step(self, action: int) -> Any:
            time.sleep(1)
            return super().step(action)

    channel, other = server.open(), server.open()
    open_rows(channel, 1, Hanging, rows=1)
    open_rows(other, 1, envs.CountingEnv, rows=1)
    ticket, second = (channel.send(m.StepRows(1, np.array([1]))) for _ in range(2))
    threading.Timer(0.1, getattr(channel, how)).start()
    alive, gone = StreamChannel.receive_all([other, channel], [other.send(m.StepRows(1, np.array([2]))), second], 20)
    assert alive.rewards.tolist() == [2] and isinstance(gone, EnvRunnerLostError)
    for waiting in (ticket, second):
        with pytest.raises(EnvRunnerLostError, match="env runner 0"):
            channel.receive(waiting, 20)
    with pytest.raises(EnvRunnerLostError):
        channel.send(m.CloseRows(1))
    assert channel.lost and not other.lost
    assert ask(other, m.StepRows(1, np.array([1]))).rewards.tolist() == [1]


def test_an_abandoned_stream_stays_the_parents(server: Server) -> None:
    """What a forked child does with its copy of the descriptor."""
    import os

    channel = server.open()
    open_rows(channel, 1, envs.CountingEnv, rows=1)
    child = os.fork()
    if child == 0:
        channel.abandon()
        os._exit(0 if channel.lost else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert ask(channel, m.StepRows(1, np.array([1]))).rewards.tolist() == [1]


def test_an_env_runner_looks_for_the_next_step_where_the_last_came_soon(server: Server, monkeypatch) -> None:
    """And not after anything else, nor where the trainer computes between steps."""
    looks: list[float] = []
    monkeypatch.setattr(stream_server, "SPIN_S", 0.5)  # what is soon
    monkeypatch.setattr(stream_server, "_spin", lambda frames: looks.append(time.monotonic()))
    monkeypatch.setattr(stream_server.SpareCores, "enough", lambda cores: True)
    channel = server.open()
    step = m.StepRows(1, np.zeros(2, int))
    open_rows(channel, 1, envs.CountingEnv)
    assert looks == []
    ask(channel, step)
    wait_until(lambda: len(looks) == 1)
    time.sleep(0.7)
    ask(channel, step)
    ask(channel, m.CallRows(1, (0,), "length", ship(((), {})), None))  # answered after the server chose to wait for it
    assert len(looks) == 1
    ask(channel, step)
    wait_until(lambda: len(looks) == 2)


# ---- Ctrl-C ----------------------------------------------------------------------------------------------------------


class EchoEnv(envs.CountingEnv):
    """Its reward is its action; 99 takes half a second."""

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        time.sleep(0.5 if action == 99 else 0)
        return self._observation(), float(action), False, False, {}


def interrupted_once(original: Callable[..., Any], kind: type[BaseException]) -> Callable[..., Any]:
    """Python calls a signal's handler between two of its steps: here, right after this function has done its work."""
    raised: list[bool] = []

    def wrapper(*args: Any) -> Any:
        result = original(*args)
        if not raised and result:
            raised.append(True)
            raise kind
        return result

    return wrapper


@pytest.mark.parametrize("kind", [KeyboardInterrupt, TimeoutError])
@pytest.mark.parametrize("where", ["_encoder.encode", "flush", "_receive_into", "get"])
def test_no_reply_is_mistaken_after_an_interrupt(server: Server, where: str, kind: type[BaseException]) -> None:
    """A script's alarm may raise anything, `TimeoutError` too: that is neither the stream's nor an answer's."""
    channel, other = server.open(), server.open()
    for number, one in enumerate((channel, other)):
        open_rows(one, number, EchoEnv)
    assert ask(channel, m.StepRows(0, np.array([1, 2]))).rewards.tolist() == [1, 2]
    *path, name = where.split(".")
    holder = getattr(channel.frames, path[0]) if path else channel.frames
    setattr(holder, name, interrupted_once(getattr(holder, name), kind))
    with pytest.raises((KeyboardInterrupt, TimeoutError)) as raised:
        ask(channel, m.StepRows(0, np.array([3, 4])))
    assert raised.type is kind
    if where == "_encoder.encode" and issubclass(kind, Exception):  # as what can't be pickled: nothing was sent
        assert ask(channel, m.StepRows(0, np.array([5, 6]))).rewards.tolist() == [5, 6]
        return
    with pytest.raises(EnvRunnerLostError, match="interrupted|closed"):
        ask(channel, m.StepRows(0, np.array([5, 6])))
    assert ask(other, m.StepRows(1, np.array([7, 8]))).rewards.tolist() == [7, 8]


def test_an_interrupt_in_the_first_message_of_a_kind(server: Server) -> None:
    """The other end has not been told how such messages are laid out, and will not be."""
    channel = server.open()
    open_rows(channel, 0, EchoEnv)
    encoder = channel.frames._encoder
    encoder.encode = interrupted_once(encoder.encode, TimeoutError)
    with pytest.raises(TimeoutError):
        ask(channel, m.StepRows(0, np.array([1, 2])))
    with pytest.raises(EnvRunnerLostError, match="closed"):
        ask(channel, m.StepRows(0, np.array([1, 2])))


@pytest.mark.parametrize("kind", [KeyboardInterrupt, TimeoutError])
def test_an_interrupt_while_it_waits_loses_nothing(server: Server, kind: type[BaseException]) -> None:
    channel = server.open()
    open_rows(channel, 0, EchoEnv)

    def interrupt(*_: Any) -> None:
        raise kind

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        ticket = channel.send(m.StepRows(0, np.array([99, 0])))
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises((KeyboardInterrupt, TimeoutError)) as raised:
            channel.receive(ticket, 20)
        assert raised.type is kind  # `Late` is another
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    later = channel.send(m.StepRows(0, np.array([1, 2])))
    assert [channel.receive(one, 20).rewards.tolist() for one in (ticket, later)] == [[99, 0], [1, 2]]
    assert not channel.lost


def test_a_request_that_is_not_taken_in_time(server: Server) -> None:
    """Of an env runner that is stuck: larger than what the operating system keeps for it."""
    channel, other = server.open(), server.open()
    open_rows(channel, 0, EchoEnv)
    open_rows(other, 1, EchoEnv)
    server.streams.send_timeout_s = 0.3
    step = channel.send(m.StepRows(0, np.array([99, 99])))  # for a second
    with pytest.raises(TimeoutError, match=r"within 0\.3 s"):
        channel.send(m.StepRows(0, np.zeros(20_000_000)))
    with pytest.raises(EnvRunnerLostError):
        channel.receive(step, 20)
    with pytest.raises(EnvRunnerLostError):
        channel.send(m.StepRows(0, np.array([0, 0])))
    assert ask(other, m.StepRows(1, np.array([7, 8]))).rewards.tolist() == [7, 8]


def test_who_reads_nothing_for_long_is_not_gone(server: Server, monkeypatch) -> None:
    """Its machine acknowledges that it does not. (Cut links are in tests/faults.)"""
    for name, seconds in (("VANISHED_S", 0.2), ("LOOK_S", 0.05)):
        monkeypatch.setattr(stream, name, seconds)
    channel = server.open()
    open_rows(channel, 0, EchoEnv)
    slow = channel.send(m.StepRows(0, np.array([99, 99])))  # for a second
    large = channel.send(m.CallRows(0, (0,), "add", ship(((np.zeros(20_000_000, np.uint8),), {})), True))
    assert channel.receive(slow, 20).rewards.tolist() == [99, 99]
    assert channel.receive(large, 20).results[0].size == 20_000_000 and not channel.lost


def test_a_sender_hears_that_the_peer_vanished(server: Server, monkeypatch) -> None:
    channel = server.open()
    open_rows(channel, 0, EchoEnv)
    step = channel.send(m.StepRows(0, np.array([99, 99])))  # for a second
    monkeypatch.setattr(stream, "LOOK_S", 0.05)
    monkeypatch.setattr(stream, "_silent_s", lambda _: 60.0)
    for answer in (lambda: channel.send(m.StepRows(0, np.zeros(20_000_000))), lambda: channel.receive(step, 20)):
        with pytest.raises(EnvRunnerLostError, match="closed|does not answer"):
            answer()


def test_a_handler_steps_in_the_middle_of_what_tls_reads(certificates, server: Server) -> None:
    with environment(certificates["ours"]):
        channel = server.open()
    open_rows(channel, 0, EchoEnv)
    held = channel.frames._lock
    assert held is not None
    with held:  # by this thread, as it is in the middle of `recv_into`
        assert ask(channel, m.StepRows(0, np.array([5, 6]))).rewards.tolist() == [5, 6]


def test_a_handler_that_uses_the_stream_never_waits_for_itself(server: Server) -> None:
    """A signal comes at any moment, also in the middle of a message: at worst the stream is lost."""
    answered, lost = 0, 0

    def handler(*_: Any) -> None:
        nonlocal answered
        with contextlib.suppress(EnvRunnerLostError):
            answered += ask(channel, m.StepRows(0, np.array([5, 6]))).rewards.tolist() == [5, 6]

    channel = server.open()
    open_rows(channel, 0, EchoEnv)
    before = signal.signal(signal.SIGALRM, handler)
    try:
        for number in range(100):
            try:
                signal.setitimer(signal.ITIMER_REAL, (1 + number) * 2e-5)
                assert ask(channel, m.StepRows(0, np.array([1, 2]))).rewards.tolist() == [1, 2]
                signal.setitimer(signal.ITIMER_REAL, 0)
            except EnvRunnerLostError:
                lost += 1
                channel = server.open()
                open_rows(channel, 0, EchoEnv)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert answered > 0 and lost < 100, (answered, lost)


def test_many_streams_are_closed_while_nobody_reads(server: Server) -> None:
    for _ in range(2000):
        server.streams.wake()
    assert server.streams.wait([], 0.0)


def test_without_descriptors_no_core_is_to_spare() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert cores.count_env_runners() >= 0
    with open(os.devnull) as file:
        first_free = file.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (first_free, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            cores.count_env_runners()
        assert not cores.SpareCores().enough()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_interrupts_at_any_moment(server: Server) -> None:
    """Whatever is answered is the answer; what is in doubt is lost, and said to be."""
    random = np.random.default_rng(7)
    channel = None
    number = vector_id = interrupts = losses = 0
    steps = False

    def interrupt(*_: Any) -> None:
        nonlocal interrupts
        if steps:
            interrupts += 1
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    until = time.monotonic() + 3
    try:
        while time.monotonic() < until or interrupts <= 50:  # which takes longer on a busy machine
            if channel is None or channel.lost:
                losses += channel is not None
                channel, vector_id = server.open(), number
                open_rows(channel, vector_id, EchoEnv)
            with contextlib.suppress(KeyboardInterrupt, EnvRunnerLostError):
                steps = True
                try:
                    signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-4, 2e-3))
                    while True:
                        number += 1
                        reply = ask(channel, m.StepRows(vector_id, np.array([number, -number])))
                        assert reply.rewards.tolist() == [number, -number]
                finally:
                    steps = False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupts > 50 and losses < interrupts
