"""A trainer's connection to Ray: through Ray Client, as an in-cluster driver, private, or one already open."""

from __future__ import annotations

import ipaddress
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

from remoterl._forks import after_fork_in_child
from remoterl._logging import logger
from remoterl.actors.directory import RESOURCE
from remoterl.cluster import auth, node, probe
from remoterl.config import Address, parse_address
from remoterl.errors import ConfigurationError, RemoteRLError, VersionMismatchError

Kind = Literal["client", "driver", "local", "existing"]
# How long Ray waits for a lost hub before it ends an in-cluster process: long enough to save a model.
HUB_PATIENCE_VARIABLE, HUB_PATIENCE_S = "RAY_gcs_rpc_server_reconnect_timeout_s", 3600


@dataclass
class Connection:
    """An open Ray connection. `close` ends it, unless the script had opened it itself.

    `context` is what `ray.init()` returned (or would have). `hub`: where it can be asked whether it lives.
    """

    kind: Kind
    description: str
    context: Any
    _undo: Callable[[], None]
    hub: Address | None = None

    def break_off(self) -> None:
        """The hub is lost: whoever waits for Ray Client in another thread hears of it, as `ConnectionError`.

        By itself it would wait for minutes where the link is cut. (Ray's private names: see `worker.close` there.)
        """
        from ray.util.client import ray as client

        if self.hub is None or self.hub.kind != "client" or not client.is_connected():
            return
        worker = client.get_context().client_worker
        worker._in_shutdown = True
        if worker.channel is not None:
            worker.channel.close()

    def close(self) -> None:
        """Disconnect (or leave the script's own connection open). Idempotent."""
        undo, self._undo = self._undo, lambda: None
        undo()


def connect(
    address: Address | None,
    *,
    api_key: str | None,
    timeout_s: float,
    runtime_env: Mapping[str, Any] | None = None,
    address_was_argument: bool = False,
    local_units: int = 1,
) -> Connection | None:
    """Connect this process to the cluster.

    Args:
        address: None looks for a Ray that runs on this machine.
        local_units: how many `env_runner` units a private cluster (`local`) gets.

    Returns:
        None where the hub can't be reached within `timeout_s`; one log line says what to check.

    Raises:
        AuthenticationError, VersionMismatchError, ConfigurationError: what no retry mends.
        RemoteRLError: this process is a fork of one that was connected.
    """
    if _parent_was_connected:
        raise RemoteRLError(
            "This process is a fork of one that is connected to Ray, whose connection it can't use. Start it by "
            "multiprocessing.get_context('spawn'), or connect in it alone."
        )
    open_connection = _existing(address if address_was_argument else None)
    if open_connection is not None:
        if runtime_env:
            logger.warning("runtime_env is left out: the Ray connection was open before remoterl.init().")
        return open_connection
    if address is not None and address.kind == "local":
        return _start_private(local_units, runtime_env)
    from ray.util.debug import log_once

    deadline = time.monotonic() + timeout_s
    if address is None or address.kind == "auto":
        found = find_running(deadline)
        if found is None:
            logger.error(
                "No hub: no address was given and no Ray runs on this machine. Pass address='ray://HOST:10001' "
                "or set REMOTERL_ADDRESS; start a hub with `remoterl simulate` on some machine."
            )
            return None
        address = found
    if not probe.wait_for_hub(address, api_key, max(0.1, deadline - time.monotonic())):
        logger.error(
            "No hub answers at %s within %.0f s. Check that it runs, that host and port are right (by default "
            "10001 for ray:// addresses, 6379 for others), and that no firewall is between.",
            address,
            timeout_s,
        )
        return None
    undo_key = auth.use_key(probe.checked_key(address, api_key))
    try:
        with _patient_with_the_hub():
            context = _ray_init_twice(str(address), runtime_env)
    except ConnectionError as error:
        undo_key()
        logger.error("The hub at %s answered, but Ray could not connect: %s", address, _last_line(error))
        return None
    except BaseException:
        undo_key()
        raise
    kind: Kind = "client" if address.kind == "client" else "driver"
    if kind == "client":
        # Its warning that many megabytes were sent in calls is for tasks that should be batched; ours are.
        log_once("client_communication_overhead_warning")

    def close() -> None:
        _ray_shutdown()
        undo_key()

    return Connection(kind, str(address), context, close, address)


