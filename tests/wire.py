"""A wire between two network interfaces that delays and loses packets, for kernels that lack `tc netem`.

`python wire.py ONE OTHER`, as root in a network namespace that is its own; it waits for the interfaces to appear.
A line `DELAY_S LOSS` on its stdin holds from then on, for each direction. It ends with its stdin.
"""

from __future__ import annotations

import os
import random
import select
import socket
import subprocess
import sys
import time
from collections import deque
from typing import Any

ALL_PROTOCOLS = 3  # linux/if_ether.h
SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23  # linux/if_packet.h
LARGEST = 70_000  # a frame that is not cut into segments yet, and its header


def main(names: list[str]) -> None:
    one, other = (_open(name) for name in names)
    opposite = {one: other, other: one}
    under_way: deque[tuple[float, socket.socket, bytes]] = deque()
    chance = random.Random(0)
    delay_s = loss = 0.0
    while True:
        wait_s = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
        watched: list[Any] = [one, other, 0]
        for end in select.select(watched, [], [], wait_s)[0]:
            if end == 0:
                said = os.read(0, 1000).split()
                if not said:
                    return
                delay_s, loss = float(said[-2]), float(said[-1])
            else:
                try:
                    frame = end.recv(LARGEST)
                except OSError:  # said once when the interface goes down
                    continue
                if chance.random() >= loss:
                    under_way.append((time.monotonic() + delay_s, opposite[end], frame))
        while under_way and under_way[0][0] <= time.monotonic():
            _, end, frame = under_way.popleft()
            try:
                end.send(frame)
            except OSError:  # the interface is down, or its queue is full: a packet is lost
                pass


def _open(name: str) -> socket.socket:
    while subprocess.run(["ip", "link", "set", name, "up"], stderr=subprocess.DEVNULL).returncode:
        time.sleep(0.05)
    end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_PROTOCOLS))
    # A frame comes and goes with a header that says what the kernel has yet to do to it: checksums, segments.
    end.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    end.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    end.bind((name, 0))
    return end


if __name__ == "__main__":
    main(sys.argv[1:])
