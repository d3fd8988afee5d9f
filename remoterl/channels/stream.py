"""The `stream` channel: a socket from the trainer straight to an env runner, beside Ray.

Ray carries the offer (where, and a one-time secret) and keeps an eye on the env runner; requests and replies go
through the socket. This side runs wherever Python does; the other is `actors.stream_listener` and `stream_server`.
"""

from __future__ import annotations

import os
import select
import selectors
import socket
import struct
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard, cast

from remoterl.channels import handshake, tls
from remoterl.channels.base import Channel
from remoterl.channels.codec import Landing
from remoterl.channels.cores import SPIN_S, SpareCores
from remoterl.channels.framing import FrameError, FrameSocket, UndecodableError
from remoterl.channels.shared_memory import LocalSocket, SharedMemory
from remoterl.errors import EnvRunnerLostError
from remoterl.messages import StreamOffer

# A peer that vanished is noticed after 15 s: by the operating system where nothing is under way to it (seconds,
# seconds, probes). Where something is, Linux would try for a quarter of an hour, and its `TCP_USER_TIMEOUT` counts the
# time in which a peer that lives does not read; so who waits looks whether anything was acknowledged of late.
KEEP_ALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 5}
VANISHED_S = 15.0
LOOK_S = 1.0
TCP_INFO_BYTES = 60  # of Linux's `struct tcp_info`, linux/tcp.h, as far as it is read here
WRITE_CHECK_S = 0.05
CAN_POLL = hasattr(select, "poll")
GONE = getattr(select, "POLLRDHUP", 0)  # beside what `poll` always tells of
LONGEST_WAIT_S = 86_400.0  # of one call: the operating system takes no more than 24 days, and we look again
LOCAL_BUFFER_BYTES = 1 << 22
INTERRUPTED = "a signal's handler used it in the middle of a message"
LOCAL_S = 0.1  # for a place in an env runner's local queue; through the network it has another


class UnreachableError(Exception):
    """A stream could not be opened; the message says why."""


class Ticket:
    """The place of one reply."""

    __slots__ = ("channel", "done", "error", "landing", "reply")

    def __init__(self, channel: StreamChannel, landing: Landing | None) -> None:
        self.channel = channel
        self.landing = landing
        self.done = False
        self.reply: Any = None
        self.error: Exception | None = None


