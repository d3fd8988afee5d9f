"""What this process speaks: its version, and a digest of all that crosses processes. Both ends must agree on it.

The digest is taken of the definitions themselves, so that nobody has to remember it: two checkouts of one version that
differ in a message, a frame or an actor's methods are told apart, before they lose each other's env runners.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import struct
from collections.abc import Iterator
from enum import Enum
from types import ModuleType
from typing import Any

from remoterl import _version

REVISION = 5  # one more for a change that the definitions don't show: what the same fields and methods mean
MODULES = (
    "remoterl.messages",
    "remoterl.channels.codec",
    "remoterl.channels.handshake",
    "remoterl.channels.shared_memory",
    "remoterl.channels.trees",
)
ACTORS = (
    "remoterl.actors.env_runner.EnvRunner",
    "remoterl.actors.simulator.Simulator",
    "remoterl.actors.reservations.Reservations",
)


def spoken() -> str:
    """What one end asks the other for, and shows where it is another: `0.1.0 (protocol 1a2b3c4d)`."""
    return f"{_version.__version__} (protocol {digest()})"


@functools.cache
def digest() -> str:
    """Eight characters, the same wherever the same code speaks the same Python."""
    lines = [f"revision {REVISION}"]
    for name in MODULES:
        lines += definitions(importlib.import_module(name))
    for path in ACTORS:
        module, _, name = path.rpartition(".")
        lines += methods(getattr(importlib.import_module(module), name))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]


def definitions(module: ModuleType) -> Iterator[str]:
    """The module's own classes with their fields, and its constants: neither code nor comments."""
    for name, value in sorted(vars(module).items()):
        if isinstance(value, type) and value.__module__ == module.__name__:
            yield f"{name}: {_fields(value)}"
        elif name.isupper() and isinstance(value, (int, str, bytes, struct.Struct)):
            yield f"{name} = {value.format if isinstance(value, struct.Struct) else value!r}"


def methods(actor: type) -> Iterator[str]:
    """How an actor is made and called, without the parameter that Ray's tracing gives every method of an actor."""
    for name, method in sorted(vars(actor).items()):
        if inspect.isfunction(method) and (name == "__init__" or not name.startswith("_")):
            signature = inspect.signature(method)
            own = [str(one) for one in signature.parameters.values() if not one.name.startswith("_")]
            yield f"{actor.__name__}.{name}: {own} -> {signature.return_annotation}"


def _fields(kind: type) -> list[tuple[str, Any]]:
    """In their order, which counts: named tuples travel without names."""
    if issubclass(kind, Enum):
        return [(member.name, member.value) for member in kind]
    annotations = inspect.get_annotations(kind).items()
    return [(name, getattr(annotation, "__forward_arg__", annotation)) for name, annotation in annotations]
