"""Large observations in memory that a session shares with its env runners: the same as locally, and nothing stays."""

from __future__ import annotations

import gc
import mmap
import multiprocessing
import os
import socket
from collections import OrderedDict
from queue import SimpleQueue
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from comparing import assert_same
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from processes import wait_until
from stable_baselines3.common.vec_env import DummyVecEnv
from streams import Server
from test_core_model import set_up

from remoterl import messages as m
from remoterl.channels.codec import PREFIX, WRITTEN, Landing, Room
from remoterl.channels.framing import FrameError, FrameSocket
from remoterl.channels.shared_memory import SharedMemory
from remoterl.channels.stream import StreamChannel
from remoterl.channels.trees import flatten
from remoterl.errors import EnvRunnerLostError
from remoterl.shipping import ship
from remoterl.vector.core import Assignment, RunnerLink, VectorCore
from remoterl.vector.gymnasium import RemoteSyncVectorEnv
from remoterl.vector.lent import MOST_LENT
from remoterl.vector.sb3 import RemoteDummyVecEnv, RemoteSubprocVecEnv

SYNC = m.Semantics.GYMNASIUM_SYNC


class CustomSpace(spaces.Space):
    """One that Gymnasium knows nothing of: the observations of all rows are a tuple."""

    def __eq__(self, other: object) -> bool:
        return type(other) is CustomSpace


