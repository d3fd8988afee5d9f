"""Messages through a socket, in pieces of any size, come out as they went in."""

from __future__ import annotations

import socket
import threading
from collections import OrderedDict
from collections.abc import Iterator
from enum import Enum
from typing import Any

import numpy as np
import pytest
from comparing import assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from remoterl import messages as m
from remoterl.channels.codec import PREFIX, Encoder, Landing
from remoterl.channels.framing import FrameSocket, UndecodableError


class Pair:
    """Two connected ends."""

    def __init__(self) -> None:
        self.left, self.right = map(FrameSocket, socket.socketpair())

    def carry(self, message: Any, landing: Landing | None = None) -> Any:
        """Left to right."""
        self.left.put(message)
        while True:
            self.left.flush()
            arrived = self.right.get(landing)
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


def tree_stepped(number: int = 0, **others: Any) -> m.RowsStepped:
    """3 bytes in the middle, so that what comes after them is padded."""
    observations = {
        "picture": np.full((3, 5), number, np.float32),
        "more": (np.arange(3, dtype=np.uint8), {"x": np.arange(3)}),
    }
    return stepped(3)._replace(observations={**observations, **others})


def test_dicts_and_tuples_of_arrays_have_a_place_for_each(pair: Pair) -> None:
    encoder = Encoder()
    first, second = (encoder.encode(tree_stepped(number))[1] for number in range(2))
    assert first > second == PREFIX.size + 3 * 5 * 4 + 4 + 8 + 3 * 8 + 3 * 8 + 8 + 8
    landing = Landing()
    for number in range(6):
        step = pair.carry(tree_stepped(number), landing)
        assert_same(step, tree_stepped(number))
        assert landing._places is not None
        assert np.shares_memory(step.observations["picture"], landing._places[1 - landing._turn]) == (number > 0)


@pytest.mark.parametrize(
    "observations",
    [{}, (), {"picture": ()}, {"a": np.ones(3), "b": np.ones(3)}, {"b": np.ones(3), "a": np.ones(3)},
     {"a": np.ones(3, "f4")}, {"a": np.ones((3, 1))}, {"a": [np.ones(3)]}, (np.ones(3), ("x", "y", "z")), (np.ones(3),),
     {1: np.ones(3)}, {m.Target.WRAPPERS: np.ones(3)}, OrderedDict(a=np.ones(3)), {"a": {"b": np.ones(3)}},
     {"a": np.ones((3, 2)).T}, {"a": np.ones(3, "M8[s]")}, {"a": np.float64(1)}, (np.zeros((3, 0)), np.ones(3)),
     (np.ones(3), None), stepped(3)],
    ids=repr,
)  # fmt: skip
def test_whatever_observations_are_they_stay_that(pair: Pair, observations: Any) -> None:
    for landing in (None, Landing()):
        for _ in range(3):
            for step in (tree_stepped(1), stepped(3)._replace(observations=observations), stepped(3)):
                assert_same(pair.carry(step, landing), step)


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


def numbered(number: int, infos: Any = None) -> m.RowsStepped:
    step = stepped(3, infos=infos)
    return step._replace(observations=step.observations + number, rewards=step.rewards * number)


def lands_with(step: m.RowsStepped, other: m.RowsStepped) -> bool:
    return all(np.shares_memory(*pair) for pair in zip(step[:4], other[:4], strict=True))


def test_steps_land_in_two_places_in_turn(pair: Pair) -> None:
    landing = Landing()
    assert_same(pair.carry(numbered(0), landing), numbered(0))
    last = None
    places: list[m.RowsStepped] = []
    for number, infos in enumerate(([], [(1, {"x": 1}, None)], [], [], [(0, {"word": "x" * 1000}, None)])):
        arrived = pair.carry(numbered(number, infos), landing)
        assert_same(arrived, numbered(number, infos))
        assert last is None or not np.shares_memory(arrived.rewards, last.rewards)
        last = arrived
        places.append(arrived)
    assert all(lands_with(step, after_next) for step, after_next in zip(places, places[2:], strict=False))


