"""The examples in a small form, each a process of its own.

`test_scripts.py` has those for CartPole and plain Gymnasium, `test_rllib_examples.py` RLlib's.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import comparing
import learning
import pytest
from conftest import assert_free, env_runner_processes
from processes import (
    IN_TURN,
    KEY,
    PATIENCE_S,
    ROOT,
    SIMULATOR_PYTHON,
    Cluster,
    Process,
    clean_environment,
    run_in_one_process,
    run_python,
    wait_until,
)

import remoterl
from remoterl import capacity

EXAMPLES = ROOT / "examples"
NUMBER = r"(-?\d+\.?\d*)"


def run(cluster: Cluster, script: str | Path, *arguments: str) -> str:
    """What it prints."""
    done = run_python(EXAMPLES / script, *arguments, REMOTERL_ADDRESS=cluster.gcs_address)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert_free(cluster)
    return done.stdout


def changed(name: str, folder: Path, *changes: tuple[str, str]) -> Path:
    """An example with other words in places that no argument of it can change."""
    text = (EXAMPLES / name).read_text()
    for old, new in changes:
        assert text.count(old) == 1
        text = text.replace(old, new)
    (folder / name).write_text(text)
    return folder / name


@contextmanager
def simulator(cluster: Cluster, name: str) -> Iterator[Process]:
    """An example that is a simulator, which joins the cluster and leaves it."""
    process = Process(str(SIMULATOR_PYTHON), str(EXAMPLES / name), REMOTERL_ADDRESS=cluster.gcs_address)
    try:
        process.wait_for("is up")
        yield process
    finally:
        assert process.end() == 0


def scores(folder: Path) -> list[tuple[str, str]]:
    """The learning curve that an example wrote, every digit of it; beside it a picture and a model."""
    assert (folder / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "model.zip").exists()
    with open(folder / "progress.csv") as file:
        return [(row["time/total_timesteps"], row["rollout/ep_rew_mean"]) for row in csv.DictReader(file)]


# ---- Stable-Baselines3 ---------------------------------------------------------------------------------------


@pytest.mark.long
def test_sac_on_halfcheetah_dqn_on_lunarlander_a_video_and_no_pong(cluster: Cluster, tmp_path: Path) -> None:
    """The last one says that these simulators need Stable-Baselines3 for it."""
    sac = changed("sb3_halfcheetah.py", tmp_path, ("args.timesteps // 2", "args.timesteps - 100"))  # an episode's end
    names = ("sb3_lunarlander.py", "evaluation_video.py", "sb3_pong.py")
    dqn, video, pong = (str(EXAMPLES / name) for name in names)
    videos = tmp_path / "videos"
    done = run_in_one_process(
        [str(sac), "--timesteps", "2000", "--num-envs", "2", "--output", str(tmp_path)],
        [dqn, "--timesteps", "200", "--episodes", "2"],
        [video, "--timesteps", "512", "--episodes", "2", "--videos", str(videos)],
        [pong],
        REMOTERL_ADDRESS=cluster.gcs_address,
    )
    assert done.returncode == 1 and "stable_baselines3" in done.stderr.splitlines()[-1], done.stderr[-6000:]
    assert pong in done.stderr, done.stderr[-6000:]
    assert_free(cluster)
    assert re.search(rf"Mean return {NUMBER} \+- {NUMBER} after 2000 steps", done.stdout)
    assert scores(tmp_path) != []
    [(final, _)] = re.findall(rf"Mean return {NUMBER} \+- {NUMBER} after 200 steps", done.stdout)
    assert -2000 < float(final) < 300
    assert re.search(rf"Mean return {NUMBER}; 2 videos in {videos}", done.stdout)
    assert [path.read_bytes()[4:8] for path in videos.glob("*.mp4")] == [b"ftyp"] * 2


@pytest.mark.long
def test_it_learns_as_in_process(cluster: Cluster, tmp_path: Path) -> None:
    """Pixels, by wrappers that the trainer ships."""
    small = ["--timesteps", "1024", "--num-envs", "4"]
    script = changed("sb3_minigrid.py", tmp_path, ("n_eval_episodes=100", "n_eval_episodes=4"))
    done = run_in_one_process(
        [str(script), *small, "--output", str(tmp_path / "remote")],
        [str(script), *small, "--output", str(tmp_path / "here"), "--where", "process"],
        REMOTERL_ADDRESS=cluster.client_address,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert_free(cluster)
    remote, here = re.findall(rf"Mean return {NUMBER} \+- {NUMBER} after 1024 steps", done.stdout)
    assert remote == here
    assert scores(tmp_path / "remote") == scores(tmp_path / "here") != []


@pytest.mark.long
def test_pong_learns_as_in_sub_processes(rllib_cluster: Cluster, tmp_path: Path) -> None:
    """On simulators with Stable-Baselines3. Weights are the same if every frame, reward and end before them was."""
    from stable_baselines3 import PPO

    tell = ("    env.close()\n", "    print('Games:', type(games).__name__)\n    env.close()\n")
    script = changed("sb3_pong.py", tmp_path, ("n_epochs=4", "n_epochs=1"), tell)
    small = ["--timesteps", "2048", "--num-envs", "2", "--episodes", "1"]
    output = run(rllib_cluster, script, *small, "--output", str(tmp_path / "remote"))
    here = run(rllib_cluster, script, *small, "--output", str(tmp_path / "here"), "--where", "subprocesses")
    assert "Games: RemoteDummyVecEnv" in output and "Games: SubprocVecEnv" in here
    [(final, _)] = re.findall(rf"Mean score {NUMBER} \+- {NUMBER} after 2048 steps", output)
    assert -21 <= float(final) < 0
    assert scores(tmp_path / "remote") == scores(tmp_path / "here") != []
    comparing.assert_same(*(learning.weights(PPO.load(tmp_path / where / "model")) for where in ("remote", "here")))


# ---- one file, and a notebook --------------------------------------------------------------------------------


def test_ppo_in_one_file_learns_cartpole(cluster: Cluster) -> None:
    output = run(cluster, "cleanrl_ppo.py", "--total-timesteps", "20480")
    [(mean_return, episodes)] = re.findall(
        rf"Mean return {NUMBER} of the last (\d+) episodes after 20480 steps", output
    )
    assert float(mean_return) > 60 and episodes == "100"  # random actions: 22


def test_the_notebook(cluster: Cluster, tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in notebook.cells)
    environment = clean_environment(REMOTERL_ADDRESS=cluster.client_address, TIMESTEPS="4096", IPYTHONDIR=str(tmp_path))
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute(env=environment)
    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    assert [output.data["text/plain"] for output in outputs["init"] if "data" in output] == ["True"]
    assert "alpha: 7 of 8 units free" in outputs["simulators"][0].text
    for cell in ("curve", "frames"):
        assert any("image/png" in output.get("data", {}) for output in outputs[cell])
    assert re.search(rf"Mean return {NUMBER} after 4096 steps", "".join(output.text for output in outputs["end"]))
    assert_free(cluster)


# ---- a simulator and its trainer -----------------------------------------------------------------------------


def test_a_greenhouse_that_only_its_simulator_has_and_a_robot_that_is_one_trainers(cluster: Cluster) -> None:
    """The robot keeps its period."""
    lines = [
        [str(EXAMPLES / "greenhouse_trainer.py"), "--timesteps", "6144"],
        [str(EXAMPLES / "robot_trainer.py"), "--timesteps", "600", "--episodes", "2"],
    ]
    environment = {"REMOTERL_ADDRESS": cluster.client_address, "PYTHONUNBUFFERED": "1"}
    with (
        simulator(cluster, "greenhouse_simulator.py"),
        simulator(cluster, "robot_simulator.py"),
        capacity.connected(cluster.gcs_address, KEY, PATIENCE_S),
    ):
        trainers = Process(sys.executable, "-c", IN_TURN, json.dumps(lines), **environment)
        trainers.wait_for("The robot is ours.", 240)
        assert not remoterl.check(1, {"robot": "arm-1"})
        trainers.wait_for("after 600 steps", 120)
        output = trainers.output
        assert trainers.process.wait(30) == 0
        wait_until(lambda: remoterl.check(1, {"robot": "arm-1"}))
    assert re.search(r"Greenhouse-v0 is unknown here, and offered by [\w.-]+\.", output)
    [(after, before)] = re.findall(rf"Mean return {NUMBER} after 6144 steps, {NUMBER} before", output)
    assert float(after) > float(before)
    [(period, _, late, commands)] = re.findall(
        rf"Periods of {NUMBER} ms \(99 of 100 below {NUMBER}\), (\d+) of (\d+) commands too late", output
    )
    assert float(period) >= 20.0 and int(late) < int(commands) == 200
    assert env_runner_processes(cluster) == []
