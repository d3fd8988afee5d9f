"""What an env runner weighs above an empty Ray actor, and how long `init()` takes: `python -m benchmarks.footprint`."""

from __future__ import annotations

import statistics
import time
from typing import Any

import psutil
from rich.console import Console

from benchmarks.__main__ import client_address

ROUNDS = 5
ROWS = 32


def main() -> None:
    import gymnasium
    import ray

    import remoterl
    from remoterl._process import current_session
    from remoterl.cli.demo import private_cluster

    class Empty:
        def memory_mib(self) -> float:
            return psutil.Process().memory_info().rss / 2**20

    with private_cluster(Console(stderr=True)) as address:
        for name, where in (("in-cluster", address), ("Ray Client", client_address(address))):
            took, empty, runners = [], [], []
            for _ in range(ROUNDS):
                start = time.perf_counter()
                assert remoterl.init(address=where, num_env_runners=2)
                took.append(time.perf_counter() - start)
                actor: Any = ray.remote(Empty).options(num_cpus=0, resources={"env_runner": 0.001}).remote()  # type: ignore[attr-defined]
                empty.append(ray.get(actor.memory_mib.remote()))
                env = gymnasium.make_vec("CartPole-v1", ROWS, vectorization_mode="sync")
                env.reset(seed=0)
                for _ in range(100):
                    env.step(env.action_space.sample())
                session = current_session()
                assert session is not None
                runners += [psutil.Process(runner.pid).memory_info().rss / 2**20 for runner in session.runners]
                remoterl.shutdown()
            above = statistics.median(runners) - statistics.median(empty)
            print(
                f"{name}: init() to True {statistics.median(took):.1f} s ({min(took):.1f} to {max(took):.1f}); an env "
                f"runner {statistics.median(runners):.0f} MiB, an empty actor {statistics.median(empty):.0f} MiB: "
                f"{above:.0f} MiB above"
            )


if __name__ == "__main__":
    main()