def test_a_step_stays_until_the_next_has_arrived_in_full(pair: Pair) -> None:
    """It holds the last observations, which a truncated episode ends with if the env runner dies in its answer."""
    landing = Landing()
    for number in range(3):
        arrived = pair.carry(numbered(number), landing)
    encoder = Encoder()
    frame = b"".join([encoder.encode(numbered(9)), encoder.encode(numbered(9))][1][0])
    pair.left.socket.send(frame[:-1])
    assert pair.right.get(landing) is None
    assert_same(arrived, numbered(2))
    pair.left.socket.send(frame[-1:])
    assert_same(pair.right.get(landing), numbered(9))
    assert_same(pair.carry(numbered(3), landing), numbered(3))


def test_two_steps_at_once_land_one_after_the_other(pair: Pair) -> None:
    ours, others = Landing(), Landing()
    for landing in (ours, others):
        pair.carry(numbered(0), landing)
    for number in (1, 2):
        pair.left.put(numbered(number))
        pair.left.put(stepped(5))
        pair.left.flush()
        assert_same(pair.right.get(ours), numbered(number))
        assert_same(pair.right.get(others), stepped(5))


def test_a_step_with_a_table_lands(pair: Pair) -> None:
    landing = Landing()
    table = m.InfoTable(("x", "y"), (float, int), np.arange(6.0).reshape(3, 2))
    steps = [numbered(number)._replace(infos=table._replace(values=table.values + number)) for number in range(4)]
    arrived = [pair.carry(step, landing) for step in steps[:3]]
    assert_same(arrived[2], steps[2])
    assert np.shares_memory(pair.carry(steps[3], landing).infos.values, arrived[1].infos.values)


def test_infos_that_cannot_be_unpickled_spare_what_comes_next(pair: Pair) -> None:
    landing = Landing()
    pair.carry(numbered(0), landing)
    with pytest.raises(UndecodableError) as raised:
        pair.carry(numbered(1, [(0, {"it": _Missing()}, None)]), landing)
    assert isinstance(raised.value.__cause__, ModuleNotFoundError)
    assert_same(pair.carry(numbered(2), landing), numbered(2))


class _Interrupted:
    """As if a signal's handler raised while it is unpickled, the first time."""

    raised = False

    def __reduce__(self) -> Any:
        return _load_interrupted, ()


def _load_interrupted() -> Any:
    if not _Interrupted.raised:
        _Interrupted.raised = True
        raise TimeoutError("the script's own alarm")
    return _Interrupted()


@pytest.mark.parametrize("how", ["landed", "small", "pickled", "large"])
def test_an_alarm_while_a_message_is_decoded_is_the_scripts(pair: Pair, how: str) -> None:
    landing = Landing() if how == "landed" else None
    rows = 200_000 if how == "large" else 3
    pair.carry(stepped(rows), landing)
    _Interrupted.raised = False
    infos = [(0, {"it": _Interrupted()}, None)]
    message: Any = m.RowsCalled([_Interrupted()]) if how == "pickled" else stepped(rows)._replace(infos=infos)
    with pytest.raises(TimeoutError, match="own alarm"):
        pair.carry(message, landing)


