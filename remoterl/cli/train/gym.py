"""`remoterl train gym`: plain Gymnasium. Nothing learns; it shows what the simulators give."""

from __future__ import annotations

from typing import Annotated

import typer

from remoterl.cli.options import Address, NumEnvRunners, NumWorkers, Timeout
from remoterl.cli.progress import TrainingProgress
from remoterl.cli.train import runs
from remoterl.cli.train.options import EnvId, NumEnvs, Seed, Steps


def gym(
    env_id: EnvId,
    algo: Annotated[str, typer.Option(help="What acts; there is only `random`.")] = "random",
    num_workers: NumWorkers = 1,
    num_env_runners: NumEnvRunners = 2,
    num_envs: NumEnvs = None,
    steps: Steps = 10_000,
    seed: Seed = None,
    address: Address = None,
    timeout: Timeout = 30.0,
) -> None:
    """Drive `gymnasium.make_vec` with random actions: returns and steps a second, no learning."""
    import gymnasium
    import numpy as np
    from gymnasium.wrappers.vector import RecordEpisodeStatistics
    from rich.console import Console

    from remoterl.errors import ConfigurationError

    if algo != "random":
        raise ConfigurationError(
            f"--algo {algo}: plain Gymnasium has no algorithm, only `random`. To learn, "
            "take `remoterl train sb3` or `remoterl train rllib`."
        )
    num_envs = num_envs or 2 * num_workers * num_env_runners
    progress = TrainingProgress(Console(), f"random actions on {env_id}", steps)
    with runs.session(address=address, num_workers=num_workers, num_env_runners=num_env_runners, timeout=timeout):
        envs = RecordEpisodeStatistics(gymnasium.make_vec(env_id, num_envs, vectorization_mode="sync"))
        envs.action_space.seed(seed)
        envs.reset(seed=seed)
        with progress:
            taken, ended = 0, np.zeros(num_envs, bool)
            while taken < steps:
                _, _, terminations, truncations, _ = envs.step(envs.action_space.sample())
                taken += num_envs - int(ended.sum())  # where an episode ended, this was its reset (NEXT_STEP)
                ended = terminations | truncations
                if progress.is_due(taken):
                    progress.report(taken, float(np.mean(envs.return_queue)) if envs.return_queue else None)
        envs.close()
    progress.say(f"{progress.summary()}, {envs.episode_count:,} episodes ended.")
