"""A simulator's life: start a Ray node, offer its environments, show how it fares, leave in order."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from remoterl._logging import logger
from remoterl.actors import directory, registry
from remoterl.cluster import auth, connection, probe
from remoterl.cluster.node import Node, NodeFailedError, Ports
from remoterl.config import Address, SimulatorConfig, parse_address
from remoterl.errors import ConfigurationError, RemoteRLError, VersionMismatchError
from remoterl.shipping import is_installed

STATUS_PERIOD_S = 10.0
HUB_START_TIMEOUT_S = 60.0
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
            with self._signals() as listen:  # until it has left: a second Ctrl-C must not interrupt that
                return self._run(listen)
        finally:
            self._ended.set()

    def _run(self, listen: Callable[[], None]) -> bool:
        config = self.config
        deadline = time.monotonic() + config.timeout_s
        hub = _hub_address(config, deadline)
        if hub is _UNREACHABLE:
            return False
        api_key = config.api_key if hub is not None else config.api_key or auth.make_key()
        with ExitStack() as ending:
            ending.callback(auth.use_key(api_key))
            hub_node = None
            if hub is None:
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
                hub_address = self._wait_for([hub_node], HUB_START_TIMEOUT_S)
                if hub_address is None:
                    return self._stop.is_set()
                hub = parse_address(hub_address, "the hub's address")
            else:
                own_ports = Ports(rest=config.ports)
                _check_versions(hub)
            node = Node(
                name=config.name,
                units=config.max_env_runners,
                address=hub,
                api_key=api_key,
                labels=config.labels,
                num_cpus=0,
                host=config.host,
                ports=own_ports,
            )
            ending.callback(node.stop)
            node.start(_worker_environment(node))
            timeout_s = HUB_START_TIMEOUT_S if hub_node else max(1.0, deadline - time.monotonic())
            gcs_address = self._wait_for([node, *filter(None, [hub_node])], timeout_s)
            if gcs_address is None:
                return self._stop.is_set()
            self._serve(node, hub_node, gcs_address, listen)
            return True

    def _wait_for(self, nodes: Sequence[Node], timeout_s: float) -> str | None:
        """The cluster's address once the first of these nodes is up; all of them have to live for that."""
        end = time.monotonic() + timeout_s
        while not self._stop.is_set() and time.monotonic() < end:
            try:
                address = nodes[0].wait_until_up(0.2)
                for node in nodes:
                    node.require_running()
            except NodeFailedError as error:
                if self._stop.is_set():
                    return None
                raise RemoteRLError(f"A Ray node of this simulator did not start. It said:\n{error}") from None
            if address is not None:
                return address
        if not self._stop.is_set():
            logger.error(
                "The simulator could not join the cluster within %.0f s. Ray said:\n%s",
                timeout_s,
                nodes[0].last_lines(),
            )
        return None

    def _serve(self, node: Node, hub_node: Node | None, gcs_address: str, listen: Callable[[], None]) -> None:
        import ray

        opened_here = not ray.is_initialized()
        if opened_here:
            # Without the node's own folder, a driver prefers the hub's raylet where both share a machine.
            ray.init(
                gcs_address,
                _temp_dir=str(node.temporary_folder),
                namespace=directory.NAMESPACE,
                log_to_driver=False,
            )
            listen()  # ray.init() took SIGTERM for itself
        actor = None
        try:
            own = _own_node(node.name)
            _refuse_a_taken_name(own)
            actor = directory.create_simulator_actor(own, detached=True)
            ray.get(actor.ping.remote(), timeout=60)
            self._announce(node, hub_node, gcs_address)
            self._watch([node, *filter(None, [hub_node])], own, actor)
        finally:
            _leave(actor, opened_here)

    def _announce(self, node: Node, hub_node: Node | None, gcs_address: str) -> None:
        logger.info(
            "Simulator %s is up: %d env runners to give, hub %s. Ctrl-C stops it.",
            node.name,
            self.config.max_env_runners,
            gcs_address,
        )
        if hub_node is not None:
            host = gcs_address.rpartition(":")[0]
            logger.info(
                "It started the hub too. The others set REMOTERL_API_KEY to this cluster's key (`ray get-auth-token` "
                "shows it, where you gave none) and then: simulators REMOTERL_ADDRESS=%s, "
                "trainers REMOTERL_ADDRESS=ray://%s:%s. On this machine, jobs are submitted at http://127.0.0.1:%s.",
                gcs_address,
                host,
                hub_node.client_port,
                hub_node.dashboard_port,
            )

    def _watch(self, nodes: Sequence[Node], own: dict[str, Any], actor: Any) -> None:
        import ray

        shown: tuple[int, int, int] | None = None
        last_steps, last_time = 0, time.monotonic()
        while not self._stop.wait(STATUS_PERIOD_S if shown is not None else 1.0):
            for node in nodes:
                if not node.is_running():
                    raise RemoteRLError(
                        f"The Ray node {node.name} of this simulator ended by itself; start the simulator again. "
                        f"It said:\n{node.last_lines()}"
                    )
            try:
                info, free = ray.get([actor.describe.remote(), actor.free_units.remote()], timeout=STATUS_PERIOD_S)
            except ray.exceptions.RayActorError:
                logger.warning("The simulator's own actor died; it is made again.")
                actor = directory.create_simulator_actor(own, detached=True)
                continue
            except ray.exceptions.RayError as error:
                logger.warning("The simulator's own actor does not answer (%s).", type(error).__name__)
                continue
            now = time.monotonic()
            rate = round((info.steps - last_steps) / (now - last_time))
            last_steps, last_time = info.steps, now
            in_use = self.config.max_env_runners - int(free.get(own["NodeID"], 0))  # RLlib's among them
            rows = sum(runner.rows for runner in info.env_runners)
            if (in_use, rows, rate) != shown:
                shown = (in_use, rows, rate)
                logger.info(
                    "%s: %d of %d env runners in use, %d rows, %s steps/s",
                    nodes[0].name, in_use, self.config.max_env_runners, rows, f"{rate:,}",
                )  # fmt: skip

    @contextmanager
    def _signals(self) -> Iterator[Callable[[], None]]:
        """SIGINT and SIGTERM stop the simulator; off the main thread (a notebook) only `shutdown()` does.

        Yields a function that takes both signals again.
        """
        if threading.current_thread() is not threading.main_thread():
            yield lambda: None
            return

        def listen() -> None:
            for number in before:
                signal.signal(number, lambda *_: self._stop.set())

        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        listen()
        try:
            yield listen
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


