"""Tune: trials of RLlib's algorithms, their env runners on simulators, their own processes never there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray
import rllib_envs
from ray import tune
from ray.rllib.algorithms.ppo import PPO, PPOConfig
from rllib_fixtures import in_cluster_only

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


@pytest.mark.long
def test_a_grid_of_four_trials(rllib_session: str, node_names: Any, tmp_path: Path) -> None:
    config = PPOConfig().environment("OnlyHere-v0").callbacks(rllib_envs.SaysWhere)
    config.training(**SMALL, lr=tune.grid_search([1e-3, 1e-4])).env_runners(
        num_env_runners=tune.grid_search([1, 2]), rollout_fragment_length="auto"
    )
    before = config.to_dict()
    results = tune.Tuner("PPO", param_space=config, run_config=run_config(tmp_path)).fit()
    assert results.num_errors == 0 and len(results) == 4
    assert config.to_dict() == before
    asked = sorted((result.config["num_env_runners"], result.config["lr"]) for result in results)
    assert asked == [(1, 1e-4), (1, 1e-3), (2, 1e-4), (2, 1e-3)]
    places = [check_places(result.metrics, node_names) for result in results]
    assert sorted(map(len, places)) == [1, 1, 2, 2]
    assert {name for sat in places for name in sat} == {"alpha", "beta"}  # Ray spreads as well as its view allows


@in_cluster_only
@pytest.mark.parametrize("how", ["class and dict", "with_resources", "run by name", "run a config"])
def test_every_way_to_run(rllib_session: str, node_names: Any, tmp_path: Path, how: str) -> None:
    options: dict[str, Any] = {"stop": {"training_iteration": 1}, "storage_path": str(tmp_path), "verbose": 0}
    if how == "class and dict":
        [result] = tune.Tuner(PPO, param_space=space(), run_config=run_config(tmp_path)).fit()
        metrics = result.metrics
    elif how == "with_resources":
        scheduler = tune.schedulers.ASHAScheduler(metric="training_iteration", mode="max")
        trainable = tune.with_resources(PPO, tune.PlacementGroupFactory([{"CPU": 1}, {"CPU": 1}]))
        tuner = tune.Tuner(
            trainable,
            param_space=space(),
            tune_config=tune.TuneConfig(scheduler=scheduler),
            run_config=run_config(tmp_path),
        )
        [result] = tuner.fit()
        metrics = result.metrics
    elif how == "run by name":
        analysis = tune.run("PPO", config=space(), **options)
        metrics = analysis.trials[0].last_result
    else:
        config = PPOConfig().update_from_dict(space())
        metrics = tune.run(PPO, config=config, **options).trials[0].last_result
    assert check_places(metrics, node_names) in (["alpha"], ["beta"])


@in_cluster_only
def test_other_trainables_are_left_alone(rllib_session: str, node_names: Any, tmp_path: Path) -> None:
    def trainable(config: dict[str, Any]) -> None:
        tune.report({"node": ray.get_runtime_context().get_node_id(), "x": config["x"]})

    [result] = tune.Tuner(
        trainable, param_space={"x": 3}, run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0)
    ).fit()
    assert result.metrics["x"] == 3 and node_names([result.metrics["node"]]) == ["hub"]
