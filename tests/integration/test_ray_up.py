"""`ray up` for real: the on-premises config against two hosts with sshd, a training from a third, `ray down`."""

from __future__ import annotations

import sys
from pathlib import Path

import machines
import pytest
import yaml
from processes import KEY, ROOT, stage, wait_until

TRAINER = """
import time
import remoterl
from remoterl import capacity
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

with capacity.connected("ray://10.77.1.2:10001", {key!r}, 60.0):
    for _ in range(60):  # a node's processes run before the hub knows it
        if remoterl.check(8):
            break
        time.sleep(1.0)
assert remoterl.init({key!r}, address="ray://10.77.1.2:10001", num_env_runners=2, timeout_s=60.0)
env = make_vec_env("OnlyHere-v0", n_envs=4)
rows = []
while sum(one[2] for one in rows) < 4:  # env runners tell of their rows each second
    simulators = remoterl.describe()["simulators"]
    rows = sorted((one["host"], one["units"], sum(each["rows"] for each in one["env_runners"])) for one in simulators)
print(rows, env.env_method("where_remoterl_is")[0])
PPO("MlpPolicy", env, n_steps=16, batch_size=32, n_epochs=1).learn(64)
env.close()
remoterl.shutdown()
print("trained")
"""

missing = machines.why_not(*machines.SSH_TOOLS)


@pytest.mark.long
@pytest.mark.skipif(bool(missing), reason=missing)
def test_ray_up_and_down_on_premises() -> None:
    python = Path(sys.executable)
    config = yaml.safe_load((ROOT / "cluster_configs" / "on_premises.yaml").read_text())
    with machines.SshNetwork(python, hosts=2) as network:
        config["provider"].update(head_ip=network.hosts[0], worker_ips=network.hosts[1:])
        config["auth"] = {"ssh_user": "root", "ssh_private_key": str(network.key)}
        # What it needs is there, since the hosts share this machine's disk; remoterl itself is installed from what was
        # sent along.
        install, register = config["setup_commands"]
        assert install.startswith("pip install -q ") and register == "echo > ~/.remoterl-register"
        config["setup_commands"] = [
            f"{install} --target /tmp/installed --no-deps --no-index --no-build-isolation",
            register.replace("echo", "echo only_here"),
        ]
        (start,) = [command for command in config["worker_start_ray_commands"] if "ray start" in command]
        path = f"PYTHONPATH=/tmp/installed:{ROOT / 'tests' / 'simulator_only'}"
        config["worker_start_ray_commands"] = [
            "ray stop",
            # A node ends when the hub has been away for so long; 60 s by itself. All that is Ray's ends with it.
            f"export RAY_gcs_rpc_server_reconnect_timeout_s=5 {path}; {start}",
        ]
        config["head_start_ray_commands"] = [
            command.replace("export ", "export AUTOSCALER_UPDATE_INTERVAL_S=1 ")
            for command in config["head_start_ray_commands"]
        ]
        file = network.folder / "cluster.yaml"
        file.write_text(yaml.safe_dump(config))
        first_autoscaler = {"RAY_UP_enable_autoscaler_v2": "0"}  # as the config says
        with stage("ray up"):
            up = network.run(
                "ray", "up", "--yes", "--no-config-cache", str(file), cwd=ROOT, check=False, variables=first_autoscaler
            )
        assert up.returncode == 0, up.stdout + up.stderr
        with stage("the simulator joined"):
            wait_until(lambda: len(network.lines("core/src/ray/raylet/raylet ")) == 2, 120, "the simulator joined")
        script = network.folder / "train.py"
        script.write_text(TRAINER.format(key=KEY))
        with stage("training from a third machine"):
            trained = network.run("python", str(script), check=False)
        assert "trained" in trained.stdout, trained.stdout + trained.stderr
        assert "[('host2', 8, 4)] /tmp/installed/remoterl" in trained.stdout
        assert not [line for line in network.lines("") if KEY in line]
        with stage("ray down"):
            down = network.run("ray", "down", "--yes", str(file), cwd=ROOT, check=False)
        assert down.returncode == 0, down.stdout + down.stderr
        with stage("nothing left"):
            try:
                wait_until(lambda: network.lines("ray") == [])
            except AssertionError:
                raise AssertionError(f"left: {network.lines('ray')}") from None
