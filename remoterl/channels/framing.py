"""Frames over a connected socket, without ever blocking: what the operating system gives is taken, and no more.

Both ends of a `stream` use it. Small frames cost one system call each way; the buffers of large ones are received
straight into the memory in which they stay.
"""

from __future__ import annotations

import errno
import functools
import pickle
import socket
import ssl
import struct
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from remoterl.channels.codec import (
    ALIGNMENT,
    DEFINITION,
    MAX_FRAME_BYTES,
    MAX_LANDING_BYTES,
    PICKLED,
    PREFIX,
    WRITTEN,
    Buffer,
    Decoder,
    Encoder,
    Landing,
    Room,
    beside_sizes,
)
from remoterl.channels.shared_memory import LocalSocket
from remoterl.channels.trees import flatten
from remoterl.messages import RowsStepped, StepRows

SMALL_BYTES = MAX_LANDING_BYTES  # what arrives in a landing and does not fit is copied to where small frames are read
MAX_BUFFERS_A_CALL = 64  # of what the operating system takes in one sendmsg
WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class FrameSocket:
    """Messages in and out of one socket, which it puts into non-blocking mode and closes.

    One thread may read while another writes, but no two may do the same.
    """

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        self.socket = connected
        self._encoder, self._decoder = Encoder(), Decoder()
        # OpenSSL has one state for both directions. A signal's handler may send in the middle of what this reads.
        self._lock = threading.RLock() if isinstance(connected, ssl.SSLSocket) else None
        self._pending = connected.pending if isinstance(connected, ssl.SSLSocket) else None
        self._can_gather = hasattr(connected, "sendmsg")  # not on Windows
        self._memory = connected.memory if isinstance(connected, LocalSocket) else None
        self._unsent: deque[bytes | memoryview] = deque()  # of bytes
        self._told_layouts = 0  # to the other end
        self._small = bytearray(SMALL_BYTES)
        self._view = memoryview(self._small)
        self._start = self._end = 0  # what of `_small` is received and not yet read
        self._large: _LargeFrame | None = None
        self.receives_large = False  # was the last message one that the other end can't send unless it is read?

    # ---- sending ---------------------------------------------------------------------------------------------

    def put(self, message: Any, room: Room | None = None) -> None:
        """Queue a message for `flush`.

        Args:
            room: where its observations may be written, or have been.

        Raises:
            Exception: it can't be pickled; then nothing is queued.
        """
        buffers, size_bytes = self._encoder.encode(message)
        if room is not None and type(message) is RowsStepped:
            buffers, size_bytes = _without_observations(buffers, size_bytes, message.observations, room)
        if size_bytes <= SMALL_BYTES:
            self._unsent.append(b"".join(buffers))
        else:
            views = [memoryview(buffer) for buffer in buffers]
            self._unsent.extend(view.cast("B") for view in views if view.nbytes)
        self._told_layouts = self._encoder.num_layouts

    def room(self, request: Any) -> Room | None:
        """Where the answer to this request can be written: as bytes."""
        if type(request) is not StepRows or request.room is None or self._memory is None:
            return None
        try:
            whole = [self._memory.at(start, size_bytes) for start, size_bytes in request.room.tolist()]
            return Room(request.room, [np.frombuffer(memory, np.uint8) for memory in whole])
        except (OSError, ValueError):
            return None

    def flush(self) -> bool:
        """Send what the operating system takes now; True where nothing is left.

        Raises:
            OSError: the peer is gone.
        """
        unsent = self._unsent
        while unsent:
            try:
                sent = self.socket.send(unsent[0]) if self._lock is None and len(unsent) == 1 else self._send()
            except WOULD_BLOCK:
                return False
            while sent:
                first = unsent.popleft()
                if sent < len(first):
                    unsent.appendleft(memoryview(first)[sent:])
                    break
                sent -= len(first)
        return True

    def _send(self) -> int:
        unsent = self._unsent
        if self._lock is not None:
            with self._lock:
                return self.socket.send(unsent[0])
        if len(unsent) > 1 and self._can_gather:
            return self.socket.sendmsg([unsent[index] for index in range(min(len(unsent), MAX_BUFFERS_A_CALL))])
        return self.socket.send(unsent[0])

    @property
    def is_torn(self) -> bool:
        """Was a `put` interrupted, by a signal's handler that raised, after it had begun to queue something?"""
        return self.has_unsent or self._encoder.num_layouts != self._told_layouts

    @property
    def has_unsent(self) -> bool:
        """Is anything left for `flush`?"""
        return bool(self._unsent)

    @property
    def has_more(self) -> bool:
        """May `get` find something that no `select` would tell of, because it has been received already?"""
        return self._start != self._end or (self._pending is not None and self._pending() > 0)

    # ---- receiving -------------------------------------------------------------------------------------------

    def get(self, landing: Landing | None = None) -> Any:
        """The next message that has arrived in full, None where more has to come first.

        Args:
            landing: where to receive the next message, if it is a small step.

        Raises:
            ConnectionError, OSError: the peer is gone.
            FrameError: the peer is broken.
            UndecodableError: the message can't be unpickled here; the next one can be read.
        """
        if self._start == self._end and self._large is None:
            if landing is not None and landing.view is not None:
                if (received := self._receive_into(landing.view)) == 0:
                    return None
                try:
                    step = landing.take(received)
                except Exception as error:
                    _raise(error, lambda: landing.take(received))
                if step is not None:
                    self.receives_large = False
                    return step
                self._view[:received] = landing.view[:received]
            elif (received := self._receive_into(self._view)) == 0:
                return None
            self._start, self._end = 0, received
        while True:
            if self._large is not None:
                if not self._large.fill(self._receive_into):
                    return None
                large, self._large = self._large, None
                self.receives_large = True
                message = self._decode(large.layout, large.pickled, large.body)
            elif self._end - self._start < PREFIX.size:
                if not self._receive_more():
                    return None
                continue
            else:
                layout, pickle_bytes, body_bytes = PREFIX.unpack_from(self._small, self._start)
                is_short = layout >= WRITTEN
                if is_short:
                    body_bytes, reader = self._short(layout - WRITTEN, body_bytes, landing)
                else:
                    reader = self._decoder.readers.get(layout)
                start = self._start + PREFIX.size
                end = start + pickle_bytes + body_bytes
                if end - self._start > SMALL_BYTES:
                    if end - start > MAX_FRAME_BYTES or is_short:
                        raise FrameError(f"the other end announced {end - start} bytes, which no message has")
                    self._large = _LargeFrame(layout, pickle_bytes, body_bytes)
                    self._start = start + self._large.take(self._view[start : self._end])
                    continue
                if self._end < end:
                    if not self._receive_more():
                        return None
                    continue
                self._start = end
                self.receives_large = False
                if reader is not None:
                    between = start + body_bytes
                    try:  # what is cut out of `_small` is a copy, and stays when more is received
                        if landing is not None and not is_short:
                            self._decoder.prepare(layout, pickle_bytes, landing)
                        return reader(self._small[between:end], self._small[start:between])
                    except Exception as error:
                        again = functools.partial(reader, self._small[between:end], self._small[start:between])
                        _raise(error, again)
                between = start + pickle_bytes
                message = self._decode(layout, self._view[start:between], self._small[between:end])
            if message is not None:
                return message

    def _short(self, layout: int, at: int, landing: Landing | None) -> Any:
        try:
            return self._decoder.short_reader(layout, at, landing)
        except LookupError as error:
            raise FrameError(f"the other end wrote where it was not told to ({error})") from error

    def _receive_more(self) -> bool:
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == SMALL_BYTES:
            waiting = self._end - self._start
            self._small[:waiting] = self._small[self._start : self._end]
            self._start, self._end = 0, waiting
        received = self._receive_into(self._view[self._end :])
        self._end += received
        return received > 0

    def _receive_into(self, view: memoryview) -> int:
        try:
            if self._lock is None:
                received = self.socket.recv_into(view)
            else:
                with self._lock:
                    received = self.socket.recv_into(view)
        except WOULD_BLOCK:
            return 0
        if received == 0:
            raise ConnectionResetError(errno.ECONNRESET, "the connection was closed by the other end")
        return received

    def _decode(self, layout: int, pickled: Buffer, body: Any) -> Any:
        if layout == DEFINITION:
            try:
                self._decoder.define(pickled)
            except Exception as error:
                raise FrameError(f"the other end defined no layout of messages that is known here ({error})") from error
            return None

        def message() -> Any:
            if layout != PICKLED:
                return self._decoder.readers[layout](pickled, body)
            sizes, at = beside_sizes(pickled)
            buffers = body if isinstance(body, list) else _split(memoryview(body), sizes)
            return pickle.loads(pickled[at:], buffers=buffers)

        try:
            return message()
        except Exception as error:
            _raise(error, message)

    def close(self) -> None:
        """Close this process's end; in a forked child the parent's stays open."""
        self.socket.close()


