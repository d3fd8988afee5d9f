"""RLlib's settings as simulators need them: pure functions over configs and search spaces, which stay as they are.

A config is an `AlgorithmConfig` or the dict that Tune takes for one; both are handled through their settings' names.
Imports no RLlib.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from remoterl.actors.directory import RESOURCE

RESOURCES_SETTING = "custom_resources_per_env_runner"
CPUS_SETTING = "num_cpus_per_env_runner"
LEARNER_CPUS_SETTING = "num_cpus_per_learner"
# RLlib's default -> what takes its place; another value is the user's, and stays.
# The probe: what an iteration waits for a lost env runner, each time, for as long as no simulator has a place for it.
BETTER_DEFAULTS = {
    "placement_strategy": ("PACK", "SPREAD"),
    "env_runner_health_probe_timeout_s": (30.0, 5.0),
}
CHANGED = (RESOURCES_SETTING, CPUS_SETTING, LEARNER_CPUS_SETTING, *BETTER_DEFAULTS, "evaluation_config")
# The settings that say how many env runners an algorithm asks for.
COUNTS = ("num_env_runners", "evaluation_num_env_runners")


def for_simulators(config: Any) -> Any:
    """A copy of an `AlgorithmConfig` or dict whose env runners hold a unit of a simulator each.

    The user's custom resources stay. CPUs become 0, because simulators offer none. Env runners are spread over
    the simulators, where the user has not chosen another placement strategy than RLlib's default. A learner with a GPU
    holds a CPU too, for which there is no place on a simulator that has a GPU.
    """
    if isinstance(config, Mapping):
        return {**config, **_changes(config.get)}
    copied = config.copy(copy_frozen=False)
    for name, value in _changes(lambda name: getattr(config, name, None)).items():
        setattr(copied, name, value)
    return copied


def own_settings(config: Any) -> dict[str, Any]:
    """What an `AlgorithmConfig` says by itself in all settings that `for_simulators` changes."""
    return {name: getattr(config, name) for name in CHANGED if hasattr(config, name)}


def _changes(get: Callable[[str], Any]) -> dict[str, Any]:
    changes: dict[str, Any] = {RESOURCES_SETTING: _with_unit(get(RESOURCES_SETTING)), CPUS_SETTING: 0}
    for name, (default, better) in BETTER_DEFAULTS.items():
        if get(name) in (None, default) and not (name == "placement_strategy" and _aggregates_here(get)):
            changes[name] = better
    if get("num_gpus_per_learner") and get(LEARNER_CPUS_SETTING) in (None, "auto"):
        changes[LEARNER_CPUS_SETTING] = 1
    evaluation = get("evaluation_config")
    if isinstance(evaluation, Mapping):
        changes["evaluation_config"] = _evaluation(evaluation)
    elif evaluation is not None:
        changes["evaluation_config"] = for_simulators(evaluation)
    return changes


def _aggregates_here(get: Callable[[str], Any]) -> bool:
    """Has the algorithm a learner in its own process, whose aggregators (IMPALA's) have to be on its node?"""
    return bool(get("num_aggregator_actors_per_learner")) and not get("num_learners")


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

    Of everything else that is searched it takes the first choice (of a distribution, a sample); what can't be
    drawn by itself is left out, so that its default stands.
    """
    point: dict[str, Any] = {}
    for name, value in space.items():
        if not _is_search(value):
            point[name] = largest_trial(value) if isinstance(value, Mapping) else value
        elif choices := _choices(value):
            point[name] = max(choices) if name in COUNTS else choices[0]
    return point


def number_of_trials(space: Mapping[str, Any], num_samples: int) -> float:
    """How many trials Tune makes of a search space: every point of its grids, so many times (below 0: no end)."""
    points = math.prod(
        len(value["grid_search"]) if set(value) == {"grid_search"} else number_of_trials(value, 1)
        for value in space.values()
        if isinstance(value, Mapping)
    )
    return points * (num_samples if num_samples >= 0 else math.inf)


def choices_of(value: Any) -> list[Any]:
    """The values that a setting may take."""
    return _choices(value) if _is_search(value) else [value]


def _is_search(value: Any) -> bool:
    is_grid = isinstance(value, Mapping) and set(value) == {"grid_search"}
    return is_grid or any(base.__module__ == "ray.tune.search.sample" for base in type(value).__mro__)


def _choices(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value["grid_search"])
    if hasattr(value, "categories"):
        return list(value.categories)
    if hasattr(value, "lower") and hasattr(value, "upper") and isinstance(value.upper, int):
        return [value.lower, value.upper - 1]
    try:
        return [value.sample()]
    except Exception:  # a function of the other settings
        return []


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
