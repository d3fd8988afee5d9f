"""What is too much to ask, what is lost, and how it ends: RLlib's env runners leave the simulators."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import psutil
import pytest
import ray
import rllib_ends
from conftest import patched_places
from processes import A_MINUTE_S, KEY, PATIENCE_S, Cluster, kill, run_python, wait_until
from ray.rllib.algorithms.ppo import PPO, PPOConfig
from rllib_fixtures import assert_no_rllib_left, in_cluster_only

import remoterl
from remoterl import capacity
from remoterl.errors import CapacityError, UnknownEnvironmentError, UnsupportedError

SMALL: dict[str, Any] = {"train_batch_size_per_learner": 64, "minibatch_size": 32, "num_epochs": 1}


def ppo(num_env_runners: int) -> PPOConfig:
    config = PPOConfig().environment("CartPole-v1").env_runners(num_env_runners=num_env_runners)
    return config.training(**SMALL)


def fields(config_class: str) -> dict[str, str]:
    """Every field of a new config, as text."""
    import ray.rllib.algorithms.ppo as module

    return {
        name: re.sub(r" at 0x\w+", "", repr(value)) for name, value in vars(getattr(module, config_class)()).items()
    }


def where(algo: Any) -> list[str]:
    return algo.env_runner_group.foreach_env_runner(
        lambda _: ray.get_runtime_context().get_node_id(), local_env_runner=False
    )


def lives(process: psutil.Process) -> bool:
    """Not gone, and no zombie either that only waits for its parent's look."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_too_few_units(rllib_cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    before = patched_places()
    assert remoterl.init(KEY, address=rllib_cluster.gcs_address, num_env_runners=1, timeout_s=2)
    try:
        with caplog.at_level("INFO", "remoterl"), pytest.raises(CapacityError) as raised:
            ppo(9).build_algo()
        assert "asks for 9 env runners" in str(raised.value) and "8 free of 8" in str(raised.value)
        assert "remoterl simulate" in str(raised.value)
        assert sum("Waiting up to 2 s" in record.message for record in caplog.records) == 1
        with pytest.raises(CapacityError, match=r"asks for 10 env runners.*of 8"):
            ppo(8).evaluation(evaluation_num_env_runners=2, evaluation_interval=1).build_algo()
        with pytest.raises(CapacityError, match=r"asks for 12 env runners"):
            ray.tune.run("PPO", config={"env": "CartPole-v1", "num_env_runners": ray.tune.grid_search([2, 12])})
        with pytest.raises(CapacityError, match=r"asks for 50 CPU, the cluster has"):
            ppo(1).learners(num_learners=50).build_algo()
        assert type(gym.make("CartPole-v1")).__name__ == "RemoteEnv"  # nothing was lost by asking
    finally:
        remoterl.shutdown()
    assert patched_places() == before
    assert_no_rllib_left(rllib_cluster)


def test_what_is_registered_before_init(rllib_cluster: Cluster, node_names: Any) -> None:
    import rllib_envs
    from ray.rllib.env.env_context import EnvContext
    from ray.tune.registry import ENV_CREATOR
    from ray.tune.registry import _global_registry as registry

    ray.tune.register_env("early", lambda context: rllib_envs.ConfiguredEnv(context))
    assert remoterl.init(KEY, address=rllib_cluster.gcs_address, num_env_runners=8, timeout_s=5)
    try:
        config = PPOConfig().environment("early", env_config={"size": 2}).training(**SMALL)
        # All units are ours, and RLlib's default of 2 env runners gets its places.
        algo = PPO(config={**{name: getattr(config, name) for name in ("env", "env_config")}, **SMALL})
        assert node_names(where(algo)) == ["alpha", "beta"]
        algo.stop()
        with pytest.raises(UnknownEnvironmentError, match=r"CartPoul-v1.*alpha, beta.*CartPole-v1"):
            PPOConfig().environment("CartPoul-v1").env_runners(num_env_runners=1).build_algo()
        ray.tune.register_env("late", lambda context: rllib_envs.ConfiguredEnv(context))
        ray.tune.register_env("gone", lambda context: rllib_envs.ConfiguredEnv(context))
        registry.unregister(ENV_CREATOR, "gone")
    finally:
        remoterl.shutdown()
    # A cluster of the script's own would find them.
    known = {name: registry.contains(ENV_CREATOR, name) for name in ("early", "late", "gone", "CartPoul-v1")}
    for name in ("early", "late"):
        assert registry.get(ENV_CREATOR, name)(EnvContext({"size": 3}, 0)).observation_space.shape == (3,)
        registry.unregister(ENV_CREATOR, name)
    assert known == {"early": True, "late": True, "gone": False, "CartPoul-v1": False}
    assert_no_rllib_left(rllib_cluster)


def test_a_session_on_the_scripts_own_connection(
    rllib_cluster: Cluster, node_names: Callable[[Any], list[str]], tmp_path: Path
) -> None:
    """`remoterl.shutdown()` leaves Ray connected, and nothing on the simulators; later algorithms are local."""
    from remoterl.cluster import auth

    expected = fields("PPOConfig")
    before = patched_places()
    undo_key = auth.use_key(KEY)
    ray.init(rllib_cluster.gcs_address, log_to_driver=False)
    try:
        assert remoterl.init(num_env_runners=1)
        algo = ppo(1).build_algo()
        assert set(node_names(where(algo))) < {"alpha", "beta"}
        algo.save_to_path(tmp_path / "checkpoint")
        remoterl.shutdown()
        assert ray.is_initialized()
        assert patched_places() == before
        assert_no_rllib_left(rllib_cluster)
        assert fields("PPOConfig") == expected
        algo = ppo(1).build_algo()
        assert node_names(where(algo)) == ["hub"]
        assert algo.config.num_cpus_per_env_runner == 1 and algo.config.custom_resources_per_env_runner == {}
        algo.stop()
        algo = PPO.from_checkpoint(tmp_path / "checkpoint")
        assert node_names(where(algo)) == ["hub"]
        algo.stop()
    finally:
        ray.shutdown()
        undo_key()


