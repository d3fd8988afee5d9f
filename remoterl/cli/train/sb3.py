"""`remoterl train sb3`: the algorithms of Stable-Baselines3, and of sb3_contrib where it is installed."""

from __future__ import annotations

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
from remoterl.cli.train.parameters import closest, parameters_of, read_parameters
from remoterl.errors import ConfigurationError


def sb3(
    context: typer.Context,
    env_id: EnvId,
    algo: Annotated[str, typer.Option(help="A class of stable_baselines3 or sb3_contrib.")] = "PPO",
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
    """Train an algorithm of Stable-Baselines3; parameters of its class as --name value (--learning-rate 3e-4)."""
    from rich.console import Console

    algorithm = find_algorithm(algo)
    parameters = parameters_of(algorithm.__init__, leave_out=("env", "seed"))
    settings = read_parameters(context.args, parameters, algo, option_names(context))
    policy = settings.pop("policy", None)
    _check_policy(algorithm, policy)
    progress = TrainingProgress(Console(), f"{algo} on {env_id}", steps, target)
    with runs.session(address=address, num_workers=num_workers, num_env_runners=num_env_runners, timeout=timeout):
        from stable_baselines3.common.env_util import make_vec_env

        env = make_vec_env(env_id, n_envs=num_envs or 2 * num_workers * num_env_runners, seed=seed)
        policy = policy or _policy_for(algorithm, env.observation_space)
        with runs.refusals(algo):
            model = algorithm(policy, env, seed=seed, **settings)
        folder = runs.output_folder(output, algo, env_id)

        def save() -> Path:
            model.save(folder / "model.zip")
            return folder / "model.zip"

        end = runs.follow(progress, lambda: learn(model, progress), save, folder)
        env.close()
    raise end


def learn(model: Any, progress: TrainingProgress) -> None:
    """`model.learn` until the progress' steps are done or its target is reached."""
    import numpy as np
    from stable_baselines3.common.callbacks import BaseCallback

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            if progress.is_due(self.num_timesteps):
                episodes = self.model.ep_info_buffer
                assert episodes is not None
                score = float(np.mean([episode["r"] for episode in episodes])) if episodes else None
                progress.report(self.num_timesteps, score, len(episodes) == episodes.maxlen)
            return not progress.reached

    model.learn(total_timesteps=progress.max_steps, callback=Watch())


def find_algorithm(name: str) -> Any:
    """The algorithm's class.

    Raises:
        ConfigurationError: there is none of this name, or no Stable-Baselines3.
    """
    try:
        import stable_baselines3
        from stable_baselines3.common.base_class import BaseAlgorithm
    except ImportError:
        raise ConfigurationError(
            "`remoterl train sb3` needs Stable-Baselines3 on this machine: pip install '.[sb3]' in remoterl's checkout."
        ) from None
    packages = [stable_baselines3]
    try:
        import sb3_contrib

        packages.append(sb3_contrib)
    except ImportError:
        pass
    algorithms = {
        found: value
        for package in packages
        for found, value in vars(package).items()
        if isinstance(value, type) and issubclass(value, BaseAlgorithm)
    }
    if name not in algorithms:
        raise ConfigurationError(
            f"--algo {name}: no such algorithm in {' or '.join(package.__name__ for package in packages)}."
            f"{closest(name, algorithms)} There are: {', '.join(sorted(algorithms))}."
        )
    return algorithms[name]


def _check_policy(algorithm: Any, policy: str | None) -> None:
    names = algorithm.policy_aliases
    if policy is not None and policy not in names:
        raise ConfigurationError(f"--policy {policy}: {algorithm.__name__} has {', '.join(names)}.")


def _policy_for(algorithm: Any, observation_space: Any) -> str:
    """The algorithm's policy for such observations: `CnnPolicy` for images, say."""
    from gymnasium import spaces
    from stable_baselines3.common.preprocessing import is_image_space

    kind = "Mlp"
    if isinstance(observation_space, spaces.Dict):
        kind = "MultiInput"
    elif is_image_space(observation_space):
        kind = "Cnn"
    names = list(algorithm.policy_aliases)
    return next((name for name in names if name.startswith(kind)), names[0])
