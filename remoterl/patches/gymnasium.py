"""Gymnasium: `make`, `make_vec`, `SyncVectorEnv`, `AsyncVectorEnv`."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from typing import Any

import gymnasium
from gymnasium.envs import registration
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

from remoterl.actors.registry import with_local_code, with_own_entry_points
from remoterl.actors.sources import lies_beside_the_script
from remoterl.errors import UnsupportedError
from remoterl.messages import Semantics
from remoterl.patches.backend import NO_WINDOWS, backend, building_locally, is_local
from remoterl.patches.base import Patch, original_function
from remoterl.patches.becoming import becoming_remote, say_local
from remoterl.shipping import StaysLocal
from remoterl.vector.gymnasium import RemoteAsyncVectorEnv, RemoteSyncVectorEnv
from remoterl.vector.single import HostedVectorEnv, RemoteEnv

_original_code = {function: function.__code__ for function in (registration.make, registration.make_vec)}


# ---- make ------------------------------------------------------------------------------------------------


def _make_code(id, max_episode_steps=None, disable_env_checker=None, **kwargs):  # type: ignore[no-untyped-def]
    # Runs with the globals of gymnasium.envs.registration.
    from remoterl.patches.gymnasium import remote_make

    return remote_make(id, max_episode_steps, disable_env_checker, kwargs)


def remote_make(
    id: str | EnvSpec, max_episode_steps: int | None, disable_env_checker: bool | None, kwargs: dict[str, Any]
) -> gymnasium.Env:
    """`gymnasium.make`: one environment on an env runner, or here where its arguments can't travel."""
    if is_local() or not isinstance(id, (str, EnvSpec)):  # which Gymnasium refuses
        return local(registration.make)(id, max_episode_steps, disable_env_checker, **kwargs)
    _refuse_human_rendering(kwargs)
    id = imported_here(id)
    factory = MakeEnv(
        id, {"max_episode_steps": max_episode_steps, "disable_env_checker": disable_env_checker, **kwargs}
    )
    try:
        env = RemoteEnv(backend().open([factory], Semantics.SINGLE, env_id=_id_of(id)))
    except StaysLocal as reason:
        say_local(f"gymnasium.make({_id_of(id)!r})", reason)
        with building_locally():
            return local(registration.make)(id, max_episode_steps, disable_env_checker, **kwargs)
    env.spec = with_own_entry_points(env.spec, id)
    return env


class MakeEnv:
    """A factory that calls `gymnasium.make` where it arrives."""

    def __init__(self, env: str | EnvSpec, kwargs: dict[str, Any]) -> None:
        self.env = env if isinstance(env, str) else with_local_code(env)
        self.kwargs = kwargs

    def __call__(self) -> gymnasium.Env:
        return registration.make(self.env, **self.kwargs)


# ---- make_vec --------------------------------------------------------------------------------------------


def _make_vec_code(id, num_envs=1, vectorization_mode=None, vector_kwargs=None, wrappers=None, **kwargs):  # type: ignore[no-untyped-def]
    # Runs with the globals of gymnasium.envs.registration.
    from remoterl.patches.gymnasium import remote_make_vec

    return remote_make_vec(id, num_envs, vectorization_mode, vector_kwargs, wrappers, kwargs)


def remote_make_vec(
    id: str | EnvSpec,
    num_envs: int,
    vectorization_mode: Any,
    vector_kwargs: Any,
    wrappers: Any,
    kwargs: dict[str, Any],
) -> gymnasium.vector.VectorEnv:
    """`gymnasium.make_vec` as it is, with the simulators' EnvSpec, and custom vector envs hosted remotely."""
    if is_local():
        return local(registration.make_vec)(id, num_envs, vectorization_mode, vector_kwargs, wrappers, **kwargs)
    _refuse_human_rendering(kwargs)
    id = imported_here(id)
    try:
        return _make_vec(id, num_envs, vectorization_mode, vector_kwargs, wrappers, kwargs)
    except StaysLocal as reason:
        say_local(f"gymnasium.make_vec({_id_of(id)!r})", reason)
        with building_locally():
            return local(registration.make_vec)(id, num_envs, vectorization_mode, vector_kwargs, wrappers, **kwargs)


