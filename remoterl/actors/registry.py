"""Which environments a simulator brings: its Gymnasium registry, in every worker of its node.

The simulator process writes its registrations to a file in its node's folder; the path travels in the
environment of `ray start`, so that each worker process of that node (ours, and RLlib's) can load them. A node that
came up without a simulator process (by an autoscaler, `ray up`, KubeRay) names modules in REMOTERL_REGISTER instead.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import importlib.util
import os
import pickle
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
import gymnasium
from gymnasium.envs import registration
from gymnasium.envs.registration import EnvSpec, WrapperSpec, load_env_creator, registry

from remoterl._logging import logger
from remoterl.actors.sources import Source, lies_beside_the_script, serve
from remoterl.errors import NotShippableError
from remoterl.shipping import StaysLocal, dumps, ship, unship

ENTRY_POINTS = ("entry_point", "vector_entry_point")  # of an EnvSpec
REGISTRY_VARIABLE = "REMOTERL_REGISTRY"
MODULES_VARIABLE = "REMOTERL_REGISTER"  # module,module: imported in every worker; they register environments


def save(path: Path) -> None:
    """Write this process's registrations, `__main__`'s classes by value, one pickle an id."""
    entries: dict[str, bytes] = {}
    for env_id, spec in registry.items():
        try:
            entries[env_id] = dumps(_by_value_if_main(spec))
        except Exception as error:
            logger.warning("The environment %s is not offered: it can't be pickled (%s).", env_id, error)
    path.write_bytes(pickle.dumps(entries))
    path.chmod(0o600)


def _by_value_if_main(spec: EnvSpec) -> EnvSpec:
    names = [spec.entry_point, spec.vector_entry_point, *(one.entry_point for one in spec.additional_wrappers)]
    return with_local_code(spec) if any(str(name).startswith("__main__:") for name in names) else spec


_loaded = False


def load() -> None:
    """Register what this node's simulator registered, and import REMOTERL_REGISTER's modules. Once a process."""
    global _loaded
    if _loaded:
        return
    _loaded = True
    for module in filter(None, (name.strip() for name in os.environ.get(MODULES_VARIABLE, "").split(","))):
        try:
            importlib.import_module(module)
        except Exception as error:
            logger.warning("%s names %s, which can't be imported on this node: %s", MODULES_VARIABLE, module, error)
    path = os.environ.get(REGISTRY_VARIABLE)
    if path and os.path.exists(path):
        _load_file(Path(path))


def _load_file(path: Path) -> None:
    entries: Mapping[str, bytes] = pickle.loads(path.read_bytes())
    for env_id, data in entries.items():
        try:
            registry[env_id] = pickle.loads(data)
        except Exception as error:
            logger.warning("The environment %s can't be loaded on this node: %s", env_id, error)


def find_without_their_modules() -> None:
    """In this env runner, `gymnasium.make("module:id")` finds an id that is known, also where its module is not here.

    A module beside the trainer's script was imported there, and sent what it had registered.
    """
    original = registration._find_spec

    def find(env_id: str) -> EnvSpec:
        try:
            return original(env_id)
        except ModuleNotFoundError:
            module, _, name = env_id.partition(":")
            if importlib.util.find_spec(module.split(".")[0]) is not None:  # it lacks another one
                raise
            try:
                return original(name)
            except gymnasium.error.Error:
                pass
            raise

    registration._find_spec = find


class RegisteredEntryPoint:
    """A simulator's own entry point, as the trainer holds it: opaque there, called on a simulator only.

    Args:
        env_id: of the spec.
        name: `entry_point` or `vector_entry_point`.
        is_trainers: is the spec one that the trainer sent along?
    """

    def __init__(self, env_id: str, name: str = "entry_point", is_trainers: bool = False) -> None:
        self.env_id = env_id
        self.name = name
        self.is_trainers = is_trainers

    def _creator(self) -> Any:
        if self.env_id not in registry:
            raise gymnasium.error.UnregisteredEnv(f"No registered env with id: `{self.env_id}`.")
        entry_point = getattr(registry[self.env_id], self.name)
        return load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point

    def __call__(self, **kwargs: Any) -> Any:
        return self._creator()(**kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "metadata" and self.env_id in registry:
            return self._creator().metadata
        raise AttributeError(name)

    def __repr__(self) -> str:
        return f"<{self.name} of {self.env_id} on its simulator>"


def portable_spec(spec: EnvSpec | None) -> EnvSpec | None:
    """A copy of a simulator's spec that a trainer without the environment's package can load."""
    if spec is None:
        return None
    portable = copy.copy(spec)
    for name in ENTRY_POINTS:
        if callable(getattr(spec, name)):
            setattr(portable, name, RegisteredEntryPoint(spec.id, name, spec.id in _mirrored))
    return portable


def with_own_entry_points(spec: EnvSpec | None, asked: str | EnvSpec) -> EnvSpec | None:
    """On the trainer: a spec that came back, with the entry points of its own in place of what stands for them."""
    for name in ENTRY_POINTS:
        there = getattr(spec, name, None)
        if isinstance(there, RegisteredEntryPoint):
            registered = registry.get(there.env_id) if there.is_trainers else None
            own = asked if isinstance(asked, EnvSpec) else registered
            if own is not None:
                setattr(spec, name, getattr(own, name))
    return spec


Shipped = bytes | StaysLocal  # of a spec: why it can't travel


class SpecShipper:
    """Pickles a trainer's registrations for simulators: once, or each time where the script's own code is in them.

    What a class or its module is like may change between two calls, as may a spec's arguments.
    """

    def __init__(self) -> None:
        self._shipped: dict[str, Shipped] = {}

    def ship(self, specs: Iterable[EnvSpec], asked: str = "") -> dict[str, Shipped]:
        """Each by its id, as it is now; the very object of before where that is the same.

        Args:
            asked: the id that is made. Only its module is imported here; of another one the source goes where it lacks.
        """
        asked = asked.rpartition(":")[2]
        return {spec.id: self._one(spec, asked in (spec.id, spec.id.rpartition("-v")[0])) for spec in specs}

    def why_it_stays(self, unknown: str) -> StaysLocal | None:
        """Why what the trainer registered can't travel; None where it can, or there is nothing.

        Args:
            unknown: what Gymnasium calls unknown: an id, its name without the version, or its namespace.
        """
        for env_id, spec in list(registry.items()):  # what is pickled may be imported, and register others
            named = unknown in (env_id, env_id.rpartition("-v")[0], env_id.partition("/")[0])
            if named and isinstance(shipped := self._one(spec, True), StaysLocal):
                return StaysLocal(f"{env_id} is registered here, and can't travel: {shipped}")
        return None

    def _one(self, spec: EnvSpec, may_import: bool) -> Shipped:
        known = self._shipped.get(spec.id)
        with_code = with_local_code(spec, may_import)
        if with_code is spec and known is not None and known == _by_name(spec):
            return known
        data: Shipped
        try:
            data = ship(with_code)
        except StaysLocal as error:
            logger.debug("%s stays on the trainer: %s", spec.id, error)
            data = error
        if data != known:
            self._shipped[spec.id] = data
        return self._shipped[spec.id]


def _by_name(spec: EnvSpec) -> bytes | None:
    """The same as `ship` makes of a spec whose code is all installed, in a hundredth of the time."""
    try:
        data = pickle.dumps(spec, protocol=5)
    except Exception:
        return None
    return None if b"__main__" in data else data


class News(NamedTuple):
    """What one env runner is sent of what the trainer has and it lacks."""

    specs: dict[str, Shipped]  # by ids
    sources: dict[str, dict[str, Source]]  # of modules beside the script, by the name of each one's top package

    def packed(self) -> bytes:
        """In one message, for `add_news`; None for a spec that can't travel."""
        specs = {env_id: one if isinstance(one, bytes) else None for env_id, one in self.specs.items()}
        sources = {name: source for package in self.sources.values() for name, source in package.items()}
        return pickle.dumps((specs, sources)) if specs or sources else b""


