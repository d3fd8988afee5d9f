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
from typing import Annotated, Any

import typer

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
        console.print("The demo trains with Stable-Baselines3: pip install 'remoterl[sb3]'")
        raise typer.Exit(1) from None
    with private_cluster(console) as address:
        reached = _train(console, address, output, target, max_steps)
    raise typer.Exit(0 if reached else 1)


@contextmanager
def private_cluster(console: Any, simulators: int = 2) -> Iterator[str]:
    """Start simulator processes with a cluster of their own; yields its address, ends every one of them."""
    from remoterl.cluster import auth

    key = auth.random_key()
    with tempfile.TemporaryDirectory(prefix="remoterl-demo-", dir="/tmp") as folder:
        before = {name: os.environ.get(name) for name in ("REMOTERL_API_KEY", "RAY_TMPDIR")}
        environment = {**os.environ, "REMOTERL_API_KEY": key, "RAY_TMPDIR": folder}
        for name in ("REMOTERL_ADDRESS", "RAY_ADDRESS"):
            environment.pop(name, None)
        processes: list[subprocess.Popen[bytes]] = []
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
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def _wait_for_line(process: subprocess.Popen[bytes], log: Path, text: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while text not in log.read_text(errors="replace"):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the simulator did not start; it said:\n{log.read_text(errors='replace')}")
        time.sleep(0.1)


def _train(console: Any, address: str, output: Path, target: float, max_steps: int) -> bool:
    import logging

    import remoterl
    from remoterl._process import current_session

    logging.getLogger("ray").setLevel(logging.WARNING)
    console.print(f"The hub is at {address}; this trainer joins it as an in-cluster driver.")
    if not remoterl.init(address=address, role="trainer", num_workers=1, num_env_runners=2):
        raise typer.Exit(1)
    try:
        from stable_baselines3 import PPO
        from stable_baselines3.common.env_util import make_vec_env

        env = make_vec_env("CartPole-v1", n_envs=16, seed=0)
        session = current_session()
        assert session is not None
        pids = {runner.simulator: runner.pid for runner in session.runners}
        for simulator, rows in env.unwrapped._core.places().items():  # type: ignore[attr-defined]
            console.print(f"Rows {rows[0]} to {rows[-1]} run on {simulator} (process {pids[simulator]}).")
        model = PPO("MlpPolicy", env, seed=0, device="cpu", **PPO_SETTINGS)
        curve, seconds = _learn(console, model, target, max_steps)
        env.close()
    finally:
        remoterl.shutdown()
    steps, returns = [point[0] for point in curve], [point[1] for point in curve]
    reached = bool(returns) and returns[-1] >= target
    console.print(
        f"{'Solved' if reached else 'Stopped'}: mean return {returns[-1]:.0f} (target {target:.0f}) after "
        f"{steps[-1]:,} steps in {seconds:.0f} s: {steps[-1] / seconds:,.0f} steps/s, learning included."
    )
    _plot(output, steps, returns, target)
    console.print(f"The learning curve is in {output}.")
    return reached


def _learn(console: Any, model: Any, target: float, max_steps: int) -> tuple[list[tuple[int, float]], float]:
    """Train with a progress bar; returns [(steps, mean return of the last 100 episodes)] and the seconds."""
    import numpy as np
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    from stable_baselines3.common.callbacks import BaseCallback

    curve: list[tuple[int, float]] = []

    class Watch(BaseCallback):
        def _on_rollout_end(self) -> None:
            episodes = self.model.ep_info_buffer
            if episodes:
                curve.append((self.num_timesteps, float(np.mean([episode["r"] for episode in episodes]))))
                rate = self.num_timesteps / (time.monotonic() - start)
                progress.update(
                    task,
                    completed=min(curve[-1][1], target),
                    score=curve[-1][1],
                    steps=self.num_timesteps,
                    rate=rate,
                )
                if not console.is_terminal and len(curve) % 20 == 1:
                    console.print(
                        f"{self.num_timesteps:>8,} steps  mean return {curve[-1][1]:6.1f}  {rate:,.0f} steps/s"
                    )

        def _on_step(self) -> bool:
            return not (curve and curve[-1][1] >= target)

    columns = (
        TextColumn("PPO on CartPole-v1"),
        BarColumn(),
        TextColumn("mean return {task.fields[score]:.0f} of {task.total:.0f}, {task.fields[steps]:,} steps"),
        TextColumn("{task.fields[rate]:,.0f} steps/s"),
        TimeElapsedColumn(),
    )
    start = time.monotonic()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("train", total=target, score=0.0, steps=0, rate=0.0)
        model.learn(total_timesteps=max_steps, callback=Watch())
    return curve, time.monotonic() - start


def _plot(output: Path, steps: list[int], returns: list[float], target: float) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, returns, label="mean return of the last 100 episodes")
    axes.axhline(target, linestyle="--", color="grey", label="target")
    axes.set(xlabel="steps", ylabel="return", title="PPO on CartPole-v1, 16 rows over two simulators")
    axes.legend()
    axes.grid(alpha=0.3)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=130)
