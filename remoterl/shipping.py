"""How factories, wrappers and arguments travel from a trainer's script to a simulator.

cloudpickle, with three rules of our own: an environment that already lives is never copied, code that lies
beside the trainer's script travels by value, and the few names of Stable-Baselines3 that every
`make_vec_env` factory uses are replaced by light equivalents, so that simulators need neither SB3 nor torch.
What cloudpickle can't pickle by itself, or not right, `Pickler` knows.
"""

from __future__ import annotations

import builtins
import enum
import functools
import hashlib
import importlib
import io
import operator
import pickle
import random
import re
import sys
import types
import typing
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.machinery import EXTENSION_SUFFIXES
from types import FunctionType, MemberDescriptorType, ModuleType, SimpleNamespace
from typing import Any

import cloudpickle
import gymnasium
import numpy as np

from remoterl import living
from remoterl._logging import logger
from remoterl.beside import beside_the_script_by_value
from remoterl.errors import NotShippableError
from remoterl.functions import codes_in

# (module, qualified name) on the trainer -> the same on the simulator
SUBSTITUTES: dict[tuple[str, str], tuple[str, str]] = {
    ("stable_baselines3.common.monitor", "Monitor"): ("remoterl.actors.monitor", "Monitor"),
    ("stable_baselines3.common.vec_env.patch_gym", "_patch_env"): (
        "remoterl.actors.monitor",
        "require_gymnasium_env",
    ),
    ("remoterl.patches.stable_baselines3", "folder_here"): ("remoterl.actors.monitor", "no_folder"),
}


class StaysLocal(Exception):
    """What was to be shipped can't leave this process; the message says why.

    `live_environment` is True where it holds an environment that already lives here, which is no fault:
    SB3 wraps an existing environment that way. `is_remote` is True where that one is a remote one.
    """

    def __init__(self, message: str, live_environment: bool = False, is_remote: bool = False) -> None:
        super().__init__(message)
        self.live_environment = live_environment
        self.is_remote = is_remote


class _BesideALiveOne(StaysLocal):
    """A module that is used holds a live environment by this name, which is not what is used of it."""

    def __init__(self, message: str, name: str, is_remote: bool) -> None:
        super().__init__(message, True, is_remote)
        self.name = name


def ship(value: Any) -> bytes:
    """Pickle `value` for a simulator.

    Raises:
        StaysLocal: it holds a live environment, or something else that can't be pickled.
    """
    try:
        with beside_the_script_by_value(cloudpickle):
            return _dumps(value, _ToSimulators)
    except Exception as error:
        if isinstance(error, StaysLocal) and not isinstance(error, _BesideALiveOne):
            raise
        live = error if isinstance(error, _BesideALiveOne) else None
        why = str(error) if live else f"{type(error).__name__}: {error}"
    # A module that holds something unpicklable: the simulator may have it installed, or gets its source.
    logger.debug("not by value: %s", why)
    with io.BytesIO() as buffer:
        pickler = _ToSimulators(buffer, protocol=5)
        try:
            pickler.dump(value)
        except StaysLocal:
            raise
        except Exception as error:
            raise StaysLocal(f"{type(error).__name__}: {error}") from error
        if live is not None and live.name in pickler.used:  # by code that the first attempt did not come to
            raise StaysLocal(why, True, live.is_remote)
        return pickle.dumps(_Named(buffer.getvalue(), why))


def unship(data: bytes) -> Any:
    """Load on a simulator what `ship` made.

    Raises:
        NotShippableError: a module that it needs, or a name in one, is missing here.
    """
    try:
        return cloudpickle.loads(data)
    except _StayedBehindError as error:
        raise NotShippableError(str(error)) from error
    except ImportError as error:
        missing = getattr(error, "name", None) or str(error)
        raise NotShippableError(
            f"what the trainer sent needs the module {missing!r}, which this simulator cannot import ({error}). "
            "Install it on the simulator, or keep the code beside the trainer's script, from where it is sent along."
        ) from error
    except AttributeError as error:
        if not _MISSING_NAME.search(str(error)):
            raise
        raise NotShippableError(
            f"what the trainer sent needs a name that is missing on this simulator ({error}). Install there what the "
            "trainer has, in the same version."
        ) from error


