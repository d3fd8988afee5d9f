"""Stable-Baselines3: `DummyVecEnv`, `SubprocVecEnv`, and `make_vec_env`; `make_atari_env` builds on them.

Imports Stable-Baselines3, so it is imported itself only once the script has done so.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any, cast

from stable_baselines3.common import env_util
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper

from remoterl.messages import Semantics
from remoterl.patches.backend import is_local
from remoterl.patches.base import Patch, original_function
from remoterl.patches.becoming import becoming_remote
from remoterl.patches.gymnasium import imported_here
from remoterl.vector.sb3 import RemoteDummyVecEnv, RemoteRows, RemoteSubprocVecEnv


def _dummy_init(original: Callable[..., None]) -> Callable[..., None]:
    return becoming_remote(original, DummyVecEnv, RemoteDummyVecEnv, lambda _: Semantics.SB3_DUMMY)


def _subproc_init(original: Callable[..., None]) -> Callable[..., None]:
    return becoming_remote(original, SubprocVecEnv, RemoteSubprocVecEnv, lambda _: Semantics.SB3_SUBPROC)


def _make_vec_env_code(  # type: ignore[no-untyped-def]
    env_id,
    n_envs=1,
    seed=None,
    start_index=0,
    monitor_dir=None,
    wrapper_class=None,
    env_kwargs=None,
    vec_env_cls=None,
    vec_env_kwargs=None,
    monitor_kwargs=None,
    wrapper_kwargs=None,
):
    # Runs with the globals of stable_baselines3.common.env_util.
    arguments = dict(locals())
    from remoterl.patches.stable_baselines3 import remote_make_vec_env

    return remote_make_vec_env(**arguments)


def remote_make_vec_env(**arguments: Any) -> VecEnv:
    """`make_vec_env` as it is, but that `monitor_dir` is a folder on the trainer's machine."""
    original = original_function(cast(FunctionType, env_util.make_vec_env), _make_vec_env_original)
    if is_local():
        return original(**arguments)
    arguments["env_id"] = imported_here(arguments["env_id"])
    folder = arguments["monitor_dir"]
    if folder is None:
        return original(**arguments)
    vec_env = original(**{**arguments, "monitor_dir": _FolderHere(folder)})
    rows = vec_env
    while isinstance(rows, VecEnvWrapper):
        rows = rows.venv
    if isinstance(rows, RemoteRows):
        options = arguments["monitor_kwargs"] or {}
        extra_keys = tuple(options.get("reset_keywords", ())) + tuple(options.get("info_keywords", ()))
        rows.keep_logs(folder, arguments["start_index"], extra_keys, options.get("override_existing", True))
    return vec_env


class _FolderHere(str):
    """A `monitor_dir` that is none on a simulator: a factory that is shipped writes no files, its trainer does."""

    def __reduce__(self) -> Any:
        return folder_here, (str(self),)


def folder_here(folder: str) -> str:
    """Where a factory goes to another process of this machine; `shipping` has a substitute for it."""
    return folder


_make_vec_env_original = env_util.make_vec_env.__code__

TABLE = (
    Patch("stable_baselines3.common.env_util", "make_vec_env", "code", _make_vec_env_code),
    Patch("stable_baselines3.common.vec_env.dummy_vec_env", "DummyVecEnv.__init__", "method", _dummy_init),
    Patch("stable_baselines3.common.vec_env.subproc_vec_env", "SubprocVecEnv.__init__", "method", _subproc_init),
)
