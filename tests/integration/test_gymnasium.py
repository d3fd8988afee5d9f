"""Gymnasium's promises beyond the plain loop: single environments, wrappers, attributes, time-outs."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import envs
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec, WrapperSpec
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from processes import Way
from stable_baselines3.common.vec_env import DummyVecEnv

from remoterl.errors import SpaceMismatchError, UnsupportedError
from remoterl.vector.single import RemoteEnv


def test_attributes_of_a_single_env_and_of_its_unwrapped(trainer: Way) -> None:
    env = gym.make("CartPole-v1")
    base = env.unwrapped
    assert base is env.unwrapped and base.unwrapped is base and isinstance(base, gym.Env)
    base.gravity = 1.5
    assert (base.gravity, env.get_wrapper_attr("gravity")) == (1.5, 1.5) and not hasattr(env, "gravity")
    env.reset(seed=3)
    base.state = (0.1, 0.2, 0.3, 0.4)
    assert base.state == (0.1, 0.2, 0.3, 0.4)
    observation = env.step(0)[0]
    expected = gym.vector.SyncVectorEnv([lambda: gym.make("CartPole-v1")])
    expected.reset(seed=3)
    expected.set_attr("gravity", 1.5)
    expected.envs[0].unwrapped.state = (0.1, 0.2, 0.3, 0.4)
    assert expected.step(np.array([0]))[0][0].tobytes() == observation.tobytes()
    assert base.spec.id == "CartPole-v1" and base.metadata["render_fps"] == 50
    assert base.step(1)[0].shape == (4,)  # past the wrappers
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = base.no_such_thing
    expected.close()
    env.close()


def test_methods_and_objects_that_stay_there(trainer: Way) -> None:
    env = gym.make("ALE/Pong-v5", frameskip=1)
    assert env.unwrapped.get_action_meanings()[0] == "NOOP"
    env.reset(seed=1)
    ale = env.unwrapped.ale
    assert "remote ALEInterface" in repr(ale) and ale.lives() == 0
    screen = np.zeros((210, 160), np.uint8)
    ale.getScreenGrayscale(screen)  # written there, and here
    assert screen.any()
    env.close()


def test_wrappers_around_a_single_env(trainer: Way, tmp_path: Path) -> None:
    atari = gym.wrappers.AtariPreprocessing(gym.make("ALE/Pong-v5", frameskip=1), noop_max=3)
    assert gym.wrappers.FrameStackObservation(atari, 4).reset(seed=2)[0].shape == (4, 84, 84)
    assert atari.step(2)[0].shape == (84, 84)
    atari.close()
    drawn = gym.make("CartPole-v1", render_mode="rgb_array")
    film = gym.wrappers.RecordVideo(drawn, str(tmp_path / "films"), disable_logger=True)
    film.reset(seed=1)
    while not any(film.step(1)[2:4]):
        pass
    film.close()
    assert [path.stat().st_size > 500 for path in tmp_path.glob("films/*.mp4")] == [True]
    listed = gym.make("CartPole-v1", render_mode="rgb_array_list")
    listed.reset(seed=1)
    listed.step(0)
    assert [frame.shape for frame in listed.render()] == [(400, 600, 3)] * 2
    listed.close()
    text = gym.make("FrozenLake-v1", render_mode="ansi")
    text.reset(seed=1)
    assert "SFFF" in text.render().replace("\x1b[41mS\x1b[0m", "S")
    text.close()


def test_human_rendering_is_refused(trainer: Way) -> None:
    for make in (gym.make, gym.make_vec):
        with pytest.raises(UnsupportedError, match="window on the simulator"):
            make("CartPole-v1", render_mode="human")
    with pytest.raises(UnsupportedError, match="window on the simulator"):
        SyncVectorEnv([lambda: gym.make("CartPole-v1", render_mode="human")] * 2)


def test_vector_wrappers(trainer: Way, tmp_path: Path) -> None:
    vec = gym.make_vec("CartPole-v1", num_envs=3, vectorization_mode="sync", render_mode="rgb_array")
    wrapped = gym.wrappers.vector.RecordEpisodeStatistics(gym.wrappers.vector.NormalizeObservation(vec))
    films = tmp_path / "films"
    wrapped = gym.wrappers.vector.RecordVideo(wrapped, str(films), video_length=10, disable_logger=True)
    wrapped.reset(seed=1)
    lengths: list[int] = []
    for _ in range(60):
        *_, infos = wrapped.step(np.ones(3, int))
        lengths += [int(length) for length in infos.get("episode", {}).get("l", []) if length]
    assert lengths and all(5 < length < 15 for length in lengths)
    wrapped.close()
    assert list(films.glob("*.mp4"))


def test_make_vec_in_every_way(trainer: Way) -> None:
    spec = gym.spec("CartPole-v1")
    made = [
        gym.make_vec("CartPole-v1", 3, "sync", wrappers=(gym.wrappers.TimeAwareObservation,)),
        gym.make_vec(spec, 3, "async", vector_kwargs={"shared_memory": False}),
        gym.make_vec("gymnasium.envs.classic_control:CartPole-v1", 3, gym.VectorizeMode.SYNC, max_episode_steps=7),
        gym.make_vec("CartPole-v1", 3, "vector_entry_point"),
        gym.make_vec("CartPole-v1", 3, "sync", sutton_barto_reward=True),
    ]
    for vec in made:
        assert vec.num_envs == 3 and vec.spec.id == "CartPole-v1" and vec.reset(seed=1)[0].shape[0] == 3
        again = gym.make_vec(vec.spec)
        assert (again.num_envs, type(again)) == (3, type(vec))
        again.close()
    assert made[0].single_observation_space.shape == (5,)
    for _ in range(7):
        *_, truncations, _ = made[2].step(np.array([0, 1, 0]))
    assert truncations.all()
    made[4].step(np.array([0, 1, 0]))
    assert made[4].step(np.array([0, 1, 0]))[1].tolist() == [0.0, 0.0, 0.0]
    for vec in made:
        vec.close()
        vec.close()
    with pytest.raises(ValueError, match="Invalid vectorization mode"):
        gym.make_vec("CartPole-v1", 3, "sideways")


class OwnVectorEnv(gym.vector.VectorEnv):
    """An environment's own."""

    metadata = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}

    def __init__(self, num_envs: int = 2, lock: Any = None) -> None:
        self.num_envs = num_envs
        self.single_observation_space = self.single_action_space = gym.spaces.Discrete(9)
        self.observation_space = self.action_space = gym.spaces.MultiDiscrete([9] * num_envs)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[np.ndarray, dict]:
        return np.arange(self.num_envs), {"pid": os.getpid()}


