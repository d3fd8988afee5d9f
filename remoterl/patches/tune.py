"""Tune: trials of RLlib's algorithms get their env runners from the simulators, and wait in no queue without an end.

A trial's process is Ray's and is not patched, so everything it needs travels in its config. Other trainables are
left alone, and a line says so. Imports `ray.tune`, so it is imported itself only once the script has done so.
"""

from __future__ import annotations

import copy
import functools
import inspect
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray import cloudpickle as pickle
from ray.tune import TuneConfig, TuneError, with_resources

# By name: right after its import, `ray.tune` is no attribute of `ray` yet.
from ray.tune import registry as tune_registry
from ray.tune.execution.placement_groups import PlacementGroupFactory
from ray.tune.experiment import Experiment
from ray.tune.experiment import experiment as experiments_module

from remoterl._logging import logger
from remoterl.actors.directory import RESOURCE
from remoterl.actors.registry import MirroredCreator
from remoterl.errors import UnsupportedError
from remoterl.patches.backend import backend, is_local
from remoterl.patches.base import Patch
from remoterl.patches.code_travels import code_travels
from remoterl.patches.rllib_settings import choices_of, for_simulators, largest_trial, number_of_trials, with_units


class _Trials:
    """What `Tuner` or `tune.run` was given, as the simulators need it; `algorithm` is None for what is not RLlib's."""

    def __init__(self, trainable: Any, space: Any) -> None:
        self.trainable, self.space = trainable, space
        self.is_given = space is not None
        self.resources_changed = False
        self.algorithm = _algorithm_class(trainable)
        if self.algorithm is None:
            return
        self.space = for_simulators(space if space is not None else {})
        given, self.algorithm = self.algorithm, _on_simulators(self.algorithm, dict(backend().labels))
        self.resources_changed = self.algorithm is not given
        if self.resources_changed:
            self.trainable = self.algorithm

    def make_room(self, num_samples: int = 1, max_concurrent_trials: int | None = None) -> None:
        """Wait for what one trial needs: Tune itself queues the others, and a line says so.

        Raises:
            CapacityError, UnknownEnvironmentError: as `Backend` has them.
            UnsupportedError: the session has a reservation.
        """
        if self.algorithm is None:
            _leave_alone(self.trainable)
            return
        from remoterl.patches.rllib import check_environments, needed, samples_here

        if backend().has_reservation:
            raise UnsupportedError(
                "Tune gives each trial a placement group of its own, which can't lie in a reservation. Take "
                "init(labels=...) for Tune, or build the algorithm in this script: config.build_algo()."
            )
        settings = self.space if isinstance(self.space, Mapping) else self.space.to_dict()
        check_environments(choices_of(settings.get("env")))
        trial = largest_trial(settings)
        check_environments([(trial.get("evaluation_config") or {}).get("env")])
        if samples_here({**vars(self.algorithm.get_default_config()), **trial}):
            logger.warning(
                "These trials step environments in their own processes, at the hub and not on simulators; give them "
                "num_env_runners (and evaluation_num_env_runners) of 1 or more."
            )
        needs = needed(self.algorithm, trial, trial=True)
        with backend().room_for(needs, f"a trial of {self.algorithm.__name__}"):
            pass
        trials = number_of_trials(settings, num_samples)
        _say_how_many(int(needs.get(RESOURCE, 0)), trials, max_concurrent_trials or 0)


def _leave_alone(trainable: Any) -> None:
    """What is not RLlib's: its trials may open sessions of their own, which find the units that are idle here."""
    name = trainable if isinstance(trainable, str) else getattr(trainable, "__name__", type(trainable).__name__)
    logger.warning(
        "%s is no algorithm of RLlib: its trials run in Ray's processes, where nothing is patched. To have their "
        "environments on simulators, call remoterl.init() in the trainable, and not in the script.",
        name,
    )
    backend().let_go_idle()


def _say_how_many(units_each: int, trials: float, max_concurrent: int) -> None:
    units = backend().units() if units_each else None
    if units is None:
        return
    free, total = units
    if min(max_concurrent, trials) * units_each > total:
        logger.warning(
            "max_concurrent_trials=%d with %d env runners each is %d, and the simulators have %d in all: fewer trials "
            "run at a time.",
            max_concurrent, units_each, max_concurrent * units_each, total,
        )  # fmt: skip
    if min(max_concurrent or trials, trials) * units_each > free:
        logger.info(
            "Trials of %d env runners each: %d free units hold %d at a time; Tune starts the others as these end.",
            units_each, free, free // units_each,
        )  # fmt: skip


