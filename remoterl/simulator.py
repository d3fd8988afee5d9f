"""A simulator's life: start a Ray node, offer its environments, show how it fares, come back if it is lost, leave.

Not connected to Ray itself: that is its attendant.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from remoterl._logging import logger
from remoterl.actors import registry
from remoterl.attendant import Attendant, AttendantEndedError
from remoterl.beside import is_installed
from remoterl.cluster import auth, connection, probe
from remoterl.cluster.node import Node, NodeFailedError, Ports
from remoterl.config import Address, SimulatorConfig, parse_address
from remoterl.errors import AuthenticationError, ConfigurationError, RemoteRLError, VersionMismatchError

WATCH_PERIOD_S = 0.5
REJOIN_ATTEMPT_S = 20.0
HUB_START_TIMEOUT_S = 60.0
OWN_PROCESSES = 2  # the `Simulator` actor and the attendant, which Ray gives a worker's port each
NODE_IS_LATE = "node timed out during startup"  # what Ray's `start` says where a raylet takes more than its 30 s
PRELOAD_VARIABLE = "RAY_preload_python_modules"  # Ray imports these in every worker process of a node


class SimulatorRun:
    """One `init(role="simulator")`: `run` blocks until `stop` is called or a signal arrives."""

    def __init__(self, config: SimulatorConfig) -> None:
        self.config = config
        self._stop = threading.Event()
        self._ended = threading.Event()
        self._thread: int | None = None

    def stop(self, wait: bool = True) -> None:
        """Ask the simulator to leave; from any thread. Waits until it has, unless called from `run` itself."""
        self._stop.set()
        if wait and threading.get_ident() != self._thread:  # a signal handler of the script runs in there
            self._ended.wait(60.0)

    def run(self) -> bool:
        """Join, serve, leave. False where the hub could not be reached within `timeout_s`."""
        self._thread = threading.get_ident()
        try:
            with self._signals():  # until it has left: a second Ctrl-C must not interrupt that
                return self._run()
        finally:
            self._ended.set()

    def _run(self) -> bool:
        config = self.config
        deadline = time.monotonic() + config.timeout_s
        hub = _hub_address(config, deadline, self._stop)
        if hub is _UNREACHABLE:
            return self._stop.is_set()  # told to leave while it looked for the hub
        api_key = probe.checked_key(hub, config.api_key) if hub is not None else config.api_key or auth.make_key()
        with ExitStack() as ending:
            ending.callback(auth.use_key(api_key))
            if hub is not None:
                _check_versions(hub)
                logger.info("Joining the hub at %s as simulator %s ...", hub, config.name)
                cluster = _Cluster(hub, api_key, Ports(rest=config.ports))
                return self._serve(cluster, max(1.0, deadline - time.monotonic()))
            # A node of its own, with this machine's CPUs: trials and learners find a place that is no simulator.
            hub_ports, own_ports = _halves(config.ports)
            hub_node = Node(
                name="hub",
                units=0,
                address=None,
                api_key=api_key,
                labels={},
                num_cpus=None,
                host=config.host,
                ports=hub_ports,
            )
            ending.callback(hub_node.stop)
            hub_node.start({})
            start_s = max(HUB_START_TIMEOUT_S, config.timeout_s)
            hub_address = self._wait_for(hub_node, start_s)
            if hub_address is None:
                return self._stop.is_set()
            cluster = _Cluster(parse_address(hub_address, "the hub's address"), api_key, own_ports, hub_node)
            return self._serve(cluster, start_s)

    def _serve(self, cluster: _Cluster, timeout_s: float) -> bool:
        """Be a member of the cluster until it is stopped, time and again if it has to be.

        Raises:
            RemoteRLError: it did not become one, or was lost for longer than `rejoin_timeout_s`.
        """
        if (room := cluster.ports.room() - OWN_PROCESSES) < self.config.max_env_runners:
            logger.warning(
                "The range of ports has room for %d env runners, not for max_env_runners=%d: Ray can't start more.",
                room,
                self.config.max_env_runners,
            )
        join_by = time.monotonic() + timeout_s
        back_by: float | None = None  # once it was lost
        while True:
            try:
                joined = self._be_a_member(cluster, timeout_s)
                if joined or self._stop.is_set() or back_by is None:
                    return joined or self._stop.is_set()
            except _LostError as lost:
                if cluster.own_hub is not None or self.config.rejoin_timeout_s == 0:
                    raise RemoteRLError(f"{lost} Start the simulator again.") from None
                back_by = time.monotonic() + self.config.rejoin_timeout_s
                logger.warning("%s Coming back for up to %.0f s ...", lost, self.config.rejoin_timeout_s)
            except (AuthenticationError, VersionMismatchError, ConfigurationError):
                raise
            except RemoteRLError as error:
                if back_by is None:
                    if not isinstance(error, _LateError) or (timeout_s := join_by - time.monotonic()) <= 0:
                        raise
                    logger.warning("Ray gave up a node that was slow to start; another one is started ...")
                    continue
                logger.debug("coming back did not work yet: %s", error)
            if not self._wait_for_hub(cluster, back_by):
                if self._stop.is_set():
                    return True
                raise RemoteRLError(
                    f"The hub at {cluster.hub} is lost, and did not come back within rejoin_timeout_s="
                    f"{self.config.rejoin_timeout_s:g}. Start the simulator again when it is back."
                )
            timeout_s = max(REJOIN_ATTEMPT_S, back_by - time.monotonic())

    def _wait_for_hub(self, cluster: _Cluster, deadline: float) -> bool:
        while not self._stop.wait(1.0) and time.monotonic() < deadline:
            if probe.wait_for_hub(cluster.hub, cluster.api_key, 1.0):
                try:
                    _check_versions(cluster.hub)
                    return True
                except VersionMismatchError:
                    raise
                except RemoteRLError as error:
                    logger.debug("the hub is on its way: %s", error)
        return False

    def _be_a_member(self, cluster: _Cluster, timeout_s: float) -> bool:
        """Join, serve until it is stopped, leave; False where it did not join.

        Raises:
            RemoteRLError: its node or its actor did not start.
            _LostError: it had joined, and then its node ended by itself.
        """
        config = self.config
        node = Node(
            name=config.name,
            units=config.max_env_runners,
            address=cluster.hub,
            api_key=cluster.api_key,
            labels=config.labels,
            num_cpus=0,
            host=config.host,
            ports=cluster.ports,
        )
        with ExitStack() as ending:
            ending.callback(node.stop)
            node.start(_worker_environment(node))
            attendant = Attendant(node.folder / "attendant.log", cluster.api_key)
            ending.callback(attendant.kill)
            gcs_address = self._wait_for(node, timeout_s, cluster.own_hub)
            if gcs_address is None:
                return False
            attendant.attend(gcs_address, node.temporary_folder, node.name, config.max_env_runners)
            self._watch(cluster, node, attendant, gcs_address)
            attendant.leave()
            return True

    def _wait_for(self, node: Node, timeout_s: float, own_hub: Node | None = None) -> str | None:
        """The cluster's address once the node is up; a hub of this simulator has to live for that."""
        end = time.monotonic() + timeout_s
        while not self._stop.is_set() and time.monotonic() < end:
            try:
                address = node.wait_until_up(0.2)
                for one in filter(None, [node, own_hub]):
                    one.require_running()
            except NodeFailedError as error:
                if self._stop.is_set():
                    return None
                is_late = NODE_IS_LATE in str(error) and (own_hub is None or own_hub.is_running())
                raise (_LateError if is_late else RemoteRLError)(
                    f"A Ray node of this simulator did not start. It said:\n{error}"
                ) from None
            if address is not None:
                return address
        if not self._stop.is_set():
            logger.error(
                "The simulator could not join the cluster within %.0f s. Ray said:\n%s", timeout_s, node.last_lines()
            )
        return None

    def _watch(self, cluster: _Cluster, node: Node, attendant: Attendant, gcs_address: str) -> None:
        """Tell how it fares until it is stopped."""
        is_up = False
        while not self._stop.is_set():
            try:
                report = attendant.report(WATCH_PERIOD_S)
                for one in filter(None, [node, cluster.own_hub]):
                    one.require_running()
            except (AttendantEndedError, NodeFailedError) as error:
                if self._stop.is_set():
                    return
                what = "node" if isinstance(error, NodeFailedError) else "connection to Ray"
                text = f"The {what} of simulator {node.name} ended by itself. It said:\n{error}\n"
                if is_up:
                    raise _LostError(text) from None
                raise RemoteRLError(text) from None
            if report is None:
                continue
            if "up" in report:
                is_up = True
                self._announce(cluster, node, gcs_address)
            elif "warning" in report:
                logger.warning("%s", report["warning"])
            else:
                logger.info(
                    "%s: %d of %d env runners in use, %d rows, %s steps/s",
                    node.name, report["in_use"], self.config.max_env_runners, report["rows"], f"{report['rate']:,}",
                )  # fmt: skip

    def _announce(self, cluster: _Cluster, node: Node, gcs_address: str) -> None:
        logger.info(
            "Simulator %s is up: %d env runners to give, hub %s. Ctrl-C stops it.",
            node.name,
            self.config.max_env_runners,
            gcs_address,
        )
        if cluster.own_hub is not None:
            host = gcs_address.rpartition(":")[0]
            logger.info(
                "It started the hub too. The others set REMOTERL_API_KEY to this cluster's key (`ray get-auth-token` "
                "shows it, where you gave none) and then: simulators REMOTERL_ADDRESS=%s, "
                "trainers REMOTERL_ADDRESS=ray://%s:%s. On this machine, jobs are submitted at http://127.0.0.1:%s.",
                gcs_address,
                host,
                cluster.own_hub.client_port,
                cluster.own_hub.dashboard_port,
            )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM stop the simulator; off the main thread (a notebook) only `shutdown()` does."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            signal.signal(number, lambda *_: self._stop.set())
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclass(frozen=True)
class _Cluster:
    """What a simulator joins. `own_hub`: the hub's node, where this simulator started it too."""

    hub: Address
    api_key: str | None
    ports: Ports
    own_hub: Node | None = None