def _raise(error: Exception, again: Callable[[], Any]) -> NoReturn:
    """What decoding raised: if it works now, a signal's handler did, and it is no fault of the message's."""
    try:
        again()
    except Exception:
        raise UndecodableError from error
    raise error


class FrameError(ConnectionError):
    """What arrived is no frame: the other end is broken, and nothing that comes after it can be read."""


class UndecodableError(Exception):
    """A message that arrived can't be unpickled here; its cause says why."""


class _LargeFrame:
    """A frame that is being received into its own memory."""

    def __init__(self, layout: int, pickle_bytes: int, body_bytes: int) -> None:
        self.layout = layout
        self.pickled = _uninitialized(pickle_bytes)  # takes memory as bytes arrive, not as they are announced
        self.body: Any = None
        self._body_bytes = body_bytes
        self._targets: deque[memoryview] = deque([self.pickled] if pickle_bytes else [])
        if layout != PICKLED:
            self.body = _uninitialized(body_bytes)
            if body_bytes:
                self._targets.appendleft(self.body)
        self._make_body_when_known()

    def _make_body_when_known(self) -> None:
        if self._targets or self.body is not None:
            return
        try:
            sizes, _ = beside_sizes(self.pickled)
        except struct.error as error:
            raise FrameError(f"the other end sent a message without its sizes ({error})") from error
        if sum(sizes) != self._body_bytes:
            raise FrameError(f"the other end announced {self._body_bytes} bytes, then {sum(sizes)}")
        self.body = [_uninitialized(size) for size in sizes]
        self._targets.extend(buffer for buffer in self.body if buffer.nbytes)

    def take(self, arrived: memoryview) -> int:
        """Copy what came with the prefix; returns how many bytes were used."""
        used = 0

        def from_arrived(view: memoryview) -> int:
            nonlocal used
            size = min(view.nbytes, arrived.nbytes - used)
            view[:size] = arrived[used : used + size]
            used += size
            return size

        self.fill(from_arrived)
        return used

    def fill(self, receive_into: Any) -> bool:
        """Receive until all is there (True) or nothing more comes now (False)."""
        while self._targets:
            target = self._targets.popleft()
            received = receive_into(target)
            if received < target.nbytes:
                self._targets.appendleft(target[received:])
                if received == 0:
                    return False
            self._make_body_when_known()
        return True


