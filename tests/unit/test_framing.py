"""Messages through a socket, in pieces of any size, come out as they went in."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from comparing import assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from remoterl import messages as m
from remoterl.channels.codec import PREFIX, Encoder
from remoterl.channels.framing import FrameSocket, UndecodableError


class Pair:
    """Two connected ends."""

    def __init__(self) -> None:
        self.left, self.right = map(FrameSocket, socket.socketpair())

    def carry(self, message: Any) -> Any:
        """Left to right."""
        self.left.put(message)
        while True:
            self.left.flush()
            arrived = self.right.get()
            if arrived is not None:
                return arrived

    def close(self) -> None:
        self.left.close()
        self.right.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


def stepped(rows: int, shape: tuple[int, ...] = (4,), infos: list | None = None) -> m.RowsStepped:
    observations = np.arange(rows * np.prod(shape), dtype=np.float32).reshape(rows, *shape)
    return m.RowsStepped(
        observations, np.arange(rows) / 3, np.arange(rows) % 2 == 0, np.zeros(rows, bool), infos or [], []
    )


def test_steps_of_every_size(pair: Pair) -> None:
    for rows in (1, 3, 16, 5000, 3):
        for shape in ((4,), (), (84, 84)):
            assert_same(pair.carry(stepped(rows, shape)), stepped(rows, shape))
        assert_same(pair.carry(m.StepRows(7, np.arange(rows))), m.StepRows(7, np.arange(rows)))


def test_a_known_layout_travels_as_its_number(pair: Pair) -> None:
    encoder = Encoder()
    first, second = (encoder.encode(stepped(16))[1] for _ in range(2))
    assert first > second == PREFIX.size + 16 * 4 * 4 + 16 * 8 + 16 + 16


def test_infos_and_odd_values_travel_too(pair: Pair) -> None:
    infos = [(3, {"terminal_observation": np.ones(4), "word": "x" * 70_000}, None)]
    for message in (
        stepped(16, infos=infos),
        stepped(2)._replace(truncations=None, reset_infos=[(1, {})]),
        m.RowsStepped(np.float32(1), 1.5, True, False, [(0, {}, None)], []),
        m.RowsStepped({"a": np.ones((2, 2), "f4")}, np.ones(2, ">f8"), np.ones(2, "M8[s]"), None, [], []),
        m.RowsStepped(np.array([None, "x"]), np.asfortranarray(np.ones((3, 2))), np.ones(4)[::2], None, [], []),
        m.RowsReset({"image": np.zeros((300, 300), np.uint8)}, []),
        m.RowsCalled([np.zeros(100_000), None, [np.ones(50_000, "f4")]]),
    ):
        assert_same(pair.carry(message), message)


def test_what_arrives_can_be_written_to(pair: Pair) -> None:
    """An environment may change its action in place, as it may locally."""
    for rows in (2, 40_000):
        actions = pair.carry(m.StepRows(1, np.zeros((rows, 2)))).actions
        actions += 1
        assert actions.flags.writeable and actions.flags.aligned


def test_arrays_of_one_message_are_not_those_of_the_next(pair: Pair) -> None:
    first = pair.carry(stepped(4))
    pair.carry(stepped(4)._replace(rewards=np.full(4, 9.0)))
    assert_same(first, stepped(4))


def test_layouts_without_end_fall_back_to_pickles(pair: Pair) -> None:
    for rows in range(1, 600):
        assert_same(pair.carry(m.StepRows(0, np.arange(rows))), m.StepRows(0, np.arange(rows)))


def test_what_cannot_be_pickled_leaves_the_stream_usable(pair: Pair) -> None:
    for message in (m.RowsCalled([threading.Lock()]), stepped(2, infos=[(0, {"lock": threading.Lock()}, None)])):
        with pytest.raises(TypeError):
            pair.left.put(message)
    assert_same(pair.carry(stepped(2)), stepped(2))


class _Missing:
    def __reduce__(self) -> Any:
        return _fail, ()


def _fail() -> None:
    raise ModuleNotFoundError("no module named that")


def test_what_cannot_be_unpickled_does_not_lose_the_next(pair: Pair) -> None:
    for message in (m.RowsCalled([_Missing()]), stepped(2, infos=[(0, {"x": _Missing()}, None)])):
        with pytest.raises(UndecodableError):
            pair.carry(message)
    assert_same(pair.carry(stepped(2)), stepped(2))


def test_the_end_of_the_other_side(pair: Pair) -> None:
    pair.left.put(stepped(3))
    pair.left.flush()
    pair.left.close()
    assert pair.right.get() is not None
    with pytest.raises(ConnectionResetError):
        pair.right.get()


DTYPES = ["?", "u1", "<i8", ">f4", "<f2", "<c16"]
MESSAGES = st.one_of(
    st.builds(m.StepRows, st.integers(0, 9), arrays.arrays(st.sampled_from(DTYPES), arrays.array_shapes(min_side=0))),
    st.builds(m.RowsCalled, st.lists(st.one_of(st.none(), st.binary(max_size=99), st.integers())), st.none()),
    st.builds(lambda size: m.RowsCalled([np.arange(size, dtype=np.uint8)]), st.integers(0, 200_000)),
    st.builds(stepped, st.integers(1, 3000)),
)


@settings(deadline=None, max_examples=60)
@given(messages=st.lists(MESSAGES, min_size=1, max_size=6), sizes=st.lists(st.integers(1, 100_000), min_size=1))
def test_pieces_of_any_size(messages: list[Any], sizes: list[int]) -> None:
    encoder = Encoder()
    data = b"".join(bytes(buffer) for message in messages for buffer in encoder.encode(message)[0])
    raw, other = socket.socketpair()
    frames = FrameSocket(other)
    arrived, at, turn = [], 0, 0
    while len(arrived) < len(messages):
        if at < len(data):
            raw.setblocking(False)
            try:
                at += raw.send(data[at : at + sizes[turn % len(sizes)]])
            except BlockingIOError:
                pass
            turn += 1
        while (message := frames.get()) is not None:
            arrived.append(message)
    frames.close()
    raw.close()
    assert_same([_comparable(x) for x in arrived], [_comparable(x) for x in messages])


def _comparable(message: Any) -> Any:
    """NaN is not itself."""
    return tuple((x.dtype.str, x.shape, x.tobytes()) if isinstance(x, np.ndarray) else x for x in message)