class _LateError(RemoteRLError):
    """Ray has given up a node before it was up; on a busy machine the next one may have more luck."""


class _LostError(Exception):
    """The simulator was a member of the cluster, and is none any more."""


_UNREACHABLE = Address("local")  # a value that no simulator's address has


def _hub_address(config: SimulatorConfig, deadline: float, stopped: threading.Event) -> Address | None:
    """The hub's GCS address, None where a hub is to be started here, `_UNREACHABLE` (and why, unless `stopped`)."""
    address = config.address
    if address is None or address.kind == "auto":
        found = connection.running_address()
        if found is None and address is not None:
            found = connection.find_running(deadline, stopped)
            if found is None:
                if not stopped.is_set():
                    logger.error("No Ray runs on this machine. Give the hub's address, or none to start a hub here.")
                return _UNREACHABLE
        if found is None:
            logger.info("No address was given and no Ray runs on this machine: starting a hub here.")
            return None
        address = found
    if not probe.wait_for_hub(address, config.api_key, max(0.1, deadline - time.monotonic()), stopped):
        if not stopped.is_set():
            logger.error(
                "No hub answers at %s within %.0f s. Check that it runs, that host and port are right (6379 by "
                "default), and that no firewall is between.",
                address,
                config.timeout_s,
            )
        return _UNREACHABLE
    return _through_client(address, config) if address.kind == "client" else address


