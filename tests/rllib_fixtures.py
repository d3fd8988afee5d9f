"""Fixtures of the RLlib tests: a cluster whose simulators can run RLlib's env runners, and sessions on it.

RLlib and torch are on these simulators; each has four units.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from processes import A_MINUTE_S, KEY, Cluster, wait_until

import remoterl

# For what does not differ by connection.
in_cluster_only = pytest.mark.parametrize("rllib_session", ["driver"], indirect=True, scope="session")


@pytest.fixture(scope="session")
def rllib_cluster() -> Iterator[Cluster]:
    with warnings.catch_warnings():  # of an environment that it makes when it is imported, as every look-up does
        warnings.simplefilter("ignore")
        import ray.rllib.algorithms.dreamerv3  # noqa: F401
    cluster = Cluster(python=Path(sys.executable), units=4)
    cluster.add("beta", "--label", "zone=b")
    yield cluster
    left = cluster.stop()
    assert left == [], f"left running: {left}"


@pytest.fixture(scope="session", params=["driver", "client"])
def rllib_session(request: pytest.FixtureRequest, rllib_cluster: Cluster, end_of_session: ExitStack) -> Iterator[str]:
    """A trainer's session, in-cluster and through Ray Client; gives which."""
    end_of_session.close()

    @end_of_session.callback
    def end() -> None:
        remoterl.shutdown()
        assert_no_rllib_left(rllib_cluster)

    assert remoterl.init(KEY, address=rllib_cluster.address(request.param), num_env_runners=2)
    yield request.param
    end_of_session.close()


@pytest.fixture
def node_names() -> Callable[[Any], list[str]]:
    """Names for node ids."""
    import ray

    def names(ids: Any) -> list[str]:
        by_id = {node["NodeID"]: node["NodeName"] for node in ray.nodes()}
        return sorted(by_id[node_id] for node_id in ids)

    return names


def free_units() -> int:
    """As a session sees them before it builds."""
    from remoterl import capacity
    from remoterl.actors import directory

    return sum(capacity.free_units(directory.find_simulators(), 1e12).values())


def rllib_processes(cluster: Cluster) -> list[str]:
    """RLlib's env runners on the simulators and at the hub, and ours, asked of the operating system."""
    names = []
    for simulator in cluster.simulators.values():
        for process in simulator.tree():
            try:
                title = " ".join(process.cmdline())
            except Exception:  # it ended while we looked
                continue
            if "EnvRunner" in title or "RolloutWorker" in title:
                names.append(title)
    return names


def assert_no_rllib_left(cluster: Cluster) -> None:
    wait_until(lambda: rllib_processes(cluster) == [], A_MINUTE_S, f"env runners gone: {rllib_processes(cluster)}")
