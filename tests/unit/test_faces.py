"""What a script sees of vector envs, beside the local classes: their faces over env runners in this process, no Ray."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comparing
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize
from test_core_model import World, host_of

from remoterl import messages as m
from remoterl.actors.rows import WholeRows
from remoterl.errors import UnsupportedError
from remoterl.patches import gymnasium as gymnasium_patches
from remoterl.patches import stable_baselines3 as sb3_patches
from remoterl.patches.backend import set_backend
from remoterl.patches.base import UndoLog
from remoterl.placement import split_rows
from remoterl.shipping import ship
from remoterl.vector.core import Assignment, VectorCore


class InProcessBackend:
    """Opens rows on the env runners of a `World`."""

    def __init__(self, world: World) -> None:
        self._world = world

    def open(
        self,
        factories: Any,
        semantics: m.Semantics,
        autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP,
        env_id: str | None = None,
    ) -> VectorCore:
        links = self._world.living()
        assignments = [
            Assignment(link, rows, ship(factories[rows.start : rows.stop]), b"")
            for link, rows in zip(links, split_rows(len(factories), len(links)), strict=False)
        ]
        return VectorCore.open(assignments, semantics, autoreset_mode, env_id or "", self._world)  # type: ignore[arg-type]


@contextmanager
def remote(env_runners: int = 1) -> Iterator[World]:
    """As between `init` and `shutdown`."""
    world, log = World(None), UndoLog()
    for _ in range(env_runners):
        world.start()
    set_backend(InProcessBackend(world))  # type: ignore[arg-type]
    log.install([*gymnasium_patches.TABLE, *sb3_patches.TABLE])
    try:
        yield world
    finally:
        log.undo()
        set_backend(None)


def compare(story: Callable[[], Any], env_runners: int = 1) -> Any:
    """It comes out as locally; returns what came of it."""
    locally = copy.deepcopy(story())
    with remote(env_runners):
        comparing.assert_same(locally, story())
    return locally


class Counting(gym.Env):
    """Observes twice what step it is in."""

    metadata = {"render_modes": []}
    observation_space: gym.Space = gym.spaces.Box(-99, 99, (2,), np.float64)
    action_space = gym.spaces.Discrete(3)
    steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return np.full(2, float(self.steps)), 1.0, self.steps == 3, False, {}

    def take(self, goal: np.ndarray) -> np.ndarray:
        goal += 1
        return goal.copy()


STILL = np.zeros(2, np.int64)


# ---- infos -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_runners", [1, 2])
@pytest.mark.parametrize("local_class", [SyncVectorEnv, AsyncVectorEnv])
def test_who_adds_infos_its_own_way_is_called_for_empty_ones_too(local_class: Any, env_runners: int) -> None:
    class Listing(local_class):
        def _add_info(self, vector_infos: Any, env_info: Any, env_num: int) -> Any:
            vector_infos.setdefault("list", [None] * self.num_envs)[env_num] = env_info
            return vector_infos

    def story() -> Any:
        vec = Listing([Counting] * 2, autoreset_mode=AutoresetMode.DISABLED)
        seen = [vec.reset()[1], vec.step(STILL)[4]]
        seen.append(vec.reset(options={"reset_mask": np.array([False, True])})[1])
        vec.close()
        return seen

    assert compare(story, env_runners)[0] == {"list": [{}, {}]}


# ---- what rows share -------------------------------------------------------------------------------------------------


class Sharing(Counting):
    """All of them return one and the same array and info."""

    buffer: np.ndarray
    info: dict[str, Any]

    def __init__(self, number: int, begins_late: bool = False) -> None:
        self.number, self.begins_late = number, begins_late

    def _returned(self) -> tuple[Any, Any]:
        self.buffer[:] = self.number + self.steps
        self.info["k"] = self.number + self.steps
        self.info["inner"]["array"][:] = self.number + self.steps
        return self.buffer, self.info

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.steps = 0
        return (np.zeros(2), {}) if self.begins_late else self._returned()

    def step(self, action: Any) -> Any:
        self.steps += 10
        observation, info = self._returned()
        return observation, 1.0, self.steps == 20, False, info


def sharing(begins_late: bool) -> list[Callable[[], gym.Env]]:
    class Own(Sharing):
        buffer, info = np.zeros(2), {"k": 0, "inner": {"array": np.zeros(1)}}

    return [lambda: Own(1, begins_late), lambda: Own(2, begins_late)]


@pytest.mark.parametrize("begins_late", [False, True])
@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("arguments", [None, {"shared_memory": True}, {"shared_memory": False}], ids=str)
def test_rows_that_return_the_same_array_and_info(arguments: Any, mode: AutoresetMode, begins_late: bool) -> None:
    def story() -> Any:
        fns = sharing(begins_late)
        if arguments is None:
            vec: Any = SyncVectorEnv(fns, autoreset_mode=mode)
        else:
            vec = AsyncVectorEnv(fns, context="fork", autoreset_mode=mode, **arguments)
        seen = [vec.reset()]
        for _ in range(2 if mode == AutoresetMode.DISABLED else 5):
            seen.append(copy.deepcopy(vec.step(STILL)))  # later steps may write to it
        vec.close()
        return seen

    compare(story)


@pytest.mark.parametrize("begins_late", [False, True])
@pytest.mark.parametrize("local_class", [DummyVecEnv, SubprocVecEnv])
def test_rows_that_return_the_same_array_and_info_to_sb3(local_class: Any, begins_late: bool) -> None:
    def story() -> Any:
        fns = sharing(begins_late)
        vec = DummyVecEnv(fns) if local_class is DummyVecEnv else SubprocVecEnv(fns, start_method="fork")
        seen: list[Any] = [vec.reset(), copy.deepcopy(list(vec.reset_infos))]
        for _ in range(5):
            seen.append(vec.step(STILL))
        vec.close()
        return seen

    compare(story)


def test_rows_that_share_nothing_are_not_copied_for_long() -> None:
    with remote() as world:
        for vec in (SyncVectorEnv([Counting] * 2), AsyncVectorEnv([Counting] * 2), DummyVecEnv([Counting] * 2)):
            [part] = vec._core._parts  # type: ignore[attr-defined]
            rows = host_of(world.links[0]).runner._rows[part.id]
            vec.reset()
            assert rows._looks
            vec.step(STILL)
            assert not rows._looks
            vec.reset()
            assert not rows._looks


# ---- processes -------------------------------------------------------------------------------------------------------


class Singleton:
    env: Any = None

    @staticmethod
    def make() -> gym.Env:
        Singleton.env = Singleton.env or Counting()
        return Singleton.env


def test_an_environment_that_two_rows_have(monkeypatch: pytest.MonkeyPatch) -> None:
    only: list[gym.Env] = []

    def make() -> gym.Env:
        if not only:
            only.append(Counting())
        return only[0]

    with remote():
        with pytest.raises(ValueError, match="the same instance"):
            DummyVecEnv([make] * 2)
        for made in (
            lambda: SubprocVecEnv([Singleton.make] * 2),
            lambda: AsyncVectorEnv([Singleton.make] * 2),
            lambda: AsyncVectorEnv([Singleton.make] * 2, shared_memory=False),
        ):
            monkeypatch.setattr(Singleton, "env", None)
            with pytest.raises(UnsupportedError, match="Locally each row has a process"):
                made()


class Numbered(Counting):
    observation_space = gym.spaces.Discrete(9, start=2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return 3, {}


@pytest.mark.parametrize("env_class", [Counting, Numbered])
def test_a_first_reset_of_some_rows(env_class: Any) -> None:
    def story() -> Any:
        vec = AsyncVectorEnv([env_class] * 2, context="fork", autoreset_mode=AutoresetMode.DISABLED)
        seen = [vec.reset(options={"reset_mask": np.array([True, False])})[0], vec.reset()[0]]
        vec.close()
        return seen

    compare(story)


# ---- after a loss ----------------------------------------------------------------------------------------------------


class Refusing(Counting):
    """Refuses to be reset before its episode is over; observes its seed, or the number of its reset."""

    resets = 0
    begun = False

    def reset(self, *, seed: int | None = None, options: Any = None, level: int = 0) -> Any:
        assert not self.begun
        self.begun, self.level, self.state = True, level, np.random.default_rng(seed).random(2)
        return self.state, {"start": self.state[0]}

    def step(self, action: Any) -> Any:
        return self.state, 1.0, False, False, {}

    def render(self) -> Any:
        return self.state


def lose(vec: Any) -> None:
    host_of(vec._core._parts[0].runner).die()


LOOKS: dict[str, Callable[[Any], Any]] = {
    "an attribute": lambda vec: vec.get_attr("state")[0],
    "a frame": lambda vec: vec._core.render()[0],
}


@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("look", LOOKS)
def test_the_episode_that_was_looked_at_is_the_one_that_begins(look: str, seed: int | None) -> None:
    with remote():
        vec = DummyVecEnv([Refusing] * 2)
        vec.seed(seed)
        vec.reset()
        lose(vec)
        seen = LOOKS[look](vec)
        observations, _, dones, _ = vec.step(STILL)
        assert dones.all() and observations[0].tolist() == seen.tolist() == vec.get_attr("state")[0].tolist()
        assert vec.reset_infos[0] == {"start": seen[0]}
        assert not vec.step(STILL)[2].any()

        sync = SyncVectorEnv([Refusing] * 2)
        sync.reset(seed=seed)
        last = sync.step(STILL)[0]
        lose(sync)
        seen = LOOKS[look](sync)
        observations, _, _, truncations, _ = sync.step(STILL)
        assert truncations.all() and observations.tolist() == last.tolist()
        assert sync.step(STILL)[0][0].tolist() == seen.tolist()


def test_an_episode_that_was_looked_at_and_went_on_is_not_begun_again() -> None:
    """Where a script takes no notice of the truncation."""
    with remote():
        vec = AsyncVectorEnv([CartPoleEnv] * 2, autoreset_mode=AutoresetMode.DISABLED)
        vec.reset(seed=1)
        lose(vec)
        assert vec.step(STILL)[3].all()
        started = vec.get_attr("state")[0]
        for _ in range(9):
            vec.step(STILL)
        observation = vec.reset()[0][0]
        assert np.allclose(observation, vec.get_attr("state")[0]) and not np.allclose(observation, started)
    whole = WholeRows([CartPoleEnv], [0])
    whole.revive([5], None)
    whole.call([0], "state", lambda: ((), {}), False, m.Target.UNWRAPPED)
    for _ in range(9):
        whole.step(0)
    observation = whole.reset([None], [None], None).observations
    assert np.allclose(observation, whole.envs[0].unwrapped.state)  # type: ignore[attr-defined]


@pytest.mark.parametrize("touch", ["call", "assignment"])
def test_an_episode_that_was_changed_is_not_the_one_that_begins(touch: str) -> None:
    """What a call or an assignment does may count for the next reset."""

    class Levelled(Counting):
        level = 0.0

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return np.full(2, self.level), {}

        def set_level(self, level: float) -> None:
            self.level = level

    with remote():
        vec = make_vec_env(Levelled, 2, monitor_kwargs={"allow_early_resets": False})
        vec.reset()
        lose(vec)
        vec.get_attr("level")
        if touch == "call":
            vec.env_method("set_level", 3.0)
        else:
            vec.unwrapped.envs[0].unwrapped.level = vec.unwrapped.envs[1].unwrapped.level = 3.0  # type: ignore[attr-defined]
        observations, _, dones, _ = vec.step(STILL)
        assert dones.all() and observations.tolist() == [[3.0, 3.0]] * 2
        assert not vec.step(STILL)[2].any()


def test_a_monitor_that_needs_what_nobody_gives_can_be_asked() -> None:
    with remote():
        vec = make_vec_env(Counting, 2, monitor_kwargs={"reset_keywords": ("options",)})
        vec.set_options({"level": 3})
        vec.reset()
        lose(vec)
        assert vec.get_attr("steps") == [0, 0]
        with pytest.raises(ValueError, match="options"):
            vec.step(STILL)
        strict = make_vec_env(Counting, 2, monitor_kwargs={"reset_keywords": ("options",), "allow_early_resets": False})
        strict.set_options({"level": 3})
        strict.reset()
        lose(strict)
        assert strict.get_attr("steps") == [0, 0]
        strict.set_options({"level": 3})
        strict.reset()


def test_a_row_that_was_reset_by_position_stays_so() -> None:
    class Old(Counting):
        def reset(self, seed: int | None = None, options: Any = None, level: int = 0) -> Any:
            self.level = level
            return np.full(2, float(level)), {}

    with remote():
        vec = DummyVecEnv([Old] * 2)
        vec.reset()
        vec.envs[1].reset(1, level=4)  # type: ignore[call-arg]
        lose(vec)
        vec.envs[1].reset(3, level=5)  # type: ignore[call-arg]
        assert [env.level for env in vec.envs] == [0, 5]  # type: ignore[attr-defined]


def test_what_was_set_in_a_lost_row_is_there() -> None:
    with remote():
        vec = SyncVectorEnv([Refusing] * 2)
        vec.reset()
        lose(vec)
        vec.envs[0].unwrapped.state = np.ones(2)  # type: ignore[attr-defined]
        assert vec.render()[0].tolist() == [1, 1]  # type: ignore[index]


@pytest.mark.parametrize("shared_memory", [True, False])
def test_a_loss_in_a_reset_swallows_no_action(shared_memory: bool) -> None:
    with remote():
        vec = AsyncVectorEnv([Counting] * 2, shared_memory=shared_memory)
        vec.reset()
        lose(vec)
        vec.reset()
        assert vec.step(STILL)[0].tolist() == [[1, 1]] * 2


def test_a_reset_of_some_rows_leaves_what_others_are_owed() -> None:
    with remote():
        vec = SyncVectorEnv([Counting] * 2, autoreset_mode=AutoresetMode.DISABLED)
        vec.reset()
        for env in vec.envs:
            env.reset()
            env.step(0)
        lose(vec)
        vec.get_attr("steps")
        vec.reset(options={"reset_mask": np.array([True, False])})
        assert vec.envs[1].step(0)[3]
        assert not vec.envs[0].step(0)[3]


# ---- the class -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("local_class", [SyncVectorEnv, AsyncVectorEnv, DummyVecEnv, SubprocVecEnv])
def test_another_of_the_same_type(local_class: Any) -> None:
    how: Any = {SubprocVecEnv: {"start_method": "fork"}, AsyncVectorEnv: {"context": "fork"}}.get(local_class, {})

    class Own(local_class):
        def __init__(self, fns: Any) -> None:
            self.made = getattr(self, "made", 0) + 1
            super().__init__(fns, **how)

        def again(self) -> Any:
            return type(self)([Counting] * 3)

    def story() -> Any:
        train, own = local_class([Counting] * 2, **how), Own([Counting] * 2)
        others = [type(train)([Counting], **how), own.again()]
        seen = [type(one) in (type(train), type(own)) for one in others]
        for vec in (train, own, *others):
            vec.reset()
            seen += [vec.num_envs, getattr(vec, "made", None), vec.step(np.zeros(vec.num_envs, np.int64))[:2]]
            vec.close()
        return seen

    compare(story)

    class Named(local_class):
        def __init__(self, fns: Any) -> None:
            local_class.__init__(self, fns, **how)

    with remote():
        named = Named([Counting])
        again = type(named)([Counting])
        assert type(again) is type(named) and len(type(again).__mro__) == len(type(named).__mro__)
    here = type(named)([Counting])
    assert type(here) is Named
    here.reset()
    here.close()
    with remote() as world:
        train, own = local_class([Counting]), Own([Counting])
        other, again = type(train)([Counting]), own.again()
        assert world.links[0].rows == 6
        with pytest.raises(TypeError, match=f"Derive it from {local_class.__name__}"):
            type("Derived", (type(train),), {})([Counting])
    local, own_local = type(train)([Counting], **how), type(own)([Counting])
    assert type(local) is local_class and type(own_local) is Own
    for vec in (local, own_local):
        vec.reset()
        vec.close()
    assert type(other) is type(train) and type(again) is type(own)


# ---- Stable-Baselines3's own -----------------------------------------------------------------------------------------


def test_what_a_dummy_vec_env_keeps_is_not_what_wrappers_write_to() -> None:
    def story() -> Any:
        vec = DummyVecEnv([Counting] * 2)
        normalized = VecNormalize(vec)
        normalized.reset()
        seen: list[Any] = [copy.deepcopy(vec.buf_infos)]
        for _ in range(4):
            _, rewards, dones, _ = normalized.step(STILL)
            rewards[:] = dones[:] = False
            seen.append((copy.deepcopy(vec.buf_infos), vec.buf_rews.copy(), vec.buf_dones.copy()))
        vec.close()
        return seen

    compare(story)


def test_more_actions_than_environments_and_fewer() -> None:
    def story() -> Any:
        vec = DummyVecEnv([Counting] * 2)
        vec.reset()
        seen: list[Any] = [vec.step(np.zeros(3, np.int64))[0], vec.step([0, 0, 0, 0])[0]]  # type: ignore[arg-type]
        vec.step_async(np.zeros(1, np.int64))
        with pytest.raises(IndexError):
            vec.step_wait()
        vec.close()
        return seen

    compare(story)


def test_arrays_that_rows_are_given_are_one_array_where_they_are_no_processes() -> None:
    def story() -> Any:
        goal, seen = np.zeros(2), []
        for vec in (DummyVecEnv([Counting] * 3), SubprocVecEnv([Counting] * 3, start_method="fork")):
            seen += [vec.env_method("take", goal), vec.env_method("take", goal, indices=[0, 2, -1]), goal.copy()]
            vec.close()
        sync = SyncVectorEnv([Counting] * 3)
        seen += [sync.call("take", goal), goal]
        sync.close()
        return seen

    compare(story)
