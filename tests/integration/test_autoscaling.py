"""Ray's autoscaler starts simulators for a trainer and takes them down again; nothing of ours keeps them."""

from __future__ import annotations

import copy
import json
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from commands import Call, run_in_turn
from processes import (
    KEY,
    PATIENCE_S,
    ROOT,
    Process,
    accepts,
    free_ports,
    stage,
    wait_until,
)

import remoterl
from remoterl import capacity
from remoterl._process import current_session


class AutoscalingCluster:
    """A head whose autoscaler may start two simulators of two units on this machine, and none at first.

    All run on what the tests run on, which has RLlib.
    """

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
                "python": sys.executable,
            },
            available_node_types={
                "head": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 0},
                "simulator": {
                    "resources": {"CPU": 0, "env_runner": 2},
                    "labels": {"pool": "cpu"},
                    "node_config": {},
                    "min_workers": 0,
                    "max_workers": 2,
                },
            },
            head_node_type="head",
        )
        (self.folder / "cluster.yaml").write_text(yaml.safe_dump(config))
        self.head = Process(
            sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block",
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
        self.head.wait_for("Ray runtime started")  # which it prints before Ray Client's server listens
        wait_until(lambda: accepts(client_port), what=f"Ray Client's server listens on {client_port}")

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
        _, alive = psutil.wait_procs(trees, timeout=PATIENCE_S)
        shutil.rmtree(self.folder, ignore_errors=True)
        return alive


# Ray's second autoscaler, which `ray up` and KubeRay take; "0" is the first, to be tried by hand after a change.
@pytest.fixture(scope="module", params=["1"], ids=["second autoscaler"])
def autoscaling(request: pytest.FixtureRequest) -> Iterator[AutoscalingCluster]:
    cluster = AutoscalingCluster(request.param)
    yield cluster
    assert cluster.stop() == []


OTHER = """
import signal, remoterl
assert remoterl.init(num_env_runners=16, timeout_s=15.0)
print("is up", flush=True)
signal.pause()
"""


def test_simulators_come_for_rllib(autoscaling, caplog: pytest.LogCaptureFixture) -> None:
    """From none to one for a session of one env runner; RLlib asks for more than that has."""
    import ray
    from ray.rllib.algorithms.ppo import PPOConfig

    assert autoscaling.nodes() == []
    [told] = run_in_turn(Call(["doctor", "--address", autoscaling.address]))
    assert told.returncode == 0 and "NOTE  simulators: none at the moment; an autoscaler" in told.stdout, told.stdout

    with caplog.at_level(logging.INFO, "remoterl"), stage("init from zero"):
        assert remoterl.init(
            KEY, address=autoscaling.address, num_env_runners=1, labels={"pool": "cpu"}, timeout_s=PATIENCE_S
        )
    assert re.search(r"Waiting for 1 env runners, .*: 0 on 0 simulators so far; ", caplog.text)
    assert len(autoscaling.nodes()) == 1
    config = (
        PPOConfig()
        .environment("OnlyHere-v0")
        .env_runners(num_env_runners=2, custom_resources_per_env_runner={"env_runner": 2})
    )
    config.training(train_batch_size_per_learner=64, minibatch_size=32, num_epochs=1)
    with caplog.at_level(logging.INFO, "remoterl"):
        algo = config.build_algo()
    assert "it asks for 4 env runners, the simulators with pool=cpu have 2 free of 2. The autoscaler" in caplog.text
    assert "Waiting for 4 env runners" in caplog.text
    assert len(autoscaling.nodes()) == 2
    nodes = algo.env_runner_group.foreach_env_runner(
        lambda _: ray.get_runtime_context().get_node_id(), local_env_runner=False
    )
    simulators = {node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("env_runner")}
    assert len(nodes) == 2 and set(nodes) == simulators
    algo.train()
    algo.stop()
    remoterl.shutdown()


def test_they_are_shared_and_go_when_idle(autoscaling) -> None:
    """Those of the test before, or new ones."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    assert remoterl.init(
        KEY, address=autoscaling.address, num_workers=1, num_env_runners=3, labels={"pool": "cpu"}, timeout_s=PATIENCE_S
    )
    assert len(current_session().runners) == 3 and len(autoscaling.nodes()) == 2
    assert [one["units"] for one in remoterl.describe({"pool": "cpu"})["simulators"]] == [2, 2]
    other = Process(sys.executable, "-c", OTHER, REMOTERL_ADDRESS=autoscaling.address)
    env = make_vec_env("OnlyHere-v0", n_envs=3)  # an environment that only these nodes have
    model = PPO("MlpPolicy", env, n_steps=16, batch_size=24, n_epochs=1)
    before = model.policy.state_dict()["action_net.weight"].clone()
    with stage("training"):
        model.learn(96)
    assert model.num_timesteps == 96 and (model.policy.state_dict()["action_net.weight"] != before).any()
    env.close()

    # More than may ever be started: what there is.
    other.wait_for("is up")
    assert "Going on with 1 of the 16 env runners that were asked for" in other.output
    remoterl.shutdown()
    with capacity.connected(autoscaling.address, KEY, 30.0):
        # The nodes' `Simulator` actors ended with this trainer; those of now hear of the other's env runner.
        wait_until(lambda: sum(one["env_runners"] for one in remoterl.describe()["trainers"]) == 1)
        other.end(signal.SIGTERM)
        unused: list[int] = []

        def gone() -> bool:
            remoterl.check(1)
            unused.extend(one["free_units"] for one in remoterl.describe({"pool": "cpu"})["unused_simulators"])
            return autoscaling.nodes() == []

        with stage("idle simulators gone, asked for all the time"):
            wait_until(gone, 90, "idle simulators go")
        assert 2 in unused
