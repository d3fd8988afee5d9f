"""`python -m benchmarks.chaos [--seconds 120] [--seed 1]`: a training goes on while what it runs on is killed.

Stable-Baselines3's PPO learns CartPole over four simulators, all on this machine. Every two seconds an env runner is
killed with -9, every fifteen a Ray node or a whole simulator, which comes back. Exit code 1 where the training did not
end or did not learn, where an action or a transition got lost or came twice, or where a process stays behind.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
SIMULATORS = [f"simulator-{number}" for number in range(1, 5)]
ENV_RUNNERS = 4  # of the trainer
UNITS = 4  # of each simulator: any one can take over from all others
ENV_RUNNER_PERIOD_S = 2.0
SIMULATOR_PERIOD_S = 15.0
START_TIMEOUT_S = 120.0
END_TIMEOUT_S = 120.0
LEARNED = 100.0  # mean return; a policy that does not learn stays near 20


def main() -> None:
    """Start everything, let it rain, say how it went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0, help="of faults")
    parser.add_argument("--seed", type=int, default=1, help="of the faults and of the training")
    parser.add_argument("--connection", choices=("client", "driver"), default="client", help="of the trainer, to Ray")
    parser.add_argument("--channel", choices=("auto", "stream", "actor"), default="auto")
    options = parser.parse_args()
    print(f"seed {options.seed}, {options.seconds:g} s", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with Cluster() as cluster:
        address = {"client": cluster.client_address, "driver": cluster.address}[options.connection]
        trainer = cluster.start_trainer(address, options.channel, options.seed)
        trainer.wait_for("learning", START_TIMEOUT_S)
        faults = storm(cluster, trainer, options.seconds, random.Random(options.seed))
        assert trainer.process.stdin is not None
        trainer.process.stdin.close()  # it ends when it reads the end
        try:
            code: int | None = trainer.process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            code = None
        said = trainer.output
    left = cluster.left()
    result = json.loads(said.split("RESULT")[1]) if "RESULT" in said else {}
    failures = report(result, code, faults, cluster.started_again, left, said)
    print("\n".join(["FAILED:", *failures]) if failures else "All is well.")
    sys.exit(1 if failures else 0)


class Child:
    """A process of its own session, its output in a file."""

    def __init__(self, command: list[str], log: Path, environment: dict[str, str]) -> None:
        self._log = log
        with open(log, "ab") as output:
            self.process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                start_new_session=True,  # a terminal's Ctrl-C is ours: we end them in order
            )

    @property
    def output(self) -> str:
        """All of it so far, of every process that wrote to this file."""
        return self._log.read_text(errors="replace")

    def wait_for(self, text: str, timeout_s: float) -> None:
        """Wait until the output holds a text."""
        wait_until(lambda: text in self.output or self.process.poll() is not None, timeout_s, f"{text!r}: {self._log}")
        if text not in self.output:
            raise SystemExit(f"{self._log.stem} did not start; it said:\n{self.output}")

    def end(self, timeout_s: float = 30.0) -> None:
        """Ctrl-C, or kill where that does not help."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Cluster:
    """A hub and four simulators with a folder of their own. A context manager; whatever happens, it leaves nothing.

    Attributes:
        started_again: simulator processes that ended (or were killed) and were started anew.
    """

    def __init__(self) -> None:
        self.started_again = 0
        self._folder = Path(tempfile.mkdtemp(prefix="rc-", dir="/tmp"))  # short: Ray puts sockets below it
        gcs, client, dashboard = _free_ports(3)
        self.address, self.client_address = f"127.0.0.1:{gcs}", f"ray://127.0.0.1:{client}"
        self._hub_options = [f"--port={gcs}", f"--client-port={client}", f"--dashboard-port={dashboard}"]
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("REMOTERL_", "RAY_A"))},
            "REMOTERL_API_KEY": secrets.token_hex(16),
            "REMOTERL_HOME": str(self._folder / "home"),
            "RAY_TMPDIR": str(self._folder),
            "TMPDIR": str(self._folder),
            "OMP_NUM_THREADS": "1",
        }
        self._hub: Child | None = None
        self._simulators: dict[str, Child] = {}
        self._trainer: Child | None = None
        self._trainers = 0

    def __enter__(self) -> Cluster:
        try:
            self._hub = self._start("hub", ["-m", "remoterl", "hub", "--block", *self._hub_options])
            self._hub.wait_for("The hub is up", START_TIMEOUT_S)
            self.address = self._hub.output.split("REMOTERL_ADDRESS=")[1].split()[0]
            self.client_address = self._hub.output.split("REMOTERL_ADDRESS=")[2].split()[0]
            for name in SIMULATORS:
                self._start_simulator(name)
            for simulator in self._simulators.values():
                simulator.wait_for("is up", START_TIMEOUT_S)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not keep us from it
        for child in (self._trainer, *self._simulators.values(), self._hub):
            if child is not None and child.process.poll() is None:
                child.end()
        self._left = self._ours(wait_s=10.0)
        for process in self._left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def start_trainer(self, address: str, channel: str, seed: int) -> Child:
        """Start it; it learns until its stdin is closed."""
        command = ["-m", "benchmarks.chaos_trainer", address, channel, str(ENV_RUNNERS), str(seed)]
        return self.start_as_trainer(command)

    def start_as_trainer(self, command: list[str]) -> Child:
        """Start any script of a trainer's, its output in a file of its own."""
        self._trainers += 1
        self._trainer = self._start(f"trainer-{self._trainers}", command)
        return self._trainer

    def env_runners(self) -> list[psutil.Process]:
        """All that run, the oldest first."""
        found = [process for process in self._ours() if _title(process).startswith("ray::EnvRunner")]
        return sorted(found, key=lambda process: process.pid)

    def node(self, name: str) -> psutil.Process | None:
        """The raylet of a simulator, if it has one just now."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self._simulators[name].process.pid).children(recursive=True):
                if process.name() == "raylet":
                    return process
        return None

    def simulator(self, name: str) -> psutil.Process:
        """A simulator's own process."""
        return psutil.Process(self._simulators[name].process.pid)

    def revive(self) -> None:
        """Start simulators again that have ended, as a service manager does."""
        for name, simulator in self._simulators.items():
            if simulator.process.poll() is not None:
                self.started_again += 1
                self._start_simulator(name)

    def left(self) -> list[str]:
        """What still ran after everything was ended; it was killed then."""
        return [f"{process.pid}" for process in self._left]

    def _start_simulator(self, name: str) -> None:
        options = ["--name", name, "--address", self.address, "--max-env-runners", str(UNITS), "--timeout", "60"]
        self._simulators[name] = self._start(name, ["-m", "remoterl", "simulate", *options])

    def _start(self, name: str, command: list[str]) -> Child:
        return Child([sys.executable, *command], self._folder / f"{name}.log", self._environment)

    def _ours(self, wait_s: float = 0.0) -> list[psutil.Process]:
        """Every process that has our folder in its environment: children and orphans alike."""
        deadline = time.monotonic() + wait_s
        while True:
            found = []
            for process in psutil.process_iter():
                with contextlib.suppress(psutil.Error):
                    if process.environ().get("TMPDIR") == str(self._folder):
                        found.append(process)
            if not found or time.monotonic() >= deadline:
                return found
            time.sleep(0.2)


