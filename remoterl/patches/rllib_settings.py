"""RLlib's settings as simulators need them: pure functions over configs and search spaces, which stay as they are.

A config is an `AlgorithmConfig` or the dict that Tune takes for one; both are handled through their settings' names.
Imports no RLlib.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from remoterl.actors.directory import RESOURCE

RESOURCES_SETTING = "custom_resources_per_env_runner"
CPUS_SETTING = "num_cpus_per_env_runner"
# What a probe of a restarted env runner may take before the iteration goes on without it. RLlib's own 30 s would be
# lost in every iteration for as long as the simulators have no unit to restart it on.
HEALTH_PROBE_TIMEOUT_S = 5.0
# The settings that say how many env runners an algorithm asks for.
COUNTS = ("num_env_runners", "evaluation_num_env_runners")


def for_simulators(config: Any) -> Any:
    """A copy of an `AlgorithmConfig` or dict whose env runners hold a unit of a simulator each.

    The user's custom resources stay. CPUs become 0, because simulators offer none. Env runners are spread over
    the simulators, where the user has not chosen another placement strategy than RLlib's default.
    """
    if isinstance(config, Mapping):
        return {
            **config,
            **_changes(config.get, {"env_runner_health_probe_timeout_s", "placement_strategy"} & {*config}),
        }
    copied = config.copy(copy_frozen=False)
    defaults = type(config)()
    chosen = {name for name in ("env_runner_health_probe_timeout_s",) if _get(config, name) != _get(defaults, name)}
    for name, value in _changes(lambda name, default=None: getattr(config, name, default), chosen).items():
        setattr(copied, name, value)
    return copied


def _get(config: Any, name: str) -> Any:
    return getattr(config, name, None)


def _changes(get: Callable[..., Any], chosen: set[str]) -> dict[str, Any]:
    changes: dict[str, Any] = {RESOURCES_SETTING: _with_unit(get(RESOURCES_SETTING)), CPUS_SETTING: 0}
    if "placement_strategy" not in chosen and get("placement_strategy", "PACK") == "PACK":
        changes["placement_strategy"] = "SPREAD"
    if "env_runner_health_probe_timeout_s" not in chosen:
        changes["env_runner_health_probe_timeout_s"] = HEALTH_PROBE_TIMEOUT_S
    evaluation = get("evaluation_config")
    if isinstance(evaluation, Mapping):
        changes["evaluation_config"] = _evaluation(evaluation)
    elif evaluation is not None:
        changes["evaluation_config"] = for_simulators(evaluation)
    return changes


def _evaluation(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Evaluation's settings override training's, which hold a unit already; only what replaces those is changed."""
    changed = dict(overrides)
    if RESOURCES_SETTING in changed:
        changed[RESOURCES_SETTING] = _with_unit(changed[RESOURCES_SETTING])
    if CPUS_SETTING in changed:
        changed[CPUS_SETTING] = 0
    return changed


def _with_unit(resources: Any) -> Any:
    if isinstance(resources, Mapping) and set(resources) == {"grid_search"}:
        return {"grid_search": [_with_unit(choice) for choice in resources["grid_search"]]}
    if resources is None or isinstance(resources, Mapping):
        return {RESOURCE: 1, **(resources or {})}
    return resources  # another kind of search space: its author knows what it chooses between


def largest_trial(space: Mapping[str, Any]) -> dict[str, Any]:
    """One point of a search space: the one that asks for the most env runners.

    Every other setting that is searched is left out, so that its default stands.
    """
    point: dict[str, Any] = {}
    for name, value in space.items():
        if not _is_search(value):
            point[name] = largest_trial(value) if isinstance(value, Mapping) else value
        elif name in COUNTS and (choices := _choices(value)):
            point[name] = max(choices)
    return point


def _is_search(value: Any) -> bool:
    is_grid = isinstance(value, Mapping) and set(value) == {"grid_search"}
    return is_grid or any(base.__module__ == "ray.tune.search.sample" for base in type(value).__mro__)


def _choices(value: Any) -> list[int]:
    """The numbers that a grid, a choice or a range of integers may give."""
    if isinstance(value, Mapping):
        return list(value["grid_search"])
    if hasattr(value, "categories"):
        return list(value.categories)
    return [value.upper - 1] if hasattr(value, "upper") else []


def with_units(bundles: list[dict[str, float]], num_env_runners: int) -> list[dict[str, float]]:
    """A trial's placement group that the user wrote (`tune.with_resources`), its env runners moved to simulators.

    Args:
        bundles: the trial's own process first, then one bundle an env runner, as RLlib reads it.
        num_env_runners: of training and evaluation together; bundles that are missing are added.
    """
    own, env_runners, rest = bundles[:1], bundles[1 : 1 + num_env_runners], bundles[1 + num_env_runners :]
    env_runners += [{}] * (num_env_runners - len(env_runners))
    moved = [{RESOURCE: 1, **{name: n for name, n in bundle.items() if name != "CPU"}} for bundle in env_runners]
    return [*own, *moved, *rest]