_UNREACHABLE = Address("local")  # a value that no simulator's address has


def _hub_address(config: SimulatorConfig, deadline: float) -> Address | None:
    """The hub's GCS address, None where a hub is to be started here, `_UNREACHABLE`."""
    address = config.address
    if address is None or address.kind == "auto":
        found = connection.running_address()
        if found is None and address is not None:
            found = connection.find_running(deadline)
            if found is None:
                logger.error("No Ray runs on this machine. Give the hub's address, or none to start a hub here.")
                return _UNREACHABLE
        if found is None:
            logger.info("No address was given and no Ray runs on this machine: starting a hub here.")
            return None
        address = found
    if not probe.wait_for_hub(address, config.api_key, max(0.1, deadline - time.monotonic())):
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

    if ray.is_initialized():
        text = ray.get_runtime_context().gcs_address
    else:
        opened = connection.connect(address, api_key=config.api_key, timeout_s=config.timeout_s)
        if opened is None:
            return _UNREACHABLE
        try:
            text = ray.get_runtime_context().gcs_address
        finally:
            opened.close()
    host, _, port = text.rpartition(":")
    return Address("gcs", host.strip("[]"), int(port))


def _check_versions(hub: Address) -> None:
    """Refuse early what `ray start` would refuse in its log."""
    from ray._common.usage.usage_lib import get_cluster_metadata
    from ray._private.utils import check_version_info
    from ray._raylet import GcsClient

    metadata = get_cluster_metadata(GcsClient(address=hub.target))
    if not metadata:
        return
    try:
        check_version_info(metadata, "this simulator")
    except RuntimeError as error:
        raise VersionMismatchError(f"{error}Install the same Ray and Python on both.") from None


def _own_node(name: str) -> dict[str, Any]:
    import ray

    own_id = ray.get_runtime_context().get_node_id()
    named = [node for node in directory.simulator_nodes() if node["Labels"].get(directory.NAME_LABEL) == name]
    for node in sorted(named, key=lambda node: node["NodeID"] != own_id):
        return node
    raise RemoteRLError(f"The node of simulator {name!r} is not in the cluster that this process is connected to.")


def _refuse_a_taken_name(own: dict[str, Any]) -> None:
    for simulator in directory.find_simulators(time.monotonic() + 3.0, create=False):
        if simulator.name == own["Labels"][directory.NAME_LABEL] and simulator.node_id != own["NodeID"]:
            raise ConfigurationError(
                f"A simulator named {simulator.name!r} is already in this cluster; give this one another name."
            )


def _leave(actor: Any, disconnect: bool) -> None:
    import ray

    steps: list[Callable[[], Any]] = [lambda: ray.kill(actor)] if actor is not None else []
    if disconnect:
        steps.append(ray.shutdown)
    for step in steps:
        try:
            step()
        except Exception as error:
            logger.debug("while leaving: %s", error)


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
