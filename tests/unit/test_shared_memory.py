"""Large steps in memory that both ends of a local socket share: the same as locally, and nothing of it stays."""

from __future__ import annotations

import gc
import os
import socket
from queue import SimpleQueue
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from comparing import assert_same
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from processes import wait_until
from streams import Server

from remoterl import messages as m
from remoterl.channels.codec import PREFIX, SHARED, Encoder, Landing, SharedPlaces
from remoterl.channels.framing import FrameError, FrameSocket
from remoterl.channels.shared_memory import LocalSocket, SharedMemory
from remoterl.channels.stream import StreamChannel
from remoterl.errors import EnvRunnerLostError
from remoterl.shipping import ship
from remoterl.vector.core import Assignment, RunnerLink, VectorCore
from remoterl.vector.gymnasium import RemoteSyncVectorEnv

SYNC = m.Semantics.GYMNASIUM_SYNC


class PictureEnv(gym.Env):
    """Pictures of 60 kB at random; every 7th step its episode ends. `kind`: what an observation is."""

    action_space = spaces.Discrete(5)

    def __init__(self, kind: str = "box") -> None:
        picture = spaces.Box(0, 255, (100, 200, 3), np.uint8)
        self.observation_space: Any = {
            "box": picture,
            "dict": spaces.Dict(picture=picture, speed=spaces.Box(-1, 1, (3,), np.float32)),
            "infos": picture,
        }[kind]
        self.kind = kind
        self.time = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.time = 0
        return self._observation(), {}

    def step(self, action: int) -> Any:
        self.time += 1
        info = {"frame": self._observation(), "time": self.time} if self.kind == "infos" and self.time > 2 else {}
        if action == 4:
            raise ValueError("told to fail")
        return self._observation(), float(action), self.time == 7, False, info

    def _observation(self) -> Any:
        picture = self.np_random.integers(0, 256, (100, 200, 3), np.uint8)
        return {"picture": picture, "speed": np.float32([self.time] * 3)} if self.kind == "dict" else picture


def remote(channels: list[StreamChannel], rows: int, kind: str = "box") -> RemoteSyncVectorEnv:
    """So many rows on each of these env runners."""
    links = [RunnerLink(one, None, "simulator", "0" * 8, 1, frozenset(), SimpleQueue()) for one in channels]
    factories = ship([lambda: PictureEnv(kind)] * rows)
    assignments = [
        Assignment(link, range(index * rows, (index + 1) * rows), factories, b"") for index, link in enumerate(links)
    ]
    core = VectorCore.open(assignments, SYNC, AutoresetMode.NEXT_STEP)
    return RemoteSyncVectorEnv(core, {"copy": True, "observation_mode": "same", "autoreset_mode": core._mode})


def places(vec: RemoteSyncVectorEnv) -> list[SharedPlaces]:
    return [landing.shared for landing in vec._core._landings if landing.shared is not None]


def used_bytes(channel: StreamChannel) -> int:
    """Of the memory that both ends share."""
    connected = channel.frames.socket
    assert isinstance(connected, LocalSocket) and connected.memory is not None
    return os.fstat(connected.memory.descriptor).st_blocks * 512


locally = pytest.mark.parametrize("server", ["local"], indirect=True)


@pytest.mark.parametrize("kind", ["box", "dict", "infos"])
def test_large_steps_are_those_of_the_local_class(server: Server, kind: str) -> None:
    channels = [server.open(), server.open()]
    vec, local = remote(channels, 3, kind), gym.vector.SyncVectorEnv([lambda: PictureEnv(kind)] * 6)
    assert_same(vec.reset(seed=3), local.reset(seed=3))
    actions = np.arange(6) % 4
    kept = []
    for _ in range(20):
        ours, theirs = vec.step(actions), local.step(actions)
        assert_same(ours, theirs)
        kept.append((ours, theirs))
    for ours, theirs in kept:  # nothing that a script holds changes later
        assert_same(ours, theirs)
    assert len(places(vec)) == (2 if server._way == "local" else 0)
    vec._core.close()


