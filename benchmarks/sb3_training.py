"""SB3's PPO with its defaults on 32 CartPole rows, on simulators beside `SubprocVecEnv` and `DummyVecEnv`.

`python -m benchmarks.sb3_training`. Each contender is a process of its own; they train one iteration each in turn, the
first round is left out. Told are collecting rollouts and whole iterations, as ratios of medians against
`SubprocVecEnv`; and beside them what no vector env can surpass: one whose steps take no time at all. On 2 cores a round
takes up to two minutes, and each connection to Ray has its own rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.turns import take_turns

ROWS = 32
BASELINE = "SubprocVecEnv"
LIMIT = "no environment"


@dataclass
class Iteration:
    """Seconds of one iteration of PPO."""

    collecting_s: float
    whole_s: float


@contextlib.contextmanager
def opened(name: str, address: str) -> Iterator[Callable[[], Iteration]]:
    """A contender: gives what trains an iteration."""
    import stable_baselines3.common.vec_env as vec_env
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    import remoterl

    class Watch(BaseCallback):
        def _on_rollout_start(self) -> None:
            self.began = time.perf_counter()

        def _on_rollout_end(self) -> None:
            self.collecting_s = time.perf_counter() - self.began

        def _on_step(self) -> bool:
            return True

    if address:
        assert remoterl.init(address=address, num_env_runners=2, channel="stream")
    vec_class: Any = vec_env.DummyVecEnv if address or name == LIMIT else getattr(vec_env, name)
    env = make_vec_env("CartPole-v1", ROWS, seed=0, vec_env_cls=vec_class)
    if name == LIMIT:
        observations = env.reset()
        zeros = np.zeros(ROWS, np.float32), np.zeros(ROWS, bool)
        vars(env).update(
            step_async=lambda actions: None, step_wait=lambda: (observations, *zeros, [{} for _ in range(ROWS)])
        )
    model, watch = PPO("MlpPolicy", env, seed=0, device="cpu"), Watch()

    def iterate() -> Iteration:
        start = time.perf_counter()
        model.learn(model.n_steps * ROWS, watch, reset_num_timesteps=False)
        return Iteration(watch.collecting_s, time.perf_counter() - start)

    yield iterate
    env.close()
    remoterl.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    from rich.console import Console

    from benchmarks.__main__ import client_address
    from remoterl.cli.demo import private_cluster

    with private_cluster(Console(stderr=True)) as address:
        for name, hub in (("in-cluster", address), ("Ray Client", client_address(address))):
            # One after the other: both together would have more env runners than this machine has cores, and those
            # do not look for the next step before they sleep.
            contenders = {
                BASELINE: (BASELINE, ""),
                "DummyVecEnv": ("DummyVecEnv", ""),
                LIMIT: (LIMIT, ""),
                f"remoterl, {name}": ("", hub),
            }
            _show(take_turns(opened, contenders, options.rounds))


def _show(measured: dict[str, list[Iteration]]) -> None:
    medians = {
        name: [statistics.median(getattr(one, what) for one in iterations) for what in ("collecting_s", "whole_s")]
        for name, iterations in measured.items()
    }
    for name, (collecting_s, whole_s) in medians.items():
        base_collecting_s, base_whole_s = medians[BASELINE]
        print(
            f"{name:22} collecting {collecting_s:6.2f} s ({base_collecting_s / collecting_s:4.1f} x)   "
            f"whole iteration {whole_s:6.2f} s ({base_whole_s / whole_s:4.2f} x {BASELINE})"
        )


if __name__ == "__main__":
    main()
