"""Memory that a session shares with its env runners on this machine: large observations are written there, and a few
bytes go through the socket. Linux.

The trainer makes it, an anonymous file, and hands its descriptor to each env runner that has proven who it is. With a
step he says where the observations go (`StepRows.room`). It has no name and is gone with the last process that has it.

A child that the trainer forks gets what is in it, as of any other memory: what one of them writes there, the other does
not see.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import socket
import threading
import weakref

from remoterl.channels.handshake import HandshakeError

WITH_MEMORY, WITHOUT = b"\x01", b"\x00"

_MAP_FIXED = 0x10  # Linux; Python's own `mmap` can't replace what is mapped

_num_forks = 0
_memories: weakref.WeakSet[SharedMemory] = weakref.WeakSet()


def forks() -> int:
    """How often this process has forked so far, as Python does it; to start another program is none."""
    return _num_forks


def _before_a_fork() -> None:
    global _num_forks
    _num_forks += 1
    for memory in list(_memories):
        memory.keep_apart()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_a_fork)


class LocalSocket(socket.socket):
    """A local socket, and the memory that comes with it.

    Attributes:
        memory: the env runner's hold on it; None until it has come, and where the trainer has none.
    """

    memory: SharedMemory | None = None

    def give_memory(self, memory: SharedMemory | None) -> None:
        """The trainer's half: hand it over. None: everything goes through the socket.

        Raises:
            OSError: the connection broke, or the memory is closed.
        """
        if memory is None:
            self.sendall(WITHOUT)
        else:
            socket.send_fds(self, [WITH_MEMORY], [memory.descriptor])

    def take_memory(self) -> None:
        """The env runner's half.

        Raises:
            HandshakeError: the other end sent something else.
            OSError: the connection broke, or nothing came within the socket's timeout.
        """
        said, descriptors, _, _ = socket.recv_fds(self, 1, 1)
        if descriptors:
            os.set_inheritable(descriptors[0], False)
            self.memory = SharedMemory(descriptors[0])
        if said != (WITH_MEMORY if descriptors else WITHOUT):
            raise HandshakeError("the other end handed over no memory")

    def close(self) -> None:
        """Close this end, and let go of the memory that came."""
        super().close()
        if self.memory is not None:
            self.memory.close()


class SharedMemory:
    """One end's hold on the memory. The trainer gives it out, env runners write where they are told to.

    Args:
        descriptor: of a file that only a session's ends have open; it is this object's from here on.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._size = 0  # what was given out
        self._lock = threading.Lock()
        self._whole: memoryview | None = None
        self._rooms: weakref.WeakKeyDictionary[mmap.mmap, int] = weakref.WeakKeyDictionary()  # shared ones: where
        _memories.add(self)

    @classmethod
    def create(cls) -> SharedMemory | None:
        """None where there is no memory, no descriptor, or no Linux."""
        try:
            return cls(os.memfd_create("remoterl"))
        except (OSError, AttributeError):
            return None

    def make(self, size_bytes: int) -> tuple[int, memoryview]:
        """Room for so many bytes, and where it is. It is let go when nobody holds the view, or a part of it, any more.

        Raises:
            OSError, ValueError: there is none, or this end is closed.
        """
        size_bytes += -size_bytes % mmap.ALLOCATIONGRANULARITY
        with self._lock:
            offset = self._size
            os.ftruncate(self.descriptor, offset + size_bytes)
            self._size += size_bytes
        room = mmap.mmap(self.descriptor, size_bytes, offset=offset)
        self._rooms[room] = offset
        weakref.finalize(room, self._let_go, offset, size_bytes, forks()).atexit = False
        return offset, memoryview(room)

    def _let_go(self, offset: int, size_bytes: int, forks_before: int) -> None:
        # Closed: all of it goes with the other ends. And a child that was forked meanwhile may look at it for ever.
        if self.descriptor < 0 or forks() != forks_before:
            return
        with contextlib.suppress(OSError, ValueError), mmap.mmap(self.descriptor, size_bytes, offset=offset) as room:
            room.madvise(mmap.MADV_REMOVE)

    def keep_apart(self) -> None:
        """What was made so far is this process's own from here on, as it is: what it writes there, nobody else sees.

        What env runners still write there it sees, in pages to which it has written nothing itself.
        """
        rooms, self._rooms = self._rooms, weakref.WeakKeyDictionary()
        for room, offset in list(rooms.items()):
            start = ctypes.addressof(ctypes.c_char.from_buffer(room))
            flags = mmap.MAP_PRIVATE | _MAP_FIXED
            _map(start, len(room), mmap.PROT_READ | mmap.PROT_WRITE, flags, self.descriptor, offset)

    def at(self, offset: int, size_bytes: int) -> memoryview:
        """The env runner's view of a place.

        Raises:
            OSError, ValueError: it is not there.
        """
        if self._whole is None or offset + size_bytes > len(self._whole):
            self._whole = memoryview(mmap.mmap(self.descriptor, 0))
        return self._whole[offset : offset + size_bytes]

    def close(self) -> None:
        """What was made stays. Idempotent."""
        self.keep_apart()  # later there is no descriptor any more
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _map(start: int, size_bytes: int, protection: int, flags: int, descriptor: int, offset: int) -> None:
    call = ctypes.CDLL(None, use_errno=True).mmap
    call.restype = ctypes.c_void_p
    call.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    if call(start, size_bytes, protection, flags, descriptor, offset) != start:
        raise OSError(ctypes.get_errno(), "mmap")