_parent_was_connected = False


def _after_fork_in_child() -> None:
    """The threads of the parent's connection are not here: whoever used it would wait for ever."""
    global _parent_was_connected
    worker, client = sys.modules.get("ray._private.worker"), sys.modules.get("ray.util.client")
    with suppress(Exception):  # half imported by another thread, perhaps
        in_cluster = worker is not None and worker.global_worker.connected
        _parent_was_connected |= bool(in_cluster or (client is not None and client.ray.is_connected()))


after_fork_in_child(_after_fork_in_child)


def find_running(deadline: float, stopped: threading.Event = probe.NEVER) -> Address | None:
    """The hub of a Ray that runs on this machine, by Ray's own rules; looked for until `deadline`, or `stopped`."""
    said = False
    while True:
        address, left_s = running_address(), deadline - time.monotonic()
        if address is not None or left_s <= 0:
            return address
        if not said and left_s > 1:
            said = True
            logger.info("Waiting for a Ray on this machine, for %.0f s at most ...", left_s)
        if stopped.wait(probe.RETRY_PERIOD_S):
            return None


def running_address() -> Address | None:
    """The address that the last `ray start` on this machine left, if a hub still answers there."""
    from ray._private.services import find_bootstrap_address

    text = find_bootstrap_address(None)
    if not text:
        return None
    host, _, port = text.rpartition(":")
    address = Address("gcs", host.strip("[]"), int(port))
    return None if probe.ask(address, None, timeout_s=1.0) is probe.Answer.UNREACHABLE else address


def _existing(asked: Address | None) -> Connection | None:
    import ray
    from ray.util.client import ray as client

    if not ray.is_initialized():
        return None
    if client.is_connected():
        open_kind, open_target = "client", client.get_context().client_worker._conn_str
        context: Any = _client_context()
    else:
        open_kind, open_target = "gcs", ray.get_runtime_context().gcs_address
        context = _driver_context()
    here = f"ray://{open_target}" if open_kind == "client" else open_target
    if asked is not None and asked.kind != "auto" and not _same_place(asked, open_kind, open_target):
        raise ConfigurationError(
            f"Ray is already connected to {here}, but address={str(asked)!r} asks for another cluster. "
            "Leave the address out to use the open connection, or call ray.shutdown() first."
        )
    return Connection("existing", here, context, lambda: None, parse_address(here, "Ray's address"))


def _same_place(asked: Address, open_kind: str, open_target: str) -> bool:
    """Is it the address of the open connection, under whatever name of the host?"""
    host, _, port = open_target.rpartition(":")
    return asked.kind == open_kind and asked.port == int(port) and _same_host(asked.host, host.strip("[]"))


def is_elsewhere(asked: Address, open_connection: Connection) -> bool:
    """Is it another cluster's than the one that this process is connected to, as far as an address says it?

    A hub has one address for trainers outside of the cluster and one for those inside: then only the host counts.
    """
    hub = open_connection.hub
    if hub is None or asked.kind == "auto":
        return False
    if asked.kind == hub.kind:
        return not _same_place(asked, hub.kind, hub.target)
    return asked.kind == "local" or not _same_host(asked.host, hub.host)


def _same_host(asked: str, host: str) -> bool:
    try:
        ours, theirs = ({info[4][0] for info in socket.getaddrinfo(name, None)} for name in (asked, host))
    except OSError:
        return asked == host
    local = any(ipaddress.ip_address(str(ip).split("%")[0]).is_loopback for ip in ours)
    return bool(ours & theirs) or (local and bool(theirs & _own_addresses()))


def _own_addresses() -> set[Any]:
    from ray.util import get_node_ip_address

    return {"127.0.0.1", "::1", get_node_ip_address()}


