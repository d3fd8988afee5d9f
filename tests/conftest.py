"""Shared clusters and sessions. Starting Ray takes seconds, so they live as long as the tests allow."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from processes import (
    A_MINUTE_S,
    NO_HANDLER_OF_TUNES,
    NO_METRICS,
    ONE_THREAD,
    Cluster,
    Way,
    clean_environment,
    fork_children,
    wait_until,
)
from rllib_fixtures import node_names, rllib_cluster, rllib_session  # noqa: F401
from streams import server  # noqa: F401

import remoterl
from remoterl._process import current_session

FAILED = pytest.StashKey[bool]()

os.environ.update(ONE_THREAD)  # before a test's module imports PyTorch

# A shell's background job ignores SIGINT, and so would every process that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Unit tests first, since the cluster that the others share would idle; last, and together, who share a session."""

    def turn(item: pytest.Item) -> tuple[int, str]:
        if item.path.parent.name == "unit":
            return 0, ""
        chosen = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        session = next((f"{name} {chosen[name]}" for name in ("trainer", "rllib_session") if name in chosen), "")
        return 2 if session else 1, session

    items.sort(key=turn)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    """With REMOTERL_TESTS_SKIP_NOTHING=1, what would be skipped for want of a tool fails."""
    report = (yield).get_result()
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("REMOTERL_TESTS_SKIP_NOTHING") == "1":
        report.outcome = "failed"
        report.longrepr = f"not to be skipped (REMOTERL_TESTS_SKIP_NOTHING): {report.longrepr[2]}"


@pytest.fixture(scope="session", autouse=True)
def _no_cluster_in_the_environment() -> Iterator[None]:
    before, clean = dict(os.environ), clean_environment()
    os.environ.clear()
    os.environ.update({**clean, NO_METRICS: "0", NO_HANDLER_OF_TUNES: "1"})
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True)
def _no_session_of_a_test_that_failed(request: pytest.FixtureRequest) -> Iterator[None]:
    """It would fail those that follow."""
    had_one = current_session() is not None
    yield
    if request.node.stash.get(FAILED, False) and not had_one:
        remoterl.shutdown()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two simulators (`alpha`, the hub too, and `beta`) with eight units each, without torch and SB3."""
    cluster = Cluster()
    cluster.add("beta", "--label", "zone=b")
    yield cluster
    left = cluster.stop()
    assert left == [], f"left running: {left}"
    for simulator in cluster.simulators.values():
        assert simulator.process.returncode == 0


@pytest.fixture(scope="session")
def locally() -> Iterator[Callable[..., Any]]:
    """Call a function in a process that remoterl never touched; the same call gives the result that it gave before."""
    results: dict[bytes, Any] = {}
    clean = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=clean, initializer=fork_children) as pool:

        def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            key = pickle.dumps((function, args, kwargs))
            if key not in results:
                results[key] = pool.submit(function, *args, **kwargs).result(120)
            return copy.deepcopy(results[key])

        yield call


# Each connection and each channel once; `test_parity` takes the other two pairs as well. With REMOTERL_TESTS_WAYS=other
# these two are what everything else takes.
OTHER_WAYS = [Way("client", "actor"), Way("driver", "stream")]
WAYS = [Way("client", "stream"), Way("driver", "actor")]
if os.environ.get("REMOTERL_TESTS_WAYS") == "other":
    WAYS, OTHER_WAYS = OTHER_WAYS, WAYS

# For what neither connection nor channel decides.
in_cluster = pytest.mark.parametrize("trainer", [Way("driver", "stream")], ids=str, indirect=True, scope="session")


@pytest.fixture(scope="session")
def end_of_session() -> Iterator[ExitStack]:
    """What ends the session that tests share; closed before there is another one."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="session", params=WAYS, ids=str)
def trainer(request: pytest.FixtureRequest, cluster: Cluster, end_of_session: ExitStack) -> Iterator[Way]:
    """A session of two env runners, one on each simulator, by each connection and channel; gives which.

    Env runners may be killed: others take their place. Who wants other arguments has a `session` of his own.
    """
    end_of_session.close()
    end_of_session.enter_context(session(request.param, cluster))
    yield request.param
    end_of_session.close()


@contextmanager
def session(way: Way, cluster: Cluster, **arguments: Any) -> Iterator[None]:
    """A session that leaves nothing behind; `arguments` are `init`'s."""
    before = patched_places()
    try:
        way.open(cluster, **arguments)
        yield
    finally:
        remoterl.shutdown()
    assert patched_places() == before
    assert_free(cluster)


def patched_places() -> dict[str, Any]:
    """The very objects that sit where patches go."""
    import ray
    from gymnasium.envs import registration
    from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
    from stable_baselines3.common import env_util
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

    return {
        "gymnasium.make": gymnasium.make,
        "make code": registration.make.__code__,
        "gymnasium.make_vec": gymnasium.make_vec,
        "make_vec code": registration.make_vec.__code__,
        "SyncVectorEnv": (gymnasium.vector.SyncVectorEnv, SyncVectorEnv.__init__, dict(vars(SyncVectorEnv))),
        "AsyncVectorEnv": (
            gymnasium.vector.AsyncVectorEnv,
            AsyncVectorEnv.__init__,
            dict(vars(AsyncVectorEnv)),
        ),
        "DummyVecEnv": (DummyVecEnv, DummyVecEnv.__init__, dict(vars(DummyVecEnv))),
        "SubprocVecEnv": (SubprocVecEnv, SubprocVecEnv.__init__, dict(vars(SubprocVecEnv))),
        "make_vec_env": (env_util.make_vec_env, env_util.make_vec_env.__code__),
        "ray": (ray.init, ray.shutdown, ray._private.worker.shutdown),
        "meta_path": list(sys.meta_path),
        **({} if "ray.rllib.algorithms.algorithm" not in sys.modules else _rllibs_places()),
    }


def _rllibs_places() -> dict[str, Any]:
    import ray.cloudpickle
    from ray import tune
    from ray.rllib.algorithms.algorithm import Algorithm
    from ray.rllib.env.env_runner_group import EnvRunnerGroup
    from ray.rllib.utils.actor_manager import FaultTolerantActorManager

    return {
        "Algorithm": dict(vars(Algorithm)),
        "EnvRunnerGroup": dict(vars(EnvRunnerGroup)),
        "FaultTolerantActorManager": dict(vars(FaultTolerantActorManager)),
        "Tuner": dict(vars(tune.Tuner)),
        "registry": dict(vars(tune.registry._Registry)),
        "run": (tune.run, tune.tune.run, tune.impl.tuner_internal.run),
        "by value": ray.cloudpickle.list_registry_pickle_by_value(),
    }


def assert_free(cluster: Cluster, timeout_s: float = A_MINUTE_S) -> None:
    """All units of all simulators are free again, and no env runner's process is left."""
    wait_until(lambda: env_runner_processes(cluster) == [], timeout_s, "env runners gone")


def env_runner_processes(cluster: Cluster) -> list[int]:
    """Pids of all env runners on the simulators, asked of the operating system."""
    pids = []
    for simulator in cluster.simulators.values():
        for process in simulator.tree():
            try:
                if process.name().startswith("ray::EnvRunner") or "ray::EnvRunner" in " ".join(process.cmdline()):
                    pids.append(process.pid)
            except Exception:  # it ended while we looked
                continue
    return pids
