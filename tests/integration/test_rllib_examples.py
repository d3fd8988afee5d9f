"""The RLlib examples as a user runs them, each a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from processes import KEY, ROOT, Cluster, clean_environment, run_python
from rllib_fixtures import assert_no_rllib_left

from remoterl import registration

EXAMPLES = ROOT / "examples"
ASK_RAY = """
    import ray
    names = {node["NodeID"]: node["NodeName"] for node in ray.nodes()}
    ids = algo.env_runner_group.foreach_env_runner(
        lambda _: ray.get_runtime_context().get_node_id(), local_env_runner=False
    )
    print("PLACES", sorted(names[node_id] for node_id in ids))
    algo.stop()
"""
RESTORE = """
    import ray
    names = {node["NodeID"]: node["NodeName"] for node in ray.nodes()}
    for result in results:
        places = result.metrics["places"]
        learners, env_runners = ([names[node_id] for node_id in places[what]] for what in ("learners", "env_runners"))
        print("PLACES", names[places["algorithm"]], sorted(set(learners)), env_runners)
    for more in ({}, {"param_space": config}):
        again = tune.Tuner.restore(results.experiment_path, "PPO", **more).fit()
        print("RESTORED", [result.metrics["training_iteration"] for result in again])
    remoterl.shutdown()
"""
JOB = """
import sys, gymnasium, numpy, remoterl

assert remoterl.init(num_env_runners=2)
vec = gymnasium.make_vec("CartPole-v1", num_envs=4, vectorization_mode="sync")
vec.reset(seed=1)
rewards = [vec.step(vec.action_space.sample())[1] for _ in range(32)]
print("stepped on", ", ".join(sorted(one["name"] for one in remoterl.describe()["simulators"] if one["env_runners"])))
numpy.save(sys.argv[1], rewards)
remoterl.shutdown()
"""


def small(example: str, *changes: tuple[str, str]) -> str:
    """An example's text with one env runner of its session's own, which RLlib's need not, and other changes."""
    text = (EXAMPLES / example).read_text()
    for old, new in (('init(role="trainer")', 'init(role="trainer", num_env_runners=1)'), *changes):
        assert text.count(old) == 1
        text = text.replace(old, new)
    return text


ASKING_RAY = ("    algo.stop()\n", ASK_RAY[1:])


def run(cluster: Cluster, script: Path, *arguments: str) -> str:
    """What it prints, through Ray Client."""
    done = run_python(script, *arguments, timeout_s=280, REMOTERL_ADDRESS=cluster.client_address)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert_no_rllib_left(cluster)
    return done.stdout


@pytest.mark.long
def test_ppo_learns_cartpole(rllib_cluster: Cluster, tmp_path: Path) -> None:
    """With half of its env runners and a third of its target; at its end Ray is asked where they sit."""
    changes = ("num_env_runners=4", "num_env_runners=2"), ("mean_return >= 450", "mean_return >= 150"), ASKING_RAY
    script = tmp_path / "trainer.py"
    script.write_text(small("rllib_ppo.py", *changes))
    output = run(rllib_cluster, script)
    [final] = re.findall(r"Mean return ([\d.]+) after", output)
    assert float(final) >= 150
    assert "PLACES ['alpha', 'beta']" in output


@pytest.mark.long
def test_a_tune_grid(rllib_cluster: Cluster, tmp_path: Path) -> None:
    """Half of its trials, with half of their env runners; at its end it is restored, without its space and with it."""
    text = small(
        "rllib_tune.py",
        ("tune.grid_search([0.98, 0.99])", "0.98"),
        ("num_env_runners=2", "num_env_runners=1"),
        ('.environment("CartPole-v1")', '.environment("CartPole-v1").callbacks(rllib_envs.SaysWhere)'),
        ("    remoterl.shutdown()\n", RESTORE[1:]),
    )
    script = tmp_path / "trainer.py"
    script.write_text("import rllib_envs\n" + text)
    (tmp_path / "rllib_envs.py").write_text((ROOT / "tests" / "rllib_envs.py").read_text())  # what is beside it travels
    output = run(rllib_cluster, script, "1")
    assert len(re.findall(r"\{'lr': .*\}: mean return [\d.]+", output)) == 2 and "Best: lr" in output
    assert len(re.findall(r"PLACES hub \['hub'\] \['(?:alpha|beta)'\]\n", output)) == 2, output
    assert output.count("RESTORED [1, 1]\n") == 2, output


@pytest.mark.long
def test_multi_agent(rllib_cluster: Cluster, tmp_path: Path) -> None:
    script = tmp_path / "trainer.py"
    script.write_text(small("rllib_multi_agent.py", ("range(1, 11)", "range(1, 3)"), ASKING_RAY))
    output = run(rllib_cluster, script)
    assert "PLACES ['alpha', 'beta']" in output
    assert "iteration  2" in output and "'left'" in output and "'right'" in output
    assert re.search(r"Mean return [\d.]+ of both after 2 iterations", output)


def submit(cluster: Cluster, environ: dict[str, str], script: Path, *arguments: str | Path) -> str:
    return finished([sys.executable, EXAMPLES / "submit_job.py", cluster.dashboard, script, *arguments], environ)


def finished(command: Sequence[str | Path], environ: dict[str, str]) -> str:
    """What a command that submits a job, and waits for its end, says of it."""
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=280, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-6000:]
    assert "succeeded" in said.lower() and KEY not in said
    return said


def test_a_ray_job(rllib_cluster: Cluster, tmp_path: Path) -> None:
    """A trainer submitted to the hub runs in-cluster, its output comes back, and its file is where it was told."""
    folder = tmp_path / "a job's folder"
    folder.mkdir()
    (folder / "train.py").write_text(JOB)
    host = rllib_cluster.dashboard.removeprefix("http://").partition(":")[0]
    registration.write(registration.Registration(f"ray://{host}:10001", KEY), {"REMOTERL_HOME": str(tmp_path)})
    registered = clean_environment(REMOTERL_HOME=str(tmp_path))
    del registered["REMOTERL_API_KEY"]
    saved = tmp_path / "its rewards.npy"
    assert "stepped on alpha, beta" in submit(rllib_cluster, registered, folder / "train.py", saved)
    assert (np.load(saved) == np.ones((32, 4))).mean() > 0.8
    changes = ("range(1, 301)", "range(1, 3)"), ("num_env_runners=4", "num_env_runners=1"), ASKING_RAY
    (folder / "rllib.py").write_text(small("rllib_ppo.py", *changes))
    command = [Path(sys.executable).with_name("ray"), "job", "submit", "--address", rllib_cluster.dashboard,
               "--working-dir", folder, "--", "python", "rllib.py"]  # fmt: skip
    environ = {**registered, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": KEY}
    output = finished(command, environ)
    assert "after 2 iterations" in output and re.search(r"PLACES \['(alpha|beta)'\]", output)
    assert_no_rllib_left(rllib_cluster)
