"""`ray up` for real: the on-premises config against three hosts with sshd, a training from a fourth, `ray down`."""

from __future__ import annotations

import sys
from pathlib import Path

import machines
import pytest
import yaml
from processes import KEY, ROOT, wait_until

TRAINER = """
import remoterl
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

assert remoterl.init({key!r}, address="ray://10.77.1.2:10001", num_env_runners=4, timeout_s=60.0)
print(sorted((one["host"], one["units"]) for one in remoterl.describe()["simulators"]))
env = make_vec_env("OnlyHere-v0", n_envs=4)
PPO("MlpPolicy", env, n_steps=16, batch_size=32, n_epochs=1).learn(64)
env.close()
remoterl.shutdown()
print("trained")
"""

missing = machines.why_not()


@pytest.mark.long
@pytest.mark.skipif(bool(missing), reason=missing)
def test_ray_up_and_down_on_premises() -> None:
    python = Path(sys.executable)
    config = yaml.safe_load((ROOT / "cluster_configs" / "on_premises.yaml").read_text())
    with machines.Network(python, hosts=3) as network:
        config["provider"].update(head_ip=network.hosts[0], worker_ips=network.hosts[1:])
        config["auth"] = {"ssh_user": "root", "ssh_private_key": str(network.key)}
        config["setup_commands"] = []  # the packages are there: the hosts share this machine's disk
        (start,) = [command for command in config["worker_start_ray_commands"] if "ray start" in command]
        path = f"PYTHONPATH={ROOT / 'tests' / 'simulator_only'}"
        config["worker_start_ray_commands"] = [
            "ray stop",
            start.replace("REMOTERL_REGISTER=", f"{path} REMOTERL_REGISTER=only_here"),
        ]
        config["head_start_ray_commands"] = [
            command.replace("export ", "export AUTOSCALER_UPDATE_INTERVAL_S=1 ")
            for command in config["head_start_ray_commands"]
        ]
        file = network.folder / "cluster.yaml"
        file.write_text(yaml.safe_dump(config))
        first_autoscaler = {"RAY_UP_enable_autoscaler_v2": "0"}  # as the config says
        up = network.run(
            "ray", "up", "--yes", "--no-config-cache", str(file), cwd=ROOT, check=False, variables=first_autoscaler
        )
        assert up.returncode == 0, up.stdout + up.stderr
        wait_until(lambda: len(network.processes("core/src/ray/raylet/raylet ")) == 3, 60, "both simulators joined")
        script = network.folder / "train.py"
        script.write_text(TRAINER.format(key=KEY))
        trained = network.run("python", str(script), check=False)
        assert "trained" in trained.stdout, trained.stdout + trained.stderr
        assert "[('host2', 8), ('host3', 8)]" in trained.stdout
        assert not [line for line in network.processes("") if KEY in line]
        down = network.run("ray", "down", "--yes", str(file), cwd=ROOT, check=False)
        assert down.returncode == 0, down.stdout + down.stderr
        for host in network.hosts[1:]:  # Ray leaves machines that it did not start alone, as the config says
            network.on(host, "ray stop")
        for name in ("gcs_server", "raylet", "ray::"):
            wait_until(lambda name=name: network.processes(name) == [], 30, f"no {name} is left")
