"""Real simulator processes for the tests, and what is left of them."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
SIMULATOR_PYTHON = ROOT / ".venv-simulator" / "bin" / "python"
KEY = "a-key-for-tests"
PATIENCE_S = 120.0  # for what has a limit of its own, on a busy machine; what is tested of limits sets its own
A_MINUTE_S = 60.0  # in which what a trainer held has to be free, however it ended
# Ray's own processes look less often for new log files, at what the machine and the nodes do, and for what is to be
# started: two idle clusters take most of a slow core otherwise. No worker is started before there is work for it.
QUIET_RAY = {
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",
    "LOG_NAME_UPDATE_INTERVAL_S": "2",
    "REPORTER_UPDATE_INTERVAL_MS": "30000",
    "RAY_DASHBOARD_AGENT_LOOP_MONITOR_INTERVAL_S": "5",
    "METRICS_RECORD_INTERVAL_S": "60",
    "NODE_STATS_UPDATE_INTERVAL_SECONDS": "60",
    "AUTOSCALER_UPDATE_INTERVAL_S": "30",  # a cluster that has an autoscaler sets its own
    "RAY_prestart_worker_first_driver": "0",
}
# Of each cluster that a process connected to in turn but the first, Ray 2.60 goes on to export the process's metrics,
# in vain, and one that ends just then crashes. So the tests' own process has it off, alone.
NO_METRICS = "RAY_enable_metrics_collection"
# Tune takes a Ctrl-C for itself: it ends its run early, as if nothing had failed, and the tests go on. Off there, too.
NO_HANDLER_OF_TUNES = "TUNE_DISABLE_SIGINT_HANDLER"
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # many processes on few cores
NOTHING_REGISTERED = str(Path(tempfile.gettempdir(), "remoterl-tests-no-such-folder"))


def wait_until(condition: Callable[[], Any], timeout_s: float = PATIENCE_S, what: str = "") -> Any:
    """Poll until the condition is true; returns its value."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what or condition}")
        time.sleep(0.2)
    return value


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Print how many seconds a part of a test took; pytest's -s shows it."""
    start = time.monotonic()
    yield
    print(f"\nSTAGE {name}: {time.monotonic() - start:.1f} s", flush=True)


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without what would point at a cluster, with the tests' key and a quiet Ray."""
    hidden = ("REMOTERL_ADDRESS", "RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_MODE", NO_METRICS, NO_HANDLER_OF_TUNES)
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    own = {"REMOTERL_API_KEY": KEY, "REMOTERL_HOME": NOTHING_REGISTERED}
    return {**environment, **QUIET_RAY, **ONE_THREAD, **own, **more}


def kill(processes: Iterable[psutil.Process]) -> None:
    """SIGKILL to each; some end with those before them."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def fork_children() -> None:
    """Whatever this process starts by multiprocessing is a fork of it; one that was spawned would spawn them."""
    multiprocessing.set_start_method("fork", force=True)


def inheriting(mark: str) -> list[str]:
    """Command lines of processes with TESTED_BY=MARK in their environment: what a script of the tests has started."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TESTED_BY") == mark:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, all different."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def accepts(port: int) -> bool:
    """Does somebody on this machine take a connection on this port?"""
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except OSError:
        return False
    return True


