"""PPO's sampling by RLlib's env runners: on simulators, beside plain RLlib on the same machine and connection.

`python -m benchmarks.rllib_sampling`. Each contender is a process of its own with the same config; they are measured in
turn (A B A B ...), the first round is left out, and what counts is the medians' ratio by connection: Ray Client itself
hands every episode over twice, with remoterl or without.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import remoterl
from benchmarks.turns import take_turns
from remoterl.cluster import auth


def build(num_env_runners: int, rows: int) -> Any:
    from ray.rllib.algorithms.ppo import PPOConfig

    config = PPOConfig().environment("CartPole-v1")
    config.env_runners(num_env_runners=num_env_runners, num_envs_per_env_runner=rows)
    return config.build_algo()


def measure(algo: Any, seconds: float) -> float:
    """Steps a second of RLlib's own sampling, as PPO's training step calls it."""
    from ray.rllib.execution.rollout_ops import synchronous_parallel_sample

    steps, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        episodes, _ = synchronous_parallel_sample(
            worker_set=algo.env_runner_group, max_env_steps=4000, concat=True,
            _uses_new_env_runners=True, _return_metrics=True,
        )  # fmt: skip
        steps += sum(len(episode) for episode in episodes)
    return steps / (time.perf_counter() - start)


@contextlib.contextmanager
def opened(plain: bool, address: str, num_env_runners: int, rows: int, seconds: float) -> Iterator[Callable[[], float]]:
    """A contender: gives what measures its steps a second."""
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    if plain and address == "local":
        # As many CPUs as its env runners ask for, so that RLlib places them as it would on a larger machine.
        ray.init("local", num_cpus=num_env_runners + 1, include_dashboard=False, log_to_driver=False)
    elif plain:
        auth.use_key(os.environ["REMOTERL_API_KEY"])
        ray.init(address, log_to_driver=False)  # its env runners sit on the CPUs of the hub
    else:
        assert remoterl.init(address=address, num_env_runners=1)
    try:
        algo = build(num_env_runners, rows)
        yield lambda: measure(algo, seconds)
        algo.stop()
    finally:
        remoterl.shutdown()
        ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=5.0, help="of one measurement")
    parser.add_argument("--env-runners", type=int, default=2)
    parser.add_argument("--rows", type=int, default=16, help="of each env runner")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    from rich.console import Console

    from benchmarks.__main__ import client_address
    from remoterl.cli.demo import private_cluster

    with private_cluster(Console()) as address:
        client = client_address(address)
        # name: whether without remoterl, where, and the contender that it is measured against
        contenders = {
            "plain RLlib": (True, "local", "plain RLlib"),
            "remoterl": (False, address, "plain RLlib"),
            "plain RLlib, Ray Client": (True, client, "plain RLlib, Ray Client"),
            "remoterl, Ray Client": (False, client, "plain RLlib, Ray Client"),
        }
        sizes = (options.env_runners, options.rows, options.seconds)
        arguments = {name: (plain, where, *sizes) for name, (plain, where, _) in contenders.items()}
        rates = take_turns(opened, arguments, options.rounds)
    for name, values in rates.items():
        middle, beside = statistics.median(values), contenders[name][2]
        ratio = middle / statistics.median(rates[beside])
        spread = f"({min(values):,.0f} to {max(values):,.0f})"
        print(f"{name:24} {middle:8,.0f} steps/s {spread:20} {ratio:.2f} x {beside}")


if __name__ == "__main__":
    main()