def _make_vec(
    id: str | EnvSpec, num_envs: int, vectorization_mode: Any, vector_kwargs: Any, wrappers: Any, kwargs: dict[str, Any]
) -> gymnasium.vector.VectorEnv:
    spec: Any = with_local_code(id) if isinstance(id, EnvSpec) else id
    if isinstance(id, str):
        spec = backend().find_spec(id)
    entry_point = None
    if isinstance(spec, EnvSpec) and spec.vector_entry_point is not None and _is_its_own(spec, vectorization_mode):
        spec = copy.copy(spec)
        entry_point, spec.vector_entry_point = spec.vector_entry_point, _HostVectorEnv(id)
    env = local(registration.make_vec)(spec, num_envs, vectorization_mode, vector_kwargs, wrappers, **kwargs)
    if entry_point is not None and env.unwrapped.spec is not None:
        env.unwrapped.spec.vector_entry_point = entry_point
    return env


def _is_its_own(spec: EnvSpec, vectorization_mode: Any) -> bool:
    """Does `make_vec` take the spec's own vector env?"""
    mode = spec.kwargs.get("vectorization_mode", vectorization_mode)
    return mode in (None, registration.VectorizeMode.VECTOR_ENTRY_POINT, "vector_entry_point")


class _HostVectorEnv:
    """Stands in for a spec's `vector_entry_point` on the trainer: opens that vector env on an env runner."""

    def __init__(self, env: str | EnvSpec) -> None:
        self.env = env

    def __call__(self, **kwargs: Any) -> gymnasium.vector.VectorEnv:
        factory = MakeVectorEnv(self.env, kwargs)
        return HostedVectorEnv(backend().open([factory], Semantics.HOSTED, env_id=_id_of(self.env)))


class MakeVectorEnv:
    """A factory that calls the environment's own `vector_entry_point` where it arrives."""

    def __init__(self, env: str | EnvSpec, kwargs: dict[str, Any]) -> None:
        self.env = env if isinstance(env, str) else with_local_code(env)
        self.kwargs = kwargs

    def __call__(self) -> gymnasium.vector.VectorEnv:
        spec = registration._find_spec(self.env) if isinstance(self.env, str) else self.env
        entry_point = spec.vector_entry_point
        assert entry_point is not None
        creator = registration.load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
        return creator(**self.kwargs)  # type: ignore[return-value]


# ---- the vector env classes ------------------------------------------------------------------------------


def _sync_init(original: Callable[..., None]) -> Callable[..., None]:
    return becoming_remote(original, SyncVectorEnv, RemoteSyncVectorEnv, lambda _: Semantics.GYMNASIUM_SYNC)


def _async_init(original: Callable[..., None]) -> Callable[..., None]:
    return becoming_remote(
        original,
        AsyncVectorEnv,
        RemoteAsyncVectorEnv,
        lambda arguments: (
            Semantics.GYMNASIUM_ASYNC if arguments["shared_memory"] else Semantics.GYMNASIUM_ASYNC_UNSHARED
        ),
    )


def _refuse_human_rendering(kwargs: dict[str, Any]) -> None:
    if kwargs.get("render_mode") == "human":
        raise UnsupportedError(NO_WINDOWS)


def imported_here(env: Any) -> Any:
    """Of `module:id` the id, where the module lies beside the script: it is imported here, and what it registers
    travels. A simulator imports others."""
    if isinstance(env, str):
        module, _, env_id = env.partition(":")
        if env_id and lies_beside_the_script(module):
            importlib.import_module(module)
            return env_id
    return env


def local(function: Any) -> Callable[..., Any]:
    """The function as Gymnasium defines it, patched or not."""
    return original_function(function, _original_code[function])


def _id_of(env: str | EnvSpec) -> str | None:
    return env if isinstance(env, str) else None


TABLE = (
    Patch("gymnasium.envs.registration", "make", "code", _make_code),
    Patch("gymnasium.envs.registration", "make_vec", "code", _make_vec_code),
    Patch("gymnasium.vector.sync_vector_env", "SyncVectorEnv.__init__", "method", _sync_init),
    Patch("gymnasium.vector.async_vector_env", "AsyncVectorEnv.__init__", "method", _async_init),
)
