"""Sessions and simulators begin and end; each end leaves nothing behind."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import pytest
from commands import Call, run_in_turn
from conftest import assert_free, env_runner_processes, patched_places
from processes import (
    KEY,
    PATIENCE_S,
    ROOT,
    SIMULATOR_PYTHON,
    Process,
    run_python,
    start_simulator,
    wait_until,
)

import remoterl
from remoterl._protocol import spoken
from remoterl.errors import (
    AlreadyInitializedError,
    ConfigurationError,
    UnknownEnvironmentError,
)

KINDS = ["client", "driver"]


def own_children(cluster) -> set[psutil.Process]:
    """Processes that this one started, but for the cluster's."""
    theirs = {process for simulator in cluster.simulators.values() for process in simulator.tree()}
    return set(psutil.Process().children(recursive=True)) - theirs


def own_variables() -> dict[str, str]:
    """Those that remoterl touches; Ray sets two harmless ones of its own."""
    return {name: value for name, value in os.environ.items() if name.startswith(("REMOTERL", "RAY_AUTH"))}


def memories() -> int:
    """Descriptors of memory that this process shares with env runners."""
    return sum("memfd:remoterl" in os.path.realpath(f"/proc/self/fd/{one}") for one in os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("kind", [*KINDS, "local"])
def test_everything_is_as_before_after_shutdown(cluster, kind: str) -> None:
    from gymnasium import make as imported_earlier

    before, variables, children = patched_places(), own_variables(), own_children(cluster)
    assert not remoterl.is_initialized()
    assert remoterl.init(KEY, address=cluster.address(kind), num_env_runners=2)
    assert remoterl.init(KEY, address=cluster.address(kind), num_env_runners=2)  # the same again is harmless
    assert remoterl.is_initialized()
    with pytest.raises(AlreadyInitializedError):
        remoterl.init(KEY, address=cluster.address(kind), num_env_runners=3)
    with pytest.raises(AlreadyInitializedError):
        remoterl.init(KEY, role="simulator")
    env = imported_earlier("CartPole-v1")
    assert type(env).__name__ == "RemoteEnv"
    assert memories() == 1
    remoterl.shutdown()
    remoterl.shutdown()
    assert not remoterl.is_initialized()
    assert memories() == 0
    with pytest.raises(gym.error.ClosedEnvironmentError):
        env.reset()
    assert patched_places() == before
    assert own_variables() == variables
    assert imported_earlier is gym.make and type(gym.make("CartPole-v1")).__name__ == "TimeLimit"
    assert_free(cluster)
    _, alive = psutil.wait_procs(own_children(cluster) - children, timeout=PATIENCE_S)
    assert alive == []


def test_a_scripts_own_handler_of_sigterm_stays(cluster, tmp_path: Path) -> None:
    """Schedulers send it before they take a machine away."""
    script = tmp_path / "trainer.py"
    script.write_text(
        "import signal, sys, time, gymnasium as gym, remoterl\n"
        "def save(*_):\n"
        "    print('saved after', env.step(0)[1], flush=True)\n"
        "    sys.exit(7)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        f"assert remoterl.init(address={cluster.gcs_address!r}, num_env_runners=1)\n"
        "env = gym.make('CartPole-v1')\n"
        "env.reset()\n"
        "print('ready', flush=True)\n"
        "time.sleep(120)\n"
    )
    trainer = Process(sys.executable, str(script))
    trainer.wait_for("ready")
    trainer.process.terminate()
    assert trainer.process.wait(60) == 7 and "saved after 1.0" in trainer.output, trainer.output
    assert_free(cluster)


def test_ray_shutdown_ends_the_session(cluster, caplog: pytest.LogCaptureFixture) -> None:
    import ray

    before = patched_places()
    assert remoterl.init(KEY, address=cluster.client_address, num_env_runners=1)
    ray.init()  # a script's own bare call must not fail
    ray.init(ignore_reinit_error=True)
    assert "no effect" not in caplog.text
    ray.init(runtime_env={"env_vars": {"TOKEN": "x"}}, num_cpus=2)
    assert "its num_cpus, runtime_env have no effect" in caplog.text
    ray.shutdown()
    assert "ray.shutdown() has ended remoterl's session" in caplog.text
    assert not remoterl.is_initialized() and not ray.is_initialized()
    assert patched_places() == before
    assert_free(cluster)


@pytest.mark.parametrize("kind", KINDS)
def test_an_open_connection_is_used_and_left_open(
    cluster, kind: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from remoterl.cluster.auth import use_key

    undo = use_key(KEY)
    try:
        ray.init(cluster.address(kind), log_to_driver=False)
        other = cluster.address("driver" if kind == "client" else "client")
        with pytest.raises(ConfigurationError, match="already connected"):
            remoterl.init(KEY, address=other)
        rays_handler = signal.signal(signal.SIGTERM, own_handler := lambda *_: None)
        monkeypatch.setenv("REMOTERL_ADDRESS", "192.0.2.1:6379")
        assert remoterl.init(KEY, num_env_runners=1)
        assert signal.signal(signal.SIGTERM, rays_handler) is own_handler
        assert "already, so the hub at 192.0.2.1:6379" in caplog.text
        ray.init()
        env = gym.make("CartPole-v1")
        env.reset()
        remoterl.shutdown()
        assert ray.is_initialized() and ray.nodes()
        assert_free(cluster)
    finally:
        ray.shutdown()
        undo()


def test_an_exception_frees_env_runners_and_another_gymnasium_is_said(cluster, tmp_path: Path) -> None:
    """Other ends: every example exits, test_scripts has Ctrl-C, test_links and test_capacity SIGKILL."""
    script = tmp_path / "trainer.py"
    script.write_text(
        "import gymnasium as gym\n"
        "gym.__version__ = '1.0.0'\n"
        "import remoterl\n"
        f"assert remoterl.init(address={cluster.gcs_address!r}, num_env_runners=2)\n"
        "env = gym.make_vec('CartPole-v1', num_envs=4, vectorization_mode='sync')\n"
        "env.reset()\n"
        "raise ValueError('the script failed')\n"
    )
    done = run_python(script)
    assert done.returncode == 1 and "ValueError: the script failed" in done.stderr, done.stderr
    for simulator in ("alpha", "beta"):
        assert done.stderr.count(f"on the simulator {simulator} and 1.0.0 here: what it returns may differ") == 1
    assert_free(cluster)


def test_fewer_units_than_asked(cluster, caplog: pytest.LogCaptureFixture) -> None:
    others = remoterl.reserve(14, address=cluster.gcs_address, api_key=KEY, ttl_s=600.0)
    with caplog.at_level(logging.WARNING, "remoterl"):
        assert remoterl.init(KEY, address=cluster.gcs_address, num_workers=2, num_env_runners=2)
    assert "Going on with 2 of the 4 env runners that were asked for" in caplog.text
    vec = gym.make_vec("CartPole-v1", num_envs=8, vectorization_mode="sync")
    assert sum(map(len, vec._core.places().values())) == 8
    # A second trainer finds nothing, and says so.
    script = f"import remoterl; print(remoterl.init(address={cluster.gcs_address!r}, timeout_s=3))"
    path = Path(tempfile.mkdtemp()) / "second.py"
    path.write_text(script)
    second = run_python(path)
    assert second.stdout.strip().endswith("False")
    assert "All env runners of the 2 simulators are taken" in second.stderr
    assert remoterl.release(others)
    remoterl.shutdown()
    assert_free(cluster)


def test_env_runners_without_rows_go_where_an_id_is_offered(cluster, caplog: pytest.LogCaptureFixture) -> None:
    from stable_baselines3.common.env_util import make_vec_env

    few = "--max-env-runners", "1"  # so few that init() places none there
    makes: list[tuple[Callable[[str], Any], str]] = [
        (gym.make, "OnlyGamma-v0"),
        (make_vec_env, "OnlyGamma-v0"),
        (gym.make_vec, "OnlyGamma"),
    ]
    with cluster.joined("gamma", "--register", "only_gamma", *few), caplog.at_level(logging.INFO, "remoterl"):
        for moves, count, where in ((make_vec_env, 3, "alpha, beta"), (gym.make, 1, "(alpha|beta)")):
            assert remoterl.init(KEY, address=cluster.gcs_address, num_env_runners=count)
            rows = [gym.make("CartPole-v1") for _ in range(count)]  # one on each env runner
            for env in rows:
                env.reset(seed=1)
            for make, env_id in makes:
                with pytest.raises(UnknownEnvironmentError, match=f"on {where}, .* is offered by gamma, .* labels"):
                    make(env_id)
            rows.pop().close()
            before = [_places(env) for env in rows]
            env = moves("OnlyGamma-v0")
            env.reset()
            assert _places(env) == ["gamma"] and [_places(env) for env in rows] == before
            for row in rows:
                row.step(0)
            wait_until(lambda count=count: len(env_runner_processes(cluster)) == count)
            remoterl.shutdown()
            assert_free(cluster)
    assert "Env runners that had no rows went to gamma, where OnlyGamma-v0 is: 1." in caplog.text


def test_env_runners_that_do_not_come_up(cluster, caplog: pytest.LogCaptureFixture) -> None:
    with cluster.joined("gamma", "--label", "zone=g"):  # where Ray keeps trying for a minute
        own = {"labels": {"zone": "g"}, "runtime_env": {"py_executable": "/no/such/python"}, "timeout_s": 3.0}
        assert not remoterl.init(KEY, address=cluster.gcs_address, **own)
        assert (
            "No env runner came up in time, although" in caplog.text and "of the 1 simulators are free" in caplog.text
        )
    assert_free(cluster)


def _places(env: Any) -> list[str]:
    return list(env.unwrapped._core.places())


@pytest.mark.parametrize("role", ["trainer", "simulator"])
def test_nobody_at_the_address(role: str, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        caplog.clear()
        start = time.monotonic()
        assert remoterl.init(KEY, role=role, address=address, timeout_s=1.5) is False
        assert time.monotonic() - start < 5
        [line] = [record.message for record in caplog.records if record.levelno >= logging.ERROR]
        assert address in line and "Check that it runs" in line and "\n" not in line
    assert not remoterl.is_initialized()


def test_the_wrong_kind_of_port(cluster) -> None:
    client = cluster.client_address.removeprefix("ray://")
    with pytest.raises(ConfigurationError, match="write 'ray://"):
        remoterl.init(KEY, address=client)
    with pytest.raises(ConfigurationError, match="not a Ray Client port"):
        remoterl.init(KEY, address=f"ray://{cluster.gcs_address}")


OTHER_VERSIONS = """
import sys, ray, remoterl, remoterl._process, remoterl._protocol, remoterl._version
def refused(owner, name, value, **arguments):
    right = getattr(owner, name)
    setattr(owner, name, value)
    remoterl._protocol.digest.cache_clear()
    try: remoterl.init(**arguments)
    except remoterl.VersionMismatchError as error: print("REFUSED", error)
    assert not ray.is_initialized() and not remoterl.is_initialized()
    setattr(owner, name, right)
for address in sys.argv[1:]:
    refused(ray, "__version__", "2.99.0", address=address)
    refused(sys, "version_info", (3, 99, 1, "final", 0), address=address)
    refused(remoterl._version, "__version__", "9.9.9", address=address)
    refused(remoterl._protocol, "REVISION", 99, address=address)  # another commit of the same version
refused(ray, "__version__", "2.99.0", role="simulator", address=address)
"""


def test_other_versions_are_refused(cluster, tmp_path: Path) -> None:
    """A trainer by each connection, and a simulator."""
    script = tmp_path / "other.py"
    script.write_text(OTHER_VERSIONS)
    done = run_python(script, *map(cluster.address, KINDS))
    another_ray = ("2.99.0", "2.60")
    of_a_trainer = [
        another_ray,
        ("3.99.1", f"3.{sys.version_info[1]}"),
        ("9.9.9", remoterl.__version__),
        (f"remoterl {spoken()}, this process runs {remoterl.__version__} (protocol",),
    ]
    refusals = done.stdout.split("REFUSED")[1:]
    for refusal, named in zip(refusals, [*of_a_trainer * len(KINDS), another_ray], strict=True):
        assert all(version in refusal for version in named), refusal
    assert done.returncode == 0, done.stderr


def test_a_taken_name_is_refused(cluster) -> None:
    second = start_simulator("--name", "alpha", "--address", cluster.gcs_address, RAY_TMPDIR=cluster.folder)
    assert second.process.wait(PATIENCE_S) == 1
    assert "'alpha' is already in this cluster" in second.output


def test_a_simulator_off_the_main_thread_ends_by_shutdown(cluster, tmp_path: Path) -> None:
    script, enough = tmp_path / "notebook.py", tmp_path / "enough"
    script.write_text(
        "import pathlib, threading, time, remoterl\n"
        "done = []\n"
        f"serve = lambda: done.append(remoterl.init(role='simulator', name='cell', address={cluster.gcs_address!r}))\n"
        "thread = threading.Thread(target=serve); thread.start()\n"
        f"while not pathlib.Path({str(enough)!r}).exists(): time.sleep(0.1)\n"
        "assert remoterl.is_initialized()\n"
        "remoterl.shutdown(); thread.join(30)\n"
        "print('served', done, thread.is_alive(), remoterl.is_initialized())\n"
    )
    simulator = Process(str(SIMULATOR_PYTHON), str(script))
    simulator.wait_for("Simulator cell is up")
    enough.touch()
    assert simulator.process.wait(120) == 0, simulator.output
    assert "served [True] False False" in simulator.output


def test_init_from_a_thread_does_not_touch_signals(cluster) -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    results = []
    thread = threading.Thread(
        target=lambda: results.append(remoterl.init(KEY, address=cluster.gcs_address, num_env_runners=1))
    )
    thread.start()
    thread.join(60)
    assert results == [True]
    remoterl.shutdown()
    assert {number: signal.getsignal(number) for number in handlers} == handlers


def test_the_key_is_in_no_command_line(cluster) -> None:
    seen = 0
    for simulator in cluster.simulators.values():
        for process in simulator.tree():
            try:
                command_line = " ".join(process.cmdline())
            except psutil.NoSuchProcess:  # it ended meanwhile
                continue
            seen += 1
            assert KEY not in command_line
        assert KEY not in simulator.output
    assert seen > 10


def test_status(cluster) -> None:
    words = ["status", "--address", cluster.gcs_address]
    assert remoterl.init(KEY, address=cluster.client_address, num_env_runners=2)
    vec = gym.make_vec("CartPole-v1", num_envs=10, vectorization_mode="sync")
    vec.reset()
    vec.step([0] * 10)
    wait_until(lambda: [trainer["steps"] for trainer in remoterl.describe()["trainers"]] == [10])
    report, table = run_in_turn(Call([*words, "--json"]), Call(words))
    assert report.returncode == table.returncode == 0, report.stderr + table.stderr
    told = json.loads(report.stdout)
    assert [simulator["name"] for simulator in told["simulators"]] == ["alpha", "beta"]
    assert [len(simulator["env_runners"]) for simulator in told["simulators"]] == [1, 1]
    [trainer] = told["trainers"]
    assert trainer["rows"] == 10 and trainer["pid"] == os.getpid() and trainer["channels"] == ["stream"]
    assert "OnlyHere-v0" in told["simulators"][0]["environments"]
    assert "alpha" in table.stdout and "1 of 8" in table.stdout
    assert "zone=b" in table.stdout and "…" not in table.stdout  # in a pipe, nothing is cut
    remoterl.shutdown()
    assert_free(cluster)
    assert remoterl.describe(address=cluster.gcs_address, api_key=KEY)["trainers"] == []


def test_an_env_in_a_simulators_main(cluster) -> None:
    script = ROOT / "tests" / "simulator_only" / "simulator_script.py"
    simulator = Process(str(SIMULATOR_PYTHON), str(script), "scripted", REMOTERL_ADDRESS=cluster.gcs_address)
    try:
        simulator.wait_for("is up")
        assert remoterl.init(KEY, address=cluster.gcs_address, num_env_runners=2, labels={"kind": "script"})
        vec = gym.make_vec("InMain-v0", num_envs=8, vectorization_mode="sync")
        assert list(vec._core.places()) == ["scripted"]  # only this simulator has it
        vec.reset()
        _, rewards, *_, infos = vec.step(np.array([0, 1] * 4))
        assert rewards.tolist() == [2.5] * 8 and infos["module"].tolist() == ["__main__"] * 8
    finally:
        remoterl.shutdown()
        assert simulator.end() == 0
    assert_free(cluster)
