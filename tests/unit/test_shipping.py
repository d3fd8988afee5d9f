from __future__ import annotations

import fnmatch
import functools
import gc
import importlib
import json
import math
import pickle
import random
import subprocess
import sys
import textwrap
import threading
import types
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import envs
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

import remoterl
from remoterl import session
from remoterl.actors import registry
from remoterl.actors.sources import lies_beside_the_script
from remoterl.beside import is_beside, is_beside_the_script
from remoterl.errors import NotShippableError, UnsupportedError
from remoterl.shipping import StaysLocal, dumps, ship, ship_exception, unship


def in_another_process(data: bytes, tmp_path: Path, expression: str) -> str:
    """Load what was shipped where this repository's tests can't be imported."""
    (tmp_path / "data").write_bytes(data)
    code = (
        "import pickle; from remoterl.channels import codec; from remoterl.messages import encode; "
        "from remoterl.shipping import ship_exception, unship; "
        f"value = unship(open('data', 'rb').read()); print({expression})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    return done.stdout.strip() or done.stderr


def test_code_beside_the_script_travels_by_value(tmp_path: Path) -> None:
    assert is_beside_the_script(envs) and not is_beside_the_script(gym) and not is_beside_the_script(pytest)
    shipped = ship([lambda: envs.CountingEnv(length=9)])
    assert in_another_process(shipped, tmp_path, "value[0]().length") == "9"
    assert in_another_process(shipped, tmp_path, "__import__('sys').modules.get('envs')") == "None"


def script(source: str) -> Any:
    """A function of a script that is no module, as those of `__main__`: its `made`."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(textwrap.dedent(source), names)
    return names["made"]


def test_what_the_standard_library_caches_travels(tmp_path: Path) -> None:
    made = script("""
        import functools

        @functools.lru_cache(maxsize=7)
        def power(number):
            return 1 if number == 0 else 2 * power(number - 1)

        class Made:
            @functools.cache
            def twice(self, number):
                return 2 * number

            @functools.cached_property
            def three(self):
                '''Three.'''
                return self.twice(1) + power(0)

        def made():
            return power(5), power.cache_parameters()["maxsize"], Made().three, Made().three, Made.three.__doc__
    """)
    for data in (ship(made), dumps(made)):
        assert in_another_process(data, tmp_path, "value()") == "(32, 7, 3, 3, 'Three.')"
    assert unship(ship(functools.lru_cache(math.gcd)))(4, 6) == 2
    found_by_name = vars(fnmatch)["_compile_pattern"]
    assert unship(ship(found_by_name)) is found_by_name


def test_a_simulators_registrations_travel_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = script("""
        import functools

        @functools.cache
        def made():
            return "made there"
    """)
    monkeypatch.setattr(registry, "registry", {"Made-v0": EnvSpec("Made-v0", entry_point=made)})
    registry.save(tmp_path / "registry")
    saved = pickle.loads((tmp_path / "registry").read_bytes())
    assert in_another_process(saved["Made-v0"], tmp_path, "value.entry_point()") == "made there"


def test_the_global_generators_are_those_of_where_they_are_used() -> None:
    made = script("""
        from random import choice, random
        from numpy.random import uniform

        def made():
            return choice(range(1000)), random(), uniform()
    """)
    there = unship(ship(made))

    def drawn() -> list[Any]:
        random.seed(3)
        np.random.seed(3)
        return [there(), made()]

    first = drawn()
    assert first[0] != first[1] and drawn() == first
    own = random.Random(3)
    assert unship(ship(own)) is not own and unship(ship(own)).random() == own.random()


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose modules lie beside the script."""
    folder = tmp_path / "beside"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    known = set(sys.modules)
    yield folder
    for name in set(sys.modules) - known:
        del sys.modules[name]


def test_modules_beside_the_script_may_refer_to_each_other(beside: Path, tmp_path: Path) -> None:
    package = beside / "robots"
    package.mkdir()
    (package / "__init__.py").write_text("import robots.arm\nimport robots.sizes")
    (package / "sizes.py").write_text("import robots.arm\nSIZE = 4\ndef double(): return 2 * robots.sizes.SIZE")
    (package / "arm.py").write_text("import robots.sizes\ndef length(): return robots.sizes.double() + len('ab')")
    robots = importlib.import_module("robots")
    shipped = ship(lambda: (robots.arm.length(), robots.arm.robots is robots, robots.__name__))
    assert in_another_process(shipped, tmp_path, "value()") == "(10, True, 'robots')"


def test_extension_modules_beside_the_script_go_by_name(beside: Path) -> None:
    (beside / "robots").mkdir()
    (beside / "robots" / "__init__.py").touch()
    robots = importlib.import_module("robots")
    native = types.ModuleType("robots.native")
    native.__file__ = str(beside / "robots" / f"native{EXTENSION_SUFFIXES[0]}")
    native.Motor = type("Motor", (), {"__module__": "robots.native"})  # type: ignore[attr-defined]
    sys.modules["robots.native"] = native
    assert is_beside_the_script(robots) and not is_beside_the_script(native)
    assert unship(ship(lambda: native))() is native
    assert b"skeleton" not in ship(native.Motor) and b"skeleton" in ship(type("Motor", (), {}))


def test_why_a_module_beside_the_script_stayed_behind(beside: Path, tmp_path: Path) -> None:
    (beside / "locked.py").write_text("import threading\nlock = threading.Lock()\ndef length(): return lock and 3")
    shipped = ship([importlib.import_module("locked").length])
    assert unship(shipped)[0]() == 3
    said = in_another_process(shipped, tmp_path, "value")
    assert "NotShippableError" in said and "cannot pickle '_thread.lock'" in said and "No module named 'locked'" in said


def test_a_class_comes_back_as_the_one_that_it_is(tmp_path: Path) -> None:
    made = script("""
        import dataclasses
        import enum

        @dataclasses.dataclass
        class Pose:
            x: float

            def twice(self):
                return 2 * self.x

        class Side(enum.Enum):
            LEFT = 1

        class Fell(Exception):
            def __init__(self, part, force):
                super().__init__(part)
                self.force = force

        def made():
            return Pose(1.5), Side.LEFT, Fell("arm", 3)
    """)
    answer = "[encode(value()[0]), codec._dumps([value()[1]]), ship_exception(value()[2])]"
    written = in_another_process(ship(made), tmp_path, f"open('back', 'wb').write(pickle.dumps({answer}))")
    assert written.isdigit(), written
    back = pickle.loads((tmp_path / "back").read_bytes())
    own = made.__globals__
    methods = [vars(own[name]) for name in ("Pose", "Side", "Fell")]
    before = [dict(each) for each in methods]
    pose, [side], fell = map(pickle.loads, back)
    assert type(pose) is own["Pose"] and pose == own["Pose"](1.5)
    assert side is own["Side"].LEFT
    assert type(fell) is own["Fell"] and (fell.args, fell.force) == (("arm",), 3)
    assert [dict(each) for each in methods] == before
    del pose, side, fell, made, own, methods, before
    gc.collect()
    assert pickle.loads(back[0]).twice() == 3  # the script has let go of its class


def test_a_package_without_init_beside_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "grids" / "small").mkdir(parents=True)
    (tmp_path / "grids" / "small" / "grid.py").write_text("SIZE = 3\ndef size(): return SIZE\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert lies_beside_the_script("grids.small")
    grid = importlib.import_module("grids.small.grid")
    grids = sys.modules["grids"]
    try:
        assert lies_beside_the_script("grids.small") and is_beside_the_script(grids)
        shipped = ship([grid.size, lambda: grids.small.grid.SIZE])
    finally:
        for name in ("grids", "grids.small", "grids.small.grid"):
            del sys.modules[name]
    assert in_another_process(shipped, tmp_path / "elsewhere", "value[0]() + value[1]()") == "6"


def test_a_script_that_goes_elsewhere_keeps_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "robot.py").touch()
    monkeypatch.setattr(remoterl, "_started_in", str(tmp_path))
    monkeypatch.chdir(tmp_path / "runs")
    assert is_beside(str(tmp_path / "robot.py"))


