"""PPO's sampling by RLlib's env runners: on simulators, beside plain RLlib on the same machine.

`python -m benchmarks.rllib_sampling`. Each contender is a process of its own with the same config; they are measured in
turn (A B A B ...), the first round is left out, and the medians' ratio is what counts.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import statistics
import time
from multiprocessing.connection import Connection
from typing import Any

import remoterl


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
        episodes = synchronous_parallel_sample(worker_set=algo.env_runner_group, max_env_steps=4000, concat=True)
        steps += sum(len(episode) for episode in episodes)
    return steps / (time.perf_counter() - start)


def contend(pipe: Connection, address: str | None, num_env_runners: int, rows: int) -> None:
    """One contender: says that it is ready, then answers each number of seconds with a rate."""
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    if address is None:
        # As many CPUs as its env runners ask for, so that RLlib places them as it would on a larger machine.
        ray.init("local", num_cpus=num_env_runners + 1, include_dashboard=False, log_to_driver=False)
    else:
        assert remoterl.init(address=address, num_env_runners=1)
    algo = build(num_env_runners, rows)
    pipe.send("ready")
    while (seconds := pipe.recv()) is not None:
        pipe.send(measure(algo, seconds))
    algo.stop()
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

    from remoterl.cli.demo import private_cluster

    spawn = multiprocessing.get_context("spawn")
    rates: dict[str, list[float]] = {}
    with private_cluster(Console()) as address:
        client = f"ray://{address.rpartition(':')[0]}:10001"
        pipes = {}
        for name, where in {"plain RLlib": None, "in-cluster": address, "Ray Client": client}.items():
            ours, theirs = spawn.Pipe()
            arguments = (theirs, where, options.env_runners, options.rows)
            spawn.Process(target=contend, args=arguments, daemon=True).start()
            assert ours.recv() == "ready"
            pipes[name] = ours
        for turn in range(options.rounds + 1):
            for name, pipe in pipes.items():
                pipe.send(options.seconds)
                rate = pipe.recv()
                if turn:
                    rates.setdefault(name, []).append(rate)
        for pipe in pipes.values():
            pipe.send(None)
    plain = statistics.median(rates["plain RLlib"])
    for name, values in rates.items():
        middle = statistics.median(values)
        print(f"{name:12} {middle:8,.0f} steps/s ({min(values):,.0f} to {max(values):,.0f}), {middle / plain:.2f} x")


if __name__ == "__main__":
    main()
