"""How an instance of a framework's vector env class becomes a remote one, in the middle of its `__init__`."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from gymnasium.vector import AutoresetMode

from remoterl._logging import logger
from remoterl.errors import UnsupportedError
from remoterl.functions import codes_in, functions_behind
from remoterl.messages import A_PROCESS_EACH, Semantics
from remoterl.patches.backend import backend, building_locally, is_local
from remoterl.shipping import StaysLocal
from remoterl.vector.anew import make_anew


def becoming_remote(
    original: Callable[..., None],
    local_class: type,
    remote_class: Any,
    semantics: Callable[[Mapping[str, Any]], Semantics],
) -> Callable[..., None]:
    """A replacement of `local_class.__init__` that opens the rows remotely, or here where they can't travel.

    `remote_class.set_up(instance, core, arguments)` does what `__init__` does locally; `arguments` are those of the
    local class by name, defaults included. `semantics` picks the rows' rules by them. What a script's subclass can't do
    without, `remote_class.LOCAL_PARTS` names.
    """
    signature = inspect.signature(original)

    @functools.wraps(original)
    def __init__(self: Any, env_fns: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        env_fns = list(env_fns)
        bound = signature.bind(self, env_fns, *args, **kwargs)
        bound.apply_defaults()
        arguments = bound.arguments
        mode = AutoresetMode(arguments.get("autoreset_mode", AutoresetMode.NEXT_STEP))
        own_worker = arguments.get("worker") is not None  # it replaces what we would replace
        own_parts = _parts_used(type(self), local_class, remote_class.LOCAL_PARTS)
        if own_parts and not is_local():
            say_local(type(self).__name__, StaysLocal(f"it uses {local_class.__name__}'s own {', '.join(own_parts)}"))
        if is_local() or own_worker or not env_fns or own_parts:
            with building_locally():
                return original(self, env_fns, *args, **kwargs)
        try:
            core = backend().open(env_fns, semantics(arguments), mode)
        except StaysLocal as reason:
            if reason.is_remote and semantics(arguments) in A_PROCESS_EACH:
                raise UnsupportedError(
                    f"{local_class.__name__} has a process for each environment, to which a simulator's can't be "
                    f"copied, and {reason}. Give functions that make one: lambda: gym.make(...)."
                ) from None
            say_local(local_class.__name__, reason)
            with building_locally():
                return original(self, env_fns, *args, **kwargs)
        _become(self, local_class, remote_class)
        try:
            remote_class.set_up(self, core, arguments)
        except BaseException:
            core.close()
            raise
        return None

    return __init__


def _parts_used(own_class: type, local_class: type, parts: frozenset[str]) -> list[str]:
    """Those that the methods of a script's subclass name."""
    used: set[str] = set()
    own_methods = {name for name, value in vars(local_class).items() if inspect.isfunction(value)} - {"__init__"}
    for base in own_class.__mro__[: own_class.__mro__.index(local_class)]:
        for value in vars(base).values():
            for function in functions_behind(value):
                for code in codes_in(function.__code__):
                    used |= parts.intersection(code.co_names)
                    named = local_class.__name__ in (*code.co_names, *code.co_freevars)
                    if named and code.co_name != "__init__":  # instead of `super()`
                        used |= own_methods.intersection(code.co_names)
    return sorted(used)


def _become(instance: Any, local_class: type, remote_class: type) -> None:
    """Turn an instance of the local class (or of a script's subclass) into the remote one.

    A subclass keeps its own methods before ours: its `super()` calls arrive at the remote class.
    """
    own_class = type(instance)
    if own_class is local_class:
        instance.__class__ = remote_class
    else:
        made = _made.get((own_class, remote_class))
        if made is None:
            own = {
                "__module__": own_class.__module__,
                "__qualname__": own_class.__qualname__,
                "LOCAL_CLASS": own_class,
                "__init__": lambda self, *args, **kwargs: make_anew(self, own_class, args, kwargs),
            }
            made = _made[own_class, remote_class] = type(own_class.__name__, (own_class, remote_class), own)
        instance.__class__ = made


# One for each of a script's classes, of which two instances are of one type; as long as there are instances.
_made: weakref.WeakValueDictionary[tuple[type, type], type] = weakref.WeakValueDictionary()


def say_local(what: str, reason: StaysLocal) -> None:
    """An environment that already lives is no fault; anything else deserves a line."""
    if not reason.live_environment:
        logger.warning("%s is built on this machine, not on a simulator: %s", what, reason)
