"""What scripts do with an environment besides stepping it; each function returns what came of it, here or remotely."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import numpy as np


def draws() -> Any:
    """From the environment's own generator, which goes on from there."""
    env = gym.make("CartPole-v1")
    env.reset(seed=3)
    generator = env.unwrapped.np_random
    drawn = [int(generator.integers(1000)) for _ in range(3)], generator.random(2), generator.normal(size=(2, 2))
    cards, array = list("abcde"), np.arange(5)
    generator.shuffle(cards)
    generator.shuffle(array)
    state = generator.bit_generator.state
    first = env.reset()[0]
    generator.bit_generator.state = state
    second = env.reset()[0]
    env.close()
    return drawn, cards, array, first, second, isinstance(generator, np.random.Generator)


def wrappers_that_draw() -> Any:
    sticky = gym.wrappers.StickyAction(gym.make("CartPole-v1"), 0.5)
    observations = [sticky.reset(seed=1)[0]]
    for step in range(12):
        observations.append(sticky.step(step % 2)[0])
    sticky.close()
    return observations


def random_starts() -> list[int]:
    """Stable-Baselines3's, around the environment."""
    import ale_py
    from stable_baselines3.common.atari_wrappers import NoopResetEnv

    gym.register_envs(ale_py)
    env = NoopResetEnv(gym.make("ALE/Pong-v5", frameskip=1))
    frames = []
    for seed in (1, None, None, None):
        env.reset(seed=seed)
        frames.append(env.unwrapped.ale.getEpisodeFrameNumber())
    env.close()
    return frames


def settings_of_a_vector_env_of_its_own() -> Any:
    envs = gym.make_vec("CartPole-v1", num_envs=2)
    envs.reset(seed=1)
    seed, drawn = envs.np_random_seed, int(envs.np_random.integers(1000))
    envs.unwrapped.gravity = 100.0
    envs.unwrapped.force_mag = 30.0
    heavy = [envs.step(np.array([0, 1]))[0] for _ in range(3)]
    envs.unwrapped.state = np.zeros((4, 2), np.float32)
    still = envs.step(np.array([0, 1]))[0]
    envs.close()
    return seed, drawn, heavy, still


def settings_through_wrappers() -> Any:
    env = gym.make("Pendulum-v1")
    env._max_episode_steps = 5
    env.reset(seed=0)
    env.env.env.unwrapped.g = 1.0
    env.unwrapped.np_random.bit_generator.state = np.random.default_rng(3).bit_generator.state
    steps = [env.step(np.zeros(1, np.float32))[:4] for _ in range(5)]
    again = env.reset()[0]
    env.close()
    return steps, again


