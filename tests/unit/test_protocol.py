"""Two processes that would not understand each other are told apart, whatever their version says."""

from __future__ import annotations

import inspect
import os
import pickle
import subprocess
import sys
import types
from pathlib import Path

import pytest
import ray

from remoterl import __version__, _protocol
from remoterl import messages as m
from remoterl.actors import directory
from remoterl.errors import VersionMismatchError

MESSAGES = """
'''What crosses.'''
from __future__ import annotations
import struct
from enum import Enum
from typing import Any, NamedTuple

PREFIX = struct.Struct("<IQ")
MAGIC = b"one"

class Kind(Enum):
    ARRAY = "an array"

class Step(NamedTuple):
    '''A step.'''
    vector_id: int
    actions: Any  # packed
"""
OTHERS = {
    "a field more": ("actions: Any", "actions: Any\n    mask: Any = None"),
    "a field of another type": ("vector_id: int", "vector_id: str"),
    "fields in another order": ("vector_id: int\n    actions: Any", "actions: Any\n    vector_id: int"),
    "an enum's value": ("an array", "arrays"),
    "a message more": ("class Step", "class Look(NamedTuple):\n    row: int\n\nclass Step"),
    "a constant": ('b"one"', 'b"two"'),
    "a frame's prefix": ("<IQ", "<IQQ"),
}


def definitions(source: str) -> list[str]:
    module = types.ModuleType("messages")
    exec(source, vars(module))
    return list(_protocol.definitions(module))


@pytest.mark.parametrize("change", OTHERS)
def test_what_crosses_counts(change: str) -> None:
    before, after = OTHERS[change]
    assert before in MESSAGES
    assert definitions(MESSAGES.replace(before, after)) != definitions(MESSAGES)


def test_words_do_not_count() -> None:
    other = MESSAGES.replace("What crosses.", "What travels.").replace("A step.", "Step!").replace("# packed", "")
    assert other != MESSAGES and definitions(other) == definitions(MESSAGES)


def test_an_actors_methods_count() -> None:
    class Actor:
        def __init__(self, trainer: str) -> None: ...

        def handle(self, payload: bytes) -> bytes: ...

        def _mine(self) -> None: ...

    class Newer(Actor):
        def handle(self, payload: bytes, at_once: bool) -> bytes: ...

    assert [line.partition(":")[0] for line in _protocol.methods(Actor)] == ["Actor.__init__", "Actor.handle"]
    assert "at_once" in str(list(_protocol.methods(Newer)))


def test_what_ray_makes_of_an_actors_class_does_not_count() -> None:
    class Actor:
        def handle(self, payload: bytes) -> bytes: ...

    before = list(_protocol.methods(Actor))
    ray.remote(Actor)
    assert "_ray_trace_ctx" in str(inspect.signature(Actor.handle))
    assert list(_protocol.methods(Actor)) == before


def test_the_real_ones_are_in_it() -> None:
    assert _protocol.spoken() == f"{__version__} (protocol {_protocol.digest()})"
    assert any(line.startswith("StepRows: [('vector_id', 'int')") for line in _protocol.definitions(m))


def test_every_process_makes_the_same_of_the_same_code() -> None:
    root = Path(_protocol.__file__).parents[1]
    code = "from remoterl._protocol import digest; print(digest())"
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)}
        told = subprocess.check_output([sys.executable, "-c", code], text=True, env=environment).strip()
        assert told == _protocol.digest()


def test_who_speaks_something_else_is_refused_and_both_are_named() -> None:
    directory.check_version(_protocol.spoken(), "alpha")
    with pytest.raises(VersionMismatchError, match=rf"'alpha' runs remoterl 0\.0\.1, .*{_protocol.digest()}.*Install"):
        directory.check_version("0.0.1", "alpha")


def test_an_env_runner_of_before_there_was_this_says_nothing_and_is_refused() -> None:
    trainer = m.TrainerInfo("session", "train.py", "host", 1)
    info = m.EnvRunnerInfo("id", 1, 0.0, trainer, speaks=_protocol.spoken())
    del info.__dict__["speaks"]
    told = pickle.loads(pickle.dumps(info))
    with pytest.raises(VersionMismatchError, match="of another protocol"):
        directory.check_version(told.speaks, "alpha")