_MISSING_NAME = re.compile(r"module '.+' has no attribute|Can't get attribute .+ on <module '(?!__main__')")


class _Named:
    """What was shipped, with modules beside the script by their names alone, and why they could not go along."""

    def __init__(self, data: bytes, why: str) -> None:
        self._data = data
        self._why = why

    def __reduce__(self) -> Any:
        return _load_named, (self._data, self._why)


class _StayedBehindError(ImportError):
    """A module beside the script was named where it is not."""


def _load_named(data: bytes, why: str) -> Any:
    try:
        return cloudpickle.loads(data)
    except (ImportError, AttributeError) as error:
        raise _StayedBehindError(
            f"what the trainer sent needs code from beside its script, which could not be sent along ({why}) and is "
            f"not on this simulator ({error}). Take what can't be pickled out of the module, or install it there."
        ) from error


def dumps(value: Any) -> bytes:
    """`cloudpickle.dumps`, with what `Pickler` adds."""
    return _dumps(value, Pickler)


def dumps_back(value: Any) -> bytes:
    """The same, for the trainer, from where classes came: those that arrived from there are its own again."""
    return _dumps(value, _Back)


def send_back(value: Any, buffer_callback: Callable[[pickle.PickleBuffer], Any] | None) -> bytes:
    """The same for what is sent for certain: the trainer's classes go whole but once, then by their ids alone."""
    with io.BytesIO() as buffer:
        pickler = _Back(buffer, protocol=5, buffer_callback=buffer_callback)
        pickler.dump(value)
        _went_back.update(pickler.trainers_own)
        return buffer.getvalue()


def _dumps(value: Any, pickler: type[Pickler]) -> bytes:
    with io.BytesIO() as buffer:
        pickler(buffer, protocol=5).dump(value)
        return buffer.getvalue()


class Pickler(cloudpickle.Pickler):
    """cloudpickle's, where that falls short."""

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is _Cached and not _is_found_by_name(obj):  # it reduces itself to its name
            parameters = obj.cache_parameters()
            return _cached_anew, (obj.__wrapped__, parameters["maxsize"], parameters["typed"])
        if kind is functools.cached_property:  # it has a lock up to Python 3.11
            state = {name: value for name, value in vars(obj).items() if name != "lock"}
            return functools.cached_property, (obj.func,), state
        if kind in _TYPES_BY_NAME and not _is_found_by_name(obj):
            return kind, (obj.__name__, *((obj.__supertype__,) if kind is typing.NewType else ()))
        if kind in _GENERATORS:
            for where in _GLOBAL_GENERATORS:  # `from random import choice` is a method of one
                if obj is getattr(sys.modules.get(where[0]), where[1], None):
                    return _load, where
        if isinstance(obj, type):
            module = sys.modules.get(obj.__module__)
            if _is_extension(module) and _goes_by_value(obj.__module__):
                return NotImplemented  # of a package whose code travels: what is compiled goes by its name
            return self.reduce_class(obj)
        if kind is ModuleType:
            if _is_extension(obj):
                return cloudpickle.subimport, (obj.__name__,)
            make, arguments = self.dispatch_table[ModuleType](obj)
            if make is not cloudpickle.dynamic_subimport:
                return make, arguments
            name, state = arguments  # what a module holds may refer to it: first the module, then what it holds
            return ModuleType, (name,), state, None, None, _set_module
        return super().reducer_override(obj)

    def reduce_class(self, obj: type) -> Any:
        if obj not in _ids_of_classes:
            _made_here.add(obj)
        reduced = super().reducer_override(obj)
        if not _is_by_value(reduced):
            return reduced
        if isinstance(obj, enum.EnumMeta):
            return _with_members(obj, reduced)
        make, arguments, (attributes, more), *rest = (
            reduced  # slots come of `__slots__`; cloudpickle misses private ones
        )
        attributes = {name: value for name, value in attributes.items() if not _is_slot_of(obj, value)}
        return make, arguments, (attributes, more), *rest