def _driver_context() -> Any:
    """What `ray.init(ignore_reinit_error=True)` returns; that sets Ray's handler of SIGTERM before it looks."""
    import ray

    worker: Any = ray._private.worker
    node_id = worker.global_worker.core_worker.get_current_node_id().hex()
    return worker.RayContext(dict(worker._global_node.address_info, node_id=node_id))


def _client_context() -> Any:
    from ray.client_builder import ClientContext
    from ray.util.client import ray as client

    info = client.get_context().client_worker.connection_info()
    return ClientContext(
        dashboard_url=client._get_dashboard_url(),
        python_version=info["python_version"],
        ray_version=info["ray_version"],
        ray_commit=info["ray_commit"],
        _num_clients=info["num_clients"],
        _context_to_restore=client.get_context(),
    )


def _start_private(units: int, runtime_env: Mapping[str, Any] | None) -> Connection:
    folder = tempfile.mkdtemp(prefix="remoterl-", dir=node._short_temporary_folder())
    undo_key = auth.use_key(auth.random_key())

    def close() -> None:
        _ray_shutdown()
        undo_key()
        shutil.rmtree(folder, ignore_errors=True)

    try:
        context = _ray_init(
            "local",
            runtime_env,
            resources={RESOURCE: units},
            include_dashboard=False,
            _temp_dir=folder,
            _node_name="local",
            object_store_memory=node.OBJECT_STORE_BYTES,
            _system_config={"worker_niceness": 0},  # as simulators have it
        )
    except BaseException:
        close()
        raise
    return Connection("local", "a private cluster on this machine", context, close)


@contextmanager
def _patient_with_the_hub() -> Iterator[None]:
    """Ray reads the variable when it connects; sub-processes of the script need not see it."""
    before = os.environ.get(HUB_PATIENCE_VARIABLE)
    os.environ[HUB_PATIENCE_VARIABLE] = before or str(HUB_PATIENCE_S)
    try:
        yield
    finally:
        if before is None:
            del os.environ[HUB_PATIENCE_VARIABLE]


def _ray_init_twice(address: str, runtime_env: Mapping[str, Any] | None) -> Any:
    """Ray Client's server for a new client now and then dies at its start (a fork beside gRPC's threads)."""
    try:
        return _ray_init(address, runtime_env)
    except ConnectionError as error:
        if "Starting Ray client server failed" not in str(error):
            raise
        logger.warning("Ray Client's server did not start; trying once more.")
        return _ray_init(address, runtime_env)


def _ray_init(address: str, runtime_env: Mapping[str, Any] | None, **options: Any) -> Any:
    import ray

    if runtime_env:
        options["runtime_env"] = dict(runtime_env)
    try:
        with _own_sigterm_handler(), _no_client_mode_after_failure():
            return ray.init(address, **options)
    except RuntimeError as error:
        if "version mismatch" in str(error).lower():
            raise VersionMismatchError(
                f"This process and the cluster at {address} differ. {error}Install the same Ray and Python on both."
            ) from error
        if isinstance(error, RemoteRLError):
            raise
        raise RemoteRLError(f"Ray could not connect to {address}: {error}") from error
    except ValueError as error:
        raise ConfigurationError(f"Ray could not connect to {address}: {error}") from error


@contextmanager
def _no_client_mode_after_failure() -> Iterator[None]:
    """A failed connection leaves Ray in client mode, and every later call would go to a client that is not there."""
    import ray
    from ray._private.client_mode_hook import _explicitly_disable_client_mode

    try:
        yield
    except BaseException:
        if not ray.util.client.ray.is_connected():
            _explicitly_disable_client_mode()
        raise


@contextmanager
def _own_sigterm_handler() -> Iterator[None]:
    """Ray puts a handler of its own, which aborts, in place of a script's, which may save its model there."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before not in (None, signal.SIG_DFL) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def no_sigterm_handler_of_ray() -> None:
    """In a forked child, which is nothing of Ray's: it ends by SIGTERM, as `Process.terminate()` and pools expect."""
    handler = signal.getsignal(signal.SIGTERM)
    if callable(handler) and getattr(handler, "__module__", "").startswith("ray."):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _ray_shutdown() -> None:
    import ray

    ray.shutdown()


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