def test_specs_of_vector_envs(trainer: Way, caplog: pytest.LogCaptureFixture) -> None:
    """Rows have the spec that they have locally; an environment's own vector env is made again from its own."""
    vec = gym.make_vec("CartPole-v1", 2, "sync")
    theirs = vec.get_attr("spec")[0]
    assert theirs.vector_entry_point == "gymnasium.envs.classic_control.cartpole:CartPoleVectorEnv"
    gym.register("Own-v0", entry_point=envs.CountingEnv, vector_entry_point=OwnVectorEnv)
    try:
        own = gym.make_vec("Own-v0", 3)
        for hosted in (own, gym.make_vec(own.spec), gym.make_vec(gym.spec("Own-v0"), 3)):
            observations, infos = hosted.reset()
            assert observations.tolist() == [0, 1, 2] and infos["pid"] != os.getpid()
            hosted.close()
        here = gym.make_vec("Own-v0", 2, lock=threading.Lock())
        assert here.reset()[1]["pid"] == os.getpid() and "make_vec('Own-v0') is built on this machine" in caplog.text
    finally:
        del gym.registry["Own-v0"]
    vec.close()


def test_observation_modes(trainer: Way) -> None:
    boxes = [gym.spaces.Box(0, high, (5,)) for high in (1, 2, 3)]
    fns = [lambda box=box: envs.SpaceEnv(box) for box in boxes]
    for cls in (SyncVectorEnv, AsyncVectorEnv):
        with pytest.raises((AssertionError, RuntimeError), match="are not equivalent"):
            cls(fns)
        vec = cls([lambda box=box: ActionlessEnv(box) for box in boxes], observation_mode="different")
        assert vec.observation_space.high[:, 0].tolist() == [1, 2, 3]
        assert vec.reset(seed=1)[0].shape == (3, 5)
        vec.close()
        with pytest.raises(ValueError, match="Invalid `observation_mode`"):
            cls([envs.CountingEnv], observation_mode="sideways")
    with pytest.raises(SpaceMismatchError):
        SyncVectorEnv([lambda: gym.make("CartPole-v1"), lambda: gym.make("FrozenLake-v1")])
    with pytest.raises((ValueError, TypeError)):
        AsyncVectorEnv([envs.OfSpace("custom")] * 2)  # its shared memory can't hold that