class Process:
    """A child process whose output is kept in a file. `environ`: its whole environment."""

    def __init__(self, *command: str, environ: Mapping[str, str] | None = None, **environment: str) -> None:
        self.log = Path(tempfile.mkstemp(suffix=".log")[1])
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command,
                env=clean_environment(**environment) if environ is None else dict(environ),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=tempfile.gettempdir(),
            )

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, text: str, timeout_s: float = PATIENCE_S) -> None:
        def there() -> bool:
            if text in self.output:
                return True
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.output}"
            return False

        wait_until(there, timeout_s, f"{text!r} in\n{self.output}")

    def tree(self) -> list[psutil.Process]:
        """The process and all its descendants."""
        try:
            parent = psutil.Process(self.process.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def end(self, number: int = signal.SIGINT, timeout_s: float = PATIENCE_S) -> int:
        """Signal it, wait for its end, and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(timeout_s)
        self.log.unlink(missing_ok=True)
        return code


def start_simulator(
    *options: str, python: Path = SIMULATOR_PYTHON, environ: Mapping[str, str] | None = None, **environment: str
) -> Process:
    """`remoterl simulate` with these options; `environ` and `environment` are `Process`'s."""
    assert python.exists(), "run `make test`: it makes the virtual environment of the simulators"
    command = [str(python), "-m", "remoterl", "simulate", "--timeout", str(PATIENCE_S), *options]
    return Process(*command, environ=environ, **environment)


class Cluster:
    """A hub that is a simulator too, and more simulators, each a process of its own.

    Args:
        python: what the simulators run on; by default one that has neither torch nor Stable-Baselines3.
        units: env runners of each simulator.
    """

    def __init__(self, python: Path = SIMULATOR_PYTHON, units: int = 8) -> None:
        self._python = python
        self._units = units
        self.folder = tempfile.mkdtemp(prefix="rrl-", dir="/tmp")
        self.simulators: dict[str, Process] = {}
        self.add("alpha")
        self.gcs_address = Path(self.folder, "ray", "ray_current_cluster").read_text().strip()
        log = self.simulators["alpha"].output
        self.client_address = "ray://" + log.split("trainers REMOTERL_ADDRESS=ray://")[1].split()[0].rstrip(".")
        self.dashboard = log.split("jobs are submitted at ")[1].split()[0].rstrip(".")

    def add(self, name: str, *options: str) -> Process:
        address = ["--address", self.gcs_address] if self.simulators else []
        registered = [word for module in ("only_here", "ale_py") for word in ("--register", module)]
        units = ["--max-env-runners", str(self._units)]
        path = {"RAY_TMPDIR": self.folder, "PYTHONPATH": str(ROOT / "tests" / "simulator_only")}
        process = start_simulator("--name", name, *address, *registered, *units, *options, python=self._python, **path)
        self.simulators[name] = process
        process.wait_for("is up")
        return process

    @contextmanager
    def joined(self, name: str, *options: str) -> Iterator[Process]:
        """One more simulator, for a while; it ends in order."""
        process = self.add(name, *options)
        try:
            yield process
        finally:
            assert process.end() == 0
            del self.simulators[name]

    def address(self, kind: str) -> str:
        return {"client": self.client_address, "driver": self.gcs_address, "local": "local"}[kind]

    def stop(self) -> list[psutil.Process]:
        """Ctrl-C to every simulator; returns the processes that are still there afterwards."""
        trees = [process for simulator in self.simulators.values() for process in simulator.tree()]
        for simulator in reversed(self.simulators.values()):
            simulator.end()
        _, alive = psutil.wait_procs(trees, timeout=PATIENCE_S)
        shutil.rmtree(self.folder, ignore_errors=True)
        return alive


def run_python(
    script: str | Path, *arguments: str, timeout_s: float = 180.0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a trainer's script to its end in the environment of the tests."""
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        env=clean_environment(**environment),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        cwd=tempfile.gettempdir(),
    )


IN_TURN = """
import json, runpy, sys
for sys.argv in json.loads(sys.argv[1]):
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_in_one_process(*lines: Sequence[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run scripts with their arguments, one after the other: importing PyTorch is most of what a small one costs."""
    return run_python("-c", IN_TURN, json.dumps(lines), timeout_s=280.0, **environment)


@dataclass(frozen=True)
class Way:
    """How a session of the tests is connected: to Ray, and to its env runners."""

    connection: str
    channel: str

    def __str__(self) -> str:
        return f"{self.connection}-{self.channel}"

    def open(self, cluster: Cluster, **arguments: Any) -> None:
        """Two env runners, one on each simulator; `arguments` are `init`'s."""
        import remoterl
        from remoterl._process import current_session

        address = cluster.address(self.connection)
        arguments = {"num_env_runners": 2, "timeout_s": PATIENCE_S, **arguments}
        assert remoterl.init(KEY, address=address, channel=self.channel, **arguments)
        assert {runner.channel.name for runner in current_session().runners} == {self.channel}