_GENERATORS = frozenset({random.Random, np.random.RandomState})
_TYPES_BY_NAME = frozenset({typing.NewType, typing.ParamSpec})  # they reduce themselves to their names
_GLOBAL_GENERATORS = (("random", "_inst"), ("numpy.random.mtrand", "_rand"))
_Cached = type(functools.lru_cache(lambda: None))


def _cached_anew(function: Any, maxsize: int | None, typed: bool) -> Any:
    return functools.lru_cache(maxsize, typed)(function)


def _is_found_by_name(obj: Any) -> bool:
    """Can it be imported where it is loaded? As cloudpickle decides it for functions."""
    name = str(getattr(obj, "__module__", None))
    if name not in sys.modules or name == "__main__" or _goes_by_value(name):
        return False
    try:
        return operator.attrgetter(getattr(obj, "__qualname__", obj.__name__))(sys.modules[name]) is obj
    except AttributeError:
        return False


def _goes_by_value(module: str) -> bool:
    """Is this module, or a package that it is in, registered as one whose code travels?"""
    registered = cloudpickle.list_registry_pickle_by_value()
    return any(module == one or module.startswith(f"{one}.") for one in registered)


def _is_extension(module: Any) -> bool:
    return str(getattr(module, "__file__", None)).endswith(tuple(EXTENSION_SUFFIXES))


def _set_module(module: ModuleType, state: dict[str, Any]) -> None:
    vars(module).update(state, __builtins__=vars(builtins))


def _is_by_value(reduced: Any) -> bool:
    """Is this what cloudpickle makes of a class or function whose code travels? Only there it sets a state."""
    return isinstance(reduced, tuple) and len(reduced) == 6


def _is_slot_of(kind: type, value: Any) -> bool:
    return type(value) is MemberDescriptorType and value.__objclass__ is kind


_ENUMS_OWN = frozenset({"_value_", "_name_", "__objclass__", "_sort_order_"})  # of a member


def _with_members(kind: Any, reduced: Any) -> Any:
    """cloudpickle makes members of their values alone: what `__init__` or `__new__` gave them, and other names."""
    make, arguments, (attributes, _), *_, setter = reduced
    first: list[Any] = list(kind)
    others = {
        name: (member.value, member.name)
        for name, member in kind.__members__.items()
        if name not in {one.name for one in first}
    }
    given = {one.name: {key: value for key, value in vars(one).items() if key not in _ENUMS_OWN} for one in first}
    attributes = {name: value for name, value in attributes.items() if name not in others}
    return make, arguments, (attributes, {"set": setter, "given": given, "others": others}), None, None, _set_enum