class StreamChannel(Channel):
    """Requests and replies through one socket, in the order in which they were sent.

    Args:
        connected: what `connect` returned.
        streams: of this session.
        description: names the env runner in errors: its simulator, node and process.
    """

    name = "stream"

    def __init__(self, connected: socket.socket, streams: Streams, description: str) -> None:
        super().__init__(description)
        set_options(connected)
        self.frames = FrameSocket(connected)
        self.memory = streams.memory if isinstance(connected, LocalSocket) else None
        self._streams = streams
        self._waiting: deque[Ticket] = deque()
        self._sending = threading.RLock()
        # A handler of a signal may send and read too, in the middle of what it interrupted: then the stream is lost.
        self._sends = self._reads = False
        streams.add(self)

    def send(self, request: Any, landing: Landing | None = None) -> Ticket:
        ticket = Ticket(self, landing)
        with self._sending:
            if self._sends:
                self.lose(INTERRUPTED)
            if not self.lost:
                is_queued = is_late = False
                self._sends = True
                try:
                    self.frames.put(request)
                    is_queued = True
                    self._waiting.append(ticket)
                    is_late = not self.frames.flush() and not self._streams.wait_to_send(self)
                except BaseException as error:
                    if _is_of_the_socket(error):
                        self.lose(error)
                    else:
                        # A handler of a signal may raise anything. Where nothing is queued, it could not be pickled.
                        if is_queued or self.frames.is_torn or not isinstance(error, Exception):
                            self.lose("this process was interrupted while it sent")
                        raise
                finally:
                    self._sends = False
                if is_late:
                    self.lose("it does not take what is sent to it")
                    raise self._late(self._streams.send_timeout_s)
            if self.lost:  # also where another thread found out while we were sending
                self.lose("its stream is closed")
                raise self._gone("its stream is closed")
        return ticket

    def receive(self, ticket: Any, timeout_s: float | None = None) -> Any:
        if not self._streams.wait([ticket], timeout_s):
            raise self._late(timeout_s)
        return _result(ticket)

    @classmethod
    def receive_all(
        cls, channels: Sequence[Channel], tickets: Sequence[Any], timeout_s: float | None = None
    ) -> list[Any]:
        tickets[0].channel._streams.wait(tickets, timeout_s)
        replies: list[Any] = []
        for channel, ticket in zip(channels, tickets, strict=True):
            if not ticket.done:
                replies.append(channel._late(timeout_s))
            elif ticket.error is None or type(ticket.error) is EnvRunnerLostError:
                replies.append(ticket.error or ticket.reply)
            else:
                raise ticket.error
        return replies

    def read(self) -> None:
        """Give the replies that have arrived to their tickets. One thread at a time: see `Streams`.

        Where Ctrl-C comes in the middle of this, nobody knows what has been read: the stream is lost, and what every
        later reply would answer is not in doubt.
        """
        if self._reads:
            self.lose(INTERRUPTED)
            return
        self._reads = True
        try:
            while True:
                try:
                    reply = self.frames.get(self._waiting[0].landing if self._waiting else None)
                    if reply is None:
                        return
                    ticket = self._next_ticket()
                    ticket.reply = reply
                except UndecodableError as error:
                    ticket = self._next_ticket()
                    ticket.error = self._undecodable(cast(Exception, error.__cause__))
                ticket.done = True
                if not self.frames.has_more:
                    return
        except FrameError as error:
            self.lose(str(error))
        except BaseException as error:
            if not _is_of_the_socket(error):
                self.lose("this process was interrupted while it read")
                raise
            self.lose(error)
        finally:
            self._reads = False

    def look_whether_it_vanished(self) -> None:
        """Lose it where nothing that is under way to it was acknowledged for `VANISHED_S`. As `read`, one at a time."""
        if (self._waiting or self.frames.has_unsent) and _silent_s(self.frames.socket) > VANISHED_S:
            self.lose("its machine does not answer")

    def _next_ticket(self) -> Ticket:
        if not self._waiting:
            raise FrameError("the other end answered what was not asked")
        return self._waiting.popleft()

    def lose(self, reason: Exception | str) -> None:
        """The env runner is gone: so is every reply that is still out."""
        self.lost = True
        self._streams.remove(self)
        while self._waiting:
            ticket = self._waiting.popleft()
            ticket.error = self._gone(reason)
            ticket.done = True

    def interrupt(self) -> None:
        """Ray knows that the env runner is gone: whoever waits for it finds the socket closed. From any thread."""
        try:
            socket.socket.shutdown(self.frames.socket, socket.SHUT_RDWR)
        except OSError:
            pass

    def close(self) -> None:
        self.lose("the session was closed")
        self._streams.wake()
        self.frames.close()

    def abandon(self) -> None:
        self.lost = True
        self.frames.close()


