"""Bit-for-bit comparison, and the rollouts that are compared. Imported by trainers and by clean processes."""

from __future__ import annotations

import copy
import re
from typing import Any

import numpy as np


def assert_same(left: Any, right: Any, path: str = "") -> None:
    """Equal values of equal types, dtypes, shapes and bytes; `path` says where they differ."""
    assert type(left) is type(right), f"{path}: {type(left)} and {type(right)}"
    if isinstance(left, np.ndarray):
        assert left.dtype == right.dtype, f"{path}: {left.dtype} and {right.dtype}"
        assert left.shape == right.shape, f"{path}: {left.shape} and {right.shape}"
        if left.dtype == object:
            assert_same(list(left.flat), list(right.flat), path)
        else:
            assert left.tobytes() == right.tobytes(), f"{path}:\n{left}\n{right}"
    elif isinstance(left, dict):
        assert list(left) == list(right), f"{path}: keys {list(left)} and {list(right)}"
        for key in left:
            assert_same(left[key], right[key], f"{path}[{key!r}]")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), f"{path}: {len(left)} and {len(right)} elements"
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            assert_same(one, other, f"{path}[{index}]")
    elif isinstance(left, float) and left != left:
        assert right != right, path
    else:
        assert left == right, f"{path}: {left!r} and {right!r}"


def _without_clock(info: Any) -> Any:
    """Episode statistics hold wall-clock seconds, which can't be equal."""
    if isinstance(info, dict):
        return {key: _without_clock(value) for key, value in info.items() if key not in ("t", "_t", "pid", "_pid")}
    if type(info) in (list, tuple):
        return type(info)(_without_clock(value) for value in info)
    return info


def single(env_id: str, steps: int, seed: int) -> list[Any]:
    """`gymnasium.make`, reset whenever an episode ends."""
    import gymnasium

    env = gymnasium.make(env_id)
    env.action_space.seed(seed)
    record: list[Any] = [env.reset(seed=seed)]
    for _ in range(steps):
        record.append(env.step(env.action_space.sample()))
        if record[-1][2] or record[-1][3]:
            record.append(env.reset())
    env.close()
    return record


def gymnasium_vector(env_id: str, steps: int, seed: int, num_envs: int = 5, **make_vec: Any) -> list[Any]:
    """`gymnasium.make_vec` in any vectorization mode."""
    import gymnasium

    env = gymnasium.make_vec(env_id, num_envs=num_envs, **make_vec)
    env.action_space.seed(seed)
    disabled = env.metadata["autoreset_mode"].value == "Disabled"
    record: list[Any] = [env.reset(seed=seed)]
    for _ in range(steps):
        record.append(env.step(env.action_space.sample()))
        ended = np.logical_or(record[-1][2], record[-1][3])
        if disabled and ended.any():
            record.append(env.reset(options={"reset_mask": ended}))
    env.close()
    return _without_clock(record)


def sb3_vector(env_id: str, steps: int, seed: int, subproc: bool, num_envs: int = 5) -> list[Any]:
    """`make_vec_env` over DummyVecEnv or SubprocVecEnv."""

    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

    kind = {"vec_env_kwargs": {"start_method": "fork"}, "vec_env_cls": SubprocVecEnv} if subproc else {}
    env = make_vec_env(env_id, num_envs, seed=seed, **({"vec_env_cls": DummyVecEnv} | kind))
    env.action_space.seed(seed)
    record: list[Any] = [env.reset(), copy.deepcopy(env.reset_infos)]
    for _ in range(steps):
        actions = np.array([env.action_space.sample() for _ in range(num_envs)])
        record.append(copy.deepcopy(env.step(actions)))
        record.append(copy.deepcopy(env.reset_infos))
    # Gymnasium's own vector envs write their mode into the class's metadata, in whatever process they are made.
    metadata = {key: value for key, value in env.metadata.items() if key != "autoreset_mode"}
    record.append([metadata, env.render_mode, env.observation_space, env.action_space])
    env.close()
    return _without_clock(record)


def _factories(what: Any, num_envs: int, modules: tuple[str, ...]) -> list[Any]:
    """An id, made by a function that first imports the packages that register it; or a factory of our own."""
    if not isinstance(what, str):
        return [what] * num_envs

    def make() -> Any:
        import importlib

        import gymnasium

        for module in modules:
            importlib.import_module(module)
        return gymnasium.make(what)

    return [make] * num_envs


def _name(space: Any) -> str:
    """A space as text, without the addresses of its objects."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(space))


def vector_class(
    what: Any, class_name: str, steps: int, seed: int, arguments: dict[str, Any], modules: tuple[str, ...] = ()
) -> Any:
    """One of Gymnasium's vector env classes, driven over episode ends; its observations are held to the end, too."""
    import gymnasium

    env = getattr(gymnasium.vector, class_name)(_factories(what, 3, modules), **arguments)
    env.action_space.seed(seed)
    record: list[Any] = [_name(env.observation_space), _name(env.single_action_space), env.reset(seed=seed)]
    held = []
    for step in range(steps):
        stepped = env.step(env.action_space.sample())
        record.append(copy.deepcopy(stepped))
        held.append(stepped[0])
        ended = np.logical_or(record[-1][2], record[-1][3])
        if arguments.get("autoreset_mode") == "Disabled" and ended.any():
            record.append(env.reset(options={"reset_mask": ended, "at": step}))
        if step == steps // 2:
            record.append(env.reset(seed=[seed + 5, None, seed + 1], options={"again": step}))
    record += [env.np_random_seed, held]
    env.close()
    return _without_clock(record)


def sb3_class(what: Any, class_name: str, steps: int, seed: int, modules: tuple[str, ...] = ()) -> Any:
    """One of SB3's vector env classes, driven over episode ends; its observations are held to the end, too."""
    from stable_baselines3.common import vec_env

    kwargs = {"start_method": "fork"} if class_name == "SubprocVecEnv" else {}
    env = getattr(vec_env, class_name)(_factories(what, 3, modules), **kwargs)
    env.seed(seed)
    env.action_space.seed(seed)
    record: list[Any] = [env.reset(), copy.deepcopy(env.reset_infos)]
    held = []
    for step in range(steps):
        actions = [env.action_space.sample() for _ in range(3)]
        stepped = env.step(np.array(actions) if isinstance(actions[0], np.ndarray) else actions)
        record.append(copy.deepcopy(stepped))
        held.append(stepped[0])
        record.append(copy.deepcopy(env.reset_infos))
        if step == steps // 2:
            env.set_options({"again": step})
            record.append(env.reset())
    record.append(held)
    env.close()
    return _without_clock(record)