def test_a_live_environment_stays() -> None:
    live = envs.CountingEnv()
    with pytest.raises(StaysLocal) as caught:
        ship([lambda: live])
    assert caught.value.live_environment


def test_what_cannot_be_pickled_stays() -> None:
    lock = threading.Lock()
    with pytest.raises(StaysLocal, match="lock") as caught:
        ship([lambda: lock])
    assert not caught.value.live_environment


def test_sb3s_monitor_is_replaced() -> None:
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.monitor import Monitor

    from remoterl.actors import monitor

    assert unship(ship(Monitor)) is monitor.Monitor

    class Collects:
        def __init__(self, env_fns):  # type: ignore[no-untyped-def]
            self.env_fns = env_fns

        def seed(self, seed):  # type: ignore[no-untyped-def]
            pass

    factory = make_vec_env("CartPole-v1", vec_env_cls=Collects).env_fns[0]  # type: ignore[arg-type,attr-defined]
    env = unship(ship(factory))()
    assert type(env) is monitor.Monitor and env.render_mode == "rgb_array"
    with pytest.raises(UnsupportedError, match="VecMonitor"):
        monitor.Monitor(env, "log.csv")


def test_a_missing_module_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from stable_baselines3.common.atari_wrappers import ClipRewardEnv

    shipped = ship(ClipRewardEnv)
    monkeypatch.setitem(sys.modules, "stable_baselines3.common.atari_wrappers", None)
    with pytest.raises(NotShippableError, match="stable_baselines3"):
        unship(shipped)