class ActionlessEnv(envs.SpaceEnv):
    """Differs in what it observes only."""

    def __init__(self, space: gym.Space) -> None:
        super().__init__(space)
        self.action_space = gym.spaces.Discrete(2)


class SleepyEnv(envs.CountingEnv):
    """Sleeps for as long as its action says, in tenths of a second."""

    def step(self, action: int) -> Any:
        time.sleep(int(action) / 10)
        return super().step(action)


def test_a_late_answer_is_never_read_as_a_later_one(trainer: Way) -> None:
    vec = AsyncVectorEnv([SleepyEnv] * 2)
    vec.reset()
    vec.step_async(np.array([2, 2]))
    with pytest.raises(multiprocessing.TimeoutError, match="`step_wait` has timed out after 0.05"):
        vec.step_wait(timeout=0.05)
    observations, *_ = vec.step(np.array([0, 0]))  # the second step's answer, not the late first one
    assert observations[:, 0].tolist() == [2, 2]
    vec.reset_async()
    with pytest.warns(UserWarning, match="while waiting for a pending call to `reset`"):
        vec.close(terminate=True)


def test_no_copy_means_the_same_buffer(trainer: Way) -> None:
    vec = SyncVectorEnv([envs.CountingEnv] * 2, copy=False)
    first, _ = vec.reset()
    second, *_ = vec.step(np.array([0, 1]))
    assert first is second and first[:, 0].tolist() == [1, 1]
    vec.close()


def test_arguments_of_the_script_travel_or_are_refused(trainer: Way) -> None:
    import enum

    class Direction(enum.IntEnum):
        LEFT = 0
        RIGHT = 2

    vec = SyncVectorEnv([envs.CountingEnv] * 2)
    vec.reset(options={"direction": Direction.RIGHT})
    _, rewards, *_ = vec.step([Direction.RIGHT, Direction.LEFT])
    assert rewards.tolist() == [2.0, 0.0]
    with pytest.raises(UnsupportedError, match="lock"):
        vec.call("add", threading.Lock())
    with pytest.raises(UnsupportedError, match="lock"):
        vec.reset(options={"lock": threading.Lock()})
    vec.close()


def test_an_exception_of_the_scripts_own_type(trainer: Way) -> None:
    class ArmError(Exception):
        pass

    class Arm(envs.CountingEnv):
        def step(self, action: int) -> Any:
            raise ArmError("stuck", action)

    vec = SyncVectorEnv([Arm] * 2)
    vec.reset()
    with pytest.raises(ArmError) as caught:
        vec.step(np.array([1, 2]))
    assert caught.value.args == ("stuck", 1)
    vec.close()


