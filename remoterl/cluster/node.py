"""One Ray node as a child of this process: started by `ray start --block`, ended by a signal to exactly it."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from remoterl.actors.directory import NAME_LABEL, RESOURCE
from remoterl.cluster.auth import key_environment
from remoterl.config import DEFAULT_CLIENT_PORT, DEFAULT_DASHBOARD_PORT, DEFAULT_GCS_PORT, Address
from remoterl.errors import ConfigurationError

STOP_TIMEOUT_S = 15.0
# Simulators move small messages; Ray's default of 30 % of the machine is for data that they don't have.
OBJECT_STORE_BYTES = 1_000_000_000
# Ray Client forks a server for each client from a process full of gRPC's threads. With gRPC's own fork handlers on,
# that server died at its start in 3 of 12 first connections, and 0 of 12 with them off (Ray 2.60, gRPC 1.85).
FORK_SAFE = {"GRPC_ENABLE_FORK_SUPPORT": "0"}
# Ray starts workers with a niceness of 15, behind everything else that the machine does. To step is what a simulator
# is for, and its trainer waits for every one of them.
NOT_NICE = {"RAY_worker_niceness": "0"}
# Ray looks for new log files ten times a second while there are few: up to 4 % of a core. This makes it twice a second.
RARE_LOOKS = {"RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0"}
# What environments started (game engines, mostly) ends with their env runner, also where that was killed or crashed.
END_CHILDREN = {"RAY_process_group_cleanup_enabled": "1"}
# A machine that vanished without a word is missed after 39 s (three times 3 s and 10 s). Ray's five times take longer
# than the minute in which what a dead trainer held has to be free.
MISSED_WITHIN_A_MINUTE = {"RAY_health_check_failure_threshold": "3"}
# Everything but worker processes that listens on a node, each with an option of `ray start`.
SERVICES = (
    "node-manager-port",
    "object-manager-port",
    "runtime-env-agent-port",
    "metrics-export-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
)


@dataclass(frozen=True)
class Ports:
    """Which ports a node listens on; None: the usual one if it is free, else any (a hub's), any (the others).

    `rest`: first and last of a range that holds every other port of the node, for a firewall: its six services,
    then a port for each worker process.
    """

    gcs: int | None = None
    client: int | None = None
    dashboard: int | None = None
    rest: tuple[int, int] | None = None

    def options(self) -> list[str]:
        """`ray start`'s options for all ports but a hub's own three."""
        if self.rest is None:
            return ["--min-worker-port", "0", "--max-worker-port", "0", "--dashboard-agent-listen-port", "0"]
        first, last = self.rest
        options = [word for name, port in self._services().items() for word in (f"--{name}", str(port))]
        return [*options, "--min-worker-port", str(first + len(SERVICES)), "--max-worker-port", str(last)]

    def room(self) -> float:
        """How many worker processes find a port; infinity where any will do."""
        return math.inf if self.rest is None else self.rest[1] - self.rest[0] + 1 - len(SERVICES)

    def refuse_taken(self) -> None:
        """Say at once what Ray would say half a minute later, in its log, or not at all.

        Raises:
            ConfigurationError: another process listens on one of these ports.
        """
        own = {"port": self.gcs, "client-port": self.client, "dashboard-port": self.dashboard}
        for option, port in own.items():
            if port is not None and not _is_free(port):
                raise ConfigurationError(
                    f"Port {port} is taken on this machine. End what uses it, or give another --{option}."
                )
        for service, port in self._services().items():
            if not _is_free(port):
                raise ConfigurationError(
                    f"Port {port} is taken on this machine; of --ports, it is for Ray's {service}. End what uses it, "
                    "or give another range, best below those that the system hands out "
                    "(Linux: /proc/sys/net/ipv4/ip_local_port_range)."
                )

    def _services(self) -> dict[str, int]:
        return {} if self.rest is None else dict(zip(SERVICES, range(self.rest[0], self.rest[1]), strict=False))


class NodeFailedError(Exception):
    """`ray start` ended before the node was up; the message is the end of what it printed."""


class Node:
    """A Ray node that this process started. Linux.

    Args:
        name: the node's name and the value of its label `remoterl-name`.
        units: how many units of `env_runner` it offers; 0 for a hub, which is no simulator.
        address: the hub's GCS address; None starts a hub (a head node) here.
        api_key: the cluster's key, handed over in the child's environment.
        labels: further labels of the node.
        num_cpus: CPUs it offers to Ray; None lets Ray count them.
        host: the address of this machine by which the others reach it; None lets Ray find it.
        dashboard_host: hub: where its dashboard listens.
        ports: where a firewall wants them fixed.
    """

    def __init__(
        self,
        *,
        name: str,
        units: int,
        address: Address | None,
        api_key: str | None,
        labels: Mapping[str, str],
        num_cpus: int | None,
        host: str | None = None,
        dashboard_host: str | None = None,
        ports: Ports | None = None,
    ) -> None:
        self.name = name
        self.folder = Path(tempfile.mkdtemp(prefix="remoterl-", dir=_short_temporary_folder()))
        self._units = units
        self._hub = address
        self._api_key = api_key
        self._labels = {NAME_LABEL: name, **labels} if units else dict(labels)
        self._num_cpus = num_cpus
        self._host = host
        self._dashboard_host = dashboard_host
        self._ports = ports or Ports()
        self._process: subprocess.Popen[bytes] | None = None
        self._claims: list[socket.socket] = []
        self._gcs_port: int | None = None
        self.client_port: int | None = None
        self.dashboard_port: int | None = None

    @property
    def is_hub(self) -> bool:
        """Was a head node started?"""
        return self._hub is None

    @property
    def temporary_folder(self) -> Path:
        """Ray's own folder for this node."""
        return self.folder / "ray" if not self.is_hub else Path(_rays_default_folder())

    def start(self, environment: Mapping[str, str]) -> None:
        """Spawn `ray start`; returns at once.

        Call it from a thread that lives as long as the node is to live: the node ends with that thread.

        Raises:
            ConfigurationError: a port that it was given is taken, or this is not Linux.
        """
        if sys.platform != "linux":
            raise ConfigurationError(f"Simulators and hubs need Linux, this is {sys.platform}. A trainer can run here.")
        self._ports.refuse_taken()
        arguments = [
            "--node-name", self.name,
            *self._ports.options(),
            "--disable-usage-stats",
            "--block",
        ]  # fmt: skip
        if self._labels:
            arguments += ["--labels", ",".join(f"{key}={value}" for key, value in self._labels.items())]
        if self._units:
            arguments += ["--resources", json.dumps({RESOURCE: self._units})]
            arguments += ["--object-store-memory", str(OBJECT_STORE_BYTES)]
        if self._num_cpus is not None:
            arguments += ["--num-cpus", str(self._num_cpus)]
        if self._host is not None:
            arguments += ["--node-ip-address", self._host]
        if self._hub is None:
            self.client_port = self._ports.client or self._claim_port(DEFAULT_CLIENT_PORT)
            self.dashboard_port = self._ports.dashboard or self._claim_port(DEFAULT_DASHBOARD_PORT)
            self._gcs_port = self._ports.gcs or self._claim_port(DEFAULT_GCS_PORT)
            if self._dashboard_host is not None:
                arguments += ["--dashboard-host", self._dashboard_host]
            arguments += [
                "--head",
                "--port", str(self._gcs_port),
                "--ray-client-server-port", str(self.client_port),
                "--include-dashboard", "true",  # jobs are submitted there
                "--dashboard-port", str(self.dashboard_port),
            ]  # fmt: skip
            if self._marked_address() is not None:  # of one that had this port before
                self._marker.unlink(missing_ok=True)
        else:
            arguments += ["--address", self._hub.target, "--temp-dir", str(self.temporary_folder)]
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("_run_node.py")), str(os.getpid()), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={
                    **FORK_SAFE,
                    **NOT_NICE,
                    **RARE_LOOKS,
                    **(END_CHILDREN if self._units else {}),
                    **(MISSED_WITHIN_A_MINUTE if self.is_hub else {}),
                    **_own_python_first(),
                    **environment,
                    **key_environment(self._api_key),
                },
                start_new_session=True,
            )

    def wait_until_up(self, timeout_s: float) -> str | None:
        """The cluster's GCS address once the node has joined, None after `timeout_s`.

        Raises:
            NodeFailedError: `ray start` ended.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self.require_running()
            if (address := self._marked_address()) is not None:
                return address
            time.sleep(0.05)
        return None

    def require_running(self) -> None:
        """Raise NodeFailedError where `ray start` ended."""
        if not self.is_running():
            raise NodeFailedError(self.last_lines())

    def is_running(self) -> bool:
        """Is the `ray start` process alive?"""
        return self._process is not None and self._process.poll() is None

    def last_lines(self, lines: int = 15) -> str:
        """The end of what `ray start` printed."""
        try:
            return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    def stop(self) -> None:
        """End exactly this node and all its processes, and remove its folder. Idempotent."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            address = self._marked_address() if self.is_hub else None
            everyone = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S)
            for one in everyone:  # where the hub can't be reached, Ray's agents would wait for it
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            try:
                process.wait(STOP_TIMEOUT_S)  # it ends the others, without `ray start`
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if address is not None and self._marked_address() == address:
                self._marker.unlink(missing_ok=True)
        while self._claims:
            self._claims.pop().close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _claim_port(self, preferred: int) -> int:
        """This port, or another where it is taken; no second hub that starts on this machine chooses it too.

        Ray listens on it seconds later. Until then, a name that only one process may have stands for it.
        """
        port = preferred
        while True:
            claim = socket.socket(socket.AF_UNIX)
            try:
                claim.bind(f"\0remoterl-port-{port}")
                if _is_free(port):
                    self._claims.append(claim)
                    return port
            except OSError:
                pass
            claim.close()
            with socket.socket() as candidate:
                candidate.bind(("", 0))
                port = candidate.getsockname()[1]

    @property
    def _log(self) -> Path:
        return self.folder / "ray-start.log"

    @property
    def _marker(self) -> Path:
        # `ray start` writes the cluster's address here as its last act; `ray.init()` without an address reads it.
        return self.temporary_folder / "ray_current_cluster"

    def _marked_address(self) -> str | None:
        """What stands in that file, which a machine's hubs share: None where it is another hub's, or nothing."""
        try:
            address = self._marker.read_text().strip()
        except OSError:
            return None
        is_own = not self.is_hub or address.rpartition(":")[2] == str(self._gcs_port)
        return address if address and is_own else None


def _own_python_first() -> dict[str, str]:
    """The environment with this Python's folder first on the path: a job's `python train.py` means this Python."""
    folders = [os.path.dirname(sys.executable), os.environ.get("PATH") or os.defpath]
    return {**os.environ, "PATH": os.pathsep.join(folders)}


def _rays_default_folder() -> str:
    from ray._common.utils import get_default_ray_temp_dir

    return get_default_ray_temp_dir()


def _short_temporary_folder() -> str | None:
    """Ray's socket paths may not pass 107 bytes, and it adds about 70 to the folder it is given."""
    folder = tempfile.gettempdir()
    return folder if len(folder) <= 20 else "/tmp"


def _is_free(port: int) -> bool:
    with socket.socket() as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind(("", port))
        except OSError:
            return False
    return True