def storm(cluster: Cluster, trainer: Child, seconds: float, chance: random.Random) -> Counter[str]:
    """Kill for so long, or until the trainer ends; how often what was killed."""
    faults: Counter[str] = Counter()
    start = time.monotonic()
    plan = sorted(
        [(time_s, "env runner") for time_s in _times(ENV_RUNNER_PERIOD_S, seconds)]
        + [(time_s, chance.choice(("node", "simulator"))) for time_s in _times(SIMULATOR_PERIOD_S, seconds)]
    )
    for time_s, kind in plan:
        while time.monotonic() < start + time_s:
            cluster.revive()
            if trainer.process.poll() is not None:
                return faults
            time.sleep(0.1)
        victim: psutil.Process | None
        if kind == "env runner":
            victim = chance.choice(cluster.env_runners() or [None])
        else:
            name = chance.choice(SIMULATORS)
            victim = cluster.node(name) if kind == "node" else cluster.simulator(name)
        try:
            if victim is not None:
                victim.kill()
                faults[kind] += 1
        except psutil.NoSuchProcess:  # it ended just now
            pass
        if kind != "env runner":
            print(f"{time_s:5.0f} s: {kind} of {name} killed; {_last_progress(trainer)}", flush=True)
    cluster.revive()
    return faults


def report(
    result: dict[str, Any], code: int | None, faults: Counter[str], started_again: int, left: list[str], said: str
) -> list[str]:
    """Print how it went; what is wrong with it."""
    failures = []
    print(f"faults: {', '.join(f'{kind} {count}' for kind, count in sorted(faults.items()))}")
    print(f"simulator processes started again: {started_again}")
    if result:
        first, last = result["first_return"], result["last_return"]
        print(f"steps trained: {result['steps']:,}, the slowest took {result['slowest_s']:.1f} s")
        print(f"env runners replaced: {result['restarts']}")
        print(f"mean return of 100 episodes: the first {first:.0f}, the last {last:.0f}, of {result['episodes']:,}")
        print(f"rows lost: {result['losses']}, each told by one truncated episode")
        print(f"ledgers: {result['transitions']:,} transitions, {len(result['disagreements'])} disagreements")
        failures += result["disagreements"]
        if not last > max(LEARNED, 2 * first):
            failures.append(f"it did not learn: from {first:.0f} to {last:.0f}")
        if not result["losses"] >= faults["env runner"] / 2:
            failures.append(f"only {result['losses']} rows were lost in {faults['env runner']} kills: not a test")
    if code != 0 or not result:
        failures.append(f"the trainer did not end as it should ({code}); it said last:\n{said[-3000:]}")
    if left:
        failures.append(f"processes were left behind: {', '.join(left)}")
    return failures


def wait_until(condition: Callable[[], Any], timeout_s: float, what: str) -> None:
    """Poll until the condition is true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.1)


def _times(period_s: float, seconds: float) -> Iterator[float]:
    time_s = period_s
    while time_s <= seconds:
        yield time_s
        time_s += period_s


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _last_progress(trainer: Child) -> str:
    lines = [line for line in trainer.output.splitlines() if line.startswith("learning: ")]
    return lines[-1] if lines else "no step yet"


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("", 0))
        return [one.getsockname()[1] for one in sockets]


if __name__ == "__main__":
    main()