def test_a_forked_child_is_local(trainer: Way) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()

    def child() -> None:
        results.put((type(gym.make("CartPole-v1")).__name__, type(SyncVectorEnv([envs.CountingEnv])).__name__))

    process = context.Process(target=child)
    process.start()
    assert results.get(timeout=30) == ("TimeLimit", "SyncVectorEnv")
    process.join(10)
    assert process.exitcode == 0
    assert isinstance(gym.make("CartPole-v1"), RemoteEnv)


def test_a_forked_child_ends_when_it_is_told(trainer: Way) -> None:
    """At once too, and pools end their processes so. (Ray's handler of SIGTERM would abort it, or be ignored.)"""
    context = multiprocessing.get_context("fork")
    for _ in range(5):
        process = context.Process(target=time.sleep, args=(60,))
        process.start()
        time.sleep(0.005)
        process.terminate()
        process.join(20)
        assert process.exitcode == -signal.SIGTERM
    for _ in range(3):
        with context.Pool(2) as pool:
            assert pool.map(abs, [-1, 2]) == [1, 2]


def test_what_cannot_travel_is_built_here_entirely(trainer: Way, caplog: pytest.LogCaptureFixture) -> None:
    lock = threading.Lock()

    def factory() -> gym.Env:
        assert not lock.locked()
        return gym.make("CartPole-v1")

    vec = SyncVectorEnv([factory] * 2)
    assert type(vec) is SyncVectorEnv and type(vec.envs[0]).__name__ == "TimeLimit"
    assert "SyncVectorEnv is built on this machine" in caplog.text
    vec.close()


def test_what_is_registered_and_cannot_travel_is_made_here(trainer: Way, caplog: pytest.LogCaptureFixture) -> None:
    from stable_baselines3.common.env_util import make_vec_env

    try:
        gym.register("Arm-v0", entry_point=envs.CountingEnv, kwargs={"length": 3})
        travelled = gym.make_vec("Arm-v0", 2, "sync")
        assert type(travelled).__name__ == "RemoteSyncVectorEnv"
        lock = threading.Lock()
        del gym.registry["Arm-v0"]
        gym.register("Arm-v0", entry_point=lambda: envs.CountingEnv(7 + lock.locked()))
        for make in (gym.make, gym.make_vec, make_vec_env):
            caplog.clear()
            env = make("Arm-v0")
            assert "Remote" not in type(env).__name__ and "is built on this machine" in caplog.text
            assert "Arm-v0 is registered here, and can't travel" in caplog.text and "lock" in caplog.text
            assert env.reset()[0].max() == 7  # not the one that was registered earlier
            env.close()
        travelled.close()
    finally:
        del gym.registry["Arm-v0"]


