"""`remoterl hub`, `remoterl register`, and a cluster that is made with nothing else."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
import ray
from commands import Call, run_in_turn
from processes import KEY, PATIENCE_S, Cluster, clean_environment, free_ports, inheriting, start_simulator, wait_until

# Ray Client's server for each client, which its own port stands before, and metrics of autoscaler and dashboard.
NOT_FOR_OTHERS = {*range(23000, 24000), 44217, 44227}
TRAINER = (
    "import gymnasium as gym, remoterl\n"
    "assert remoterl.init(num_env_runners=2)\n"
    "vec = gym.make_vec('CartPole-v1', num_envs=4, vectorization_mode='sync')\n"
    "print(vec.reset(seed=1)[0].shape, flush=True)\n"
    "remoterl.shutdown()\n"
)


def test_a_hub_a_simulator_and_a_trainer(tmp_path: Path, rllib_cluster: Cluster) -> None:
    """`rllib_cluster` is another hub on this machine, which all this does not touch."""
    bystanders = [process for simulator in rllib_cluster.simulators.values() for process in _rays(simulator.tree())]
    assert len(bystanders) == 4  # the raylets of the hub, alpha and beta, and the GCS
    folder = tempfile.mkdtemp(prefix="rrl-", dir="/tmp")
    port, client_port, dashboard_port = free_ports(3)
    settings = {"REMOTERL_HOME": str(tmp_path), "RAY_TMPDIR": folder}
    first = _free_range(200)
    start = [
        "hub", f"--port={port}", f"--client-port={client_port}", f"--dashboard-port={dashboard_port}",
        f"--ports={first}-{first + 99}",
    ]  # fmt: skip
    stop = Call(["hub", "stop"], settings)
    address = f"ray://127.0.0.1:{client_port}"
    no_key = {**settings, "REMOTERL_API_KEY": ""}
    try:
        started, refused, wrong, right, shown = run_in_turn(
            Call(start, settings),
            Call(start, settings),
            Call(["register", address], no_key, typed="not-the-key\n"),
            Call(["register", address], no_key, typed=f"{KEY}\n"),
            Call(["register", "--show"], settings),
        )
        assert started.returncode == 0, started.stderr
        lines = {line.split(":")[0]: line for line in started.stdout.splitlines()}
        assert f":{port} remoterl simulate" in lines["On a simulator"]
        assert f":{client_port} python train.py" in lines["On a trainer"]
        assert KEY not in started.stdout + started.stderr
        hub = psutil.Process(_pid(tmp_path))
        tree = [hub, *hub.children(recursive=True)]
        assert all(KEY not in " ".join(process.cmdline()) for process in tree)
        assert refused.returncode == 1 and "remoterl hub stop" in refused.stderr
        assert wrong.returncode == 1 and "refused the key" in wrong.stderr
        assert right.returncode == 0, right.stderr
        assert address in shown.stdout and KEY not in shown.stdout

        # Neither address nor key in the environment: both come from what was registered.
        registered = {name: value for name, value in clean_environment(**settings).items() if "API_KEY" not in name}
        ports = f"--ports={first + 100}-{first + 199}"
        simulator = start_simulator("--max-env-runners=4", ports, environ=registered)
        try:
            simulator.wait_for("is up")
            trainer = subprocess.run(
                [sys.executable, "-c", TRAINER], env=registered, capture_output=True, text=True, timeout=120
            )
            assert trainer.stdout.strip() == "(4, 4)", trainer.stderr
            listening = _listening_ports([*tree, *hub.children(recursive=True), *simulator.tree()])
            allowed = {port, client_port, dashboard_port, *range(first, first + 200)}
            assert listening - NOT_FOR_OTHERS <= allowed
            dashboard = f"http://127.0.0.1:{dashboard_port}/api/version"
            with pytest.raises(urllib.error.HTTPError, match=r"40\d"):
                urllib.request.urlopen(dashboard, timeout=20)
            asked = urllib.request.Request(dashboard, headers={"Authorization": f"Bearer {KEY}"})
            with urllib.request.urlopen(asked, timeout=20) as answer:
                assert json.load(answer)["ray_version"] == ray.__version__
        finally:
            stopped, again = run_in_turn(stop, stop)
            joined = simulator.process.poll()
            assert simulator.end() == 0
    except BaseException:
        run_in_turn(stop)
        raise
    assert joined is None  # it waits for the hub to come back
    assert all(process.is_running() for process in bystanders)
    assert stopped.returncode == 0 and "is stopped" in stopped.stdout
    _, alive = psutil.wait_procs(tree, timeout=PATIENCE_S)
    assert alive == []
    assert "No hub of yours" in again.stdout


def test_a_start_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    folder, mark = tempfile.mkdtemp(prefix="rrl-", dir="/tmp"), str(tmp_path)
    names = ("port", "client-port", "dashboard-port")
    ports = [f"--{name}={port}" for name, port in zip(names, free_ports(3), strict=True)]
    process = subprocess.Popen(
        [sys.executable, "-m", "remoterl", "hub", *ports],
        env=clean_environment(TESTED_BY=mark, REMOTERL_HOME=mark, RAY_TMPDIR=folder), cwd=tmp_path,
    )  # fmt: skip
    wait_until(lambda: any("--block" in command for command in inheriting(mark)), what="it waits for the hub")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    wait_until(lambda: inheriting(mark) == [], what="the hub ends")
    shutil.rmtree(folder)


def _rays(tree: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in tree if process.name() in ("raylet", "gcs_server")]


def _free_range(count: int) -> int:
    """The first of so many ports that nobody uses, none of them of those that the system hands out."""
    for first in range(24_000, 32_000, count):
        with contextlib.suppress(OSError), contextlib.ExitStack() as sockets:
            for port in range(first, first + count):
                sockets.enter_context(socket.socket()).bind(("", port))
            return first
    raise OSError(f"no {count} free ports in a row")


def _pid(home: Path) -> int:
    (state,) = home.glob("hub-*.json")
    assert state.stat().st_mode & 0o777 == 0o600
    return int(json.loads(state.read_text())["pid"])


def _listening_ports(processes: list[psutil.Process]) -> set[int]:
    """Where other machines could reach these processes."""
    ports = set()
    for process in processes:
        try:
            connections = process.net_connections("inet")
        except psutil.NoSuchProcess:
            continue
        for connection in connections:
            if connection.status == psutil.CONN_LISTEN and connection.laddr.ip not in ("127.0.0.1", "::1"):
                ports.add(connection.laddr.port)
    return ports
