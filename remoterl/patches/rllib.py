"""RLlib: every algorithm that this process builds gets its env runners from the simulators.

RLlib keeps its own env runners; only the settings they are built with change, on a copy of the user's config.
Imports RLlib, so it is imported itself only once the script has done so.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import Any

from gymnasium.envs.registration import registry as trainers_registry
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from remoterl._logging import logger
from remoterl.actors.directory import RESOURCE
from remoterl.actors.registry import MirroredCreator
from remoterl.errors import NotShippableError, UnsupportedError
from remoterl.patches.backend import backend, building_locally, is_local
from remoterl.patches.base import Patch
from remoterl.patches.code_travels import code_travels
from remoterl.patches.rllib_settings import COUNTS, for_simulators, own_settings
from remoterl.shipping import StaysLocal

# What a user's config said in the settings that were changed; a checkpoint holds these.
_own_settings: weakref.WeakKeyDictionary[Algorithm, dict[str, Any]] = weakref.WeakKeyDictionary()


def _algorithm_init(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def __init__(self: Algorithm, config: Any = None, env: Any = None, **kwargs: Any) -> None:  # noqa: N807
        if is_local() or config is None:
            return original(self, config, env, **kwargs)
        given = _as_config(type(self), config)
        config = for_simulators(given)
        check_environments([env or config.env, (config.evaluation_config or {}).get("env")])
        needs = needed(type(self), config.to_dict(), trial=False)
        asked = f"{config.num_env_runners} env runners, {config.evaluation_num_env_runners or 0} for evaluation"
        stop = weakref.WeakMethod(self.stop)
        with (
            backend().room_for(needs, f"{type(self).__name__} ({asked})", rows_here=_has_rows_here(config)),
            _sampling_here(config),
            code_travels(config, env),
        ):
            original(self, config, env, **kwargs)
        _own_settings[self] = own_settings(given)
        backend().at_end(lambda: _stop(stop))
        return None

    return __init__


def _as_config(algorithm_class: type[Algorithm], config: AlgorithmConfig | dict[str, Any]) -> AlgorithmConfig:
    """The config object that the algorithm would make of a dict."""
    if isinstance(config, AlgorithmConfig):
        return config
    default = algorithm_class.get_default_config()
    return default.from_state(config) if "class" in config else default.update_from_dict(config)


def needed(algorithm_class: Any, config: Mapping[str, Any], trial: bool) -> dict[str, float]:
    """What the algorithm's actors hold together, by RLlib's own account; nothing where it has no env runners.

    Args:
        algorithm_class: the `Algorithm`.
        config: settings as Tune takes them, with nothing left to search.
        trial: does the algorithm run as a trial, whose own process needs a place in the cluster too, and whose
            class may have a request of its own?
    """
    asking = algorithm_class if trial else rllibs_base(algorithm_class)
    try:
        request = asking.default_resource_request.__func__(algorithm_class, config)
    except Exception as error:  # RLlib will say it, where the algorithm is built
        logger.debug("RLlib can't say what %s holds: %s", algorithm_class.__name__, error)
        return {RESOURCE: count} if (count := sum(config.get(name) or 0 for name in COUNTS)) else {}
    first_is_own = not trial and not request.head_bundle_is_empty
    total: dict[str, float] = {}
    for bundle in request.bundles[1:] if first_is_own else request.bundles:
        for name, amount in bundle.items():
            total[name] = total.get(name, 0) + amount
    return {name: amount for name, amount in total.items() if amount} if total.get(RESOURCE) else {}


def rllibs_base(algorithm_class: type) -> Any:
    """The first of a class's bases that comes with RLlib."""
    return next(base for base in algorithm_class.__mro__ if base.__module__.startswith("ray.rllib."))


def samples_here(config: Mapping[str, Any]) -> bool:
    """Does the algorithm step environments in its own process?"""
    # What learns from recorded data has no env runners for training (`Algorithm.setup`).
    samples = config.get("_is_online", True) or not config.get("enable_env_runner_and_connector_v2", True)
    trains_here = samples and (not config.get("num_env_runners") or config.get("create_env_on_local_worker"))
    evaluates_here = config.get("evaluation_interval") and not config.get("evaluation_num_env_runners")
    return bool(trains_here or evaluates_here)


def _has_rows_here(config: AlgorithmConfig) -> bool:
    return config.env is not None and not config.is_multi_agent and samples_here(vars(config))


def _sampling_here(config: AlgorithmConfig) -> Any:
    """What the algorithm's own process samples from is remote as well, but for multi-agent environments."""
    if not config.is_multi_agent:
        return nullcontext()
    if samples_here(vars(config)):
        logger.warning(
            "Multi-agent environments that RLlib steps in its own process stay on this machine; give it "
            "num_env_runners (and evaluation_num_env_runners) of 1 or more to have them on simulators."
        )
    return building_locally()