def test_a_missing_name_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = ship(textwrap.shorten)
    monkeypatch.delattr(textwrap, "shorten")
    with pytest.raises(NotShippableError, match="shorten"):
        unship(shipped)


def test_exceptions_that_do_not_survive() -> None:
    assert ship_exception(ValueError("x")) is not None
    assert ship_exception(envs.UnpicklableError("x")) is None


def test_an_exception_whose_class_takes_other_arguments() -> None:
    shipped = ship_exception(envs.CollisionError("arm", 3))
    assert shipped is not None
    error = pickle.loads(shipped)
    assert type(error) is envs.CollisionError and (error.part, error.force) == ("arm", 3)
    assert str(error) == "the arm collided with 3 N" and error.args == ("the arm collided with 3 N",)


def test_members_of_an_enum_are_as_they_were_made(tmp_path: Path) -> None:
    made = script("""
        import enum

        class Move(enum.Enum):
            UP = (0, 1)
            DOWN = (0, -1)
            NORTH = (0, 1)

            def __init__(self, dx, dy):
                self.dx, self.dy = dx, dy

        class Named(enum.Enum):
            X = 1, "x"

            def __new__(cls, value, label):
                made = object.__new__(cls)
                made._value_, made.label = value, label
                return made

        class Side(enum.Flag):
            NONE = 0
            LEFT = 1
            RIGHT = 2
            BOTH = LEFT | RIGHT

        def made():
            moves = Move.DOWN.dy, Move["NORTH"] is Move.UP is Move.NORTH is Move((0, 1)), list(Move.__members__)
            sides = Side.LEFT | Side.RIGHT is Side.BOTH, Side(3).name, Side["NONE"].name, list(Side.BOTH)
            return moves, Named(1).label, sides
    """)
    expected = str(made())
    for data in (ship(made), dumps(made), ship(unship(ship(made)))):
        assert in_another_process(data, tmp_path, "value()") == expected
    assert in_another_process(ship(made), tmp_path, "[unship(open('data', 'rb').read())(), value()][1]") == expected


COURSE = """
import functools
import numpy as np

seen, calls, weights, limits = 0, {}, np.zeros(3), [1]

class Course:
    level = 0
    log = []

    def step(self):
        global seen
        seen += 1
        Course.level += 1
        calls[seen] = self.level
        self.log.append(seen)
        return self.level, seen, len(calls), len(self.log), bonus(), limits[0]

class Hard(Course):
    pass

def bonus():
    return 0

def made():
    return [one.__name__ for one in Course.__subclasses__()], Hard and Course()
"""


def test_what_runs_goes_on_as_its_code_arrives_again(beside: Path, tmp_path: Path) -> None:
    (beside / "course.py").write_text(COURSE)
    course = importlib.import_module("course")
    first, same, argument = ship(course.made), ship(course.made), ship({"start": course.Course()})
    course.limits[0], course.Course.level = 7, 20
    changed = ship(course.made)
    exec("def bonus(): return 5", vars(course))
    redefined = ship(course.made)
    shipped = ship([first, same, argument, changed, redefined])
    expression = """[running := unship(value[0])()[1], running.step(), unship(value[1])()[1].step(), running.step(),
        bool(unship(value[2])), running.step(), bool(unship(value[3])), running.step(),
        bool(unship(value[4])), running.step(), unship(value[4])()[0], unship(value[1])()[0]][1:]"""
    goes_on = [(1, 1, 1, 1, 0, 1), (2, 2, 2, 2, 0, 1), (3, 3, 3, 3, 0, 1), True, (4, 4, 4, 4, 0, 1)]
    changes = [True, (21, 5, 5, 5, 0, 7), True, (22, 6, 6, 6, 5, 7), ["Hard"], ["Hard"]]
    assert in_another_process(shipped, tmp_path, expression) == str([*goes_on, *changes])
    assert first == same


