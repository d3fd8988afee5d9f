"""The rows of an env runner, in this process, without Ray."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import comparing
import envs
import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from ledger import LedgerEnv

from remoterl import messages as m
from remoterl.actors import apart as apart_module
from remoterl.actors import batching
from remoterl.actors.apart import apart
from remoterl.actors.env_runner import EnvRunner
from remoterl.shipping import ship

TRAINER = m.TrainerInfo("s", "script", "host", 1)


@pytest.fixture
def runner() -> EnvRunner:
    return EnvRunner(TRAINER)


def ask(runner: EnvRunner, request: Any) -> Any:
    return m.decode(runner.handle(m.encode(request)))


def opened(runner: EnvRunner, factories: list, semantics: m.Semantics = m.Semantics.GYMNASIUM_SYNC) -> m.RowsOpened:
    rows = tuple(range(4, 4 + len(factories)))
    request = m.OpenRows(1, rows, ship(factories), semantics, AutoresetMode.NEXT_STEP, b"")
    return ask(runner, request)


def test_one_message_steps_every_row(runner: EnvRunner) -> None:
    told = opened(runner, [lambda: envs.CountingEnv(2)] * 3)
    assert len(told.observation_spaces) == 1 and told.distinct == 3
    ask(runner, m.ResetRows(1, (1, 2, 3), None, None))
    reply = ask(runner, m.StepRows(1, np.array([0, 1, 2])))
    assert reply.observations.tolist() == [[1, 2]] * 3 and reply.rewards.tolist() == [0, 1, 2]
    assert [row for row, _, _ in reply.infos] == [0, 1, 2]


def test_rows_that_are_asked_for_again_are_closed_first(runner: EnvRunner, tmp_path: Path) -> None:
    """Where the trainer was interrupted while it waited for them."""
    closed = tmp_path / "closed"

    class Closing(envs.CountingEnv):
        def close(self) -> None:
            with closed.open("a") as file:
                file.write("x")

    opened(runner, [Closing] * 3)
    assert not closed.exists()
    opened(runner, [Closing] * 3)
    assert closed.read_text() == "xxx"


def test_every_row_that_raises_is_told(runner: EnvRunner) -> None:
    opened(
        runner,
        [envs.CountingEnv, lambda: envs.RaisingEnv("reset"), lambda: envs.RaisingEnv("reset", "KeyError")],
    )
    reply = ask(runner, m.ResetRows(1, (None,) * 3, None, None))
    assert isinstance(reply, m.RowsFailed)
    assert [(error.row, error.type_name) for error in reply.errors] == [(5, "ValueError"), (6, "KeyError")]


def test_a_package_may_register_what_the_trainer_mirrored(runner: EnvRunner, recwarn: pytest.WarningsRecorder) -> None:
    """As ale_py does, which registers its 176 ids when a row imports it."""

    def making_imports_its_package() -> envs.CountingEnv:
        gymnasium.register("Mirrored-v0", entry_point=envs.CountingEnv)
        return envs.CountingEnv()

    try:
        opened(runner, [making_imports_its_package] * 2)
    finally:
        gymnasium.registry.pop("Mirrored-v0")
    # Sockets of other tests may be collected meanwhile.
    assert not [one for one in recwarn.list if one.category is not ResourceWarning]


def test_spaces_that_differ_are_told_for_each_row(runner: EnvRunner) -> None:
    told = opened(runner, [envs.CountingEnv, envs.NestedEnv], m.Semantics.SINGLE)
    assert len(told.observation_spaces) == 2


def test_methods_stay_where_they_are(runner: EnvRunner) -> None:
    opened(runner, [envs.CountingEnv] * 2)
    arguments = ship(((), {}))
    read = ask(runner, m.CallRows(1, (5,), "add", arguments, False))
    assert read.results == [m.RemoteMethod("add")]
    assert ask(runner, m.CallRows(1, (5,), "add", ship(((2,), {"right": 3})), True)).results == [5]
    assert ask(runner, m.CallRows(1, (4, 5), "length", arguments, None)).results == [5, 5]


READ = ship(((), {}))
EACH_A_PROCESS = [m.Semantics.SB3_SUBPROC, m.Semantics.GYMNASIUM_ASYNC, m.Semantics.GYMNASIUM_ASYNC_UNSHARED]


def _made_with(config: dict[str, int], generator: np.random.Generator) -> envs.CountingEnv:
    env = envs.CountingEnv(config.pop("length"))
    env.drawn = int(generator.integers(1000))  # type: ignore[attr-defined]
    return env


@pytest.mark.parametrize("semantics", [*EACH_A_PROCESS, m.Semantics.SB3_DUMMY, m.Semantics.GYMNASIUM_SYNC], ids=str)
def test_rows_with_a_process_each_share_nothing_that_their_functions_captured(
    runner: EnvRunner, semantics: m.Semantics
) -> None:
    config, generator, made_with = {"length": 7}, np.random.default_rng(0), _made_with
    make: Any = lambda: made_with(config, generator)  # noqa: E731
    factories = [make, make, functools.partial(_made_with, config, generator), lambda: make()]
    told = opened(runner, factories, semantics)
    if semantics not in EACH_A_PROCESS:
        assert isinstance(told, m.RowsFailed) and [error.row for error in told.errors] == [5, 6, 7]
        return
    drawn = int(np.random.default_rng(0).integers(1000))
    assert ask(runner, m.CallRows(1, (4, 5, 6, 7), "length", READ, False)).results == [7] * 4
    assert ask(runner, m.CallRows(1, (4, 5, 6, 7), "drawn", READ, False)).results == [drawn] * 4


def test_a_large_array_is_not_copied_for_each_row() -> None:
    small, large = np.zeros(9), np.zeros(200_000)
    copies = apart([lambda: (small, large)] * 2)
    assert copies[0]()[0] is not small and copies[0]()[1] is copies[1]()[1] is large


def test_what_is_large_in_all_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, many = {"length": 7}, list(range(100_000))
    small, large = lambda: (settings,), lambda: (settings, many)
    assert all(one()[-1] is not many and one()[-1] == many for one in apart([large] * 2))
    monkeypatch.setattr(apart_module, "MOST_BYTES", 100_000)
    copies = apart([small, large, small])
    assert copies[0]()[0] is not settings and copies[1:] == [large, small]


def test_a_copy_looks_at_no_number_by_itself() -> None:
    """A million of them would take a second a row."""
    calls = []

    def watch(frame: Any, event: str, _: Any) -> None:
        if event == "call":
            calls.append(frame.f_code.co_name)

    many = list(range(10_000))
    make: Any = lambda: many  # noqa: E731
    sys.setprofile(watch)
    try:
        copies = apart([make] * 2)
    finally:
        sys.setprofile(None)
    assert copies[0]() is not copies[1]() and len(calls) < 5_000


SCRIPT = """
import envs

