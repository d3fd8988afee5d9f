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
from commands import Call, Done, run_in_turn
from conftest import assert_free
from processes import PATIENCE_S, Process, clean_environment, inheriting, wait_until
from rllib_fixtures import assert_no_rllib_left

SCORE = re.compile(r"^(Done|Solved|Stopped): mean return (-?[\d.]+).* after ([\d,]+) steps in .* steps/s", re.MULTILINE)


def train(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "remoterl", "train", *arguments],
        env=clean_environment(**environment), cwd=cwd, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


def score_of(done: subprocess.CompletedProcess[str] | Done) -> tuple[str, float, int]:
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
        "--num-workers", "2", "--num-env-runners", "1", "--num-envs", "8", "--timesteps", "1024", "--seed", "1",
        "--timeout", str(PATIENCE_S),
        "--n-steps", "64", "--learning_rate=1e-3", "--gamma", "0.98", "--device", "cpu",
        "--policy-kwargs", '{"net_arch": [16]}', "--output", "trained", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 env runners over" in done.stderr
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
    common = (
        "train", "sb3", "--env-id", "CartPole-v1", "--address", cluster.gcs_address, "--seed", "1", "--steps", "600",
    )  # fmt: skip
    quantile = ("--algo", "QRDQN", "--learning-starts", "100", "--buffer-size", "1e3", "--train-freq", '[4, "step"]')
    window = ("--stats-window-size", "10")  # of the episodes whose mean it is: so many it takes at least
    calls = [Call([*common, *quantile, *window, "--target", target]) for target in ("5", "500")]
    reached, missed = run_in_turn(*calls, cwd=tmp_path)
    assert reached.returncode == 0, reached.stderr
    outcome, score, steps = score_of(reached)
    assert outcome == "Solved" and score >= 5 and steps < 600
    assert missed.returncode == 1 and score_of(missed)[0] == "Stopped"
    assert "Saved: runs/QRDQN_CartPole-v1_2/model.zip" in missed.stdout
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


SAVED_BY_CTRL_C = re.compile(r"Interrupted: saving.*Done: mean return ([\d.]+).* after ([\d,]+) steps", re.DOTALL)


def interrupted(*arguments: str, output: Path, **environment: str) -> str:
    """What a training prints that Ctrl-C ends once it has a mean return."""
    command = (sys.executable, "-m", "remoterl", "train", *arguments, "--steps", "100000", "--output", str(output))
    trainer = Process(*command, PYTHONUNBUFFERED="1", **environment)
    trainer.wait_for("mean return", 240)
    log = trainer.log.open()
    assert trainer.end(signal.SIGINT) == 1
    printed = log.read()
    assert SAVED_BY_CTRL_C.search(printed) and "Traceback" not in printed, printed
    assert is_picture(output / "learning_curve.png")
    return printed


def test_ctrl_c_saves_what_was_learned(cluster, tmp_path: Path) -> None:
    interrupted(
        "sb3", "--env-id", "CartPole-v1", "--address", cluster.gcs_address, "--num-env-runners", "1",
        "--num-envs", "4", "--n-steps", "64", output=tmp_path,
    )  # fmt: skip
    assert (tmp_path / "model.zip").exists()
    assert_free(cluster)


@pytest.mark.long
def test_ctrl_c_for_rllib_in_a_private_cluster(tmp_path: Path) -> None:
    printed = interrupted(
        "rllib", "--algo", "PPO", "--env-id", "CartPole-v1", "--address", "local", "--num-env-runners", "1",
        "--num-envs", "4", "--seed", "1", "--train-batch-size-per-learner", "300", "--minibatch-size", "100",
        "--num-epochs", "1", "--lr", "1e-3", "--lambda", "0.9", output=tmp_path / "trained", TESTED_BY=str(tmp_path),
    )  # fmt: skip
    assert f"Saved: {tmp_path / 'trained' / 'checkpoint'}" in printed
    saved = pickle.loads((tmp_path / "trained" / "checkpoint" / "class_and_ctor_args.pkl").read_bytes())
    config = saved["ctor_args_and_kwargs"][0][0]
    assert saved["class"].__name__ == "PPO"
    expected = {
        "env": "CartPole-v1", "seed": 1, "lr": 1e-3, "lambda_": 0.9, "num_epochs": 1, "num_env_runners": 1,
        "num_envs_per_env_runner": 4,
    }  # fmt: skip
    assert {name: config[name] for name in expected} == expected
    wait_until(lambda: inheriting(str(tmp_path)) == [], what="Ray's processes gone")


def test_refusals_start_nothing(tmp_path: Path) -> None:
    """The address is of no hub: what is refused is refused before anyone asks for one."""
    cartpole = ("--env-id", "CartPole-v1", "--address", "127.0.0.1:1", "--timeout", "1")
    refused: list[tuple[tuple[str, ...], str]] = [
        (("sb3", "--algo", "PPOO"), "no such algorithm in stable_baselines3 or sb3_contrib. The closest names: PPO"),
        (("sb3", "--learnin-rate", "1"), "PPO has no parameter --learnin-rate. The closest names: --learning-rate."),
        (("sb3", "--n-steps", "many"), "--n-steps takes an integer, got 'many'"),
        (("sb3", "--policy", "Mlp"), "--policy Mlp: PPO has MlpPolicy"),
        (("gym", "--algo", "PPO"), "only `random`"),
        (("rllib", "--learning-rate", "1"), "PPO has no parameter --learning-rate. The closest names: --lr."),
        (("rllib", "--train-batch-size-per-learner", "50"), "PPO refuses: `minibatch_size` (128) must be <="),
        (("sb3",), "No hub answers"),
    ]
    calls = [Call(["train", *arguments, *cartpole]) for arguments, _ in refused]
    for done, (_, expected) in zip(run_in_turn(*calls, cwd=tmp_path), refused, strict=True):
        assert done.returncode == 1 and expected in done.stderr, done.stderr
        assert done.stdout == "" and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_only_the_environment_shows(cluster, tmp_path: Path) -> None:
    common = ("train", "sb3", "--address", cluster.gcs_address, "--output", "trained")
    unfit = Call([*common, "--env-id", "CartPole-v1", "--algo", "SAC"])
    misspelt = Call([*common, "--env-id", "CartPol-v1"])
    first, second = run_in_turn(unfit, misspelt, cwd=tmp_path)
    assert first.returncode == 1 and "SAC refuses: The algorithm only supports" in first.stderr
    assert second.returncode == 1 and "UnknownNameError" in second.stderr and "CartPole-v1" in second.stderr
    assert list(tmp_path.iterdir()) == []
    assert_free(cluster)