def a_checked_environment() -> Any:
    from gymnasium.utils.env_checker import check_env

    env = gym.make("CartPole-v1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its spaces, as locally
        check_env(env.unwrapped, skip_render_check=True)
    env.close()


class _RewardInAnArray(gym.Env):
    observation_space = action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[int, dict]:
        super().reset(seed=seed)
        return 0, {}

    def step(self, action: Any) -> Any:
        return 1, np.array([0.5]), False, False, {}


def rewards_in_arrays() -> Any:
    envs = gym.vector.AsyncVectorEnv([_RewardInAnArray] * 3)
    envs.reset(seed=1)
    results = envs.step(np.zeros(3, np.int64))[:4]
    envs.close()
    return results


def unknown_ids() -> list[list[str]]:
    """Which of Gymnasium's classes each of them raises."""
    kinds = (gym.error.NamespaceNotFound, gym.error.NameNotFound, gym.error.VersionNotFound, gym.error.UnregisteredEnv)
    raised = []
    for env_id in ("nowhere/CartPole-v1", "CartPol-v1", "CartPole-v99"):
        try:
            gym.make(env_id)
        except gym.error.Error as error:
            raised.append([kind.__name__ for kind in kinds if isinstance(error, kind)])
    return raised


class _Telling(_RewardInAnArray):
    observation_space = gym.spaces.Dict({"text": gym.spaces.Text(9), "number": gym.spaces.Discrete(3)})


def text_in_arrays() -> str:
    from stable_baselines3.common.vec_env import DummyVecEnv

    try:
        DummyVecEnv([_Telling] * 2)
    except TypeError as error:
        return type(error).__name__
    return "none"


class _Loose(gym.Env):
    """Observations of another type, or another shape, than their space's."""

    observation_space = gym.spaces.Dict(
        {
            "bytes": gym.spaces.Box(0, 255, (3,), np.uint8),
            "parts": gym.spaces.Tuple([gym.spaces.Box(-9, 9, (2, 1))] * 2),
        }
    )
    action_space = gym.spaces.Discrete(2)

    def _observe(self) -> Any:
        return {"bytes": np.array([[1, 2, 300]]), "parts": (np.ones(2), 0.5), "beside": 7}

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        return self._observe(), 1.0, False, False, {}


def observations_written_into_shared_memory() -> Any:
    envs = gym.vector.AsyncVectorEnv([_Loose] * 4)
    results = [envs.reset()[0], envs.step(np.zeros(4, np.int64))[0]]
    envs.close()
    return results


def observations_that_do_not_fit() -> list[str]:
    raised = []
    for envs, how in (
        (gym.vector.SyncVectorEnv([_Loose] * 4), {}),
        (gym.vector.AsyncVectorEnv([_Loose] * 4, shared_memory=False), {"terminate": True}),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # AsyncVectorEnv logs what its workers raise, as locally
            try:
                envs.reset()
            except Exception as error:
                raised.append(type(error).__name__)
            envs.close(**how)
    return raised


class _Short(gym.Env):
    """Episodes of two steps; tells how many there were."""

    observation_space = gym.spaces.Box(0, 99, (2,))
    action_space = gym.spaces.Discrete(2)
    episode = time = calls = 0

    def _observe(self) -> np.ndarray:
        return np.array([self.episode, self.time], np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        self.episode, self.time = self.episode + 1, 0
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        self.time += 1
        return self._observe(), 1.0, self.time == 2, False, {}

    def count(self) -> int:
        self.calls += 1
        return self.calls


def resets_after_an_episodes_end() -> Any:
    results = []
    for envs in (
        gym.vector.SyncVectorEnv([_Short] * 4),
        gym.vector.AsyncVectorEnv([_Short] * 4),
        gym.vector.AsyncVectorEnv([_Short] * 4, shared_memory=False),
    ):
        results.append(envs.reset()[0])
        results += [envs.step(np.zeros(4, np.int64))[:4] for _ in range(2)]
        results.append(envs.reset()[0])
        results += [envs.step(np.zeros(4, np.int64))[:4] for _ in range(3)]
        envs.close()
    return results


def attributes_of_what_stays_there() -> Any:
    envs = gym.vector.SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 4)
    read = [env.gravity for env in envs.get_attr("unwrapped")]
    for env in envs.call("unwrapped"):
        env.gravity = 1.5
    read.append(envs.get_attr("gravity"))
    envs.close()
    return read


def numbers_drawn_into_an_array() -> Any:
    env = gym.make("CartPole-v1")
    env.reset(seed=3)
    buffer = np.zeros(3)
    env.unwrapped.np_random.random(out=buffer)
    env.close()
    return buffer


def one_row_called_twice() -> Any:
    from stable_baselines3.common.vec_env import DummyVecEnv

    envs = DummyVecEnv([_Short] * 4)
    counts = [envs.env_method("count", indices=indices) for indices in ([0, 0, 3, 1, 3], 2, None)]
    envs.set_attr("calls", 10, indices=[1, 1])
    counts.append(envs.env_method("count"))
    envs.close()
    return counts


class _Configured(_Short):
    """Takes what it needs out of the settings that it is given, and draws from a generator that it is given."""

    def __init__(self, settings: dict[str, int], generator: np.random.Generator) -> None:
        self.size = settings.pop("size")
        self.drawn = int(generator.integers(1000))


def what_functions_captured() -> Any:
    from stable_baselines3.common.vec_env import SubprocVecEnv

    settings, generator = {"size": 5}, np.random.default_rng(0)
    envs = SubprocVecEnv([lambda: _Configured(settings, generator)] * 4)
    read = envs.get_attr("size"), envs.get_attr("drawn"), settings
    envs.close()
    return read


class _Fixed(gym.Env):
    """Gives out arrays that nobody may write to."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (3,), np.float32)
    action_space = gym.spaces.Discrete(2)

    @property
    def goal(self) -> np.ndarray:
        goal = np.zeros(3, np.float32)
        goal.flags.writeable = False
        return goal

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.steps = 0
        return self.goal, {"goal": self.goal}

    def step(self, action: int) -> Any:
        self.steps += 1
        return self.goal, 0.0, self.steps == 2, False, {"goal": self.goal, "more": {"goal": self.goal}}


def infos_that_are_written_to() -> Any:
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

    seen: list[Any] = []
    for envs in (DummyVecEnv([_Fixed] * 2), SubprocVecEnv([_Fixed] * 2, start_method="fork")):
        envs.reset()
        for _ in range(3):
            *_, infos = envs.step(np.zeros(2, np.int64))
            for info in infos:
                info["goal"] += 1
                info["more"]["goal"] += 1
                if "terminal_observation" in info:
                    info["terminal_observation"] += 1
            seen.append(infos)
        envs.close()
    return seen


class _Given(gym.Env):
    """Changes what it is given in place."""

    observation_space = action_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    metadata = {"render_modes": []}

    def __init__(self) -> None:
        self.goal = np.zeros(2)
        self.level = 1.0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        super().reset(seed=seed)
        return np.full(2, (options or {}).pop("start", -1.0)), {}

    def step(self, action: Any) -> Any:
        self.goal += action * self.level
        return self.goal.copy(), 0.0, False, False, {}

    def take(self, goal: np.ndarray) -> np.ndarray:
        goal += 1
        return goal.copy()


def what_is_given_to_processes() -> Any:
    """Each has its own of it; what they do to it is not seen by the script."""
    from stable_baselines3.common.vec_env import SubprocVecEnv

    goal, seen = np.zeros(2), []
    envs = gym.vector.AsyncVectorEnv([_Given] * 4)
    seen.append(envs.reset(options={"start": 3.0})[0])
    envs.set_attr("goal", goal)
    seen += [envs.step(np.ones((4, 2)))[0] for _ in range(2)]
    envs.close()
    envs = SubprocVecEnv([_Given] * 4, start_method="fork")
    envs.set_options({"start": 5.0})
    seen.append(envs.reset())
    envs.set_attr("goal", goal)
    seen += [envs.step(np.ones((4, 2)))[0] for _ in range(2)]
    seen += [envs.env_method("take", goal, indices=row) for row in range(4)]
    envs.close()
    return seen, goal


def settings_between_the_halves_of_a_step() -> Any:
    """`DummyVecEnv` steps in `step_wait`."""
    from stable_baselines3.common.vec_env import DummyVecEnv

    envs = DummyVecEnv([_Given] * 3)
    seen = [envs.reset()]
    for level in (2.0, 3.0):
        envs.step_async(np.full((3, 2), 100.0))
        envs.step_async(np.ones((3, 2)))
        envs.set_attr("level", level)
        seen.append(envs.step_wait()[0])
    seen.append(envs.step_wait()[0])
    envs.step_async(np.ones((3, 2)))
    seen += [envs.reset(), envs.step(np.ones((3, 2)))[0]]
    envs.close()
    return seen


def observations_of_two_types() -> Any:
    from stable_baselines3.common.vec_env import DummyVecEnv

    def single() -> gym.Env:
        env = _Given()
        env.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        return env

    envs = DummyVecEnv([single, _Given])
    seen = [envs.reset(), envs.step(np.full((2, 2), 0.1))[0]]
    envs.close()
    return seen


def a_monitor_of_ones_own() -> Any:
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.monitor import Monitor

    class Counting(Monitor):
        def step(self, action: Any) -> Any:
            *result, info = super().step(action)
            info["logs"] = [self.results_writer is not None, self.EXT]
            return (*result, info)

    envs = make_vec_env(lambda: Counting(gym.make("CartPole-v1")), 2, seed=3)
    envs.reset()
    infos = [envs.step(np.ones(2, np.int64))[3] for _ in range(12)]
    envs.close()
    for info in (one for both in infos for one in both if "episode" in one):
        del info["episode"]["t"]
    return infos


class _Old(_Short):
    """Takes what its wrappers do not."""

    def reset(self, seed: int | None = None, options: Any = None, level: int = 0) -> Any:
        super().reset(seed=seed)
        self.level = level
        return np.array(level), {}

    def render(self, mode: str = "human") -> Any:  # type: ignore[override]
        return f"{mode} at {self.level}"


def arguments_of_an_environments_own() -> Any:
    from stable_baselines3.common.vec_env import DummyVecEnv

    vec = DummyVecEnv([_Old] * 2)
    seen = [vec.envs[1].reset(3, level=5), vec.envs[1].render(mode="ansi"), vec.envs[0].reset(level=2)]
    seen.append([env.level for env in vec.envs])
    vec.close()
    return seen


def what_a_dummy_vec_env_keeps_of_a_step() -> Any:
    from stable_baselines3.common.vec_env import DummyVecEnv

    vec = DummyVecEnv([_Short] * 2)
    vec.reset()
    seen = []
    for _ in range(3):
        vec.step(np.zeros(2, np.int64))
        seen.append((vec.buf_rews.copy(), vec.buf_dones.copy(), [dict(info) for info in vec.buf_infos]))
    vec.close()
    return seen


def types_that_are_compared() -> Any:
    """As `EvalCallback` does; and what subclasses do of their own."""
    from stable_baselines3.common.vec_env import DummyVecEnv

    class Own(DummyVecEnv):
        pass

    class Named(DummyVecEnv):
        def step_wait(self) -> Any:
            return DummyVecEnv.step_wait(self)

    class Infos(gym.vector.SyncVectorEnv):
        def _add_info(self, vector_infos: dict, env_info: dict, env_num: int) -> dict:
            return super()._add_info(vector_infos, {**env_info, "own": env_num}, env_num)

    both, made = [Own([_Short]), Own([_Short])], DummyVecEnv([_Short])
    seen: list[Any] = [isinstance(both[0], type(both[1])), type(both[0]) is type(both[1])]
    seen += [isinstance(both[0], DummyVecEnv), isinstance(made, DummyVecEnv), isinstance(made, Own)]
    named = Named([_Short] * 2)
    named.reset()
    seen.append(named.step(np.zeros(2, np.int64))[1].tolist())
    infos = Infos([_Numbers] * 2)
    infos.reset(seed=1)
    seen.append(infos.step(np.zeros(2, np.int64))[4])
    for vec in (*both, made, named, infos):
        vec.close()
    return seen


class _Numbers(_RewardInAnArray):
    def step(self, action: Any) -> Any:
        return 1, 1.0, False, False, {"x": 0.5, "n": 3}