class Streams:
    """All streams of one session. Any thread may wait for any replies; one at a time reads, for all of them.

    Attributes:
        memory: shared with the session's env runners on this machine; None where there is none.

    Args:
        send_timeout_s: in which an env runner has to take a request; None for any time.
    """

    def __init__(self, send_timeout_s: float | None = None) -> None:
        self.send_timeout_s = send_timeout_s
        self.memory = SharedMemory.create()
        self._sockets = _LinuxSockets() if hasattr(select, "epoll") else _Sockets()
        self._alarm, self._bell = socket.socketpair()
        self._alarm.setblocking(False)
        self._bell.setblocking(False)
        self._sockets.add(self._alarm, None)
        ends = [self._sockets, self._alarm, self._bell, *([self.memory] if self.memory is not None else [])]
        weakref.finalize(self, _close_all, *ends).atexit = False
        # Whose turn it is to read: taken by `setdefault`, as safe as a lock, and after a Ctrl-C it says whose it is.
        self._reader: dict[str, int] = {}
        self._depths: dict[int, int] = {}  # thread -> how many wait in it: signals' handlers, and what they interrupted
        self._cores = SpareCores(others=1)
        self._others: set[threading.Event] = set()  # of threads that wait while another reads
        self._channels: set[StreamChannel] = set()
        self._polls: dict[StreamChannel, select.poll] = {}  # made once for as long as there are these channels
        self._looked = 0.0  # `time.monotonic()`, when those who wait looked whether their peers are there still
        self._hears_one = False  # the reader sleeps until one reply is there, whatever else arrives

    def add(self, channel: StreamChannel) -> None:
        """Read this one's replies too."""
        self._sockets.add(channel.frames.socket, channel)
        self._channels.add(channel)
        self._polls = {}

    def remove(self, channel: StreamChannel) -> None:
        """Read it no longer. Idempotent."""
        self._sockets.remove(channel.frames.socket)
        self._channels.discard(channel)
        self._polls = {}

    def wake(self) -> None:
        """Let whoever reads look again whether its reply is there (or never will be)."""
        try:
            self._bell.send(b"!")
        except BlockingIOError:  # it has been called hundreds of times since anybody looked, which is enough
            pass

    def wait(self, tickets: Sequence[Ticket], timeout_s: float | None = None) -> bool:
        """Read until all of these have their replies; False where they have not after `timeout_s`."""

        def are_done() -> bool:
            for ticket in tickets:  # noqa: SIM110 - as a generator it costs three times as much
                if not ticket.done:
                    return False
            return True

        return self._run(are_done, timeout_s, tickets)

    def wait_to_send(self, channel: StreamChannel) -> bool:
        """Send the rest of a request whenever the other end takes some, and read meanwhile.

        A peer that is itself stuck with a reply to us reads nothing until we take it.

        Returns:
            False where it has not taken all of it within `send_timeout_s`. True also where it was lost meanwhile.

        Raises:
            OSError: the other end is gone.
        """
        return self._run(lambda: channel.lost or channel.frames.flush(), self.send_timeout_s, (), channel)

    def _run(
        self,
        is_done: Callable[[], bool],
        timeout_s: float | None,
        tickets: Sequence[Ticket],
        writing: StreamChannel | None = None,
    ) -> bool:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        reader, me = self._reader, threading.get_ident()
        depth = self._depths.get(me, 0)
        try:
            self._depths[me] = depth + 1
            while True:
                while reader.setdefault("is", me) != me:
                    self._let_another_read(is_done, WRITE_CHECK_S if writing is not None else _remaining(deadline))
                    if is_done():
                        return True
                    if deadline is not None and time.monotonic() >= deadline:
                        return False
                if self._read(is_done, deadline, tickets, writing):
                    return is_done()
        finally:
            if reader.get("is") == me:
                reader.clear()
                self._tell_others()
            if depth:
                self._depths[me] = depth
                self.wake()  # what it interrupted may be about to sleep for a reply that has been read here
            else:
                self._depths.pop(me, None)

    def _tell_others(self) -> None:
        if self._others:
            for event in list(self._others):
                event.set()

    def _let_another_read(self, is_done: Callable[[], bool], timeout_s: float | None) -> None:
        event = threading.Event()
        try:
            self._others.add(event)
            if self._hears_one:
                self.wake()
            # Either may have come true before the reader could see our event.
            if not is_done() and self._reader:
                event.wait(timeout_s)
        finally:
            self._others.discard(event)

    def _read(
        self,
        is_done: Callable[[], bool],
        deadline: float | None,
        tickets: Sequence[Ticket],
        writing: StreamChannel | None,
    ) -> bool:
        """Until it is done or the deadline has passed; False where it is no longer this thread's turn."""
        me = threading.get_ident()
        if writing is not None:
            self._sockets.watch_writing(writing.frames.socket, True)
        try:
            while not is_done():
                ready = (self._cores.enough() and self._spin()) or self._sleep(tickets, deadline)
                if self._reader.get("is") != me:
                    return False
                for channel in ready:
                    if channel is None:
                        self._hush()
                    else:
                        channel.read()
                if not ready and time.monotonic() - self._looked >= LOOK_S:
                    self._looked = time.monotonic()
                    for one in list(self._channels):
                        one.look_whether_it_vanished()
                self._tell_others()
                if deadline is not None and time.monotonic() >= deadline:
                    break
            return True
        finally:
            if writing is not None and not writing.lost:
                self._sockets.watch_writing(writing.frames.socket, False)

    def _hush(self) -> None:
        try:
            self._alarm.recv(4096)
        except BlockingIOError:  # a signal's handler has heard it meanwhile
            pass

    def _spin(self) -> Sequence[StreamChannel | None]:
        """What becomes ready at once, for a process that has a core to look from."""
        until = time.perf_counter() + SPIN_S
        while not (ready := self._sockets.ready(0)) and time.perf_counter() < until:
            os.sched_yield()
        return ready

    def _sleep(self, tickets: Sequence[Ticket], deadline: float | None) -> Sequence[StreamChannel | None]:
        """What is ready when this thread has slept.

        Where several small replies are awaited, one wake-up is enough for all: that of the request which was sent
        last, and is probably answered last. To be woken for each takes a core from an env runner that still steps.
        """
        if len(tickets) > 1 and not tickets[-1].done and CAN_POLL and not _any_large(tickets):
            self._hears_one = True
            try:
                if not self._others:
                    if self._hears(tickets[-1].channel, deadline):  # then the others are probably there too
                        return [ticket.channel for ticket in tickets if not ticket.done]
                    return self._sockets.ready(0)
            finally:
                self._hears_one = False
        return self._sockets.ready(_until_a_look(deadline))

    def _hears(self, last: StreamChannel, deadline: float | None) -> bool:
        """Sleep until this one has something to read (True), one of the others is gone, or somebody calls `wake`."""
        polls = self._polls
        try:
            waiting = polls.get(last) or polls.setdefault(last, self._poll_for(last))
        except (ValueError, RuntimeError):  # another thread is just closing one, or opening one
            return False
        events = waiting.poll(_until_a_look(deadline) * 1000)
        return len(events) == 1 and events[0][0] == last.frames.socket.fileno()

    def _poll_for(self, last: StreamChannel) -> select.poll:
        waiting = select.poll()
        waiting.register(self._alarm, select.POLLIN)
        for channel in self._channels:
            waiting.register(channel.frames.socket, select.POLLIN if channel is last else GONE)
        return waiting