LEVELS = """
import gymnasium

class Levels(gymnasium.Env):
    observation_space = action_space = gymnasium.spaces.Discrete(2)
    level = 0

    def __init__(self):
        Levels.level += 1
"""
OPENER = """
from gymnasium.vector import AutoresetMode
from remoterl import messages as m
from remoterl.actors.env_runner import EnvRunner
from remoterl.shipping import ship

def levels(factories):
    runner = EnvRunner(m.TrainerInfo("session", "script", "host", 1))

    def opened(number, semantics):
        runner._open(m.OpenRows(number, (0,), factories, semantics, AutoresetMode.NEXT_STEP, b""))
        return runner._call(m.CallRows(number, (0,), "level", ship(((), {})), None)).results[0]

    found = [opened(1, m.Semantics.GYMNASIUM_ASYNC), opened(2, m.Semantics.GYMNASIUM_SYNC)]
    for number in (1, 2):
        runner._close(m.CloseRows(number))
    return [*found, opened(3, m.Semantics.GYMNASIUM_SYNC), runner._close(m.CloseRows(3)) and
            opened(4, m.Semantics.GYMNASIUM_ASYNC)]
"""


def test_where_locally_processes_would_start_classes_start_anew(beside: Path, tmp_path: Path) -> None:
    (beside / "course.py").write_text(LEVELS)
    (tmp_path / "opener.py").write_text(OPENER)
    shipped = ship(ship([importlib.import_module("course").Levels]))
    assert in_another_process(shipped, tmp_path, "__import__('opener').levels(value)") == "[1, 2, 3, 1]"


def test_a_modules_functions_and_itself_have_the_same_names(beside: Path, tmp_path: Path) -> None:
    (beside / "settings.py").write_text(
        "size = 3\ndef set_size(to):\n    global size\n    size = to\ndef get_size(): return size\n"
    )
    settings, set_size = importlib.import_module("settings"), importlib.import_module("settings").set_size

    def made() -> tuple[int, int]:
        set_size(7)
        return settings.size, settings.get_size()

    assert in_another_process(ship(made), tmp_path, "value()") == "(7, 7)"


def test_private_slots_and_types_with_names_travel(tmp_path: Path) -> None:
    made = script("""
        import typing

        Cell = typing.NewType("Cell", int)
        Given = typing.ParamSpec("Given")

        class Grid:
            __slots__ = ("size", "__cells")
            given = Given

            def __init__(self, cells: Cell):
                self.size, self.__cells = 1, cells

            def cells(self) -> Cell:
                return Cell(self.__cells)

            cells.__annotations__["return"] = Cell

        def made():
            return Grid(3).cells(), Grid.cells.__annotations__["return"].__supertype__, Grid.given.__name__
    """)
    for data in (ship(made), dumps(made)):
        assert in_another_process(data, tmp_path, "value()") == str(made())


def test_a_module_that_has_made_an_environment_for_itself_goes_by_its_name(beside: Path, tmp_path: Path) -> None:
    (beside / "common.py").write_text(
        "import gymnasium\nprobe = gymnasium.make('CartPole-v1')\nN = int(probe.action_space.n)\n"
        "def make(): return probe\n"
    )
    common = importlib.import_module("common")
    shipped = ship([lambda: common.N])
    assert unship(shipped)[0]() == 2
    said = in_another_process(shipped, tmp_path, "value")
    assert "the live environment" in said and "probe of common" in said and "No module named 'common'" in said
    for used in ([common.make], [lambda: common.probe], [lambda: common.N, lambda: common.probe]):
        with pytest.raises(StaysLocal) as caught:
            ship(used)
        assert caught.value.live_environment


def test_what_can_not_be_pickled_is_named(beside: Path, tmp_path: Path) -> None:
    (beside / "steps.py").write_text("class Steps:\n    left = (one for one in 'abc')\ndone = (one for one in 'abc')\n")
    steps = importlib.import_module("steps")
    made = script("left = (one for one in 'abc')\ndef made(): return left")
    for value, name in ((lambda: steps, "done of steps"), (steps.Steps, "left of Steps")):
        assert f"'generator' object, which is {name}" in in_another_process(ship(value), tmp_path, "value")
    with pytest.raises(StaysLocal, match="generator"):
        ship(made)


