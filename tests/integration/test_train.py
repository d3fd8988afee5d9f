"""`remoterl train`: the real command line, as a process of its own."""

from __future__ import annotations

import pickle
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import assert_free
from processes import Process, clean_environment, inheriting, wait_until
from rllib_fixtures import assert_no_rllib_left

SCORE = re.compile(r"^(Done|Solved|Stopped): mean return (-?[\d.]+).* after ([\d,]+) steps in .* steps/s", re.MULTILINE)


def train(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "remoterl", "train", *arguments],
        env=clean_environment(**environment), cwd=cwd, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


def score_of(done: subprocess.CompletedProcess[str]) -> tuple[str, float, int]:
    """How it ended, its score and its steps."""
    found = SCORE.search(done.stdout)
    assert found, done.stdout + done.stderr
    return found[1], float(found[2]), int(found[3].replace(",", ""))


def is_picture(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", ["client"])
def test_sb3(cluster, kind: str, tmp_path: Path) -> None:
    done = train(
        "sb3", "--algo", "PPO", "--env-id", "CartPole-v1", "--address", cluster.address(kind),
        "--num-workers", "2", "--num-env-runners", "2", "--num-envs", "8", "--timesteps", "1024", "--seed", "1",
        "--n-steps", "64", "--learning_rate=1e-3", "--gamma", "0.98", "--device", "cpu",
        "--policy-kwargs", '{"net_arch": [16]}', "--output", "trained", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "4 env runners over" in done.stderr
    outcome, score, steps = score_of(done)
    assert outcome == "Done" and 10 < score < 100 and steps == 1024
    assert is_picture(tmp_path / "trained" / "learning_curve.png")
    assert_free(cluster)

    from stable_baselines3 import PPO

    model = PPO.load(tmp_path / "trained" / "model.zip", device="cpu")
    assert (model.n_steps, model.learning_rate, model.gamma, model.seed) == (64, 1e-3, 0.98, 1)
    assert (model.policy_kwargs, model.n_envs, model.num_timesteps) == ({"net_arch": [16]}, 8, 1024)


@pytest.mark.long
def test_sb3_contrib_targets_and_numbered_folders(cluster, tmp_path: Path) -> None:
    common = ("sb3", "--env-id", "CartPole-v1", "--address", cluster.gcs_address, "--seed", "1", "--steps", "600")
    quantile = ("--algo", "QRDQN", "--learning-starts", "100", "--buffer-size", "1e3", "--train-freq", '[4, "step"]')
    done = train(*common, *quantile, "--target", "5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    outcome, score, steps = score_of(done)
    assert outcome == "Solved" and score >= 5 and steps < 600
    done = train(*common, *quantile, "--target", "500", cwd=tmp_path)
    assert done.returncode == 1 and score_of(done)[0] == "Stopped"
    assert "Saved: runs/QRDQN_CartPole-v1_2/model.zip" in done.stdout
    for number in (1, 2):
        assert zipfile.is_zipfile(tmp_path / "runs" / f"QRDQN_CartPole-v1_{number}" / "model.zip")
        assert is_picture(tmp_path / "runs" / f"QRDQN_CartPole-v1_{number}" / "learning_curve.png")
    assert_free(cluster)


def test_gym(cluster, tmp_path: Path) -> None:
    done = train(
        "gym", "--algo", "random", "--env-id", "OnlyHere-v0", "--address", cluster.gcs_address,
        "--steps", "500", "--num-envs", "4", "--seed", "1", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert score_of(done) == ("Done", 10.0, 500)  # of 125 rows' steps each; an episode has ten, a reward of 1 each
    assert ", 48 episodes ended." in done.stdout
    assert list(tmp_path.iterdir()) == []
    assert_free(cluster)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["client"])
def test_rllib_where_only_simulators_have_the_environment(rllib_cluster, kind: str, tmp_path: Path) -> None:
    done = train(
        "rllib", "--env-id", "OnlyHere-v0", "--address", rllib_cluster.address(kind), "--num-workers", "2",
        "--num-env-runners", "1", "--num-envs", "4", "--steps", "256", "--train-batch-size-per-learner", "128",
        "--minibatch-size", "64", "--num-epochs", "1", "--output", "trained", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert score_of(done)[:2] == ("Done", 10.0)
    assert (tmp_path / "trained" / "checkpoint" / "rllib_checkpoint.json").exists()
    assert is_picture(tmp_path / "trained" / "learning_curve.png")
    assert_no_rllib_left(rllib_cluster)


@pytest.mark.long
def test_rllib_in_a_private_cluster(tmp_path: Path) -> None:
    done = train(
        "rllib", "--algo", "PPO", "--env-id", "CartPole-v1", "--address", "local", "--num-env-runners", "1",
        "--num-envs", "4", "--steps", "600", "--seed", "1", "--train-batch-size-per-learner", "300",
        "--minibatch-size", "100", "--num-epochs", "1", "--lr", "1e-3", "--lambda", "0.9", "--output", "trained",
        cwd=tmp_path, TESTED_BY=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outcome, score, steps = score_of(done)
    assert outcome == "Done" and 10 < score < 100 and 600 <= steps < 1200
    assert is_picture(tmp_path / "trained" / "learning_curve.png")
    assert f"Saved: {Path('trained', 'checkpoint')}" in done.stdout

    saved = pickle.loads((tmp_path / "trained" / "checkpoint" / "class_and_ctor_args.pkl").read_bytes())
    config = saved["ctor_args_and_kwargs"][0][0]
    assert saved["class"].__name__ == "PPO"
    expected = {
        "env": "CartPole-v1", "seed": 1, "lr": 1e-3, "lambda_": 0.9, "num_epochs": 1, "num_env_runners": 1,
        "num_envs_per_env_runner": 4,
    }  # fmt: skip
    assert {name: config[name] for name in expected} == expected
    wait_until(lambda: inheriting(str(tmp_path)) == [], what="Ray's processes gone")


@pytest.mark.parametrize("framework", ["sb3", pytest.param("rllib", marks=pytest.mark.long)])
def test_ctrl_c_saves_what_was_learned(cluster, framework: str, tmp_path: Path) -> None:
    address, small = cluster.gcs_address, ("--n-steps", "64")
    if framework == "rllib":
        address, small = "local", ("--train-batch-size-per-learner", "300", "--num-epochs", "1")
    trainer = Process(
        sys.executable, "-m", "remoterl", "train", framework, "--env-id", "CartPole-v1", "--address", address,
        "--num-env-runners", "1", "--num-envs", "4", "--steps", "100000", "--output", str(tmp_path), *small,
        PYTHONUNBUFFERED="1",
    )  # fmt: skip
    trainer.wait_for("mean return", 120)
    log = trainer.log.open()
    assert trainer.end(signal.SIGINT, 60) == 1
    output = log.read()
    assert "Interrupted: saving" in output and re.search(r"Done: mean return [\d.]+ after [\d,]+ steps", output)
    assert (tmp_path / ("model.zip" if framework == "sb3" else "checkpoint")).exists()
    assert "Traceback" not in output
    assert_free(cluster)


def test_refusals_start_nothing(tmp_path: Path) -> None:
    """The address is of no hub: what is refused is refused before anyone asks for one."""
    cartpole = ("--env-id", "CartPole-v1", "--address", "127.0.0.1:1", "--timeout", "1")
    for arguments, expected in (
        (("sb3", "--algo", "PPOO"), "no such algorithm in stable_baselines3 or sb3_contrib. The closest names: PPO"),
        (("sb3", "--learnin-rate", "1"), "PPO has no parameter --learnin-rate. The closest names: --learning-rate."),
        (("sb3", "--n-steps", "many"), "--n-steps takes an integer, got 'many'"),
        (("sb3", "--policy", "Mlp"), "--policy Mlp: PPO has MlpPolicy"),
        (("gym", "--algo", "PPO"), "only `random`"),
        (("rllib", "--learning-rate", "1"), "PPO has no parameter --learning-rate. The closest names: --lr."),
        (("rllib", "--train-batch-size-per-learner", "50"), "PPO refuses: `minibatch_size` (128) must be <="),
    ):
        done = train(*arguments, *cartpole, cwd=tmp_path)
        assert done.returncode == 1 and expected in done.stderr, done.stderr
        assert done.stdout == "" and "Traceback" not in done.stderr
    done = train("sb3", *cartpole, cwd=tmp_path)
    assert done.returncode == 1 and "No hub answers" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_only_the_environment_shows(cluster, tmp_path: Path) -> None:
    common = ("sb3", "--address", cluster.gcs_address, "--output", "trained")
    done = train(*common, "--env-id", "CartPole-v1", "--algo", "SAC", cwd=tmp_path)
    assert done.returncode == 1 and "SAC refuses: The algorithm only supports" in done.stderr
    done = train(*common, "--env-id", "CartPol-v1", cwd=tmp_path)
    assert done.returncode == 1 and "UnknownNameError" in done.stderr and "CartPole-v1" in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert_free(cluster)
