"""Stable-Baselines3: `DummyVecEnv` and `SubprocVecEnv`; `make_vec_env` and `make_atari_env` build on them.

Imports Stable-Baselines3, so it is imported itself only once the script has done so.
"""

from __future__ import annotations

from collections.abc import Callable

from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from remoterl.messages import Semantics
from remoterl.patches.base import Patch
from remoterl.patches.becoming import becoming_remote
from remoterl.vector.sb3 import RemoteDummyVecEnv, RemoteSubprocVecEnv


def _dummy_init(original: Callable[..., None]) -> Callable[..., None]:
    return becoming_remote(original, DummyVecEnv, RemoteDummyVecEnv, Semantics.SB3_DUMMY)


def _subproc_init(original: Callable[..., None]) -> Callable[..., None]:
    return becoming_remote(original, SubprocVecEnv, RemoteSubprocVecEnv, Semantics.SB3_SUBPROC)


TABLE = (
    Patch("stable_baselines3.common.vec_env.dummy_vec_env", "DummyVecEnv", "init", _dummy_init),
    Patch("stable_baselines3.common.vec_env.subproc_vec_env", "SubprocVecEnv", "init", _subproc_init),
)