def _run(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def run(run_or_experiment: Any, **kwargs: Any) -> Any:
        if is_local():
            return original(run_or_experiment, **kwargs)
        if isinstance(run_or_experiment, list):
            prepared = [_prepare(one, kwargs) for one in run_or_experiment]
            kwargs = next((theirs for _, theirs in prepared if theirs is not kwargs), kwargs)
            run_or_experiment = [one for one, _ in prepared]
        else:
            run_or_experiment, kwargs = _prepare(run_or_experiment, kwargs)
        with code_travels(run_or_experiment, kwargs):
            return original(run_or_experiment, **kwargs)

    return run


def _run_experiments(original: Callable[..., Any]) -> Callable[..., Any]:
    """In-cluster it calls `run`; through Ray Client it goes to the hub as it is, where nothing is patched."""

    @functools.wraps(original)
    def run_experiments(experiments: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_local() and ray.util.client.ray.is_connected():
            named = [one.run_identifier for one in experiments_module._convert_to_experiment_list(experiments)]
            if any(map(_algorithm_class, named)):
                raise UnsupportedError(
                    "tune.run_experiments() can't place RLlib's env runners through Ray Client. Take Tuner() or "
                    "tune.run(), or run this script in the cluster: ray job submit --working-dir . -- python SCRIPT"
                )
            for name in named:
                _leave_alone(name)
        return original(experiments, *args, **kwargs)

    return run_experiments


def _prepare(run_or_experiment: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    if not isinstance(run_or_experiment, Experiment):
        trials = _Trials(run_or_experiment, kwargs.get("config"))
        if trials.algorithm and not trials.is_given and (kwargs.get("resume") or kwargs.get("resume_config")):
            return trials.trainable, kwargs  # its trials were saved with their settings
        trials.make_room(kwargs.get("num_samples", 1), kwargs.get("max_concurrent_trials"))
        return trials.trainable, ({**kwargs, "config": trials.space} if trials.algorithm else kwargs)
    experiment = copy.copy(run_or_experiment)
    trials = _Trials(experiment.run_identifier, experiment.spec.get("config"))
    if trials.algorithm is not None:
        if trials.resources_changed:  # its name stands for the trainable as it was
            raise UnsupportedError(
                "An Experiment can't be moved to simulators where its trainable comes from tune.with_resources(), or "
                "where init(labels=...) chooses them. Give the trainable to Tuner() or tune.run() instead."
            )
        experiment.spec = {**experiment.spec, "config": trials.space}
    trials.make_room(experiment.spec.get("num_samples", 1), kwargs.get("max_concurrent_trials"))
    return experiment, kwargs


# ---- Tuner: in-cluster it calls `run` in this process; through Ray Client it lives in an actor at the hub ---------

# Tuner -> its trials, and what it was told of how many there are.
_asked: weakref.WeakKeyDictionary[Any, tuple[_Trials, Any]] = weakref.WeakKeyDictionary()


def _tuner_init(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def __init__(self: Any, trainable: Any = None, **kwargs: Any) -> None:  # noqa: N807
        if is_local() or not ray.util.client.ray.is_connected() or kwargs.get("_tuner_internal") is not None:
            return original(self, trainable, **kwargs)
        trials = _Trials(trainable, kwargs.get("param_space"))
        _asked[self] = trials, kwargs.get("tune_config") or TuneConfig()
        if trials.algorithm is not None:
            kwargs["param_space"] = trials.space
        with code_travels(trials.trainable, kwargs):
            return original(self, trials.trainable, **kwargs)

    return __init__


def _tuner_restore(original: Callable[..., Any]) -> Callable[..., Any]:
    """Through Ray Client the search space was saved as the simulators need it, and is compared with that."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    def restore(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if is_local() or not ray.util.client.ray.is_connected():
            return original(cls, *args, **kwargs)
        arguments = signature.bind(cls, *args, **kwargs).arguments
        trials = _Trials(arguments["trainable"], arguments.get("param_space"))
        arguments["trainable"] = trials.trainable
        restates = trials.algorithm is not None and trials.is_given
        if restates:
            arguments["param_space"] = trials.space
        with code_travels(*list(arguments.values())[1:]):
            tuner = original(**arguments)
        if restates or trials.algorithm is None:
            _asked[tuner] = trials, TuneConfig()
        return tuner

    return restore


def _tuner_fit(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def fit(self: Any) -> Any:
        if self in _asked:
            trials, told = _asked[self]
            trials.make_room(told.num_samples, told.max_concurrent_trials)
        return original(self)

    return fit


# ---- what is RLlib's ------------------------------------------------------------------------------------------


def _algorithm_class(trainable: Any) -> Any:
    """RLlib's `Algorithm` class behind a trainable or its name; None for anything else."""
    if isinstance(trainable, str):
        try:
            trainable = tune_registry.get_trainable_cls(trainable)
        except TuneError:  # Tune will say it
            return None
    if not isinstance(trainable, type):
        return None
    names = {(base.__module__, base.__name__) for base in trainable.__mro__}
    return trainable if ("ray.rllib.algorithms.algorithm", "Algorithm") in names else None


def _on_simulators(algorithm: Any, labels: Mapping[str, str]) -> Any:
    """Say in the trials' placement groups what RLlib's own don't.

    Where `tune.with_resources` says what a trial holds, its env runners hold units instead of CPUs. With `labels` (a
    selector), every unit is one of a simulator that matches.
    """
    from remoterl.patches.rllib import rllibs_base

    own_request, by_rllib = algorithm.default_resource_request, rllibs_base(algorithm).default_resource_request
    is_rllibs = own_request.__func__ is by_rllib.__func__
    if is_rllibs and not labels:
        return algorithm

    def resources(config: dict[str, Any]) -> PlacementGroupFactory:
        asked = own_request(config)
        bundles = [{}, *asked.bundles] if asked.head_bundle_is_empty else asked.bundles
        if not is_rllibs:
            num_env_runners = sum(RESOURCE in bundle for bundle in by_rllib(config).bundles)
            bundles = with_units(bundles, num_env_runners)
        factory = PlacementGroupFactory(bundles, strategy=asked.strategy if is_rllibs else "SPREAD")
        if not labels:
            return factory
        selectors = [labels if RESOURCE in bundle else {} for bundle in factory.bundles]
        return PlacementGroupFactory(bundles, strategy=factory.strategy, bundle_label_selector=selectors)

    return with_resources(algorithm, resources)


# ---- what is registered -----------------------------------------------------------------------------------------

# (category, key) -> what the script registered; Ray keeps it in the cluster alone, where it ends with the connection.
_registered: dict[tuple[str, str], Any] = {}


def _register(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def register(self: Any, category: str, key: str, value: Any) -> None:
        with code_travels(value):
            original(self, category, key, value)
        # Trainables are Tune's own entries mostly, with the resources of this cluster.
        if category != tune_registry.TRAINABLE_CLASS and not isinstance(value, MirroredCreator):
            _registered[category, key] = value

    return register


def _unregister(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def unregister(self: Any, category: str, key: str) -> None:
        original(self, category, key)
        _registered.pop((category, key), None)

    return unregister


def _register_again() -> None:
    """The next connection of this process, or none, finds what the script registered before it or during the last."""
    registry = tune_registry._global_registry
    registry._prefix = None
    for (category, key), value in _registered.items():
        try:
            registry.register(category, key, value)
        except Exception as error:  # it could be pickled once; the others can be
            logger.warning("%s is not registered with RLlib any more: %s", key, error)
    _registered.clear()


def after_install() -> None:
    """What the script registered before `init()` arrives as well, with its code.

    Ray's registry keeps the first cluster's job in mind, and Ray Client never sends what was registered before
    it connected.
    """
    registry = tune_registry._global_registry
    earlier = {entry: pickle.loads(data) for entry, data in registry._to_flush.items()}
    for category, key in [entry for entry in registry._registered if entry[0] == tune_registry.ENV_CREATOR]:
        if registry.contains(category, key):
            earlier[category, key] = registry.get(category, key)
    registry._prefix = None  # that of another connection of this process, maybe
    _registered.clear()
    backend().when_disconnected(_register_again)
    for (category, key), value in earlier.items():
        registry.register(category, key, value)
    for hook in ray._private.worker._post_init_hooks:  # those of `tune.with_parameters`
        if isinstance(getattr(hook, "__self__", None), tune_registry._ParameterRegistry):
            hook()


TABLE = (
    Patch("ray.tune.tune", "run", "name", _run),
    Patch("ray.tune.tune", "run_experiments", "name", _run_experiments),
    Patch("ray.tune.tuner", "Tuner.__init__", "method", _tuner_init),
    Patch("ray.tune.tuner", "Tuner.restore", "method", _tuner_restore),
    Patch("ray.tune.tuner", "Tuner.fit", "method", _tuner_fit),
    Patch("ray.tune.registry", "_Registry.register", "method", _register),
    Patch("ray.tune.registry", "_Registry.unregister", "method", _unregister),
)