def _halves(ports: tuple[int, int] | None) -> tuple[Ports, Ports]:
    """The hub's node and the simulator's share the range that is open."""
    if ports is None:
        return Ports(), Ports()
    first, last = ports
    middle = (first + last) // 2
    return Ports(rest=(first, middle)), Ports(rest=(middle + 1, last))


def _through_client(address: Address, config: SimulatorConfig) -> Address:
    """A simulator joins at the hub's own port; a `ray://` address is asked where that is."""
    import ray

    opened = connection.connect(address, api_key=config.api_key, timeout_s=config.timeout_s, address_was_argument=True)
    if opened is None:
        return _UNREACHABLE
    try:
        text = ray.get_runtime_context().gcs_address
    finally:
        opened.close()
    host, _, port = text.rpartition(":")
    return Address("gcs", host.strip("[]"), int(port))


def _check_versions(hub: Address) -> None:
    """Refuse early what `ray start` would refuse in its log.

    Raises:
        VersionMismatchError: the hub runs another Ray or Python.
        RemoteRLError: it answers no more.
    """
    from ray._common.usage.usage_lib import get_cluster_metadata
    from ray._private.utils import check_version_info
    from ray._raylet import GcsClient

    try:
        metadata = get_cluster_metadata(GcsClient(address=hub.target))
    except Exception as error:  # of Ray's: it has more than one for this
        raise RemoteRLError(f"The hub at {hub} answered, and then did not tell its versions: {error}") from error
    if not metadata:
        return
    try:
        check_version_info(metadata, "this simulator")
    except RuntimeError as error:
        raise VersionMismatchError(f"{error}Install the same Ray and Python on both.") from None


def _worker_environment(node: Node) -> dict[str, str]:
    """What every worker process of the node finds in its environment: this process's environments and its code."""
    registry_file = node.folder / "environments.pickle"
    registry.save(registry_file)
    preload = os.environ.get(PRELOAD_VARIABLE)
    return {
        registry.REGISTRY_VARIABLE: str(registry_file),
        PRELOAD_VARIABLE: ",".join(filter(None, [preload, "remoterl.actors.preload"])),
        "PYTHONPATH": _python_path(),
    }


def _python_path() -> str:
    """The script's import path, so that workers can import the modules that lie beside it."""
    folders = [os.path.abspath(path or ".") for path in sys.path]
    folders = [folder for folder in folders if not is_installed(os.path.join(folder, ""))]
    inherited = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return os.pathsep.join(dict.fromkeys([*folders, *inherited]))
