"""Memory that both ends of a local socket share: large steps lie there, and a few bytes go through the socket. Linux.

An env runner makes it, an anonymous file, and hands its descriptor over once the trainer has proven who he is. With a
step the trainer says where the answer's arrays go (`StepRows.at`). It has no name and is gone with both ends.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import threading
import weakref

from remoterl.channels.handshake import HandshakeError

WITH_MEMORY, WITHOUT = b"\x01", b"\x00"


class LocalSocket(socket.socket):
    """A local socket, and the memory that comes with it.

    Attributes:
        memory: None until it is handed over, and where the env runner could not make any.
    """

    memory: SharedMemory | None = None

    def give_memory(self) -> None:
        """The env runner's half: make it, and hand it over.

        Raises:
            OSError: the connection broke.
        """
        try:
            self.memory = SharedMemory(os.memfd_create("remoterl"))
        except OSError:  # no memory, no descriptor: everything goes through the socket
            self.sendall(WITHOUT)
        else:
            socket.send_fds(self, [WITH_MEMORY], [self.memory.descriptor])

    def take_memory(self) -> None:
        """The trainer's half.

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
        """Close this end. What has been received into the memory stays as long as somebody holds it."""
        super().close()
        if self.memory is not None:
            self.memory.close()


class SharedMemory:
    """One end's hold on the memory. The trainer gives it out, the env runner writes where it is told to.

    Args:
        descriptor: of a file that only the two ends have open; it is this object's from here on.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._size = 0  # what was given out
        self._lock = threading.Lock()
        self._whole: memoryview | None = None

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
        weakref.finalize(room, self._let_go, offset, size_bytes).atexit = False
        return offset, memoryview(room)

    def _let_go(self, offset: int, size_bytes: int) -> None:
        if self.descriptor < 0:  # closed: with the other end, all of it goes
            return
        with contextlib.suppress(OSError, ValueError), mmap.mmap(self.descriptor, size_bytes, offset=offset) as room:
            room.madvise(mmap.MADV_REMOVE)

    def at(self, offset: int, size_bytes: int) -> memoryview:
        """The env runner's view of a place.

        Raises:
            OSError, ValueError: it is not there.
        """
        if self._whole is None or offset + size_bytes > len(self._whole):
            self._whole = memoryview(mmap.mmap(self.descriptor, 0))
        return self._whole[offset : offset + size_bytes]

    def close(self) -> None:
        """Idempotent."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