def test_an_id_with_its_module_beside_the_script(trainer: Way, tmp_path: Path, monkeypatch: Any) -> None:
    """The simulators have neither."""
    from stable_baselines3.common.env_util import make_vec_env

    (tmp_path / "my_arms.py").write_text(
        "import gymnasium, envs\ngymnasium.register('Beside-v0', entry_point=envs.CountingEnv)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        for make in (gym.make, gym.make_vec, make_vec_env):
            env = make("my_arms:Beside-v0")
            assert "Remote" in type(env).__name__ and env.reset()[0].max() == 5
            env.close()
        for is_imported in (True, False):
            if not is_imported:
                del sys.modules["my_arms"], gym.registry["Beside-v0"]
            vec = SyncVectorEnv([lambda: gym.make("my_arms:Beside-v0")] * 3)
            assert type(vec).__name__ == "RemoteSyncVectorEnv" and vec.reset()[0].max() == 5
            vec.close()
    finally:
        gym.registry.pop("Beside-v0", None)
        sys.modules.pop("my_arms", None)


def test_an_id_stands_for_the_code_of_now(trainer: Way, monkeypatch: Any) -> None:
    """As where a notebook's cell is run again."""

    def longest() -> float:
        env = gym.make("Cell-v0")
        found = float(env.reset()[0].max())
        env.close()
        return found

    module = sys.modules[__name__]
    gym.register("Cell-v0", entry_point=f"{__name__}:Cell", kwargs={"length": 3})
    try:
        monkeypatch.setattr(module, "Cell", type("Cell", (envs.CountingEnv,), {}), raising=False)
        assert longest() == 3
        gym.spec("Cell-v0").kwargs["length"] = 4
        assert longest() == 4
        vec = gym.make_vec("Cell-v0", 4, vectorization_mode="sync")
        longer = type("Cell", (envs.CountingEnv,), {"_observation": lambda self: np.array([0, 9], np.float32)})
        monkeypatch.setattr(module, "Cell", longer)
        assert longest() == 9 and vec.reset()[0].max() == 4
        vec.close()
    finally:
        del gym.registry["Cell-v0"]


GRID = """
import gymnasium as gym
import threading
from . import sizes

class Grid(gym.Env):
    observation_space = action_space = gym.spaces.Discrete(sizes.SIZE)

    def reset(self, *, seed=None, options=None):
        return 1, {}

    def step(self, action):
        import sent_late

    def file(self):
        return __file__

lock = threading.Lock()

def locked():
    return Grid(*[] if not lock.locked() else [1])
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The script's, for a while."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_modules_that_functions_import(trainer: Way, folder: Path) -> None:
    """They lie beside the script, which has not imported them itself; the simulators have none of them."""
    (folder / "sent_grids" / "deep").mkdir(parents=True)  # a package without __init__.py
    grid = folder / "sent_grids" / "deep" / "grid.py"
    grid.write_text(GRID)
    (folder / "sent_grids" / "deep" / "sizes.py").write_text("SIZE = 3\n")
    (folder / "sent_ids.py").write_text(
        "import gymnasium\nfrom sent_grids.deep.grid import Grid\ngymnasium.register('Sent-v0', Grid)\n"
    )
    (folder / "sent_late.py").write_text("")

    def by_id() -> gym.Env:
        import sent_ids  # noqa: F401

        return gym.make("Sent-v0")

    def by_class() -> gym.Env:
        from sent_grids.deep.grid import Grid

        return Grid()

    for factory in (by_id, by_class):
        vec = SyncVectorEnv([factory] * 3)
        assert type(vec).__name__ == "RemoteSyncVectorEnv" and vec.reset()[0].tolist() == [1] * 3
        assert vec.call("file") == (str(grid),) * 3
        with pytest.raises(ModuleNotFoundError, match="'sent_late'. It lies beside this script: import it") as raised:
            vec.step([0] * 3)
        assert raised.value.name == "sent_late" and "import sent_late" in str(raised.value.__cause__)
        vec.close()

    def by_nothing() -> gym.Env:
        import sent_grids.nothing

        return sent_grids.nothing.Grid()

    with pytest.raises(ModuleNotFoundError, match="named 'sent_grids.nothing'$"):
        SyncVectorEnv([by_nothing])
    assert not [name for name in sys.modules if name.startswith("sent_")]


def test_a_module_that_cannot_be_pickled(trainer: Way, folder: Path) -> None:
    """It holds a lock, say: then its sources are sent."""
    (folder / "held_grid.py").write_text(GRID.replace("from . import sizes", "").replace("sizes.SIZE", "3"))
    module = importlib.import_module("held_grid")
    gym.register("Held-v0", entry_point="held_grid:locked", max_episode_steps=7)
    try:
        made = [
            SyncVectorEnv([module.locked] * 2),
            gym.make_vec("Held-v0", 2, vectorization_mode="sync"),
            gym.make("Held-v0"),
        ]
        for env in made:
            assert type(env).__name__.startswith("Remote") and np.all(env.reset()[0] == 1)
            env.close()
        assert made[1].spec.max_episode_steps == 7
    finally:
        del gym.registry["Held-v0"], sys.modules["held_grid"]


class AtMost(gym.RewardWrapper, gym.utils.RecordConstructorArgs):
    """A wrapper of the script's own, which a spec can name."""

    def __init__(self, env: gym.Env, most: float) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, most=most)
        super().__init__(env)
        self.most = most

    def reward(self, reward: Any) -> float:
        return min(float(reward), self.most)


