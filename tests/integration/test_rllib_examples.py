"""The RLlib examples as a user runs them, each a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from processes import KEY, ROOT, Cluster, clean_environment, run_python
from rllib_fixtures import assert_no_rllib_left

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


def run(cluster: Cluster, kind: str, script: Path | str, *arguments: str, timeout_s: float = 280) -> str:
    environment = {"REMOTERL_ADDRESS": cluster.address(kind), "OMP_NUM_THREADS": "1"}
    done = run_python(script, *arguments, timeout_s=timeout_s, **environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert_no_rllib_left(cluster)
    return done.stdout


@pytest.mark.long
@pytest.mark.parametrize("kind", ["driver", "client"])
def test_ppo_learns_cartpole(rllib_cluster: Cluster, kind: str, tmp_path: Path) -> None:
    """Word for word, and at its end Ray is asked where the env runners sit."""
    text = (EXAMPLES / "rllib_ppo.py").read_text()
    script = tmp_path / "trainer.py"
    script.write_text(text.replace("    algo.stop()\n", ASK_RAY[1:]))
    output = run(rllib_cluster, kind, script)
    [final] = re.findall(r"Mean return ([\d.]+) after", output)
    assert float(final) >= 450
    assert "PLACES ['alpha', 'alpha', 'beta', 'beta']" in output


@pytest.mark.long
def test_a_tune_grid(rllib_cluster: Cluster) -> None:
    output = run(rllib_cluster, "driver", EXAMPLES / "rllib_tune.py", "2")
    assert len(re.findall(r"\{'lr': .*\}: mean return [\d.]+", output)) == 4 and "Best: lr" in output


@pytest.mark.long
def test_multi_agent(rllib_cluster: Cluster) -> None:
    output = run(rllib_cluster, "client", EXAMPLES / "rllib_multi_agent.py")
    assert "iteration 10" in output and "'left'" in output and "'right'" in output


@pytest.mark.long
def test_a_ray_job(rllib_cluster: Cluster) -> None:
    """A trainer submitted to the hub trains in-cluster, and its output comes back."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / "submit_job.py", rllib_cluster.dashboard, EXAMPLES / "rllib_multi_agent.py"],
        env=clean_environment(), capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "iteration 10" in done.stdout and "SUCCEEDED" in done.stdout and KEY not in done.stdout
    assert_no_rllib_left(rllib_cluster)