SCRIPT = Path(rllib_ends.__file__)


def said_fields(output: str) -> dict[str, dict[str, Any]]:
    """When -> what the script said of configs and code then."""
    lines = re.findall(r"^FIELDS (\S+) (.*)$", output, re.MULTILINE)
    return {when: json.loads(text) for when, text in lines}


def assert_all_free(cluster: Cluster) -> None:
    assert_no_rllib_left(cluster)
    with capacity.connected(cluster.gcs_address, KEY, PATIENCE_S):
        wait_until(lambda: remoterl.check(8), A_MINUTE_S, "all units are free")


def test_after_every_end_configs_are_those_of_a_fresh_process(rllib_cluster: Cluster) -> None:
    address = {"REMOTERL_ADDRESS": rllib_cluster.gcs_address}
    done = run_python(SCRIPT, timeout_s=280, **address)
    said = said_fields(done.stdout)
    fresh = rllib_ends.fields()  # this process has no session now
    assert list(said) == ["algo.stop", "remoterl.shutdown", "ray.shutdown", "exception"], done.stdout + done.stderr
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr, done.stderr
    assert done.stdout.count("FREE") == 2
    assert len(fresh) == 5 and all(len(fields) > 100 for name, fields in fresh.items() if name != "code")
    assert fresh["code"] == [] and said["algo.stop"].pop("code") != []  # the session is open still
    for when, fields in said.items():
        for name in fields:
            assert fields[name] == fresh[name], (when, name)
    assert_all_free(rllib_cluster)


@pytest.mark.long
def test_a_simulator_is_killed_in_mid_training(rllib_cluster: Cluster, node_names: Any) -> None:
    """All that it has on its machine, in the middle of an iteration."""
    gamma = rllib_cluster.add("gamma")
    tree = gamma.tree()
    killed_at: list[float] = []

    def kill_it() -> None:
        killed_at.append(time.monotonic())
        kill(tree)

    assert remoterl.init(KEY, address=rllib_cluster.client_address, num_env_runners=1)
    try:
        algo = ppo(3).training(train_batch_size_per_learner=2000, minibatch_size=500).build_algo()
        assert "gamma" in node_names(where(algo))
        tree[:] = gamma.tree()  # with the env runners
        began = time.monotonic()
        algo.train()
        threading.Timer(min(0.5, (time.monotonic() - began) / 4), kill_it).start()
        algo.train()
        assert killed_at and killed_at[0] < time.monotonic()
        assert algo.train()["training_iteration"] == 3
        deadline = time.monotonic() + 60
        while algo.env_runner_group.num_healthy_remote_workers() < 3 and time.monotonic() < deadline:
            time.sleep(2.0)  # the core is for the env runner that starts; an iteration is what takes it in
            algo.train()
        assert algo.env_runner_group.num_healthy_remote_workers() == 3
        assert set(node_names(where(algo))) == {"alpha", "beta"}
        gamma.process.wait()
        wait_until(lambda: not any(lives(process) for process in tree), what="gamma's processes")
        algo.stop()
    finally:
        remoterl.shutdown()
        del rllib_cluster.simulators["gamma"]
    assert_no_rllib_left(rllib_cluster)


@in_cluster_only
def test_waiting_ends_well(rllib_session: str, node_names: Any, caplog: pytest.LogCaptureFixture) -> None:
    """An algorithm that is built while another holds the units gets its place when that one stops."""
    first = ppo(2).env_runners(custom_resources_per_env_runner={"env_runner": 4}).build_algo()
    threading.Timer(3, first.stop).start()
    with caplog.at_level("INFO", "remoterl"):
        second = ppo(1).build_algo()
    [waiting] = [record.message for record in caplog.records if "Waiting up to 30 s" in record.message]
    assert "it asks for 1 env runners, the simulators have 0 free of 8" in waiting
    assert set(node_names(where(second))) < {"alpha", "beta"}
    second.stop()


@in_cluster_only
def test_an_experiment_object(rllib_session: str, node_names: Any, tmp_path: Path) -> None:
    import rllib_envs
    from ray import tune

    space = {"env": "CartPole-v1", "num_env_runners": 1, "callbacks": rllib_envs.SaysWhere, **SMALL}
    options = {"stop": {"training_iteration": 1}, "storage_path": str(tmp_path)}
    experiment = tune.Experiment("one", "PPO", config=space, **options)
    analysis = tune.run(experiment, verbose=0)
    places = analysis.trials[0].last_result["places"]
    assert set(node_names(places["env_runners"])) <= {"alpha", "beta"}
    assert "custom_resources_per_env_runner" not in experiment.spec["config"]
    resourceful = tune.with_resources(tune.registry.get_trainable_cls("PPO"), {"cpu": 1})
    resourceful.__name__ = "Resourceful"  # Tune registers it under its name
    with pytest.raises(UnsupportedError, match="Tuner"):
        tune.run(tune.Experiment("two", resourceful, config=space, **options), verbose=0)