def with_local_code(spec: EnvSpec, may_import: bool = True) -> EnvSpec:
    """Where an entry point is text that names the script or a module beside it, put the class itself there.

    The specs of its additional wrappers take theirs along when they are pickled. A module that is not imported yet
    stays text, unless it `may_import` it.
    """
    code = {name: _with_code(spec.id, getattr(spec, name), may_import) for name in ENTRY_POINTS}
    wrappers = tuple(_wrapper_with_code(wrapper, may_import) for wrapper in spec.additional_wrappers)
    before = [*(getattr(spec, name) for name in ENTRY_POINTS), *spec.additional_wrappers]
    if all(new is old for new, old in zip([*code.values(), *wrappers], before, strict=True)):
        return spec
    with_code = copy.copy(spec)
    for name, value in {**code, "additional_wrappers": wrappers}.items():
        setattr(with_code, name, value)
    return with_code


def _with_code(env_id: str, entry_point: Any, may_import: bool) -> Any:
    if not isinstance(entry_point, str):
        return entry_point
    module_name = entry_point.split(":")[0]
    if module_name not in sys.modules and not may_import:
        return entry_point
    if module_name != "__main__" and not lies_beside_the_script(module_name):
        return entry_point
    try:
        return load_env_creator(entry_point)
    except (Exception, SystemExit) as error:
        logger.debug("%s: its entry point can't be loaded on the trainer (%s)", env_id, error)
        return entry_point


