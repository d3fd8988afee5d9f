"""`remoterl train rllib`: the algorithms of RLlib, with RLlib's own env runners on the simulators."""

from __future__ import annotations

import inspect
import math
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from remoterl.cli.options import Address, NumEnvRunners, NumWorkers, Timeout
from remoterl.cli.progress import TrainingProgress
from remoterl.cli.train import runs
from remoterl.cli.train.options import (
    EnvId,
    NumEnvs,
    Output,
    Seed,
    Steps,
    Target,
    option_names,
)
from remoterl.cli.train.parameters import Parameter, closest, read_parameters, signature_of
from remoterl.errors import ConfigurationError


def rllib(
    context: typer.Context,
    env_id: EnvId,
    algo: Annotated[str, typer.Option(help="An algorithm by the name that RLlib registers.")] = "PPO",
    num_workers: NumWorkers = 1,
    num_env_runners: NumEnvRunners = 2,
    num_envs: NumEnvs = None,
    steps: Steps = 100_000,
    target: Target = None,
    output: Output = None,
    seed: Seed = None,
    address: Address = None,
    timeout: Timeout = 30.0,
) -> None:
    """Train an algorithm of RLlib; parameters of its config's methods as --name value (--lr 3e-4)."""
    from rich.console import Console

    config = find_algorithm(algo).get_default_config()
    methods = settings_of(config)
    parameters = {name: parameter for settings in methods.values() for name, parameter in settings.items()}
    values = read_parameters(context.args, parameters, algo, option_names(context))
    total = num_workers * num_env_runners
    config.environment(env_id).env_runners(num_env_runners=total).debugging(seed=seed)
    if num_envs is not None:
        config.env_runners(num_envs_per_env_runner=_rows_each(num_envs, total))
    with runs.refusals(algo):
        for method, settings in methods.items():
            if chosen := {name: values[name] for name in settings if name in values}:
                getattr(config, method)(**chosen)
        config.copy(copy_frozen=False).validate()
    progress = TrainingProgress(Console(), f"{algo} on {env_id}", steps, target)
    with runs.session(address=address, num_workers=num_workers, num_env_runners=num_env_runners, timeout=timeout):
        algorithm = config.build_algo()
        folder = runs.output_folder(output, algo, env_id)

        def save() -> Path:
            algorithm.save(str((folder / "checkpoint").absolute()))  # on both API stacks
            return folder / "checkpoint"

        try:
            end = runs.follow(progress, lambda: learn(algorithm, progress), save, folder)
        finally:
            algorithm.stop()
    raise end


def learn(algorithm: Any, progress: TrainingProgress) -> None:
    """`algorithm.train()` until the progress' steps are done or its target is reached."""
    episodes = 0
    while progress.steps < progress.max_steps and not progress.reached:
        result = algorithm.train()
        score = result["env_runners"].get("episode_return_mean", math.nan)
        episodes += result["env_runners"].get("num_episodes", 0)
        progress.report(
            int(result["num_env_steps_sampled_lifetime"]),
            None if math.isnan(score) else float(score),
            episodes >= algorithm.config.metrics_num_episodes_for_smoothing,
        )


def find_algorithm(name: str) -> Any:
    """The algorithm's class.

    Raises:
        ConfigurationError: RLlib has registered none of this name, or there is no RLlib.
    """
    try:
        import torch  # noqa: F401
        from ray.rllib.algorithms.registry import ALGORITHMS
        from ray.tune import TuneError
        from ray.tune.registry import get_trainable_cls
    except ImportError:
        raise ConfigurationError(
            "`remoterl train rllib` needs RLlib and torch on this machine: "
            "pip install '.[rllib]' in remoterl's checkout."
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an environment that RLlib makes when DreamerV3 is imported
            return get_trainable_cls(name)
    except TuneError:
        raise ConfigurationError(
            f"--algo {name}: RLlib has registered no such algorithm.{closest(name, ALGORITHMS)} "
            f"There are: {', '.join(sorted(ALGORITHMS))}."
        ) from None


def settings_of(config: Any) -> dict[str, dict[str, Parameter]]:
    """What each of the config's methods sets (`training`, `env_runners`, ...), but for the command's own options.

    A method that a subclass overrides adds to its base's; a name that two methods take goes to the first.
    """
    from ray.rllib.utils.from_config import NotProvided

    seen = {"env", "num_env_runners", "seed"}
    methods: dict[str, dict[str, Parameter]] = {"training": {}}
    for cls in type(config).__mro__:
        for method, function in vars(cls).items():
            if method.startswith("_") or not inspect.isfunction(function):
                continue
            for name, parameter in signature_of(function).parameters.items():
                # Only what may be left out is a setting; deprecated ones have another default.
                if parameter.default is NotProvided and name not in seen and not name.startswith("_"):
                    seen.add(name)
                    default = getattr(config, name, inspect.Parameter.empty)
                    methods.setdefault(method, {})[name] = Parameter.of(name, parameter.annotation, default)
    return methods


def _rows_each(num_envs: int, num_env_runners: int) -> int:
    if num_envs % num_env_runners:
        raise ConfigurationError(
            f"--num-envs {num_envs}: RLlib gives each env runner as many rows; take a multiple of {num_env_runners}."
        )
    return num_envs // num_env_runners