@locally
def test_only_a_few_bytes_of_a_large_step_go_through_the_socket(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    vec = remote([server.open()], 4)
    vec.reset(seed=1)
    vec.step(np.zeros(4, int))
    received: list[int] = []
    receive_into = FrameSocket._receive_into

    def counted(frames: FrameSocket, view: memoryview) -> int:
        received.append(receive_into(frames, view))
        return received[-1]

    monkeypatch.setattr(FrameSocket, "_receive_into", counted)
    vec.step(np.zeros(4, int))
    monkeypatch.undo()
    assert 0 < sum(received) < 1000
    vec._core.close()


@locally
def test_memory_is_let_go_with_the_vector_env_and_with_the_connection(server: Server) -> None:
    channel = server.open()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        vec = remote([channel], 4)
        vec.reset(seed=1)
        for _ in range(3):
            vec.step(np.zeros(4, int))
        assert used_bytes(channel) >= 2 * 4 * 60_000
        vec._core.close()
        del vec
        gc.collect()
        assert used_bytes(channel) == 0
    server.close()
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before - 4)  # two sockets, two descriptors of the memory


@locally
def test_a_step_that_was_seen_stays_while_others_raise(server: Server) -> None:
    """The trainer has not seen what came of them; where its rows are lost, it is told what it saw last."""
    channels = [server.open(), server.open()]
    vec = remote(channels, 2)
    vec.reset(seed=1)
    for _ in range(3):
        seen = vec.step(np.zeros(4, int))[0].copy()
    for _ in range(3):
        with pytest.raises(ValueError, match="told to fail"):
            vec.step(np.array([0, 0, 0, 4]))
    assert np.array_equal(vec._core._last_seen(0), seen[:2])
    vec._core.close()


@locally
@pytest.mark.parametrize("what", ["make", "at", "memfd"])
def test_without_memory_everything_goes_through_the_socket(
    server: Server, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: Any) -> Any:
        raise OSError("no memory")

    monkeypatch.setattr(*((os, "memfd_create") if what == "memfd" else (SharedMemory, what)), refuses)
    vec, local = remote([server.open()], 3), gym.vector.SyncVectorEnv([PictureEnv] * 3)
    assert_same(vec.reset(seed=3), local.reset(seed=3))
    for _ in range(4):
        assert_same(vec.step(np.zeros(3, int)), local.step(np.zeros(3, int)))
    vec._core.close()


@pytest.mark.parametrize("at", [0, 8, 1 << 40])
def test_an_answer_elsewhere_is_none(at: int) -> None:
    """No view of anything but the two places is ever made."""
    theirs, ours = (LocalSocket(fileno=one.detach()) for one in socket.socketpair())
    theirs.give_memory()
    ours.take_memory()
    frames, landing = FrameSocket(ours), Landing()
    assert ours.memory is not None
    step = m.RowsStepped(np.zeros((1, 70_000), np.uint8), np.zeros(1), np.zeros(1, bool), np.zeros(1, bool), [], [])
    theirs.sendall(b"".join(bytes(buffer) for buffer in Encoder().encode(step)[0]))
    wait_until(lambda: frames.get(landing) is not None)
    assert landing.shared is not None
    good = landing.shared.next()
    theirs.sendall(PREFIX.pack(1 + SHARED, 0, good))
    wait_until(lambda: frames.get(landing) is not None)
    theirs.sendall(PREFIX.pack(1 + SHARED, 0, good + at) if at else PREFIX.pack(1 + SHARED, 1 << 20, good))
    with pytest.raises(FrameError, match="not told to" if at else "which no message has"):
        wait_until(lambda: frames.get(landing) is not None)
    frames.close()
    theirs.close()


def test_an_env_runner_that_dies_leaves_what_was_seen(server: Server) -> None:
    channel = server.open()
    vec = remote([channel], 3)
    vec.reset(seed=1)
    seen = [vec.step(np.zeros(3, int))[0] for _ in range(3)][-1].copy()
    channel.close()
    with pytest.raises(EnvRunnerLostError):
        vec.step(np.zeros(3, int))
    assert np.array_equal(vec._core._last_seen(0), seen)