def test_a_spec_makes_it_again(trainer: Way) -> None:
    wrapped = AtMost(gym.make("CartPole-v1"), 0.25)
    assert wrapped.spec is not None and wrapped.spec.additional_wrappers[0].entry_point.endswith(":AtMost")
    again, vec = gym.make(wrapped.spec), gym.make_vec(wrapped.spec, 3, vectorization_mode="sync")
    assert type(again).__name__ == "RemoteEnv" and type(vec).__name__ == "RemoteSyncVectorEnv"
    again.reset()
    vec.reset()
    assert again.step(0)[1] == 0.25 and vec.step(np.zeros(3, int))[1].tolist() == [0.25] * 3
    assert again.spec == wrapped.spec
    for env in (wrapped, again, vec):
        env.close()
    most = WrapperSpec("AtMost", f"{__name__}:AtMost", {"most": 0.5})
    gym.register("Wrapped-v0", entry_point=envs.CountingEnv, additional_wrappers=(most,))
    try:
        for _ in range(2):  # the second time its env runners know it
            vec = gym.make_vec("Wrapped-v0", 2, vectorization_mode="sync")
            vec.reset()
            assert vec.step(np.full(2, 2))[1].tolist() == [0.5] * 2
            vec.close()
    finally:
        del gym.registry["Wrapped-v0"]
    unregistered = gym.make(EnvSpec("Mine-v0", entry_point=envs.CountingEnv))
    assert unregistered.spec is not None and gym.make(unregistered.spec).reset()[0].max() == 5
    gym.register("Mine-v1", entry_point="envs:CountingEnv", kwargs={})
    try:
        named = gym.make("Mine-v1")
        assert named.spec is not None and named.spec.to_json() == named.spec.from_json(named.spec.to_json()).to_json()
        assert named.spec.entry_point == "envs:CountingEnv" and gym.make(named.spec).reset()[0].max() == 5
    finally:
        del gym.registry["Mine-v1"]
    with pytest.raises(AssertionError):
        gym.make(envs.CountingEnv)


def test_spaces_draw_on(trainer: Way) -> None:
    """One object each, as locally; an environment's own is that of its wrappers where none has another."""
    here = gym.spaces.Discrete(2, seed=3)
    expected = [here.sample() for _ in range(12)]
    env, vec = gym.make("CartPole-v1"), gym.make_vec("CartPole-v1", 2, vectorization_mode="sync")
    assert env.unwrapped.action_space is env.action_space
    assert vec.envs[1].unwrapped.action_space is vec.envs[1].get_wrapper_attr("action_space")
    for space in (env.unwrapped.action_space, vec.envs[0].action_space):
        space.seed(3)
    assert [env.action_space.sample() for _ in range(12)] == expected
    assert [vec.envs[0].action_space.sample() for _ in range(12)] == expected
    assert env.get_wrapper_attr("np_random") is not None
    env.close()
    vec.close()


def test_what_is_set_is_read(trainer: Way) -> None:
    env = gym.make("CartPole-v1")
    larger, other = gym.spaces.Discrete(5), gym.spaces.Box(-1, 1, (4,))
    env.unwrapped.action_space = larger
    assert env.action_space is larger and env.unwrapped.action_space == larger
    assert env.set_wrapper_attr("observation_space", other)
    assert env.observation_space is other and env.get_wrapper_attr("observation_space") is other
    env.unwrapped.render_mode = "rgb_array"
    assert env.render_mode == "rgb_array"
    env.close()
    vec = gym.make_vec("CartPole-v1", 2, vectorization_mode="sync")
    vec.envs[0].unwrapped.action_space = larger
    assert vec.envs[0].action_space == larger and vec.envs[1].action_space.n == 2
    for change in (
        lambda: vec.envs.append(env),
        lambda: vec.envs.__setitem__(0, env),
        lambda: setattr(vec, "envs", []),
    ):
        with pytest.raises(UnsupportedError, match="Wrap them in the function"):
            change()
    vec.close()


