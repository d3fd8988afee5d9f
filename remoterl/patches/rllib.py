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
from remoterl.patches.backend import backend, building_locally, is_local
from remoterl.patches.base import Patch
from remoterl.patches.code_travels import code_travels
from remoterl.patches.rllib_settings import COUNTS, for_simulators


def _algorithm_init(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def __init__(self: Algorithm, config: Any = None, env: Any = None, **kwargs: Any) -> None:  # noqa: N807
        if is_local() or config is None:
            return original(self, config, env, **kwargs)
        config = for_simulators(_as_config(type(self), config))
        mirror_environments([env or config.env, (config.evaluation_config or {}).get("env")])
        needs = needed(type(self), config.to_dict(), trial=False)
        if needs:
            asked = f"{config.num_env_runners} env runners, {config.evaluation_num_env_runners or 0} for evaluation"
            backend().make_room(needs, f"{type(self).__name__} ({asked})")
        stop = weakref.WeakMethod(self.stop)
        with _sampling_here(config), code_travels(config, env):
            original(self, config, env, **kwargs)
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
    """What the algorithm's actors hold together, by RLlib's own account.

    Args:
        algorithm_class: the `Algorithm`.
        config: settings as Tune takes them, with nothing left to search.
        trial: does the algorithm's own process need a place in the cluster too?
    """
    bundles = algorithm_class.default_resource_request(config).bundles
    total: dict[str, float] = {}
    for bundle in bundles if trial else bundles[1:]:
        for name, amount in bundle.items():
            total[name] = total.get(name, 0) + amount
    if not trial and _samples_here(config):
        total[RESOURCE] = total.get(RESOURCE, 0) + 1  # for the rows of its own environments
    # With no env runner of RLlib's own, those of the session serve.
    return {name: amount for name, amount in total.items() if amount} if any(config.get(n) for n in COUNTS) else {}


def _samples_here(config: Mapping[str, Any]) -> bool:
    evaluates_here = config.get("evaluation_interval") and not config.get("evaluation_num_env_runners")
    return bool(not config.get("num_env_runners") or evaluates_here)


def _sampling_here(config: AlgorithmConfig) -> Any:
    """What the algorithm's own process samples from is remote as well, but for multi-agent environments."""
    if not config.is_multi_agent:
        return nullcontext()
    if _samples_here(vars(config)):
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


def mirror_environments(environments: Iterable[Any]) -> None:
    """Let the simulators make ids that only this process registered with Gymnasium."""
    from ray.tune.registry import ENV_CREATOR, _global_registry

    for env_id in environments:
        if not isinstance(env_id, str) or env_id not in trainers_registry:
            continue
        if _global_registry.contains(ENV_CREATOR, env_id) or backend().simulators_know(env_id):
            continue
        _global_registry.register(ENV_CREATOR, env_id, MirroredCreator(trainers_registry[env_id]))
        backend().at_end(functools.partial(_global_registry.unregister, ENV_CREATOR, env_id))


def _make_worker(original: Callable[..., Any]) -> Callable[..., Any]:
    """Ray would fill one simulator before it takes the next; trials say SPREAD in their placement group."""

    @functools.wraps(original)
    def make_worker(self: Any, **kwargs: Any) -> Any:
        if RESOURCE in (self._remote_args.get("resources") or {}):
            self._remote_args = {"scheduling_strategy": "SPREAD", **self._remote_args}
        return original(self, **kwargs)

    return make_worker


TABLE = (
    Patch("ray.rllib.algorithms.algorithm", "Algorithm.__init__", "method", _algorithm_init),
    Patch("ray.rllib.env.env_runner_group", "EnvRunnerGroup._make_worker", "method", _make_worker),
)
