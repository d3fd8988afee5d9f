"""An env runner's ear: takes one authenticated stream, from its own trainer, and closes.

It listens at a port, and for a trainer on this machine at a local socket: a message through TCP costs four times as
much. Whoever else connects is turned away with bounded effort: messages of fixed size, a deadline, and only so many
unproven connections at a time. Nothing is unpickled here.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import ssl
import sys
import threading
import time
from collections import deque
from queue import Empty, SimpleQueue

from remoterl.channels import handshake, tls
from remoterl.channels.shared_memory import LocalSocket
from remoterl.messages import StreamOffer

OPEN_S = 30.0  # how long the trainer has to come
HANDSHAKE_S = 5.0
LOOK_UP_S = 1.0  # should nothing wake the thread that listens
RETRY_S = 0.05
MAX_UNPROVEN = 8  # connections at a time that have not yet proven anything
PORTS_VARIABLE = "REMOTERL_STREAM_PORTS"

logger = logging.getLogger(__name__)


class StreamListener:
    """Listens from its creation on until its trainer has come, `OPEN_S` are over, or `close`.

    Args:
        host: the address of this machine at which the cluster reaches it.
        context: what the stream is for; the trainer must mean the same.

    Raises:
        OSError: no port is free, or TLS is on and its files can't be read.
    """

    def __init__(self, host: str, context: str) -> None:
        self._secret = secrets.token_bytes(handshake.SECRET_BYTES)
        self._context = context
        self._tls = tls.server_context()
        port = _listen(host)
        self._host = host
        self._port = port.getsockname()[1]
        self._local = "" if self._tls is not None or sys.platform != "linux" else f"remoterl-{secrets.token_hex(8)}"
        self._sockets = [port, *([_listen_here(self._local)] if self._local else [])]
        self._unproven: list[deque[socket.socket]] = [deque() for _ in self._sockets]  # of each: the oldest first
        self._rooms = [threading.Semaphore(MAX_UNPROVEN) for _ in self._sockets]
        self._accepting = threading.Lock()
        self._taken = False
        self._accepted: SimpleQueue[socket.socket] = SimpleQueue()
        self._closes_at = time.monotonic() + OPEN_S
        for index in range(len(self._sockets)):
            threading.Thread(target=self._listen, args=(index,), name="stream-listener", daemon=True).start()

    def offer(self) -> StreamOffer:
        """What the trainer needs; it travels through Ray only."""
        return StreamOffer(self._host, self._port, self._secret, self._context, self._tls is not None, self._local)

    def accepted(self, timeout_s: float) -> socket.socket:
        """The connection to the trainer.

        Raises:
            TimeoutError: it did not come within `timeout_s`.
        """
        try:
            return self._accepted.get(timeout=timeout_s)
        except Empty:
            raise TimeoutError(f"no trainer came within {timeout_s} s") from None

    def close(self) -> None:
        """Stop listening. Idempotent."""
        with self._accepting:
            self._taken = True
        for listening in self._sockets:
            _wake(listening)

    def _listen(self, index: int) -> None:
        while not self._taken and (left_s := self._closes_at - time.monotonic()) > 0:
            try:
                self._sockets[index].settimeout(min(left_s, LOOK_UP_S))
                connected, _ = self._sockets[index].accept()
                if connected.family == socket.AF_UNIX:
                    connected = LocalSocket(fileno=connected.detach())
                elif self._tls is not None:
                    connected = self._tls.wrap_socket(connected, server_side=True, do_handshake_on_connect=False)
            except TimeoutError:
                continue
            except OSError:  # closed; or one who left before his turn, or no descriptor is free, which pass
                time.sleep(0 if self._taken else RETRY_S)
                continue
            room, unproven = self._rooms[index], self._unproven[index]
            if not room.acquire(blocking=False):  # who says nothing makes room: the trainer may be the last to come
                with self._accepting:
                    if unproven:
                        _wake(unproven.popleft())
                room.acquire()
            with self._accepting:
                unproven.append(connected)
            arguments = (connected, index)
            threading.Thread(target=self._prove, args=arguments, name="stream-handshake", daemon=True).start()
        self.close()
        self._sockets[index].close()

    def _prove(self, connected: socket.socket, index: int) -> None:
        try:
            deadline = time.monotonic() + HANDSHAKE_S
            if isinstance(connected, ssl.SSLSocket):
                connected.settimeout(HANDSHAKE_S)
                connected.do_handshake()
            handshake.challenge(connected, self._secret, self._context.encode(), deadline)
            with self._accepting:
                if self._taken:
                    raise handshake.HandshakeError("another connection was accepted before")
                self._taken = True
                self._forget(connected, index)
                handshake.accept(connected, deadline)
            if isinstance(connected, LocalSocket):
                connected.take_memory()
            self._accepted.put(connected)
            self.close()
        except (handshake.HandshakeError, OSError) as error:  # ssl's are OSErrors
            logger.debug("a connection was turned away: %s", error)
            connected.close()
            if self._taken:  # he left before he could be told, or another was faster: nobody else is waited for
                self.close()
        finally:
            with self._accepting:
                self._forget(connected, index)
            self._rooms[index].release()

    def _forget(self, connected: socket.socket, index: int) -> None:
        if connected in self._unproven[index]:  # else it made room
            self._unproven[index].remove(connected)


def _wake(one: socket.socket) -> None:
    """Its thread waits no more, and closes it: closed under that, its number might be another's."""
    try:
        if isinstance(one, ssl.SSLSocket):  # its own would take its state from under its thread
            socket.socket.shutdown(one, socket.SHUT_RDWR)
        else:
            one.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


def _listen(host: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in _ports(os.environ.get(PORTS_VARIABLE, "")):
        for address in (host, ""):  # behind an address translation the cluster's address is not this machine's own
            try:
                return socket.create_server((address, port), family=family, backlog=MAX_UNPROVEN)
            except OSError as error:
                logger.debug("can't listen at %s:%d: %s", address, port, error)
    raise OSError(
        f"no free port for a stream on {host}"
        + (f" ({PORTS_VARIABLE}={os.environ[PORTS_VARIABLE]})" if PORTS_VARIABLE in os.environ else "")
    )


def _listen_here(name: str) -> socket.socket:
    """On this machine only, and in this network namespace: a name without a file, gone with the socket. Linux."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(f"\0{name}")
    listening.listen(MAX_UNPROVEN)
    return listening


def _ports(text: str) -> range:
    """`21000-21031` or one port; any free one where nothing is said."""
    if not text:
        return range(1)
    first, _, last = text.partition("-")
    try:
        ports = range(int(first), int(last or first) + 1)
    except ValueError:
        ports = range(0)
    if not ports or not 0 < ports[0] <= ports[-1] < 65536:
        raise OSError(f"{PORTS_VARIABLE} must be a port or a range of ports such as 21000-21031, got {text!r}")
    return ports