class PictureEnv(gym.Env):
    """Pictures of 60 kB at random; every 7th step its episode ends. `kind`: what an observation is."""

    action_space = spaces.Discrete(5)

    def __init__(self, kind: str = "box") -> None:
        picture, speed = spaces.Box(0, 255, (100, 200, 3), np.uint8), spaces.Box(-1, 99, (3,), np.float32)
        self.observation_space: Any = {
            "box": picture,
            "dict": spaces.Dict(picture=picture, speed=speed),
            "nested": spaces.Tuple([spaces.Dict(b=picture, a=spaces.Tuple([speed, picture])), spaces.Discrete(9)]),
            "text": spaces.Dict(picture=picture, word=spaces.Text(9)),
            "custom": CustomSpace(),
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
        picture, speed = self.np_random.integers(0, 256, (100, 200, 3), np.uint8), np.float32([self.time] * 3)
        if self.kind == "nested":
            return {"b": picture, "a": (speed, picture[::-1])}, self.time
        if self.kind == "custom":  # as many on its first axis as there are rows
            return picture.reshape(3, 100, 200)
        if self.kind == "text":
            return {"picture": picture, "word": "x" * self.time}
        return {"picture": picture, "speed": speed} if self.kind == "dict" else picture


def assigned(channels: list[StreamChannel], rows: int, kind: str, semantics: m.Semantics) -> VectorCore:
    links = [RunnerLink(one, None, "simulator", "0" * 8, 1, frozenset(), SimpleQueue()) for one in channels]
    factories = ship([lambda: PictureEnv(kind)] * rows)
    assignments = [
        Assignment(link, range(index * rows, (index + 1) * rows), factories, b"") for index, link in enumerate(links)
    ]
    return VectorCore.open(assignments, semantics, AutoresetMode.NEXT_STEP)


def remote(channels: list[StreamChannel], rows: int, kind: str = "box", **arguments: Any) -> RemoteSyncVectorEnv:
    """So many rows on each of these env runners."""
    core = assigned(channels, rows, kind, SYNC)
    usual = {"copy": True, "observation_mode": "same", "autoreset_mode": core._mode}
    return set_up(RemoteSyncVectorEnv, core, {**usual, **arguments})


def used_bytes(server: Server) -> int:
    """Of the memory that the session shares."""
    assert server.streams.memory is not None
    return os.fstat(server.streams.memory.descriptor).st_blocks * 512


def is_lent(observations: Any) -> bool:
    flat = flatten(observations)
    return flat is not None and all(isinstance(array.base, mmap.mmap) for array in flat[1])


locally = pytest.mark.parametrize("server", ["local"], indirect=True)


@pytest.mark.parametrize("kind", ["box", "dict", "nested", "text", "custom", "infos"])
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
    if kind != "infos":  # a script that keeps everything gets copies when it has so many
        lent = server._way == "local" and kind not in ("text", "custom")
        assert sum(is_lent(ours[0]) for ours, _ in kept) == (MOST_LENT if lent else 0)
    vec._core.close()


@locally
def test_only_a_few_bytes_of_a_large_step_go_through_the_socket(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    vec = remote([server.open()], 4)
    vec.reset(seed=1)
    vec.step(np.zeros(4, int))
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
        assert used_bytes(server) >= 2 * 4 * 60_000
        vec._core.close()
        del vec
        gc.collect()
        assert used_bytes(server) == 0
    server.close()
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before - 3)  # two sockets, the env runner's memory


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

    if what == "memfd":
        monkeypatch.setattr(os, "memfd_create", refuses)
        server.streams.memory = SharedMemory.create()
        assert server.streams.memory is None
    else:
        monkeypatch.setattr(SharedMemory, what, refuses)
    vec, local = remote([server.open()], 3), gym.vector.SyncVectorEnv([PictureEnv] * 3)
    assert_same(vec.reset(seed=3), local.reset(seed=3))
    for _ in range(4):
        assert_same(vec.step(np.zeros(3, int)), local.step(np.zeros(3, int)))
    vec._core.close()


@locally
@pytest.mark.parametrize("kind", ["box", "dict"])
def test_what_nobody_holds_is_written_to_again(server: Server, kind: str) -> None:
    """Who holds a view of an array, or one of a dict's arrays, holds all."""
    vec = remote([server.open(), server.open()], 2, kind)
    vec.reset(seed=1)

    def array() -> np.ndarray:
        observations = vec.step(np.zeros(4, int))[0]
        return observations if kind == "box" else observations["speed"]

    seen = {array().ctypes.data for _ in range(20)}
    assert len(seen) <= 3
    held = [array()[1, 10:20] if kind == "box" else array() for _ in range(MOST_LENT)]
    copies = [one.copy() for one in held]
    assert not is_lent(vec.step(np.zeros(4, int))[0])
    for _ in range(5):
        vec.step(np.zeros(4, int))
    assert all(map(np.array_equal, held, copies))
    held.clear()
    vec.step(np.zeros(4, int))
    assert is_lent(vec.step(np.zeros(4, int))[0])
    vec._core.close()


@locally
@pytest.mark.parametrize("semantics", [m.Semantics.SB3_DUMMY, m.Semantics.SB3_SUBPROC], ids=str)
def test_stable_baselines3_gets_its_dicts(server: Server, semantics: m.Semantics) -> None:
    core = assigned([server.open(), server.open()], 2, "dict", semantics)
    is_dummy = semantics is m.Semantics.SB3_DUMMY
    vec = set_up(RemoteDummyVecEnv if is_dummy else RemoteSubprocVecEnv, core, {"start_method": None})
    local = DummyVecEnv([lambda: PictureEnv("dict")] * 4)
    vec.seed(3)
    local.seed(3)
    assert_same(dict(vec.reset()), dict(local.reset()))
    for step in range(9):
        ours, theirs = vec.step(np.zeros(4, int)), local.step(np.zeros(4, int))
        assert_same(dict(ours[0]), dict(theirs[0]))
        assert type(ours[0]) is (OrderedDict if is_dummy else dict)
        assert is_lent(dict(ours[0])) == (step not in (0, 6))  # what defines a layout, and terminal observations
    vec.close()


@locally
def test_a_forked_child_keeps_what_it_saw(server: Server) -> None:
    vec = remote([server.open()], 2)
    vec.reset(seed=1)
    vec.step(np.zeros(2, int))
    seen = vec.step(np.zeros(2, int))[0]
    ours, theirs = multiprocessing.get_context("fork").Pipe()
    before = seen.copy()
    child = os.fork()
    if child == 0:
        theirs.recv()
        os._exit(0 if np.array_equal(seen, before) else 1)
    del seen
    for _ in range(10):
        vec.step(np.zeros(2, int))
    gc.collect()
    ours.send("look")
    assert os.waitpid(child, 0)[1] == 0
    assert not is_lent(vec.step(np.zeros(2, int))[0])
    vec._core.close()


@locally
def test_a_forked_child_and_its_parent_do_not_see_each_others_writes(server: Server) -> None:
    """Of arrays that the script held, changed before the fork or not, and of the step that was under way."""
    vec, local = remote([server.open()], 2, "dict"), gym.vector.SyncVectorEnv([lambda: PictureEnv("dict")] * 2)
    vec.reset(seed=1)
    local.reset(seed=1)
    held = []
    for _ in range(3):
        seen, (theirs, *_) = vec.step(np.zeros(2, int))[0], local.step(np.zeros(2, int))
        held.append((seen, theirs))
    assert all(is_lent(seen) for seen, _ in held[1:])
    for both in held[-1]:
        both["picture"][0] = 7
    flight = vec._core.step(np.zeros(2, int))
    context = multiprocessing.get_context("fork")
    for _ in range(2):  # what was changed after the first fork stays as it is in the second
        ours, childs = context.Pipe()
        child = os.fork()
        if child == 0:
            childs.recv()
            same = all(np.array_equal(seen["picture"], theirs["picture"]) for seen, theirs in held)
            for seen, _ in held:
                seen["picture"][:] = 1
            os._exit(0 if same else 1)
        for both in held[1]:
            both["picture"][:] += 1
        ours.send("write")
        assert os.waitpid(child, 0)[1] == 0
        for seen, theirs in held:
            assert_same(seen, theirs)
    step, (theirs, *_) = vec._receive_step(flight)[0], local.step(np.zeros(2, int))
    assert_same(step, theirs)
    for _ in range(3):
        assert_same(vec.step(np.zeros(2, int)), local.step(np.zeros(2, int)))
    for seen, theirs in held:
        assert_same(seen, theirs)
    vec._core.close()


@locally
def test_what_is_held_at_the_sessions_end_stays_and_is_no_childs(server: Server) -> None:
    vec = remote([server.open()], 2)
    vec.reset(seed=1)
    seen = [vec.step(np.zeros(2, int))[0] for _ in range(3)][-1]
    before = seen.copy()
    assert is_lent(seen)
    vec._core.close()
    server.close()
    assert server.streams.memory is not None
    server.streams.memory.close()
    child = os.fork()
    if child == 0:
        seen[:] = 0
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert np.array_equal(seen, before)


@locally
def test_without_copies_it_is_one_and_the_same_array(server: Server) -> None:
    vec = remote([server.open(), server.open()], 2, copy=False)
    local = gym.vector.SyncVectorEnv([PictureEnv] * 4, copy=False)
    assert_same(vec.reset(seed=3), local.reset(seed=3))
    seen = [vec.step(np.zeros(4, int))[0] for _ in range(5)]
    local_seen = [local.step(np.zeros(4, int))[0] for _ in range(5)]
    assert all(one is seen[0] for one in seen)
    assert_same(seen[0], local_seen[0])
    vec._core.close()


@locally
def test_one_env_runner_by_the_network_and_one_by_memory(server: Server) -> None:
    here = server.open()
    server._way = "network"
    vec, local = remote([here, server.open()], 2), gym.vector.SyncVectorEnv([PictureEnv] * 4)
    assert_same(vec.reset(seed=3), local.reset(seed=3))
    for _ in range(5):
        assert_same(vec.step(np.zeros(4, int)), local.step(np.zeros(4, int)))
    vec._core.close()


@pytest.mark.parametrize("wrong", ["place", "layout", "size", "nobody asked", "too long"])
def test_an_answer_elsewhere_is_none(wrong: str) -> None:
    """No view of anything but the room that was given for it is ever made."""
    theirs, ours = map(FrameSocket, socket.socketpair())
    landing = Landing()
    step = m.RowsStepped(np.zeros((1, 70_000), np.uint8), np.zeros(1), np.zeros(1, bool), np.zeros(1, bool), [], [])
    rest = bytes(24)
    send = theirs.socket.sendall

    def room(size_bytes: int) -> Room:
        return Room(np.array([[64, size_bytes]]), [np.zeros((1, size_bytes), np.uint8)])

    def received() -> Any:
        messages: list[Any] = []
        wait_until(lambda: bool(messages.append(ours.get(landing)) or messages[-1]))
        return messages[-1]

    theirs.put(step)
    wait_until(theirs.flush)
    received()
    landing.room = room(70_000)
    send(PREFIX.pack(1 + WRITTEN, 0, 64) + rest)
    assert received().observations is landing.room.arrays[0]
    if wrong == "nobody asked":
        landing.room = None
    elif wrong == "size":
        landing.room = room(69_999)
    number, pickle_bytes = 2 if wrong == "layout" else 1, 1 << 20 if wrong == "too long" else 0
    send(PREFIX.pack(number + WRITTEN, pickle_bytes, 72 if wrong == "place" else 64) + rest)
    with pytest.raises(FrameError, match="which no message has" if wrong == "too long" else "not told to"):
        received()
    ours.close()
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
