"""A hub's life: a Ray head node that hosts no env runners, in the foreground or in the background.

One hub a user and machine. What runs is remembered in a file of the user's, so that `stop` ends exactly that.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from remoterl import registration
from remoterl.cluster import auth
from remoterl.cluster.node import Node, NodeFailedError, Ports
from remoterl.config import find_api_key
from remoterl.errors import ConfigurationError, RemoteRLError

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class RunningHub:
    """A hub of this user's on this machine."""

    pid: int
    started: int  # when its process began, in the kernel's ticks: a pid alone may be another's by now
    address: str
    client_address: str
    dashboard: str
    key_hint: str  # where its key can be copied from; never the key

    def lives(self) -> bool:
        """Is it the same process still?"""
        state, started = _stat(self.pid)
        return state not in ("", "Z") and started == self.started

    def instructions(self) -> str:
        """What to paste on a simulator and on a trainer."""
        return (
            f"The hub is up at {self.address}, its dashboard at {self.dashboard}.\n\n"
            f"On a simulator:  REMOTERL_ADDRESS={self.address} remoterl simulate\n"
            f"On a trainer:    REMOTERL_ADDRESS={self.client_address} python train.py\n\n"
            f"Both need this cluster's key in REMOTERL_API_KEY (or once: remoterl register). {self.key_hint}"
        )


def running() -> RunningHub | None:
    """This user's hub on this machine, if one runs."""
    try:
        hub = RunningHub(**json.loads(_state_path().read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return hub if hub.lives() else None


def run(
    *,
    host: str | None,
    ports: Ports,
    dashboard_host: str | None,
    num_cpus: int | None,
    announce: Callable[[RunningHub], None],
) -> None:
    """Start the hub and block until SIGINT or SIGTERM; then it leaves nothing behind. Main thread only.

    Raises:
        ConfigurationError: a hub of this user's runs here already, or a port is taken.
        RemoteRLError: Ray did not start, or ended by itself.
    """
    refuse_what_cannot_start(ports)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    given = find_api_key(None)
    node = Node(
        name="hub",
        units=0,
        address=None,
        api_key=given or auth.make_key(),
        labels={},
        num_cpus=num_cpus,
        host=host,
        dashboard_host=dashboard_host,
        ports=ports,
    )
    try:
        node.start({})
        address = _wait_for(node, stop)
        if address is None:
            return
        hub = RunningHub(
            pid=os.getpid(),
            started=_stat(os.getpid())[1],
            address=address,
            client_address=f"ray://{address.rpartition(':')[0]}:{node.client_port}",
            dashboard=f"http://{_shown_host(dashboard_host, address)}:{node.dashboard_port}",
            key_hint=_key_hint(),
        )
        registration.write_private(_state_path(), json.dumps(asdict(hub)))
        announce(hub)
        while not stop.wait(1.0):
            if not node.is_running():
                raise RemoteRLError(f"The hub's Ray node ended by itself. It said:\n{node.last_lines()}")
    finally:
        node.stop()
        mine = _recorded_pid() == os.getpid()
        if mine:
            _state_path().unlink(missing_ok=True)


def start(options: Sequence[str]) -> RunningHub:
    """Start `remoterl hub --block` with these options as a process of its own, and wait until it is up.

    Raises:
        RemoteRLError: it ended, or is not up within a minute; the message holds what it said.
    """
    log = _state_path().with_suffix(".log")
    registration.write_private(log, "")
    with open(log, "ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "remoterl", "hub", "--block", *options],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_TIMEOUT_S
    with ExitStack() as ending:  # where it is late, or this is interrupted
        ending.callback(process.wait)
        ending.callback(process.terminate)
        while process.poll() is None and time.monotonic() < deadline:
            hub = running()
            if hub is not None and hub.pid == process.pid:
                ending.pop_all()
                return hub
            time.sleep(0.1)
        ended = process.poll() is not None
    said = log.read_text(errors="replace").strip() or "(nothing)"
    if not ended:
        raise RemoteRLError(f"The hub was not up after {START_TIMEOUT_S:.0f} s, and is ended. It said:\n{said}")
    raise RemoteRLError(f"The hub did not start. It said:\n{said}")


def stop() -> RunningHub | None:
    """End this user's hub on this machine and wait until it is gone; None where none runs."""
    hub = running()
    if hub is None:
        return None
    process = psutil.Process(hub.pid)
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except psutil.TimeoutExpired:
        process.kill()  # its Ray node ends with it
        process.wait(STOP_TIMEOUT_S)
        _state_path().unlink(missing_ok=True)
    return hub


def refuse_what_cannot_start(ports: Ports) -> None:
    """Say at once what Ray would say after a while, in its log.

    Raises:
        ConfigurationError: a hub of this user's runs here already, or a port is taken.
    """
    hub = running()
    if hub is not None:
        raise ConfigurationError(f"A hub of yours runs on this machine, at {hub.address}. End it: remoterl hub stop.")
    ports.refuse_taken()


def _wait_for(node: Node, stop: threading.Event) -> str | None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not stop.is_set():
        try:
            address = node.wait_until_up(0.2)
        except NodeFailedError as error:
            raise RemoteRLError(f"The hub's Ray node did not start. It said:\n{error}") from None
        if address is not None:
            return address
        if time.monotonic() > deadline:
            raise RemoteRLError(f"The hub's Ray node is not up after {START_TIMEOUT_S:.0f} s:\n{node.last_lines()}")
    return None


def _key_hint() -> str:
    if os.environ.get("REMOTERL_API_KEY"):
        return "It is the value of REMOTERL_API_KEY here."
    return "To copy it: `ray get-auth-token` on this machine shows it."


def _shown_host(dashboard_host: str | None, address: str) -> str:
    if dashboard_host in ("0.0.0.0", "::"):
        return address.rpartition(":")[0]
    return dashboard_host or "127.0.0.1"


def _stat(pid: int) -> tuple[str, int]:
    """A process's state and when it began, in ticks since boot, as no change of the clock moves it; "" for none.

    Source: proc_pid_stat(5), fields 3 and 22.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "", 0
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[19])


def _state_path() -> Path:
    """A home folder may be shared by several machines."""
    return registration.folder() / f"hub-{socket.gethostname()}.json"


def _recorded_pid() -> int | None:
    try:
        return int(json.loads(_state_path().read_text())["pid"])
    except (OSError, ValueError, KeyError):
        return None