config, known, count = {"length": 7}, [], 0

def tell(env):
    known.append(env)

class Env(envs.CountingEnv):
    sentinel = object()

    def __init__(self, length, sentinel):
        super().__init__(length)
        tell(self)
        self.is_known = sentinel is self.sentinel and known[-1] is self

    def number(self):
        return len(known), count

def make():
    known.append("made")
    return Env(config.pop("length"), Env.sentinel)

def count_and_make():
    global count
    count += 1
    return Env(7, Env.sentinel)
"""


def test_rows_with_a_process_each_share_what_their_classes_use(runner: EnvRunner) -> None:
    for make, number in {"make": (6, 0), "count_and_make": (3, 3)}.items():
        script: dict[str, Any] = {"__name__": "__main__"}
        exec(SCRIPT, script)
        opened(runner, [script[make]] * 3, m.Semantics.SB3_SUBPROC)
        for name, value in {"length": 7, "is_known": True, "number": number}.items():
            assert ask(runner, m.CallRows(1, (4, 5, 6), name, READ, None)).results == [value] * 3


def test_an_unknown_vector_env_is_an_error_reply(runner: EnvRunner) -> None:
    assert isinstance(ask(runner, m.StepRows(99, [0])), m.RowsFailed)


def test_closing_twice_is_harmless(runner: EnvRunner) -> None:
    opened(runner, [envs.CountingEnv])
    for _ in range(2):
        assert ask(runner, m.CloseRows(1)).results == []


ODD_COLUMNS = [
    [1.0, 2.5],
    [np.float32(0.1), np.float64(0.1)],
    [1, 2**40],
    [True, np.bool_(False)],
    [np.array(3.5), 1.0],
    [np.float16(0.1), np.int8(-3)],
]


@pytest.mark.parametrize("values", ODD_COLUMNS, ids=repr)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.bool_])
def test_a_column_is_what_assignments_make(values: list, dtype: type) -> None:
    expected = np.zeros(2, dtype)
    for row, value in enumerate(values):
        expected[row] = value
    comparing.assert_same(batching.column(values, dtype), expected)


@pytest.mark.parametrize("values", ODD_COLUMNS, ids=repr)
def test_a_stack_is_numpys(values: list) -> None:
    comparing.assert_same(batching.stack(values), np.stack(values))


@pytest.mark.parametrize("rows", [2, 3000])
def test_only_what_fits_is_batched_the_short_way(rows: int) -> None:
    batch = np.zeros((rows, 3), np.float32)
    fits = [np.array([row, 2, 3], np.float32) for row in range(rows)]
    comparing.assert_same(batching.batched(fits, batch), np.stack(fits))
    for other in ([1, 2, 3], np.zeros(3), np.zeros(2, np.float32), np.zeros((1, 3), np.float32)):
        assert batching.batched([*fits[:-1], other], batch) is None


def test_numbers_are_batched_the_short_way_where_they_are_of_the_spaces_dtype() -> None:
    comparing.assert_same(batching.batched([np.int64(1), 2], np.zeros(2, np.int64)), np.array([1, 2]))
    assert batching.batched([1.0, 2], np.zeros(2, np.int64)) is None
    assert batching.batched([np.int64(1)] * 3000, np.zeros(3000, np.int64)) is None


def test_only_a_number_under_each_key_of_each_row_is_a_table() -> None:
    floats = [(0, {"x": 1.0, "y": np.float64(2)}, None), (1, {"x": -0.0, "y": np.float64("nan")}, None)]
    table = batching.tabled(floats, 2)
    assert isinstance(table, m.InfoTable) and table.values.dtype == np.float64
    comparing.assert_same(m.rows_of(table), floats)
    kinds = [(row, {"f": np.float32(0.1), "i": 2**53 - 1 - row, "b": row == 0}, None) for row in range(2)]
    table = batching.tabled(kinds, 2)
    assert isinstance(table, m.InfoTable) and table.types == (np.float32, int, bool)
    comparing.assert_same(m.rows_of(table), kinds)
    for others in (
        floats[:1],
        [floats[0], (1, {"y": 2.0, "x": 1.0}, None)],
        [floats[0], (1, {"x": 1.0, "y": 2.0}, None)],
        [floats[0], (1, {"x": 1.0, "y": np.float64(2)}, ("final", {}))],
        [(0, {"x": 1}, None), (1, {"x": 2**53}, None)],
        [(0, {"x": 1}, None), (1, {"x": 10**400}, None)],
        [(0, {"_x": 1.0}, None), (1, {"_x": 2.0}, None)],
        [(0, {"final_obs": 1.0}, None), (1, {"final_obs": 2.0}, None)],
        [(0, {"x": np.int32(1)}, None), (1, {"x": np.int32(1)}, None)],
        [(0, {"x": "1"}, None), (1, {"x": "1"}, None)],
    ):
        assert batching.tabled(others, 2) is others


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_revived_rows_start_where_their_mode_does(runner: EnvRunner, mode: AutoresetMode) -> None:
    request = m.OpenRows(1, (4, 5), ship([LedgerEnv] * 2), m.Semantics.GYMNASIUM_SYNC, mode, b"")
    assert isinstance(ask(runner, request), m.RowsOpened)
    last = np.arange(8).reshape(2, 4)
    ask(runner, m.ReviveRows(1, (70, 80), last))
    reply = ask(runner, m.StepRows(1, np.array([1, 2])))
    if mode == AutoresetMode.NEXT_STEP:
        assert reply.observations.tolist() == [[0, 0, -1, 70], [0, 0, -1, 80]]
        reply = ask(runner, m.StepRows(1, np.array([1, 2])))
        assert reply.observations[:, :3].tolist() == [[1, 1, 1], [1, 1, 2]]
    elif mode == AutoresetMode.DISABLED:
        assert isinstance(reply, m.RowsFailed)
        reply = ask(runner, m.ResetRows(1, (None, None), None, (False, True)))
        assert reply.observations.tolist() == [[0, 1, 2, 3], [0, 0, -1, 80]]
        assert ask(runner, m.ResetRows(1, (5, None), None, None)).observations[:, 3].tolist() == [5, -1]
