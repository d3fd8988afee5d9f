"""Labels and reservations bind RLlib's env runners too; where they sit is asked of Ray."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import ray
import rllib_envs
from processes import KEY, ROOT, Cluster, Process, wait_until
from ray import tune
from ray.rllib.algorithms.ppo import PPOConfig
from rllib_fixtures import assert_no_rllib_left

import remoterl
from remoterl.errors import CapacityError, UnsupportedError

SMALL: dict[str, Any] = {"train_batch_size_per_learner": 64, "minibatch_size": 32, "num_epochs": 1}


def ppo(num_env_runners: int, **env_runners: Any) -> PPOConfig:
    config = PPOConfig().environment("CartPole-v1").training(**SMALL)
    return config.env_runners(num_env_runners=num_env_runners, **env_runners)


def where(algo: Any) -> list[str]:
    return algo.env_runner_group.foreach_env_runner(
        lambda _: ray.get_runtime_context().get_node_id(), local_env_runner=False
    )


def free(labels: dict[str, str] | None = None) -> int:
    return sum(one["free_units"] for one in remoterl.describe(labels)["simulators"])


def test_labels(rllib_cluster: Cluster, node_names: Any, tmp_path: Path) -> None:
    """`beta` is the one simulator in zone b, with four units; Ray would take `alpha` as gladly."""
    assert remoterl.init(KEY, address=rllib_cluster.gcs_address, num_env_runners=1, labels={"zone": "b"}, timeout_s=5)
    try:
        with pytest.raises(CapacityError, match="asks for 5 env runners, the simulators with zone=b have 4 free of 4"):
            ppo(5).build_algo()
        algo = ppo(2).build_algo()
        assert node_names(where(algo)) == ["beta"] * 2
        check_one_that_starts_again(algo, node_names)
        algo.stop()
        check_a_trial(node_names, tmp_path)
    finally:
        remoterl.shutdown()
    assert_no_rllib_left(rllib_cluster)


def check_one_that_starts_again(algo: Any, node_names: Any) -> None:
    algo.env_runner_group.foreach_env_runner(
        lambda _: __import__("os")._exit(1), remote_worker_ids=[1], local_env_runner=False
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (len(where(algo)) < 2 or algo.iteration == 0):
        algo.train()
    assert node_names(where(algo)) == ["beta"] * 2


def test_an_environment_of_a_simulators_script(rllib_cluster: Cluster, node_names: Any) -> None:
    """Registered by the script itself, whose class is in its `__main__`; labels choose the simulators that have it."""
    simulator = Process(
        sys.executable,
        str(ROOT / "tests" / "simulator_only" / "simulator_script.py"),
        "scripted",
        REMOTERL_ADDRESS=rllib_cluster.gcs_address,
        RAY_TMPDIR=rllib_cluster.folder,
    )
    try:
        simulator.wait_for("is up")
        address = rllib_cluster.address("driver")
        assert remoterl.init(KEY, address=address, num_env_runners=1, labels={"kind": "script"})
        config = PPOConfig().environment("InMain-v0").training(**SMALL).env_runners(num_env_runners=1)
        algo = config.build_algo()
        assert node_names(where(algo)) == ["scripted"]
        rewards = algo.env_runner_group.foreach_env_runner(
            lambda env_runner: [each.get_rewards()[0] for each in env_runner.sample(num_timesteps=4)],
            local_env_runner=False,
        )
        assert rewards == [[2.5]]
        algo.stop()
    finally:
        remoterl.shutdown()
        assert simulator.end() == 0
    assert_no_rllib_left(rllib_cluster)


def check_a_trial(node_names: Any, folder: Path) -> None:
    space = {"env": "CartPole-v1", "num_env_runners": 2, "callbacks": rllib_envs.SaysWhere, **SMALL}
    stop = tune.RunConfig(stop={"training_iteration": 1}, storage_path=str(folder), verbose=0)
    [result] = tune.Tuner("PPO", param_space=space, run_config=stop).fit()
    assert node_names(result.metrics["places"]["env_runners"]) == ["beta"] * 2
    assert node_names([result.metrics["places"]["algorithm"]]) == ["hub"]


def test_a_reservation(rllib_cluster: Cluster, node_names: Any) -> None:
    address = rllib_cluster.gcs_address
    reservation = remoterl.reserve(2, {"zone": "b"}, address=address, api_key=KEY)
    assert remoterl.init(KEY, address=address, reservation=reservation, timeout_s=4)
    try:
        with pytest.raises(CapacityError, match="asks for 3 env runners, the reservation has 2"):
            ppo(3).build_algo()
        with pytest.raises(UnsupportedError, match=r"one env_runner and nothing else.*init\(labels"):
            ppo(1, custom_resources_per_env_runner={"env_runner": 2}).build_algo()
        with pytest.raises(UnsupportedError, match=r"a placement group of its own.*init\(labels"):
            tune.run("PPO", config={"env": "CartPole-v1", "num_env_runners": 1})
        algo = ppo(1).build_algo()
        assert node_names(where(algo)) == ["beta"]
        assert not remoterl.check(7)  # six are free: the second is the session's own still
        vec: Any = gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync")
        assert list(vec._core.places()) == ["beta"]
        with pytest.raises(CapacityError, match="asks for 1 env runners, the reservation has 0 free of 2"):
            ppo(1).build_algo()
        algo.stop()
        vec.close()
        both = ppo(2).build_algo()
        assert node_names(where(both)) == ["beta"] * 2
        both.stop()
        assert free() == 6 and free({"zone": "b"}) == 2  # what is reserved stays so until the session's end
    finally:
        remoterl.shutdown()
    assert_no_rllib_left(rllib_cluster)
    wait_until(lambda: remoterl.check(8, address=address, api_key=KEY), what="all units are free again")