def _set_enum(kind: Any, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
    attributes, more = state
    more["set"](kind, (attributes, {}))
    for name, given in more["given"].items():
        vars(kind[name]).update(given)
    for name, (value, own_name) in more["others"].items():
        member: Any = kind(value)
        if name == own_name:  # a flag of several bits, or of none
            member._name_ = name
        kind._member_map_[name] = member
        type.__setattr__(kind, name, member)


# cloudpickle gives a class that it pickles by value an id, by which whoever has the class already finds it, and sets
# all of it again. Its names for them are private: where they are missing, nothing has arrived, and all goes by value.
_ids_of_classes = getattr(cloudpickle.cloudpickle, "_DYNAMIC_CLASS_TRACKER_BY_CLASS", {})
_classes_by_id = getattr(cloudpickle.cloudpickle, "_DYNAMIC_CLASS_TRACKER_BY_ID", {})
_made_here: weakref.WeakSet[type] = weakref.WeakSet()  # pickled here before they had an id
_pickled_classes: weakref.WeakKeyDictionary[type, bytes | None] = weakref.WeakKeyDictionary()
_went_back: weakref.WeakSet[type] = weakref.WeakSet()  # to the trainer, from which they came
_came_back: dict[str, Any] = {}  # by ids: kept, as they come by these alone the next time


def classes_by_value() -> list[type]:
    """All that came here, or went from here, by value."""
    return [one for one in list(_ids_of_classes) if isinstance(one, type)]


class _Back(Pickler):
    """That of `dumps_back`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.trainers_own: list[type] = []

    def reduce_class(self, obj: type) -> Any:
        known_as = _ids_of_classes.get(obj)
        if known_as is None or obj in _made_here:
            return super().reduce_class(obj)
        if living.has_arrived(obj):
            self.trainers_own.append(obj)
        return _own_class, (known_as, None if obj in _went_back else _pickled(obj))


def _pickled(obj: type) -> bytes | None:
    """A class by value, for where it is not known (or not any more); None where it can't be pickled."""
    if obj not in _pickled_classes:
        try:
            _pickled_classes[obj] = dumps(obj)
        except Exception as error:
            logger.debug("%s goes by its id alone: %s", obj, error)
            _pickled_classes[obj] = None
    return _pickled_classes[obj]


def _own_class(known_as: str, by_value: bytes | None) -> Any:
    own = _classes_by_id.get(known_as)
    if own is None:
        if by_value is None:
            raise pickle.UnpicklingError("its class is not here any more, and can't travel")
        own = cloudpickle.loads(by_value)
    _came_back[known_as] = own
    return own


class _ToSimulators(Pickler):
    """That of `ship`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._names: dict[int, living.Names] = {}  # by ids of modules
        self._digests: dict[int, dict[str, bytes | None]] = {}
        self._culprits: dict[str, tuple[str, str]] = {}  # by what can't be pickled of it: a name, and of what
        self.used: set[str] = set()  # names in the code

    def dump(self, value: Any) -> None:
        try:
            super().dump(value)
        except StaysLocal as error:
            name, module = self._culprits.get(str(error), ("", "__main__"))
            if module == "__main__" or name in self.used:
                raise
            raise _BesideALiveOne(f"{error}, as {name} of {module}", name, error.is_remote) from error
        except Exception as error:
            if (culprit := self._culprits.get(str(error))) is None:
                raise
            raise pickle.PicklingError("{}, which is {} of {}".format(error, *culprit)) from error

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, (gymnasium.Env, gymnasium.vector.VectorEnv)):
            is_remote = type(obj.unwrapped).__module__.startswith("remoterl.")
            raise StaysLocal(f"it holds the live environment {obj}", live_environment=True, is_remote=is_remote)
        if isinstance(obj, (type, FunctionType)):
            substitute = SUBSTITUTES.get((obj.__module__, obj.__qualname__))
            if substitute is not None:
                return _load, substitute
        elif _is_rllibs_env_runner(obj):
            return SimpleNamespace, (), {"config": obj.config}
        reduced = super().reducer_override(obj)
        if isinstance(obj, FunctionType) and _is_by_value(reduced):
            self.used.update(name for code in codes_in(obj.__code__) for name in code.co_names)
            module = living.module_of(obj)
            return reduced if module is None else self._function_of(module, reduced)
        if type(obj) is ModuleType and reduced[-1] is _set_module:
            key = self._names_of(obj).key
            return (
                living.living_module,
                (key, obj.__name__),
                (key, *self._told(obj, reduced[2])),
                *_set_by(living.set_module),
            )
        return reduced

    def reduce_class(self, obj: type) -> Any:
        reduced = super().reduce_class(obj)
        if not _is_by_value(reduced):
            return reduced
        make, arguments, (attributes, more), *_, setter = reduced
        digests = {name: self._digest(name, value, obj.__qualname__) for name, value in attributes.items()}
        return _known_or, (make, arguments), (setter, (attributes, more), digests), *_set_by(living.set_class)

    def _function_of(self, module: ModuleType, reduced: Any) -> Any:
        make, (code, _, *rest), (state, slots), *_, setter = reduced
        names = self._names_of(module)
        told = self._told(module, slots["__globals__"])
        own = state, {**slots, "__globals__": {}}
        return make, (code, names, *rest), (setter, own, names.key, *told), *_set_by(living.set_function)

    def _names_of(self, module: ModuleType) -> living.Names:
        return self._names.setdefault(id(module), living.Names(module))

    def _told(self, module: ModuleType, values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, bytes | None]]:
        """These names of a module, and what they are like: looked at once, as many functions name the same."""
        known = self._digests.setdefault(id(module), {})
        for name, value in values.items():
            if name not in known:
                known[name] = self._digest(name, value, module.__name__)
        return values, {name: known[name] for name in values}

    def _digest(self, name: str, value: Any, of: str) -> bytes | None:
        """The same for what is the same; None where that can't be said, or is too much to look at."""
        digest = _Hash()
        try:
            _Digester(digest, protocol=5).dump(value)
        except TooLargeError:
            return None
        except Exception as error:
            self._culprits.setdefault(str(error), (name, of))
            return None
        return digest.digest()


def _known_or(make: Callable[..., type], arguments: tuple[Any, ...]) -> type:
    """A class that is here already; cloudpickle makes an empty one first, which its bases then list."""
    *_, known_as, _ = arguments
    if (known := _classes_by_id.get(known_as)) is not None:
        return known
    _, _, bases, *_ = arguments
    with _untold(types.resolve_bases(bases)):
        return make(*arguments)


@contextmanager
def _untold(bases: Iterable[Any]) -> Iterator[None]:
    """An `__init_subclass__` of the trainer's isn't called: it was there, with its arguments; what it did arrives."""
    everyone = {one for base in bases for one in getattr(base, "__mro__", ())}
    told = [one for one in everyone if "__init_subclass__" in vars(one) and living.has_arrived(one)]
    own = [(one, vars(one)["__init_subclass__"]) for one in told]
    try:
        for one in told:
            type.__setattr__(one, "__init_subclass__", classmethod(lambda cls, **_: None))
        yield
    finally:
        for one, method in own:
            type.__setattr__(one, "__init_subclass__", method)


def _set_by(setter: Callable[..., None]) -> tuple[None, None, Callable[..., None]]:
    return None, None, setter


class _Digester(_ToSimulators):
    """Writes into a hash what tells a value from others: of classes and modules, which arrive themselves, which."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, (type, ModuleType)):
            return _stands_for, (living.number_of(obj),)
        reduced = (
            Pickler.reducer_override(self, obj) if isinstance(obj, FunctionType) else super().reducer_override(obj)
        )
        if not isinstance(obj, FunctionType) or not _is_by_value(reduced):
            return reduced
        if living.module_of(obj) is None:
            raise pickle.PicklingError(f"the names that {obj.__qualname__} uses may have changed")
        own = obj.__code__, obj.__defaults__, obj.__kwdefaults__, obj.__closure__, vars(obj)
        return _stands_for, (), own


def _stands_for(number: int = 0) -> int:
    return number


class TooLargeError(Exception):
    """A pickle is larger than who makes it wants to wait for."""


class _Hash:
    """A file that only its hash is kept of.

    Raises:
        TooLargeError: it has more than `MAX_BYTES`.
    """

    MAX_BYTES = 4_000_000

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self._left = self.MAX_BYTES

    def write(self, data: bytes | memoryview) -> None:
        self._left -= len(memoryview(data).cast("B"))
        if self._left < 0:
            raise TooLargeError
        self._hash.update(data)

    def digest(self) -> bytes:
        return self._hash.digest()


def _is_rllibs_env_runner(value: Any) -> bool:
    """RLlib's environment creators hold the env runner that calls them, of which they read the `config` alone."""
    module = sys.modules.get("ray.rllib.env.env_runner")
    return module is not None and isinstance(value, module.EnvRunner)


def _load(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def ship_exception(error: BaseException) -> bytes | None:
    """Pickle an exception so that the trainer gets one of its own type; None where that can't be."""
    for form in (error, _Whole(error)):
        try:
            data = dumps_back(form)
            if type(pickle.loads(data)) is type(error):
                return data
        except Exception:  # its class takes other arguments than it keeps, or holds what can't be pickled
            continue
    return None


class _Whole:
    """An exception as its arguments and attributes: to be unpickled without its class's `__init__`."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __reduce__(self) -> Any:
        return _made_whole, (type(self._error), self._error.args, self._error.__dict__)


def _made_whole(kind: type[BaseException], args: tuple[Any, ...], attributes: dict[str, Any]) -> BaseException:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error