def _stop(stop: weakref.WeakMethod[Callable[[], None]]) -> None:
    """End an algorithm that is still there: its env runners belong to the script's connection, which may stay open."""
    method = stop()
    if method is not None:
        method()


def check_environments(environments: Iterable[Any]) -> None:
    """Let the simulators make ids that only this process registered with Gymnasium.

    Raises:
        UnknownEnvironmentError: an id that a simulator could not make.
        NotShippableError: the trainer's registration can't be pickled.
    """
    from ray.tune.registry import ENV_CREATOR, _global_registry

    for env_id in environments:
        # What is no text is a class; with a dot it is one's path, with a colon its module is imported there.
        if not isinstance(env_id, str) or "." in env_id or ":" in env_id:
            continue
        ours = False
        if _global_registry.contains(ENV_CREATOR, env_id):
            ours = isinstance(_global_registry.get(ENV_CREATOR, env_id), MirroredCreator)
            if not ours:
                continue
        if not backend().simulators_know(env_id):  # again as well: the script may have registered another class since
            try:
                creator = MirroredCreator(trainers_registry[env_id])
            except StaysLocal as reason:
                raise NotShippableError(
                    f"{env_id} is registered here, and can't travel to the simulators: {reason}. Register it in the "
                    "simulator's script, or without what can't be pickled."
                ) from reason
            _global_registry.register(ENV_CREATOR, env_id, creator)
            backend().at_end(functools.partial(_global_registry.unregister, ENV_CREATOR, env_id))
        elif ours:
            _global_registry.unregister(ENV_CREATOR, env_id)


def _make_worker(original: Callable[..., Any]) -> Callable[..., Any]:
    """Ray keeps these options when it restarts an env runner; trials say them in their placement group."""

    @functools.wraps(original)
    def make_worker(self: Any, *, worker_index: int, **kwargs: Any) -> Any:
        if worker_index > 0 and RESOURCE in (self._remote_args.get("resources") or {}):
            self._remote_args = {**self._remote_args, **_placement(self._remote_args)}
        return original(self, worker_index=worker_index, **kwargs)

    return make_worker


def _placement(actor: Mapping[str, Any]) -> dict[str, Any]:
    """Ray's options for one more env runner: on the units or the simulators that are this trainer's.

    Raises:
        UnsupportedError: it needs what can't be reserved.
    """
    reserved = backend().reserved_place()
    if reserved is None:  # Ray would fill one simulator before it takes the next
        labels = dict(backend().labels)
        return {"scheduling_strategy": "SPREAD", **({"label_selector": labels} if labels else {})}
    if actor["resources"] != {RESOURCE: 1} or actor.get("num_gpus"):
        raise UnsupportedError(
            f"Each env runner asks for {actor['resources']} and {actor.get('num_gpus') or 0} GPUs; of a reservation it "
            "can have one env_runner and nothing else. Take init(labels=...) instead of init(reservation=...)."
        )
    return {"scheduling_strategy": reserved}


def _foreach_actor(original: Callable[..., Any]) -> Callable[..., Any]:
    """Functions that the script, or RLlib, sends to env runners once they are there take the script's code along."""

    @functools.wraps(original)
    def foreach_actor(self: Any, func: Any, *args: Any, **kwargs: Any) -> Any:
        if is_local() or all(isinstance(one, str) for one in (func if isinstance(func, list) else [func])):
            return original(self, func, *args, **kwargs)
        with code_travels(func, kwargs.get("kwargs")):
            return original(self, func, *args, **kwargs)

    return foreach_actor


# ---- checkpoints: they can be restored anywhere, with the user's own settings ------------------------------------


def _ctor_args(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def get_ctor_args_and_kwargs(self: Algorithm) -> Any:
        (state, *more), kwargs = original(self)
        return ({**state, **_own_settings.get(self, {})}, *more), kwargs

    return get_ctor_args_and_kwargs


def _getstate(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def __getstate__(self: Algorithm) -> dict[str, Any]:  # noqa: N807
        state = original(self)
        state["config"] = {**state["config"], **_own_settings.get(self, {})}
        return state

    return __getstate__


TABLE = (
    Patch("ray.rllib.algorithms.algorithm", "Algorithm.__init__", "method", _algorithm_init),
    Patch("ray.rllib.algorithms.algorithm", "Algorithm.get_ctor_args_and_kwargs", "method", _ctor_args),
    Patch("ray.rllib.algorithms.algorithm", "Algorithm.__getstate__", "method", _getstate),
    Patch("ray.rllib.env.env_runner_group", "EnvRunnerGroup._make_worker", "method", _make_worker),
    Patch("ray.rllib.utils.actor_manager", "FaultTolerantActorManager.foreach_actor", "method", _foreach_actor),
    Patch("ray.rllib.utils.actor_manager", "FaultTolerantActorManager.foreach_actor_async", "method", _foreach_actor),
)
