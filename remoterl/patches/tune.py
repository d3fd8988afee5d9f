"""Tune: trials of RLlib's algorithms get their env runners from the simulators, and wait in no queue without an end.

A trial's process is Ray's and is not patched, so everything it needs travels in its config. Other trainables are
left alone. Imports `ray.tune`, so it is imported itself only once the script has done so.
"""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import ray.tune.experiment
import ray.tune.registry
from ray.tune.execution.placement_groups import PlacementGroupFactory

from remoterl.actors.directory import RESOURCE
from remoterl.errors import UnsupportedError
from remoterl.patches.backend import backend, building_locally, is_local
from remoterl.patches.base import Patch
from remoterl.patches.code_travels import code_travels
from remoterl.patches.rllib_settings import for_simulators, largest_trial, with_units


class _Trials:
    """What `Tuner` or `tune.run` was given, as the simulators need it; `asks` is None for what is not RLlib's."""

    def __init__(self, trainable: Any, space: Any) -> None:
        self.trainable, self.space = trainable, space
        self.algorithm = _algorithm_class(trainable)
        if self.algorithm is None:
            return
        self.space = for_simulators(space if space is not None else {})
        given, self.algorithm = self.algorithm, _with_env_runner_units(self.algorithm)
        self.resources_changed = self.algorithm is not given
        if not isinstance(trainable, str):
            self.trainable = self.algorithm

    def make_room(self) -> None:
        """Wait for what one trial needs: Tune itself queues the others.

        Raises:
            CapacityError: as `Backend.make_room`.
        """
        from remoterl.patches.rllib import mirror_environments, needed

        if self.algorithm is None:
            return
        settings = self.space if isinstance(self.space, Mapping) else self.space.to_dict()
        mirror_environments(_searched(settings.get("env")))
        needs = needed(self.algorithm, largest_trial(settings), trial=True)
        if needs:
            backend().make_room(needs, f"a trial of {self.algorithm.__name__}")


def _run(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def run(run_or_experiment: Any, **kwargs: Any) -> Any:
        if is_local():
            return original(run_or_experiment, **kwargs)
        if isinstance(run_or_experiment, list):
            prepared = [_prepare(one, kwargs) for one in run_or_experiment]
            kwargs = prepared[0][1] if prepared else kwargs
            run_or_experiment = [one for one, _ in prepared]
        else:
            run_or_experiment, kwargs = _prepare(run_or_experiment, kwargs)
        with code_travels(run_or_experiment, kwargs):
            return original(run_or_experiment, **kwargs)

    return run


def _prepare(run_or_experiment: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    if not isinstance(run_or_experiment, ray.tune.experiment.Experiment):
        trials = _Trials(run_or_experiment, kwargs.get("config"))
        trials.make_room()
        return trials.trainable, ({**kwargs, "config": trials.space} if trials.algorithm else kwargs)
    experiment = copy.copy(run_or_experiment)
    trials = _Trials(experiment.run_identifier, experiment.spec.get("config"))
    if trials.algorithm is not None:
        if trials.resources_changed:
            raise UnsupportedError(
                "An Experiment of a trainable from tune.with_resources() can't be moved to simulators. Give the "
                "trainable to Tuner() or tune.run() instead."
            )
        experiment.spec = {**experiment.spec, "config": trials.space}
        trials.make_room()
    return experiment, kwargs


# ---- Tuner: in-cluster it calls `run` in this process; through Ray Client it lives in an actor at the hub ---------

_asked: weakref.WeakKeyDictionary[Any, _Trials] = weakref.WeakKeyDictionary()


def _tuner_init(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def __init__(self: Any, trainable: Any = None, **kwargs: Any) -> None:  # noqa: N807
        if is_local() or not ray.util.client.ray.is_connected() or kwargs.get("_tuner_internal") is not None:
            return original(self, trainable, **kwargs)
        trials = _Trials(trainable, kwargs.get("param_space"))
        if trials.algorithm is not None:
            _asked[self] = trials
            kwargs["param_space"] = trials.space
        with code_travels(trials.trainable, kwargs):
            return original(self, trials.trainable, **kwargs)

    return __init__


def _tuner_fit(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def fit(self: Any) -> Any:
        if self in _asked:
            _asked[self].make_room()
        return original(self)

    return fit


# ---- what is RLlib's ------------------------------------------------------------------------------------------


def _algorithm_class(trainable: Any) -> Any:
    """RLlib's `Algorithm` class behind a trainable or its name; None for anything else."""
    if isinstance(trainable, str):
        try:
            with building_locally():  # the first look-up imports algorithms, and one of them makes an environment
                trainable = ray.tune.registry.get_trainable_cls(trainable)
        except ray.tune.TuneError:  # Tune will say it
            return None
    return trainable if isinstance(trainable, type) and _rllibs(trainable) is not None else None


def _rllibs(trainable: type) -> Any:
    """The first of a class's bases that comes with RLlib and is an `Algorithm`."""
    names = {(base.__module__, base.__name__) for base in trainable.__mro__}
    if ("ray.rllib.algorithms.algorithm", "Algorithm") not in names:
        return None
    return next(base for base in trainable.__mro__ if base.__module__.startswith("ray.rllib."))


def _with_env_runner_units(algorithm: Any) -> Any:
    """Where `tune.with_resources` says what a trial holds, let its env runners hold units instead of CPUs."""
    rllibs = _rllibs(algorithm)
    own_request = algorithm.default_resource_request
    if own_request.__func__ is rllibs.default_resource_request.__func__:
        return algorithm

    def resources(config: dict[str, Any]) -> PlacementGroupFactory:
        asked = own_request(config)
        by_rllib = rllibs.default_resource_request(config).bundles
        num_env_runners = sum(RESOURCE in bundle for bundle in by_rllib)
        return PlacementGroupFactory(with_units(asked.bundles, num_env_runners), strategy="SPREAD")

    return ray.tune.with_resources(algorithm, resources)


def _searched(value: Any) -> list[Any]:
    """The values that a setting may take."""
    if isinstance(value, Mapping) and set(value) == {"grid_search"}:
        return list(value["grid_search"])
    return list(getattr(value, "categories", [value]))


def _register(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def register(self: Any, category: str, key: str, value: Any) -> None:
        with code_travels(value):
            original(self, category, key, value)

    return register


TABLE = (
    Patch("ray.tune.tune", "run", "name", _run),
    Patch("ray.tune.tuner", "Tuner.__init__", "method", _tuner_init),
    Patch("ray.tune.tuner", "Tuner.fit", "method", _tuner_fit),
    Patch("ray.tune.registry", "_Registry.register", "method", _register),
)