def _without_observations(
    buffers: list[Buffer], size_bytes: int, observations: Any, room: Room
) -> tuple[list[Buffer], int]:
    """The frame when its observations are in the room, to which they are copied if they were not made there; as it was
    where that can't be."""
    number, pickle_bytes, _ = PREFIX.unpack(buffers[0])
    flat = flatten(observations)
    if number in (PICKLED, DEFINITION) or flat is None or len(flat[1]) != len(room.arrays):
        return buffers, size_bytes
    leaves, index, left_bytes = flat[1], 1, size_bytes
    for leaf, memory in zip(leaves, room.arrays, strict=True):
        if index >= len(buffers) or buffers[index] is not leaf or leaf.nbytes > memory.nbytes:
            return buffers, size_bytes
        padding_bytes = -leaf.nbytes % ALIGNMENT
        index += 2 if padding_bytes else 1
        left_bytes -= leaf.nbytes + padding_bytes
    if left_bytes > SMALL_BYTES:
        return buffers, size_bytes
    for leaf, memory in zip(leaves, room.arrays, strict=True):
        if leaf.base is not memory:
            memory[: leaf.nbytes] = leaf.reshape(-1).view(np.uint8)
    head = PREFIX.pack(number + WRITTEN, pickle_bytes, room.at)
    return [head, *buffers[index:]], left_bytes


def _uninitialized(size_bytes: int) -> memoryview:
    try:
        return np.empty(size_bytes, dtype=np.uint8).data
    except MemoryError as error:
        raise FrameError(f"the other end announced {size_bytes} bytes, for which there is no memory here") from error


def _split(body: memoryview, sizes: tuple[int, ...]) -> list[memoryview]:
    buffers, start = [], 0
    for size in sizes:
        buffers.append(body[start : start + size])
        start += size
    return buffers