def _any_large(tickets: Sequence[Ticket]) -> bool:
    for ticket in tickets:  # noqa: SIM110 - as a generator it costs three times as much
        if ticket.channel.frames.receives_large:
            return True
    return False


class _Sockets:
    """Which of some sockets have something to read (or, where that is watched, can be written to)."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def add(self, one: socket.socket, channel: StreamChannel | None) -> None:
        self._selector.register(one, selectors.EVENT_READ, channel)

    def remove(self, one: socket.socket) -> None:
        try:
            self._selector.unregister(one)
        except (KeyError, ValueError):
            pass

    def watch_writing(self, one: socket.socket, watch: bool) -> None:
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if watch else 0)
        self._selector.modify(one, events, self._selector.get_key(one).data)

    def ready(self, timeout_s: float | None) -> list[StreamChannel | None]:
        return [key.data for key, _ in self._selector.select(timeout_s)]

    def close(self) -> None:
        self._selector.close()


class _LinuxSockets(_Sockets):
    """The same with a third of the time that `selectors` adds to a step."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._channels: dict[int, StreamChannel | None] = {}

    def add(self, one: socket.socket, channel: StreamChannel | None) -> None:
        self._channels[one.fileno()] = channel
        self._epoll.register(one, select.EPOLLIN)

    def remove(self, one: socket.socket) -> None:
        if self._channels.pop(one.fileno(), None) is not None:
            self._epoll.unregister(one)

    def watch_writing(self, one: socket.socket, watch: bool) -> None:
        self._epoll.modify(one, select.EPOLLIN | (select.EPOLLOUT if watch else 0))

    def ready(self, timeout_s: float | None) -> list[StreamChannel | None]:
        channels = self._channels
        # One that another thread has just removed is left out.
        return [channels[descriptor] for descriptor, _ in self._epoll.poll(timeout_s) if descriptor in channels]

    def close(self) -> None:
        self._epoll.close()


