"""PPO's sampling by RLlib's env runners: on simulators, beside plain RLlib on the same machine and connection.

`python -m benchmarks.rllib_sampling`. Each contender is a process of its own with the same config; they are measured in
turn (A B A B ...), the first round is left out, and what counts is the medians' ratio by connection: Ray Client itself
hands every episode over twice, with remoterl or without.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import multiprocessing
import os
import statistics
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import remoterl
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


@dataclass
class Failed:
    trace: str


def contend(pipe: Connection, plain: bool, address: str, num_env_runners: int, rows: int) -> None:
    """One contender: says that it is ready, then answers each number of seconds with a rate, until its pipe closes."""
    import ray

    try:
        logging.getLogger("ray").setLevel(logging.ERROR)
        if plain and address == "local":
            # As many CPUs as its env runners ask for, so that RLlib places them as it would on a larger machine.
            ray.init("local", num_cpus=num_env_runners + 1, include_dashboard=False, log_to_driver=False)
        elif plain:
            auth.use_key(os.environ["REMOTERL_API_KEY"])
            ray.init(address, log_to_driver=False)  # its env runners sit on the CPUs of the hub
        else:
            assert remoterl.init(address=address, num_env_runners=1)
        algo = build(num_env_runners, rows)
        pipe.send("ready")
        with contextlib.suppress(EOFError):
            while True:
                pipe.send(measure(algo, pipe.recv()))
        algo.stop()
    except Exception:
        pipe.send(Failed(traceback.format_exc()))
    remoterl.shutdown()
    ray.shutdown()


def answer(pipe: Connection) -> Any:
    """What the contender sent, or `SystemExit` with the error that ended it."""
    try:
        said = pipe.recv()
    except EOFError:
        raise SystemExit("A contender ended without a word.") from None
    if isinstance(said, Failed):
        raise SystemExit(said.trace)
    return said


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
    with private_cluster(Console()) as address, contextlib.ExitStack() as ends:
        client = f"ray://{address.rpartition(':')[0]}:10001"
        # name: whether without remoterl, where, and the contender that it is measured against
        contenders = {
            "plain RLlib": (True, "local", "plain RLlib"),
            "remoterl": (False, address, "plain RLlib"),
            "plain RLlib, Ray Client": (True, client, "plain RLlib, Ray Client"),
            "remoterl, Ray Client": (False, client, "plain RLlib, Ray Client"),
        }
        pipes = {}
        for name, (plain, where, _) in contenders.items():
            ours, theirs = spawn.Pipe()
            # no daemon: a contender starts Ray, whose processes are its children; it ends when its pipe closes
            contender = spawn.Process(target=contend, args=(theirs, plain, where, options.env_runners, options.rows))
            contender.start()
            ends.callback(contender.join)
            ends.callback(ours.close)
            theirs.close()
            assert answer(ours) == "ready"
            pipes[name] = ours
        for turn in range(options.rounds + 1):
            for name, pipe in pipes.items():
                pipe.send(options.seconds)
                rate = answer(pipe)
                if turn:
                    rates.setdefault(name, []).append(rate)
    for name, values in rates.items():
        middle, beside = statistics.median(values), contenders[name][2]
        ratio = middle / statistics.median(rates[beside])
        spread = f"({min(values):,.0f} to {max(values):,.0f})"
        print(f"{name:24} {middle:8,.0f} steps/s {spread:20} {ratio:.2f} x {beside}")


if __name__ == "__main__":
    main()