class _WrapperWithCode(WrapperSpec):
    """A wrapper's spec that arrives with the wrapper's class. Gymnasium takes no class there, only a name for one."""

    def __reduce__(self) -> Any:
        wrapper_class = load_env_creator(self.entry_point)
        key = f"arrived_{hashlib.sha256(ship(wrapper_class)).hexdigest()[:16]}"  # the same on every env runner
        return _arrived_wrapper, (self.name, key, wrapper_class, self.kwargs)

    def __copy__(self) -> _WrapperWithCode:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> _WrapperWithCode:
        return type(self)(self.name, self.entry_point, copy.deepcopy(self.kwargs, memo))


def _wrapper_with_code(wrapper: WrapperSpec, may_import: bool) -> WrapperSpec:
    if _with_code(wrapper.name, wrapper.entry_point, may_import) is wrapper.entry_point:
        return wrapper
    return _WrapperWithCode(wrapper.name, wrapper.entry_point, wrapper.kwargs)


_arrived: dict[str, Any] = {}  # wrappers' classes by the names under which they are found here


def _arrived_wrapper(name: str, key: str, wrapper_class: Any, kwargs: Any) -> WrapperSpec:
    _arrived[key] = wrapper_class
    return WrapperSpec(name, f"{__name__}:{key}", kwargs)


def __getattr__(name: str) -> Any:
    if name in _arrived:
        return _arrived[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class MirroredCreator:
    """RLlib's kind of environment creator, for an id that only the trainer registered: its spec travels along.

    By its `EnvContext` RLlib asks for one environment, by a plain dict with `num_envs` for a whole vector env
    (`gym_env_vectorize_mode="vector_entry_point"`).
    """

    def __init__(self, spec: EnvSpec) -> None:
        self._env_id = spec.id
        self._spec = ship(with_local_code(spec))

    def __call__(self, env_context: Mapping[str, Any]) -> Any:
        known_here = self._env_id in registry  # this simulator's own goes before the trainer's
        env = self._env_id if known_here else unship(self._spec)
        if "num_envs" in env_context and not hasattr(env_context, "worker_index"):
            return gymnasium.make_vec(env, vectorization_mode="vector_entry_point", **env_context)
        return gymnasium.make(env, **env_context)

    def __repr__(self) -> str:
        return f"<creator of the trainer's {self._env_id}>"


_mirrored: set[str] = set()  # ids that are the trainer's
_unloaded: dict[str, bytes] = {}  # of these what could not be loaded here


def add_news(data: bytes, own: frozenset[str]) -> None:
    """In an env runner: let the trainer's sources be imported, and register what it mirrored.

    Never over the simulator's own ids (`own`). What can't travel is registered nowhere here, also where an earlier
    registration of its id could.
    """
    if not data:
        return
    specs, sources = pickle.loads(data)
    serve(sources)
    if sources:
        specs = {**_unloaded, **specs}
    with may_register_again():
        for env_id, spec in specs.items():
            if env_id in own:
                continue
            _mirrored.add(env_id)
            _unloaded.pop(env_id, None)
            if spec is None:
                registry.pop(env_id, None)
                continue
            try:
                registry[env_id] = cloudpickle.loads(spec)
            except Exception as error:  # a package that is not here; it matters only to who makes this id
                logger.debug("the trainer's %s can't be loaded here: %s", env_id, error)
                _unloaded[env_id] = spec
                registry[env_id] = EnvSpec(env_id, entry_point=_Unloadable(env_id, error))


def require_loaded(spec: EnvSpec | None) -> None:
    """Raise what making this would raise where it is the trainer's and could not be loaded here."""
    if spec is not None and isinstance(spec.entry_point, _Unloadable):
        spec.entry_point()


@contextmanager
def may_register_again() -> Iterator[None]:
    """To load or make an environment may import its package, which registers all of its ids: here, once more."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Overriding environment")
        yield


class _Unloadable:
    """Entry point of a mirrored id whose code could not be loaded here."""

    def __init__(self, env_id: str, reason: Exception) -> None:
        self.env_id = env_id
        self.reason = reason.with_traceback(None)

    def __call__(self, **_: Any) -> gymnasium.Env:
        raise NotShippableError(
            f"the trainer's environment {self.env_id} can't be loaded on this simulator: {self.reason}. Install its "
            "package there."
        ) from self.reason


def known_ids() -> frozenset[str]:
    """All ids that can be made in this process."""
    return frozenset(registry)