def connect(offer: StreamOffer, timeout_s: float, memory: SharedMemory | None = None) -> socket.socket:
    """Open and authenticate the connection that an env runner offers.

    Args:
        memory: of the session, for an env runner on this machine.

    Raises:
        UnreachableError: it can't be, for the reason that the message gives.
    """
    deadline = time.monotonic() + timeout_s
    where = f"{offer.host}:{offer.port}"
    if offer.uses_tls != tls.is_on():
        sides = ("the env runner's Ray", "this process") if offer.uses_tls else ("this process", "the env runner's Ray")
        raise UnreachableError(f"{sides[0]} uses TLS (RAY_USE_TLS=1), {sides[1]} does not")
    try:
        connected = _reach_here(offer.local) or socket.create_connection((offer.host, offer.port), timeout_s)
    except OSError as error:
        raise UnreachableError(f"{where} can't be reached ({error})") from error
    try:
        context = tls.client_context()
        if context is not None:
            connected.settimeout(max(0.1, deadline - time.monotonic()))
            connected = context.wrap_socket(connected, server_hostname=offer.host)
        handshake.greet(connected, offer.secret, offer.context.encode(), deadline)
        if isinstance(connected, LocalSocket):
            connected.give_memory(memory)
    except (handshake.HandshakeError, OSError, KeyError) as error:
        connected.close()
        raise UnreachableError(f"{where} answers, but {error or type(error).__name__}") from error
    except BaseException:
        connected.close()
        raise
    return connected


def _reach_here(name: str) -> socket.socket | None:
    """The env runner's local socket; None where it is on another machine, which has no such name."""
    if not name or sys.platform != "linux":
        return None
    connected = LocalSocket(socket.AF_UNIX)
    connected.settimeout(LOCAL_S)
    try:
        connected.connect(f"\0{name}")
    except OSError:
        connected.close()
        return None
    return connected


def set_options(connected: socket.socket) -> None:
    """Messages leave at once, small and large, and a peer that vanished is noticed where nothing is under way to it."""
    if connected.family not in (socket.AF_INET, socket.AF_INET6):
        # On this machine nobody vanishes without a word; but a batch of pictures should leave at once, as it does by
        # TCP, whose buffers grow by themselves. Linux gives as much of this as `net.core.wmem_max` allows.
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LOCAL_BUFFER_BYTES)
        return
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEP_ALIVE.items():
        if hasattr(socket, option):
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _is_of_the_socket(error: BaseException) -> TypeGuard[OSError]:
    """Is it the operating system's, which numbers them? What a signal's handler raises (`TimeoutError`, say) is not."""
    return isinstance(error, OSError) and error.errno is not None


def _close_all(*closable: Any) -> None:
    for one in closable:
        one.close()


def _remaining(deadline: float | None) -> float | None:
    return None if deadline is None else min(max(0.0, deadline - time.monotonic()), LONGEST_WAIT_S)


def _until_a_look(deadline: float | None) -> float:
    return LOOK_S if deadline is None else min(max(0.0, deadline - time.monotonic()), LOOK_S)


def _silent_s(connected: socket.socket) -> float:
    """Seconds since the peer's machine last acknowledged anything, where something is under way to it; else 0.

    A peer that reads nothing acknowledges the probes of its closed window; one that is out alone says nothing.
    """
    if connected.family not in (socket.AF_INET, socket.AF_INET6) or not sys.platform.startswith("linux"):
        return 0.0
    try:
        info = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
    except OSError:  # closed; whoever reads will hear of it
        return 0.0
    probes, unacknowledged, last_acknowledged_ms = info[3], *struct.unpack_from("=24xI28xI", info)
    return last_acknowledged_ms / 1000 if unacknowledged or probes > 1 else 0.0


def _result(ticket: Ticket) -> Any:
    if ticket.error is not None:
        raise ticket.error
    return ticket.reply
