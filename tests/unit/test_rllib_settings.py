from __future__ import annotations

from remoterl.patches.rllib_settings import (
    choices_of,
    for_simulators,
    largest_trial,
    number_of_trials,
    own_settings,
    with_units,
)


def test_a_dict_gets_a_unit_and_no_cpus() -> None:
    space = {"env": "CartPole-v1", "lr": 1e-3}
    changed = for_simulators(space)
    assert space == {"env": "CartPole-v1", "lr": 1e-3}
    assert changed["custom_resources_per_env_runner"] == {"env_runner": 1}
    assert changed["num_cpus_per_env_runner"] == 0 and changed["placement_strategy"] == "SPREAD"
    assert changed["env"] == "CartPole-v1" and changed["lr"] == 1e-3


def test_what_the_user_set_stays() -> None:
    space = {
        "custom_resources_per_env_runner": {"camera": 1, "env_runner": 2},
        "placement_strategy": "STRICT_SPREAD",
        "env_runner_health_probe_timeout_s": 20.0,
        "evaluation_config": {"num_cpus_per_env_runner": 2, "custom_resources_per_env_runner": {"x": 1}, "explore": 0},
    }
    assert for_simulators(space) == {
        **space,
        "num_cpus_per_env_runner": 0,
        "evaluation_config": {
            "num_cpus_per_env_runner": 0,
            "custom_resources_per_env_runner": {"env_runner": 1, "x": 1},
            "explore": 0,
        },
    }


def test_searched_resources() -> None:
    space = {"custom_resources_per_env_runner": {"grid_search": [{}, {"camera": 1}]}}
    assert for_simulators(space)["custom_resources_per_env_runner"] == {
        "grid_search": [{"env_runner": 1}, {"env_runner": 1, "camera": 1}]
    }


def test_the_largest_trial() -> None:
    from ray import tune

    space = {
        "env": tune.grid_search(["CartPole-v1", "Pendulum-v1"]),
        "num_env_runners": tune.grid_search([1, 4, 2]),
        "evaluation_num_env_runners": tune.choice([0, 3]),
        "lr": tune.loguniform(1e-4, 1e-2),
        "gamma": 0.9,
        "other": tune.sample_from(lambda spec: spec.config.gamma),
        "model": {"fcnet_hiddens": tune.grid_search([[8], [16]]), "vf_share_layers": True},
        "evaluation_config": {"explore": False},
    }
    point = largest_trial(space)
    assert 1e-4 <= point.pop("lr") <= 1e-2
    assert point.pop("other", 0.9) == 0.9
    assert point == {
        "env": "CartPole-v1",
        "num_env_runners": 4,
        "evaluation_num_env_runners": 3,
        "gamma": 0.9,
        "model": {"fcnet_hiddens": [8], "vf_share_layers": True},
        "evaluation_config": {"explore": False},
    }
    assert largest_trial({"num_env_runners": tune.randint(1, 6)}) == {"num_env_runners": 5}
    assert choices_of(tune.grid_search(["a", "b"])) == ["a", "b"] and choices_of("a") == ["a"]


def test_the_number_of_trials() -> None:
    from ray import tune

    space = {"env": "CartPole-v1", "lr": tune.grid_search([1, 2]), "gamma": tune.choice([1, 2, 3])}
    assert number_of_trials(space, 1) == 2 and number_of_trials(space, 5) == 10
    assert number_of_trials({**space, "model": {"fcnet_hiddens": tune.grid_search([[8], [16], [32]])}}, 1) == 6
    assert number_of_trials({"env": "CartPole-v1"}, 1) == 1 and number_of_trials(space, -1) == float("inf")


def test_a_learner_with_a_gpu_holds_a_cpu() -> None:
    from ray.rllib.algorithms.ppo import PPO, PPOConfig

    assert "num_cpus_per_learner" not in for_simulators({"num_learners": 2})
    assert for_simulators({"num_gpus_per_learner": 0.5})["num_cpus_per_learner"] == 1
    assert for_simulators({"num_gpus_per_learner": 1, "num_cpus_per_learner": 0})["num_cpus_per_learner"] == 0
    config = PPOConfig().environment("CartPole-v1").learners(num_learners=1, num_gpus_per_learner=1)
    changed = for_simulators(config)
    assert config.num_cpus_per_learner == own_settings(config)["num_cpus_per_learner"] == "auto"
    bundles = PPO.default_resource_request(changed.to_dict()).bundles
    assert {"CPU": 1, "GPU": 1} in bundles and sum("env_runner" in bundle for bundle in bundles) == 2


def test_aggregators_stay_beside_a_learner_in_the_algorithms_process() -> None:
    from ray.rllib.algorithms.impala import IMPALAConfig

    own_learner = {"num_aggregator_actors_per_learner": 1}
    assert "placement_strategy" not in for_simulators(own_learner)
    assert for_simulators({**own_learner, "num_learners": 1})["placement_strategy"] == "SPREAD"
    config = IMPALAConfig().learners(num_learners=0, num_aggregator_actors_per_learner=2)
    assert for_simulators(config).placement_strategy == "PACK"
    assert for_simulators(IMPALAConfig()).placement_strategy == "SPREAD"


def test_a_users_placement_group() -> None:
    assert with_units([{"CPU": 2}, {"CPU": 1}, {"CPU": 1, "GPU": 0.5}, {"CPU": 4}], 2) == [
        {"CPU": 2},
        {"env_runner": 1},
        {"env_runner": 1, "GPU": 0.5},
        {"CPU": 4},
    ]
    assert with_units([{"CPU": 2}], 2) == [{"CPU": 2}, {"env_runner": 1}, {"env_runner": 1}]


def test_a_config_object_is_copied() -> None:
    from ray.rllib.algorithms.ppo import PPOConfig

    config = PPOConfig().env_runners(num_env_runners=3, num_envs_per_env_runner=2)
    config.evaluation(evaluation_config=PPOConfig.overrides(explore=False))
    before = config.to_dict()
    changed = for_simulators(config)
    assert config.to_dict() == before
    assert changed.custom_resources_per_env_runner == {"env_runner": 1} and changed.num_cpus_per_env_runner == 0
    assert changed.num_env_runners == 3 and changed.num_envs_per_env_runner == 2
    assert changed.evaluation_config == {"explore": False}
    config.fault_tolerance(env_runner_health_probe_timeout_s=7)
    assert for_simulators(config).env_runner_health_probe_timeout_s == 7
    assert own_settings(config)["num_cpus_per_env_runner"] == 1
    assert {name for name, value in own_settings(changed).items() if value != own_settings(config)[name]} == {
        "custom_resources_per_env_runner",
        "num_cpus_per_env_runner",
        "placement_strategy",
        "env_runner_health_probe_timeout_s",
    }
