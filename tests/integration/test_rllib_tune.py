"""Tune: trials of RLlib's algorithms, their env runners on simulators, their own processes never there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import ray
import rllib_envs
from processes import wait_until
from ray import tune
from ray.rllib.algorithms.ppo import PPO, PPOConfig
from rllib_fixtures import free_units, in_cluster_only

from remoterl._process import current_session
from remoterl.errors import UnsupportedError
from remoterl.patches.backend import backend

SMALL: dict[str, Any] = {"train_batch_size_per_learner": 64, "minibatch_size": 32, "num_epochs": 1}


def space(**more: Any) -> dict[str, Any]:
    return {
        "env": "CartPole-v1",
        "num_env_runners": 1,
        "callbacks": rllib_envs.SaysWhere,
        "rollout_fragment_length": 32,
        **SMALL,
        **more,
    }


def run_config(folder: Path) -> Any:
    # Through Ray Client the results are the hub's; here that is this machine as well.
    return tune.RunConfig(stop={"training_iteration": 1}, storage_path=str(folder), verbose=0)


def check_places(metrics: Any, node_names: Any) -> list[str]:
    """The simulators that the env runners sat on."""
    places = metrics["places"]
    assert node_names([places["algorithm"]]) == ["hub"] and set(node_names(places["learners"])) == {"hub"}
    return node_names(places["env_runners"])


@pytest.mark.parametrize(
    ("rllib_session", "how"),
    [("client", "run a config by name"), ("driver", "with_resources")],
    indirect=["rllib_session"],
    scope="session",
)
def test_ways_to_run(rllib_session: str, node_names: Any, tmp_path: Path, how: str) -> None:
    options: dict[str, Any] = {"stop": {"training_iteration": 1}, "storage_path": str(tmp_path), "verbose": 0}
    if how == "with_resources":
        trainable = tune.with_resources(PPO, tune.PlacementGroupFactory([{"CPU": 1}, {"CPU": 1}]))
        results = tune.Tuner(trainable, param_space=space(), run_config=run_config(tmp_path)).fit()
        [result] = results
        metrics = result.metrics
        check_restored(results, trainable, space())
    else:
        config = PPOConfig().update_from_dict(space())
        metrics = tune.run("PPO", config=config, **options).trials[0].last_result
    assert check_places(metrics, node_names) in (["alpha"], ["beta"])
    assert_free_and_open()


def check_restored(results: Any, trainable: Any, param_space: Any) -> None:
    """With and without the search space; its only trial has ended. `test_rllib_examples` does it by Ray Client."""
    for more in ({}, {"param_space": param_space}):
        [again] = tune.Tuner.restore(results.experiment_path, trainable, **more).fit()
        assert again.metrics["training_iteration"] == 1


def assert_free_and_open() -> None:
    """A finished trial's units are free at once, and the session is open."""
    env = gym.make("CartPole-v1")
    assert type(env).__name__ == "RemoteEnv"
    env.close()
    with backend().room_for({"env_runner": 8}, "nothing"):
        wait_until(lambda: free_units() == 8, what="units free after the last trial")


@in_cluster_only
def test_trials_that_do_not_fit_at_a_time(
    rllib_session: str, node_names: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = space(num_env_runners=2, custom_resources_per_env_runner={"env_runner": 3})
    with caplog.at_level("INFO", "remoterl"):
        trials = tune.run(  # by its class: Tune registered what `with_resources` made under the name
            PPO, config=config, num_samples=2, max_concurrent_trials=2,
            stop={"training_iteration": 1}, storage_path=str(tmp_path), verbose=0,
        ).trials  # fmt: skip
    assert "max_concurrent_trials=2 with 6 env runners each is 12, and the simulators have 8 in all" in caplog.text
    assert "Trials of 6 env runners each: 8 free units hold 1 at a time" in caplog.text
    assert [check_places(trial.last_result, node_names) for trial in trials] == [["alpha", "beta"]] * 2


@in_cluster_only
@pytest.mark.filterwarnings("ignore:Consider boosting PBT")
def test_population_based_training_of_a_nested_space(rllib_session: str, node_names: Any, tmp_path: Path) -> None:
    scheduler = tune.schedulers.PopulationBasedTraining(
        metric="training_iteration", mode="max", perturbation_interval=1, hyperparam_mutations={"lr": [1e-3, 1e-4]}
    )
    nested = space(
        env=rllib_envs.ConfiguredEnv,
        env_config={"size": tune.choice([2, 3])},
        model={"fcnet_hiddens": tune.grid_search([[8], [16]])},
    )
    run = tune.RunConfig(stop={"training_iteration": 2}, storage_path=str(tmp_path), verbose=0)
    results = tune.Tuner(
        "PPO", param_space=nested, tune_config=tune.TuneConfig(scheduler=scheduler), run_config=run
    ).fit()
    assert results.num_errors == 0 and len(results) == 2
    for result in results:
        assert result.metrics["training_iteration"] == 2
        assert check_places(result.metrics, node_names) in (["alpha"], ["beta"])
        assert result.config["env_config"]["size"] in (2, 3)
    assert sorted(result.config["model"]["fcnet_hiddens"] for result in results) == [[8], [16]]
    own = {name: results[0].config[name] for name in ("env", "env_config", "model")}
    algo = PPOConfig().update_from_dict(space(**own)).build_algo()  # with a config that knows no simulators of itself
    algo.restore_from_path(results[0].checkpoint.path)
    assert algo.iteration == 2
    algo.stop()
    assert_free_and_open()


@pytest.mark.parametrize("rllib_session", ["client"], indirect=True, scope="session")
def test_run_experiments_through_ray_client(rllib_session: str) -> None:
    with pytest.raises(UnsupportedError, match="ray job submit"):
        tune.run_experiments({"one": {"run": "PPO", "config": space()}})


@in_cluster_only
def test_other_trainables_open_sessions_of_their_own(
    rllib_session: str, node_names: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def trainable(_: Any) -> None:
        import stable_baselines3 as sb3
        from stable_baselines3.common.env_util import make_vec_env

        import remoterl

        before = type(make_vec_env("CartPole-v1")).__name__
        if not remoterl.init(num_env_runners=1):
            raise RuntimeError("no simulators")
        try:
            env = make_vec_env("CartPole-v1", n_envs=8, seed=1)
            sb3.PPO("MlpPolicy", env, n_steps=8, batch_size=64, device="cpu").learn(64)
            node = ray.get_runtime_context().get_node_id()
            kinds = before, type(env).__name__
        finally:
            remoterl.shutdown()
        after = type(make_vec_env("CartPole-v1")).__name__
        tune.report({"node": node, "kinds": (*kinds, after)})

    [result] = tune.Tuner(
        trainable,
        run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0),
    ).fit()
    assert node_names([result.metrics["node"]]) == ["hub"]
    assert result.metrics["kinds"] == ("DummyVecEnv", "RemoteDummyVecEnv", "DummyVecEnv")
    assert current_session().runners == []  # those that had nothing to do here
    assert caplog.text.count("trainable is no algorithm of RLlib: its trials run in Ray's processes") == 1
    assert_free_and_open()