def test_where_the_script_goes_its_modules_are_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "walks.py").write_text("def made(): return 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path / "elsewhere")
    walks = importlib.import_module("walks")
    try:
        assert "No module named 'walks'" in in_another_process(ship(walks.made), tmp_path / "elsewhere", "value()")
        monkeypatch.chdir(tmp_path)
        assert in_another_process(ship(walks.made), tmp_path / "elsewhere", "value()") == "3"
    finally:
        del sys.modules["walks"]


def test_a_checkout_of_gymnasium_is_none_of_the_scripts_modules(beside: Path) -> None:
    for name, is_the_scripts in (("gymnasium.wrappers", False), ("ray", False), ("walks", True)):
        module = types.ModuleType(name)
        module.__file__ = str(beside / f"{name}.py")
        assert is_beside_the_script(module) is is_the_scripts


def test_only_a_name_that_is_missing_is_called_so() -> None:
    class Parsed:
        def __reduce__(self) -> Any:
            return getattr, ([], "own_error")

    with pytest.raises(AttributeError, match="'list' object has no attribute 'own_error'"):
        unship(ship(Parsed()))


def test_a_class_goes_back_whole_but_once(tmp_path: Path) -> None:
    made = script("""
        sizes = [1] * 10_000

        class Task:
            def size(self):
                return len(sizes)

        def made():
            return Task()
    """)
    whole = "open('whole', 'wb').write(encode({'task': value()}))"
    expression = f"[{whole}, *(open(str(number), 'wb').write(codec._dumps([value()])) for number in range(3))]"
    sizes = json.loads(in_another_process(ship(made), tmp_path, expression))
    assert sizes[0] > 10_000 < sizes[1] and sizes[2] == sizes[3] < 1_000
    made = None
    gc.collect()
    tasks = [pickle.loads((tmp_path / str(number)).read_bytes())[0] for number in range(3)]
    assert [task.size() for task in tasks] == [10_000] * 3 and len(set(map(type, tasks))) == 1


def test_the_same_factories_are_pickled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(session, "ship", lambda part, ship=ship: asked.append(part) or ship(part))
    same, other = len, abs
    parts = session._ship_parts([[same, same], [same, same], [same], [other]])
    assert asked == [[same, same], [same], [other]] and list(map(unship, parts)) == [
        [len, len],
        [len, len],
        [len],
        [abs],
    ]


@pytest.mark.parametrize("base", ["", "gymnasium.Env", "Generic[T]", "abc.ABC", "Protocol"])
@pytest.mark.parametrize("body", ["", "__slots__ = ('own',)"])
def test_a_base_that_keeps_no_list_of_what_it_is_told(tmp_path: Path, base: str, body: str) -> None:
    made = script(f"""
        import abc
        from typing import Generic, Protocol, TypeVar

        import gymnasium

        T = TypeVar("T")

        class Told({base}):
            {body}
            def __init_subclass__(cls, *, key, **more):
                super().__init_subclass__(**more)
                cls.key = key

        class Walk(Told, key="w"):
            pass

        class Far(Walk, key="f"):
            pass

        def made():
            return Walk.key, Far().key, [one.__name__ for one in Far.__mro__]
    """)
    assert in_another_process(ship(made), tmp_path, "value()") == str(made())


def test_a_base_is_told_of_a_class_but_once(tmp_path: Path) -> None:
    made = script("""
        import abc
        from typing import Generic, TypeVar

        T = TypeVar("T")

        class Told:
            all = []

            def __init_subclass__(cls, *, key, **more):
                super().__init_subclass__(**more)
                cls.key, cls.upper = key, cls.title.upper()
                Told.all.append(cls)

        class Walk(Told, Generic[T], key="w"):
            title = "walk"

        class Far(Walk[int], abc.ABC, key="f"):
            title = "far"

            @abc.abstractmethod
            def go(self):
                pass

        class Away(Far, key="a"):
            title = "away"

            def go(self):
                return super().key

        def made():
            bases = [one.__name__ for one in Away.__mro__], Told.__subclasses__() == [Walk], Far.__orig_bases__[0]
            return [(one.key, one.upper) for one in Told.all], Away().go(), bases
    """)
    for data in (ship(made), ship([made, made])):
        expression = "value() if callable(value) else value[1]()"
        assert in_another_process(data, tmp_path, expression) == str(made())
