"""`remoterl demo`: the whole story on one machine, for real. Two simulator processes, a trainer, a learning curve."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from remoterl.config import HOST_VARIABLE, PORTS_VARIABLE
from remoterl.errors import RemoteRLError

START_TIMEOUT_S = 90.0
# Stable-Baselines3 Zoo's settings for PPO on CartPole-v1.
PPO_SETTINGS: dict[str, Any] = {
    "n_steps": 32, "batch_size": 256, "n_epochs": 20, "gamma": 0.98, "gae_lambda": 0.8, "learning_rate": 1e-3,
}  # fmt: skip


def demo(
    output: Annotated[Path, typer.Option(help="Where the learning curve goes.")] = Path("learning_curve.png"),
    target: Annotated[float, typer.Option(help="Mean return to reach.")] = 400.0,
    max_steps: Annotated[int, typer.Option(help="Give up after so many steps.")] = 300_000,
) -> None:
    """Train SB3's PPO on CartPole over two simulators on this machine, and plot how it learns."""
    from rich.console import Console

    console = Console()
    try:
        import stable_baselines3  # noqa: F401
    except ImportError:
        console.print("The demo trains with Stable-Baselines3: pip install '.[sb3]' in remoterl's checkout")
        raise typer.Exit(1) from None
    with private_cluster(console) as address:
        reached = _train(console, address, output, target, max_steps)
    console.print("The hub and the simulators have ended.")
    raise typer.Exit(0 if reached else 1)


@contextmanager
def private_cluster(console: Any, simulators: int = 2) -> Iterator[str]:
    """Start simulator processes with a cluster of their own; yields its address, ends every one of them.

    Also where this process is told to end (SIGTERM) or interrupted. Main thread only.
    """
    from remoterl.cluster import auth

    key = auth.random_key()
    with tempfile.TemporaryDirectory(prefix="remoterl-demo-", dir="/tmp") as folder:
        before = {name: os.environ.get(name) for name in ("REMOTERL_API_KEY", "RAY_TMPDIR")}
        # Neither the hub that is registered here, nor one that a variable names; nor ports, which two can't share.
        environment = {**os.environ, "REMOTERL_API_KEY": key, "REMOTERL_HOME": folder, "RAY_TMPDIR": folder}
        for name in ("REMOTERL_ADDRESS", "RAY_ADDRESS", HOST_VARIABLE, PORTS_VARIABLE):
            environment.pop(name, None)
        processes: list[subprocess.Popen[bytes]] = []
        before_sigterm = signal.signal(signal.SIGTERM, _leave)
        try:
            with console.status("Starting a cluster with two simulators ..."):
                address = None
                for number in range(1, simulators + 1):
                    command = [sys.executable, "-m", "remoterl", "simulate", "--name", f"simulator-{number}"]
                    with open(Path(folder, f"simulator-{number}.log"), "wb") as log:
                        command += ["--timeout", str(START_TIMEOUT_S)]
                        command += ["--address", address] if address else []
                        processes.append(
                            subprocess.Popen(
                                command,
                                env=environment,
                                stdin=subprocess.DEVNULL,
                                stdout=log,
                                stderr=subprocess.STDOUT,
                                start_new_session=True,  # a terminal's Ctrl-C is ours: we end them in order
                            )
                        )
                    _wait_for_line(processes[-1], Path(folder, f"simulator-{number}.log"), "is up")
                    address = address or Path(folder, "ray", "ray_current_cluster").read_text().strip()
            os.environ["REMOTERL_API_KEY"] = key
            assert address is not None
            yield address
        finally:
            for process in reversed(processes):
                process.send_signal(signal.SIGINT)
            for process in reversed(processes):
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            signal.signal(signal.SIGTERM, before_sigterm)
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def _wait_for_line(process: subprocess.Popen[bytes], log: Path, text: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while text not in log.read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RemoteRLError(f"The simulator did not start. It said:\n{log.read_text(errors='replace')}")
        time.sleep(0.1)


def _leave(*_: Any) -> NoReturn:
    sys.exit(128 + signal.SIGTERM)


def _train(console: Any, address: str, output: Path, target: float, max_steps: int) -> bool:
    import logging

    from remoterl import _process
    from remoterl.cli.progress import TrainingProgress
    from remoterl.cli.train.sb3 import learn

    progress = TrainingProgress(console, "PPO on CartPole-v1", max_steps, target)
    logging.getLogger("ray").setLevel(logging.WARNING)
    console.print(f"A private hub and two simulators are up at {address}. This trainer joins them.")
    console.print(f"PPO learns CartPole-v1 until its mean return is {target:g}.")
    with _process.session_of_a_command(address=address, num_env_runners=2) as connected:
        if not connected:
            raise typer.Exit(1)
        import torch
        from stable_baselines3 import PPO
        from stable_baselines3.common.env_util import make_vec_env

        torch.set_num_threads(1)  # a second one would wait for work on the simulators' cores, not asleep
        env = make_vec_env("CartPole-v1", n_envs=16, seed=0)
        session = _process.current_session()
        assert session is not None
        pids = {runner.simulator: runner.pid for runner in session.runners}
        for simulator, rows in env.unwrapped._core.places().items():  # type: ignore[attr-defined]
            console.print(f"Rows {rows[0]} to {rows[-1]} run on {simulator} (process {pids[simulator]}).")
        model = PPO("MlpPolicy", env, seed=0, device="cpu", **PPO_SETTINGS)
        with progress:
            learn(model, progress)
        env.close()
    progress.say(f"{progress.summary()}, learning included.")
    progress.plot(output, "PPO on CartPole-v1, 16 rows over two simulators")
    progress.say(f"The learning curve is in {output.resolve()}.")
    return progress.reached