def test_warnings_are_the_scripts(trainer: Way, monkeypatch: Any) -> None:
    with pytest.warns(UserWarning, match="latest versioned environment `CartPole-v1`"):
        gym.make("CartPole").close()
    with pytest.warns(DeprecationWarning, match="CartPole-v0 is out of date"):
        SyncVectorEnv([lambda: gym.make("CartPole-v0")] * 2).close()
    with pytest.warns(DeprecationWarning, match="CartPole-v0 is out of date"):
        gym.make_vec("CartPole-v0", 2, vectorization_mode="sync").close()
    with warnings.catch_warnings(), pytest.raises(DeprecationWarning):
        warnings.simplefilter("error")
        gym.make("CartPole-v0")
    monkeypatch.setattr(gym.logger, "min_level", gym.logger.ERROR)
    gym.make("CartPole-v0").close()  # a warning is an error here


class OwnSteps(DummyVecEnv):
    """Steps as the class itself does, with its buffers."""

    def step_wait(self) -> Any:
        for row in range(self.num_envs):
            observation, self.buf_rews[row], ended, cut, self.buf_infos[row] = self.envs[row].step(self.actions[row])
            self.buf_dones[row] = ended or cut
            self._save_obs(row, observation)
        return self._obs_from_buf(), np.copy(self.buf_rews), np.copy(self.buf_dones), list(self.buf_infos)


class OwnSyncSteps(SyncVectorEnv):
    """Counts by the class's own array."""

    def step(self, actions: Any) -> Any:
        self._rewards[:] = 0
        return super().step(actions)


def test_a_subclass_that_takes_its_base_apart_stays_here(trainer: Way, caplog: pytest.LogCaptureFixture) -> None:
    for vec_class, parts in ((OwnSteps, "_obs_from_buf, _save_obs, buf_dones"), (OwnSyncSteps, "_rewards")):
        vec = vec_class([envs.CountingEnv] * 2)
        vec.reset()
        assert vec.step(np.array([1, 2]))[1].tolist() == [1, 2]
        assert f"{vec_class.__name__} is built on this machine" in caplog.text and parts in caplog.text
        vec.close()


def test_many_vector_envs_on_the_same_env_runners(trainer: Way) -> None:
    vecs = [SyncVectorEnv([envs.CountingEnv] * size) for size in (1, 2, 5)]
    for vec in vecs:
        vec.reset()
    for step in range(1, 4):
        for vec in vecs:
            assert vec.step(np.zeros(vec.num_envs, int))[0][:, 0].tolist() == [step] * vec.num_envs
    for vec in vecs:
        vec.close()


def test_no_registration_of_the_trainers_breaks_another(trainer: Way) -> None:
    # A class of an installed package that the simulators lack: pickled by its name.
    from sb3_contrib import MaskablePPO

    gym.register("NotHere-v0", entry_point=MaskablePPO)
    try:
        env = gym.make("CartPole-v1")
        env.reset()
        env.close()
        with pytest.raises(Exception, match="sb3_contrib"):
            gym.make("NotHere-v0")
    finally:
        del gym.registry["NotHere-v0"]


def test_environments_are_not_in_this_process(trainer: Way) -> None:
    assert (
        gym.make(gym.envs.registration.EnvSpec("Spec-v0", entry_point=envs.CountingEnv)).unwrapped.where()[1]
        != os.getpid()
    )
