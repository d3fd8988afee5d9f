"""Ray's autoscaler starts simulators for a trainer and takes them down again; nothing of ours keeps them."""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from processes import KEY, ROOT, SIMULATOR_PYTHON, Process, free_ports, wait_until

import remoterl


class AutoscalingCluster:
    """A head whose autoscaler may start two simulators of four units on this machine, and none at first."""

    def __init__(self, version: str) -> None:
        from ray.autoscaler._private.monitor import BASE_READONLY_CONFIG

        self.folder = Path(tempfile.mkdtemp(prefix="rrl-", dir="/tmp"))
        port, client_port = free_ports(2)
        self.address = f"ray://127.0.0.1:{client_port}"
        config: dict[str, Any] = copy.deepcopy(BASE_READONLY_CONFIG)
        config.update(
            cluster_name="simulators",
            max_workers=2,
            idle_timeout_minutes=0.1,
            provider={
                "type": "external",
                "module": "autoscaling_provider.Provider",
                "use_node_id_as_ip": True,
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
                "gcs_address": f"127.0.0.1:{port}",
                "folder": str(self.folder),
                "python": str(SIMULATOR_PYTHON),
            },
            available_node_types={
                "head": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 0},
                "simulator": {
                    "resources": {"CPU": 0, "env_runner": 4},
                    "node_config": {},
                    "min_workers": 0,
                    "max_workers": 2,
                },
            },
            head_node_type="head",
        )
        (self.folder / "cluster.yaml").write_text(yaml.safe_dump(config))
        self.head = Process(
            str(SIMULATOR_PYTHON), "-m", "ray.scripts.scripts", "start", "--head", "--block",
            "--port", str(port),
            "--ray-client-server-port", str(client_port),
            "--node-ip-address", "127.0.0.1",
            "--num-cpus", "1",
            "--resources", json.dumps({"NODE_ID_AS_RESOURCE": 1}),
            "--include-dashboard", "false",
            "--temp-dir", str(self.folder / "head"),
            "--min-worker-port", "0",
            "--max-worker-port", "0",
            "--dashboard-agent-listen-port", "0",
            "--object-store-memory", "150000000",
            "--disable-usage-stats",
            f"--autoscaling-config={self.folder / 'cluster.yaml'}",
            RAY_AUTH_MODE="token",
            RAY_AUTH_TOKEN=KEY,
            RAY_enable_autoscaler_v2=version,
            RAY_CLOUD_INSTANCE_ID="1",
            RAY_NODE_TYPE_NAME="head",
            AUTOSCALER_UPDATE_INTERVAL_S="1",
            GRPC_ENABLE_FORK_SUPPORT="0",
            PYTHONPATH=os.pathsep.join([str(ROOT / "tests"), str(ROOT / "tests" / "simulator_only")]),
        )  # fmt: skip
        self.head.wait_for("Ray runtime started")

    def nodes(self) -> list[psutil.Process]:
        """The `ray start` of each simulator that the autoscaler started and that still runs."""
        living = []
        for file in self.folder.glob("*.pid"):
            try:
                process = psutil.Process(int(file.read_text()))
                if process.status() != psutil.STATUS_ZOMBIE:
                    living.append(process)
            except psutil.NoSuchProcess:
                continue
        return living

    def stop(self) -> list[psutil.Process]:
        trees = [*self.head.tree(), *(one for node in self.nodes() for one in (node, *node.children(recursive=True)))]
        for node in self.nodes():
            node.send_signal(signal.SIGTERM)
        self.head.end()
        _, alive = psutil.wait_procs(trees, timeout=30)
        shutil.rmtree(self.folder, ignore_errors=True)
        return alive


# Ray's second autoscaler, which `ray up` and KubeRay take; "0" is the first, to be tried by hand after a change.
@pytest.fixture(params=["1"], ids=["second autoscaler"])
def autoscaling(request: pytest.FixtureRequest) -> Iterator[AutoscalingCluster]:
    cluster = AutoscalingCluster(request.param)
    yield cluster
    remoterl.shutdown()
    assert cluster.stop() == []


def test_simulators_come_for_a_trainer_and_go_when_idle(autoscaling, caplog: pytest.LogCaptureFixture) -> None:
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    assert autoscaling.nodes() == []
    with caplog.at_level(logging.INFO, "remoterl"):
        assert remoterl.init(KEY, address=autoscaling.address, num_workers=1, num_env_runners=8, timeout_s=120.0)
    assert "Waiting for 8 env runners" in caplog.text
    assert len(autoscaling.nodes()) == 2
    assert {one["units"] for one in remoterl.describe()["simulators"]} == {4}
    env = make_vec_env("OnlyHere-v0", n_envs=8)  # an environment that only these nodes have
    PPO("MlpPolicy", env, n_steps=16, batch_size=32, n_epochs=1).learn(256)
    env.close()
    remoterl.shutdown()
    wait_until(lambda: autoscaling.nodes() == [], 90, "idle simulators go")