@pytest.mark.parametrize(
    "other",
    [
        stepped(4),
        stepped(3, (5,)),
        stepped(3)._replace(rewards=np.ones(3, np.float32)),
        stepped(3)._replace(truncations=None),
        stepped(3)._replace(observations=[1, 2, 3]),
        stepped(5000),
        m.RowsCalled([1, 2, 3]),
        m.RowsFailed([]),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_is_not_as_expected_arrives_too(pair: Pair, other: Any) -> None:
    landing = Landing()
    for message in (stepped(3), stepped(3), other, stepped(3), other):
        assert_same(pair.carry(message, landing), message)


def test_what_lands_may_come_in_pieces(pair: Pair) -> None:
    encoder, landing = Encoder(), Landing()
    for _ in range(3):
        for byte in b"".join(encoder.encode(stepped(3))[0]):
            pair.left.socket.send(bytes([byte]))
            arrived = pair.right.get(landing)
        assert_same(arrived, stepped(3))


@pytest.mark.parametrize(
    "action",
    [5, -5, 2**62, 2**63, 2**70, True, 0.1, np.int64(3), np.int8(-3), np.float32(0.1), np.bool_(True)],
    ids=lambda action: f"{type(action).__name__}-{action}",
)
def test_a_single_number_stays_what_it_is(pair: Pair, action: Any) -> None:
    for _ in range(2):
        assert_same(pair.carry(m.StepRows(7, action)), m.StepRows(7, action))
        step = m.RowsStepped(np.ones(4, np.float32), action, False, np.bool_(True), [], [])
        assert_same(pair.carry(step), step)
    assert_same(pair.carry(m.StepRows(7, 6)), m.StepRows(7, 6))


def test_the_fields_of_a_step_may_change_from_one_to_the_next(pair: Pair) -> None:
    """The writer that was right for the last one is asked first."""
    turned = np.arange(12, dtype=np.float32).reshape(4, 3).T
    for message in (
        stepped(3),
        stepped(3)._replace(truncations=None),
        stepped(3)._replace(observations=turned),
        stepped(3)._replace(infos=None),
        stepped(3)._replace(infos=m.InfoTable(("x",), (float,), np.ones((3, 1)))),
        stepped(3)._replace(infos=m.InfoTable(("y",), (float,), np.ones((3, 1)))),
        m.StepRows(1, np.arange(3)),
        m.StepRows(2, np.arange(3)),
        m.StepRows(2**70, np.arange(3)),
        m.StepRows(1, turned),
        m.StepRows(1, [1, 2, 3]),
        m.StepRows(1, None),
        m.StepRows(1, 5),
        stepped(3),
    ):
        assert_same(pair.carry(message), message)


def test_a_number_of_a_local_class_leaves_the_stream_usable(pair: Pair) -> None:
    """NumPy's own pickle makes a number of NumPy's of it, and so does the actor channel."""

    class Local(np.float64):
        pass

    for _ in range(2):
        arrived = pair.carry(m.RowsStepped(np.ones(4, np.float32), Local(0.5), False, False, [], []))
        assert_same(arrived, m.RowsStepped(np.ones(4, np.float32), np.float64(0.5), False, False, [], []))
    assert_same(pair.carry(stepped(2)), stepped(2))


def test_large_values_of_a_single_environment_travel_beside_the_pickle() -> None:
    image = {"image": np.zeros((512, 512), np.uint8)}
    for message in (m.RowsStepped(image, 0.5, False, False, [], []), m.StepRows(1, [image]), m.StepRows(1, image)):
        assert max(memoryview(buffer).nbytes for buffer in Encoder().encode(message)[0]) == 512 * 512


@pytest.mark.parametrize("size", [3_000, 20_000, 40_000])
def test_steps_with_long_infos_arrive_too(pair: Pair, size: int) -> None:
    landing = Landing()
    for _ in range(4):
        for infos in ([(0, {"word": "x" * size}, None)], []):
            assert_same(pair.carry(numbered(1, infos), landing), numbered(1, infos))


class StrEnumeration(str, Enum):
    A = "a"


def _read_only() -> np.ndarray:
    array = np.arange(3)
    array.flags.writeable = False
    return array


def test_an_array_that_is_read_only_stays_so(pair: Pair) -> None:
    [(_, info, _)] = pair.carry(stepped(3, infos=[(0, {"a": _read_only(), "b": np.arange(3)}, None)])).infos
    assert (info["a"].flags.writeable, info["b"].flags.writeable) == (False, True)


@pytest.mark.parametrize(
    "value",
    [
        np.arange(3.0, dtype=np.float32), np.array(5), np.array([5]), np.zeros((0, 4)), np.ones(2, bool),
        np.ones(2, ">f8"), np.ones(2, "c8"), np.array(["x"]), np.array([None, 1]), np.asfortranarray(np.ones((3, 2))),
        np.arange(6)[::2],
        np.ones(2, [("a", "i4")]), np.ones(2, "M8[s]"), np.ma.array([1, 2], mask=[True, False]),
        np.bool_(True), np.int8(-3), np.uint64(2**63), np.float16(0.1), np.float32(0.1), np.float64("nan"),
        np.str_("x"), np.longdouble(0.1), np.complex64(1j), np.datetime64("2026-01-01"), np.dtype("f4"), np.float64,
    ],
    ids=repr,
)  # fmt: skip
def test_infos_of_numpy_stay_what_they_are(pair: Pair, value: Any) -> None:
    for info in (
        {"value": value, "again": [value]},
        {"value": value, "again": value},
        {
            "TimeLimit.truncated": True,
            "value": value,
            "episode": {"r": 1.5, "l": -(2**70), "t": float("nan")},
            "": None,
        },
        {"episode": {"r": value}},
    ):
        step = stepped(3, infos=[(1, info, None)])._replace(reset_infos=[(1, {"word": "\u00e9\ud800"})])
        arrived = pair.carry(step)
        assert_same(arrived, step)
        [(_, travelled, _)] = arrived.infos
        assert list(travelled) == list(info)
        if "again" in info:
            assert (travelled["again"][0] if type(info["again"]) is list else travelled["again"]) is travelled["value"]
        if isinstance(value, np.ndarray) and "value" in info:
            assert travelled["value"].flags.writeable


@pytest.mark.parametrize(
    "info",
    [{"a": True, "b": 1, "c": 1.0, "d": -0.0, "e": ""}, {}, {1: 2}, {"a": {1: 2}}, {"a": (1,)}, {"a": b"x"},
     {"a": {"b": {"c": 1}}}, {"a": bytearray(b"x")}, OrderedDict(a=1), {"a": OrderedDict(b=1)}, {"a": 1j}, {"a": ...},
     {"a": m.Semantics.SB3_DUMMY}, {"a": StrEnumeration.A}],
    ids=repr,
)  # fmt: skip
def test_infos_keep_their_types(pair: Pair, info: dict) -> None:
    for infos in ([(0, info, None)], [(2, info, (np.ones(4, np.float32), {"x": 1}))], [(0, {}, None), (1, info, None)]):
        step = stepped(3, infos=infos)._replace(reset_infos=[(2, info)])
        assert_same(pair.carry(step), step)


@pytest.mark.parametrize(
    "value",
    [(3,), (), (1, {"a": np.ones(2)}), (1, {}, None), (1, {}, np.ones(2)), (1, {}, None, np.ones(2)),
     (np.int64(1), {"a": 1}), (1, (2, {"a": np.float32(1)})), {"a": np.ones(2)}, [1, {}], np.ones(2)],
    ids=repr,
)  # fmt: skip
def test_lists_that_look_like_rows_and_their_infos_travel(pair: Pair, value: Any) -> None:
    for _ in range(2):
        for message in (
            m.RowsStepped([value, value], 1.5, True, False, [], []),
            m.RowsStepped([value], 1.5, True, False, [(0, {"a": 1}, None)], []),
            m.StepRows(1, [value]),
        ):
            assert_same(pair.carry(message), message)


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
    st.builds(
        m.StepRows,
        st.integers(0, 9),
        arrays.arrays(st.sampled_from(DTYPES), arrays.array_shapes(min_side=0)),
        st.none() | arrays.arrays(np.int64, st.tuples(st.integers(1, 3), st.just(2))),
    ),
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
