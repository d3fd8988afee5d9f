"""A simulator that lost its cluster: whether it tries to come back, and how long. No node is started here."""

from __future__ import annotations

import inspect
import threading
import time
from typing import Any

import pytest
import ray
from processes import free_ports
from test_config import DEFAULTS

from remoterl import simulator
from remoterl.cluster.node import Ports
from remoterl.config import Address, make_config
from remoterl.errors import RemoteRLError
from remoterl.simulator import SimulatorRun


class Lost(SimulatorRun):
    """Was a member, and is none any more."""

    def _be_a_member(self, cluster: Any, timeout_s: float) -> bool:
        raise simulator._LostError("The node of simulator s ended by itself.")


def serve(rejoin_timeout_s: float) -> None:
    """Nobody listens at the hub's address."""
    config = make_config(**{**DEFAULTS, "role": "simulator", "rejoin_timeout_s": rejoin_timeout_s})
    hub = Address("gcs", "127.0.0.1", free_ports(1)[0])
    Lost(config)._serve(simulator._Cluster(hub, None, Ports()), 1.0)


class Late(SimulatorRun):
    """Ray gives its node up some times."""

    times = 0

    def _be_a_member(self, cluster: Any, timeout_s: float) -> bool:
        self.times -= 1
        if self.times >= 0:
            raise simulator._LateError("The current node timed out during startup.")
        return True


def test_a_node_that_is_slow_to_start_is_started_again_for_as_long_as_joining_may_take() -> None:
    assert simulator.NODE_IS_LATE in inspect.getsource(ray._private.node)
    late = Late(make_config(**{**DEFAULTS, "role": "simulator"}))
    late.times = 2
    cluster = simulator._Cluster(Address("gcs", "127.0.0.1", free_ports(1)[0]), None, Ports())
    assert late._serve(cluster, 5.0)
    late.times = 10**9
    with pytest.raises(RemoteRLError, match="timed out during startup"):
        late._serve(cluster, 0.1)


def test_it_does_not_try_to_come_back() -> None:
    with pytest.raises(RemoteRLError, match=r"ended by itself\. Start the simulator again\."):
        serve(0)


def test_it_tries_for_so_long() -> None:
    began = time.monotonic()
    with pytest.raises(RemoteRLError, match=r"did not come back within rejoin_timeout_s=1\.5"):
        serve(1.5)
    assert time.monotonic() - began >= 1.5


def test_a_hub_that_vanishes_while_it_is_asked_for_its_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """It answered a moment ago. What Ray raises then is no error of ours: it is tried again."""

    def vanished(address: str) -> None:
        raise ConnectionError(f"no more at {address}")

    monkeypatch.setattr("ray._raylet.GcsClient", vanished)
    monkeypatch.setattr(simulator.probe, "wait_for_hub", lambda *_: True)
    with pytest.raises(RemoteRLError, match="and then did not tell its versions: no more at 127"):
        simulator._check_versions(Address("gcs", "127.0.0.1", 6379))
    with pytest.raises(RemoteRLError, match=r"did not come back within rejoin_timeout_s=1\.5"):
        serve(1.5)


@pytest.mark.parametrize("address", ["a port where nobody listens", "auto"])
def test_it_can_be_stopped_while_it_looks_for_its_hub(
    address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(simulator.connection, "running_address", lambda: None)
    where = "auto" if address == "auto" else f"127.0.0.1:{free_ports(1)[0]}"
    config = make_config(**{**DEFAULTS, "role": "simulator", "address": where, "timeout_s": 60.0})
    run = SimulatorRun(config)
    threading.Timer(0.3, run.stop, [False]).start()
    began = time.monotonic()
    assert run.run()
    assert time.monotonic() - began < 30
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
