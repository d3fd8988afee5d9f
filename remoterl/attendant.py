"""A simulator's half that is connected to Ray, in a process of its own.

It makes the `Simulator` actor, reports how the simulator fares, and drains it at the end. Ray ends a process that has
lost the hub for a minute; the one that called `init()` must outlive that, to come back.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from remoterl import errors
from remoterl.actors import directory
from remoterl.cluster.auth import key_environment
from remoterl.errors import ConfigurationError, RemoteRLError

STATUS_PERIOD_S = 10.0
LOOK_AGAIN_S = 8.0  # by then, whoever joined at the same time can be seen
DRAIN_S = 5.0  # env runners end after the step that they are at, mostly
LEAVE_S = 20.0
CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.stdin.readline()); "
    "from remoterl import attendant; attendant.attend()"
)


class AttendantEndedError(Exception):
    """The attendant ended by itself; the message is the end of what it printed."""


class Attendant:
    """The child process. It ends with this one, however that ends.

    Args:
        log: where what Ray prints in it goes.
        api_key: the cluster's key, handed over in the child's environment.
    """

    def __init__(self, log: Path, api_key: str | None) -> None:
        self._log = log
        reading, writing = os.pipe()
        with open(log, "wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-c", CHILD, str(writing)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **key_environment(api_key)},
                pass_fds=(writing,),
                start_new_session=True,
            )
        os.close(writing)
        self._reports: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, args=(reading,), name="remoterl-attendant", daemon=True).start()
        self._order([os.fspath(folder) for folder in sys.path])  # its imports take a second, in which the node starts

    def attend(self, gcs_address: str, temporary_folder: Path, name: str, units: int) -> None:
        """The node is up: connect through it, and make its `Simulator` actor."""
        self._order({"address": gcs_address, "folder": str(temporary_folder), "name": name, "units": units})

    def report(self, timeout_s: float) -> dict[str, Any] | None:
        """What it has to say: `up` (once), or `in_use`, `rows` and `rate`, or a `warning`. None after `timeout_s`.

        Raises:
            RemoteRLError: it could not make the simulator what it was asked for.
            AttendantEndedError: it ended by itself.
        """
        try:
            report = self._reports.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if report is None:
            raise AttendantEndedError(self._last_lines())
        if "error" in report:
            raise getattr(errors, report["error"])(report["message"])
        return report

    def leave(self) -> None:
        """Drain the simulator, take its actor down, and end. Idempotent."""
        with contextlib.suppress(OSError):
            self._order("leave")
        try:
            self._process.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()

    def _order(self, order: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()

    def _read(self, reading: int) -> None:
        with os.fdopen(reading) as lines:
            for line in lines:
                self._reports.put(json.loads(line))
        self._reports.put(None)

    def _last_lines(self, lines: int = 10) -> str:
        try:
            return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""


# ---- in the child ----------------------------------------------------------------------------------------------


def attend() -> None:
    """The child's main function."""
    import ray

    reports = os.fdopen(int(sys.argv[1]), "w", buffering=1)

    def report(**what: Any) -> None:
        reports.write(json.dumps(what) + "\n")

    order = json.loads(sys.stdin.readline() or "null")
    if order in (None, "leave"):
        return
    leaving = threading.Event()
    threading.Thread(target=_listen, args=(leaving,), daemon=True).start()
    # Without the node's own folder, a driver prefers the hub's raylet where both share a machine.
    ray.init(order["address"], _temp_dir=order["folder"], namespace=directory.NAMESPACE, log_to_driver=False)
    actor = None
    try:
        own = _own_node(order["name"])
        _refuse_a_taken_name(own)
        actor = directory.create_simulator_actor(own, detached=True)
        ray.get(actor.ping.remote(), timeout=60)
        _refuse_a_taken_name(own, smaller_id=True)
        report(up=True)
        actor = _report_status(report, leaving, own, actor, order["units"])
        _drain(own, actor)
    except RemoteRLError as error:
        report(error=type(error).__name__, message=str(error))
    finally:
        if actor is not None:
            ray.kill(actor)
        ray.shutdown()


def _listen(leaving: threading.Event) -> None:
    if not sys.stdin.readline():  # the simulator's own process is gone
        os._exit(1)
    leaving.set()


def _report_status(report: Any, leaving: threading.Event, own: dict[str, Any], actor: Any, units: int) -> Any:
    """Until the order to leave; returns the actor, which may be another by then."""
    import ray

    shown: tuple[int, int, int] | None = None
    look_again: float | None = time.monotonic() + LOOK_AGAIN_S
    last_steps, last_time = 0, time.monotonic()
    while not leaving.wait(STATUS_PERIOD_S if shown is not None else 1.0):
        try:
            info, free = ray.get([actor.describe.remote(), actor.free_units.remote()], timeout=STATUS_PERIOD_S)
        except ray.exceptions.RayActorError:
            report(warning="The simulator's own actor died; it is made again.")
            actor = directory.create_simulator_actor(own, detached=True)
            continue
        except ray.exceptions.RayError as error:
            report(warning=f"The simulator's own actor does not answer ({type(error).__name__}).")
            continue
        now = time.monotonic()
        if look_again is not None and now >= look_again:
            look_again = None
            _refuse_a_taken_name(own, smaller_id=True)
        rate = round((info.steps - last_steps) / (now - last_time))
        last_steps, last_time = info.steps, now
        in_use = units - int(free.get(own["NodeID"], 0))  # RLlib's among them
        rows = sum(runner.rows for runner in info.env_runners)
        if (in_use, rows, rate) != shown:
            shown = (in_use, rows, rate)
            report(in_use=in_use, rows=rows, rate=rate)
    return actor


def _drain(own: dict[str, Any], actor: Any) -> None:
    """No new rows come here; those that are here move now: their trainers see closed streams."""
    import ray
    from ray.core.generated import autoscaler_pb2

    try:
        ray.get(actor.drain.remote(), timeout=DRAIN_S)
        ray._raylet.GcsClient(address=ray.get_runtime_context().gcs_address).drain_node(
            own["NodeID"],
            autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
            "the simulator was stopped",
            int((time.time() + 10 * LEAVE_S) * 1000),
        )
        deadline = time.monotonic() + DRAIN_S
        while time.monotonic() < deadline:
            if not ray.get(actor.describe.remote(), timeout=DRAIN_S).env_runners:
                return
            time.sleep(0.1)
    except Exception as error:  # it leaves all the same
        print(f"while draining: {type(error).__name__}: {error}", flush=True)


def _own_node(name: str) -> dict[str, Any]:
    import ray

    own_id = ray.get_runtime_context().get_node_id()
    named = [node for node in directory.simulator_nodes() if node["Labels"].get(directory.NAME_LABEL) == name]
    for node in sorted(named, key=lambda node: node["NodeID"] != own_id):
        return node
    raise RemoteRLError(f"The node of simulator {name!r} is not in the cluster that this process is connected to.")


def _refuse_a_taken_name(own: dict[str, Any], smaller_id: bool = False) -> None:
    """`smaller_id`: only where the other node's is smaller. Of two that have come at one time, that one stays."""
    for simulator in directory.find_simulators(time.monotonic() + 3.0, create=False):
        is_other = simulator.node_id < own["NodeID"] if smaller_id else simulator.node_id != own["NodeID"]
        if simulator.name == own["Labels"][directory.NAME_LABEL] and is_other:
            raise ConfigurationError(
                f"A simulator named {simulator.name!r} is already in this cluster; give this one another name."
            )
