"""Steps a second of a CartPole vector env: remoterl by each connection beside local sub-processes.

`python -m benchmarks.vector_envs [--rows 32] [--env-runners 2] [--rounds 5] [--seconds 2]`

Every contender runs in a process of its own; the contenders take turns, round after round; the first steps of each
are not counted. The table shows medians over the rounds, and ratios of medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

WARM_UP_STEPS = 20
CONTENDERS = {
    "SB3 DummyVecEnv, in process": ("sb3", "dummy", None),
    "SB3 SubprocVecEnv, a process a row": ("sb3", "subproc", None),
    "remoterl, SB3, local": ("sb3", "dummy", "local"),
    "remoterl, SB3, in-cluster": ("sb3", "dummy", "driver"),
    "remoterl, SB3, Ray Client": ("sb3", "dummy", "client"),
    "Gymnasium SyncVectorEnv, in process": ("gymnasium", "sync", None),
    "Gymnasium AsyncVectorEnv, a process a row": ("gymnasium", "async", None),
    "remoterl, Gymnasium, local": ("gymnasium", "sync", "local"),
    "remoterl, Gymnasium, in-cluster": ("gymnasium", "sync", "driver"),
    "remoterl, Gymnasium, Ray Client": ("gymnasium", "sync", "client"),
}
BASELINES = {"sb3": "SB3 SubprocVecEnv, a process a row", "gymnasium": "Gymnasium AsyncVectorEnv, a process a row"}


def measure(framework: str, kind: str, address: str | None, rows: int, env_runners: int, seconds: float) -> dict:
    """One contender in this process: seconds of init() (None without) and steps a second."""
    import numpy as np

    init_s = None
    if address is not None:
        import remoterl

        if kind == "dummy":
            import stable_baselines3.common.env_util  # noqa: F401 - the script's own import is not init()'s time
        start = time.perf_counter()
        assert remoterl.init(address=address, num_env_runners=env_runners)
        init_s = time.perf_counter() - start
    step = _sb3(kind, rows) if framework == "sb3" else _gymnasium(kind, rows)
    actions = np.random.default_rng(0).integers(0, 2, (64, rows))
    for index in range(WARM_UP_STEPS):
        step(actions[index % 64])
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        step(actions[count % 64])
        count += 1
    if address is not None:
        remoterl.shutdown()
    return {"init_s": init_s, "steps_per_s": count * rows / elapsed}


def _sb3(kind: str, rows: int) -> Callable[[Any], Any]:
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

    env = make_vec_env("CartPole-v1", rows, seed=0, vec_env_cls=SubprocVecEnv if kind == "subproc" else DummyVecEnv)
    env.reset()
    return env.step


def _gymnasium(kind: str, rows: int) -> Callable[[Any], Any]:
    import gymnasium

    env = gymnasium.make_vec("CartPole-v1", num_envs=rows, vectorization_mode=kind)
    env.reset(seed=0)
    return env.step


def main() -> None:
    """Run all contenders and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--env-runners", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print("RESULT", json.dumps(measure(*json.loads(options.one))))
        return

    from rich.console import Console

    from remoterl.cli.demo import private_cluster

    results: dict[str, list[dict]] = {name: [] for name in CONTENDERS}
    with private_cluster(Console(stderr=True)) as gcs_address:
        addresses = {None: None, "local": "local", "driver": gcs_address, "client": _client_address(gcs_address)}
        for round_number in range(options.rounds):
            for name, (framework, kind, connection) in CONTENDERS.items():
                call = [framework, kind, addresses[connection], options.rows, options.env_runners, options.seconds]
                results[name].append(_in_a_process(call))
                print(f"round {round_number + 1}: {name}: {results[name][-1]['steps_per_s']:,.0f}", file=sys.stderr)
    _table(results)


def _client_address(gcs_address: str) -> str:
    """The demo's hub takes Ray Client's usual port where it is free, and it is checked here."""
    from remoterl.cluster.probe import Answer, ask
    from remoterl.config import DEFAULT_CLIENT_PORT, Address

    address = Address("client", gcs_address.rpartition(":")[0], DEFAULT_CLIENT_PORT)
    if ask(address, os.environ["REMOTERL_API_KEY"]) is not Answer.ACCEPTED:
        raise SystemExit(f"port {DEFAULT_CLIENT_PORT} is taken by something else; stop it and try again")
    return str(address)


def _in_a_process(call: list[Any]) -> dict:
    command = [sys.executable, "-m", "benchmarks.vector_envs", "--one", json.dumps(call)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if "RESULT" not in done.stdout:
        raise SystemExit(f"{call} failed:\n{done.stderr}")
    return json.loads(done.stdout.split("RESULT")[1])


def _table(results: dict[str, list[dict]]) -> None:
    median = {
        name: statistics.median(result["steps_per_s"] for result in measured) for name, measured in results.items()
    }
    print("| contender | steps a second: median (least to most) | against local sub-processes | seconds of `init()` |")
    print("| --- | ---: | ---: | ---: |")
    for name, measured in results.items():
        rates = [result["steps_per_s"] for result in measured]
        ratio = median[name] / median[BASELINES[CONTENDERS[name][0]]]
        inits = [result["init_s"] for result in measured if result["init_s"] is not None]
        init = f"{statistics.median(inits):.1f}" if inits else ""
        print(f"| {name} | {median[name]:,.0f} ({min(rates):,.0f} to {max(rates):,.0f}) | {ratio:.1f} x | {init} |")


if __name__ == "__main__":
    main()
