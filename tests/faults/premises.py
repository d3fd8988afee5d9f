"""A cluster over several hosts: a hub, three simulators, and a desk at which trainers sit. Hosts are namespaces."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from typing import Any

import psutil
from machines import HostProcess, Network
from processes import KEY, PATIENCE_S, ROOT, SIMULATOR_PYTHON, Way, wait_until

UNITS = 6
SCRIPTS = ROOT / "tests" / "faults"
# As a site sets them that wants to hear of a cut link within ten seconds; Ray's defaults take a minute.
HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
RAYS_KEY = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": KEY}


class Premises:
    """Who runs where. Simulators are `near`, `far` and `gone`; the desk is a Ray node without units, for drivers."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.hub_host, near, far, gone, self.desk_host = network.hosts
        self.simulator_hosts = {"near": near, "far": far, "gone": gone}
        self.simulators: dict[str, HostProcess] = {}
        self._others: dict[str, HostProcess] = {}
        self._trainers: dict[str, HostProcess] = {}

    def open(self) -> None:
        self.start_hub()
        for name in self.simulator_hosts:
            self.start_simulator(name)
        for simulator in self.simulators.values():
            simulator.wait_for("is up")
        self.start_desk()  # not beside them: Ray gives a node 30 s to start, on a busy machine too

    # ---- starting --------------------------------------------------------------------------------------------

    def start_hub(self) -> None:
        command = (sys.executable, "-m", "remoterl", "hub", "--block", "--host", self.hub_host)
        hub = self._others["hub"] = self.network.start(self.hub_host, *command, **HEALTH)
        hub.wait_for("The hub is up")
        watch = (sys.executable, str(SCRIPTS / "watch.py"), self.gcs_address)
        self._others["watch"] = self.network.start(self.hub_host, *watch, **RAYS_KEY)

    def start_simulator(self, name: str) -> None:
        host = self.simulator_hosts[name]
        command = [str(SIMULATOR_PYTHON), "-m", "remoterl", "simulate", "--name", name, "--host", host]
        command += ["--address", self.gcs_address, "--max-env-runners", str(UNITS), "--timeout", str(PATIENCE_S)]
        self.simulators[name] = self.network.start(host, *command, **HEALTH)

    def start_desk(self) -> None:
        """A driver needs a Ray node on its host; one that was cut off ends by itself and is started anew."""
        if "desk" in self._others:
            self._others.pop("desk").end()
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--address", self.gcs_address, "--block"]
        command += ["--node-ip-address", self.desk_host, "--num-cpus", "0", "--disable-usage-stats"]
        command += ["--min-worker-port", "0", "--max-worker-port", "0", "--dashboard-agent-listen-port", "0"]
        self._others["desk"] = self.network.start(self.desk_host, *command, **HEALTH, **RAYS_KEY)
        self._others["desk"].wait_for("Ray runtime started")

    def start_trainer(self, script: str, way: Way, env_runners: int, host: str) -> HostProcess:
        """Run one of the scripts beside this file on a host."""
        address = {"client": f"ray://{self.hub_host}:10001", "driver": self.gcs_address}[way.connection]
        command = (sys.executable, str(SCRIPTS / f"{script}.py"), address, way.channel, str(env_runners))
        tests = ROOT / "tests"
        trainer = self.network.start(host, *command, cwd=tests, PYTHONPATH=str(tests))
        self._trainers[f"{script} {way} on {host}"] = trainer
        return trainer

    @property
    def gcs_address(self) -> str:
        return f"{self.hub_host}:6379"

    # ---- looking ---------------------------------------------------------------------------------------------

    def watch(self) -> dict[str, Any]:
        """What the hub has seen last: `simulators`, `free` units, `at`."""
        seen = events(self._others["watch"])
        return seen[-1] if seen else {"simulators": [], "free": -1, "at": 0.0}

    def until_seen(self, simulators: list[str], timeout_s: float, free: int | None = None) -> float:
        """Wait until the hub sees just these simulators (and so many free units); when it did, monotonic."""

        def sees() -> float:
            seen = self.watch()
            return seen["at"] if seen["simulators"] == simulators and free in (None, seen["free"]) else 0.0

        return self.eventually(sees, timeout_s, f"the hub sees {simulators}, {free} free units")

    def env_runners(self, name: str) -> set[int]:
        """Pids of all env runners on a simulator's host, as that host counts them."""
        found = set()
        for process in self.network.processes(self.simulator_hosts[name]):
            try:
                if "ray::EnvRunner" in " ".join(process.cmdline()):
                    found.add(_pid_there(process))
            except (OSError, psutil.Error):  # it ended while we looked
                continue
        return found

    def eventually(self, condition: Callable[[], Any], timeout_s: float, what: str) -> Any:
        """`wait_until`, with what every process said last where it fails."""
        try:
            return wait_until(condition, timeout_s, what)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.last_words()}") from None

    def event(self, trainer: HostProcess, name: str, timeout_s: float, after: float = 0.0) -> dict[str, Any]:
        """The first event of this name that a trainer tells of after a monotonic time; waits for it."""

        def told() -> dict[str, Any] | None:
            return next((one for one in events(trainer) if one["event"] == name and one["at"] > after), None)

        return self.eventually(told, timeout_s, f"{name!r} from {self._name(trainer)}")

    def last_words(self, lines: int = 25) -> str:
        everyone = {**self._others, **self.simulators, **self._trainers}
        return "\n".join(
            f"---- {name}:\n" + "\n".join(process.output.splitlines()[-lines:])
            for name, process in everyone.items()
            if process.log.exists()
        )

    def _name(self, trainer: HostProcess) -> str:
        return next((name for name, one in self._trainers.items() if one is trainer), "a trainer")

    # ---- ending ----------------------------------------------------------------------------------------------

    def close(self) -> dict[str, list[str]]:
        """End everything in order; what is left on each host, by its command lines."""
        for trainer in self._trainers.values():
            if trainer.process.poll() is None:
                trainer.end(signal.SIGKILL)
        codes = {name: simulator.end(signal.SIGTERM, 60) for name, simulator in self.simulators.items()}
        assert set(codes.values()) <= {0}, f"exit codes of simulators: {codes}"
        for name in ("desk", "watch", "hub"):
            self._others[name].end(signal.SIGKILL if name == "watch" else signal.SIGINT, 60)
        return {host: self.left(host) for host in self.network.hosts if self.left(host)}

    def left(self, host: str, timeout_s: float = 20.0) -> list[str]:
        """Command lines of what still runs on a host after so long."""
        psutil.wait_procs(self.network.processes(host), timeout=timeout_s)
        return [" ".join(process.cmdline())[:200] for process in self.network.processes(host)]


def events(process: HostProcess) -> list[dict[str, Any]]:
    """What one of the scripts has told so far."""
    return [json.loads(line) for line in process.output.splitlines() if line.startswith('{"event"') and line[-1] == "}"]


def _pid_there(process: psutil.Process) -> int:
    with open(f"/proc/{process.pid}/status") as status:
        (line,) = (line for line in status if line.startswith("NSpid:"))
    return int(line.split()[-1])
