"""Where RLlib's env runners sit, for every algorithm and way to build one; asked of Ray."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import rllib_envs
from processes import wait_until
from rllib_fixtures import free_units, in_cluster_only

from remoterl.patches.backend import backend
from remoterl.patches.rllib import samples_here

pytest.importorskip("ray.rllib")

from ray.rllib.algorithms.bc import BCConfig
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.algorithms.impala import IMPALAConfig
from ray.rllib.algorithms.ppo import PPO, PPOConfig

SMALL: dict[str, Any] = {"train_batch_size_per_learner": 128, "minibatch_size": 64, "num_epochs": 1}
NET = {"fcnet_hiddens": [16]}


def small_ppo(env: Any = "CartPole-v1", num_env_runners: int = 1, **env_config: Any) -> PPOConfig:
    config = PPOConfig().environment(env, env_config=env_config)
    return config.env_runners(num_env_runners=num_env_runners).training(**SMALL).rl_module(model_config=NET)


def where(algo: Any, group: str = "env_runner_group") -> list[str]:
    """The nodes of its env runners; what is called there is in a module that lies beside the tests alone."""
    return getattr(algo, group).foreach_env_runner(rllib_envs.node_of, local_env_runner=False)


def on_simulators(names: list[str], number: int) -> bool:
    """So many env runners, each on a simulator, two of them on both."""
    return len(names) == number and set(names) <= {"alpha", "beta"} and len(set(names)) == min(number, 2)


@pytest.mark.parametrize("rllib_session", ["client"], indirect=True, scope="session")
def test_training_and_evaluation_at_simulators_learners_at_the_hub(rllib_session: str, node_names: Any) -> None:
    config = small_ppo(num_env_runners=2).evaluation(evaluation_num_env_runners=1, evaluation_interval=1)
    config.learners(num_learners=1)
    before = config.to_dict()
    algo = config.build_algo()
    assert node_names(where(algo)) == ["alpha", "beta"]
    assert on_simulators(node_names(where(algo, "eval_env_runner_group")), 1)
    learners = algo.learner_group.foreach_learner(rllib_envs.node_of)
    assert node_names(learner.get() for learner in learners.result_or_errors) == ["hub"]
    assert free_units() == 5  # ours made room: their number is not RLlib's
    result = algo.train()
    assert result["env_runners"]["num_env_steps_sampled_lifetime"] >= 128
    assert result["evaluation"]["env_runners"]["num_episodes"] > 0
    algo.stop()
    wait_until(lambda: free_units() == 8, what="units free after algo.stop()")
    after = config.to_dict()
    assert {name for name in before if before[name] != after[name]} == set()
    env = gym.make("CartPole-v1")  # the session is open, and takes env runners of its own again
    assert type(env).__name__ == "RemoteEnv"
    env.close()


def old_stack() -> Any:
    config = PPOConfig().api_stack(enable_rl_module_and_learner=False, enable_env_runner_and_connector_v2=False)
    config.environment("CartPole-v1").env_runners(num_env_runners=1, rollout_fragment_length=32)
    return config.training(train_batch_size=64, minibatch_size=32, num_epochs=1, model={"fcnet_hiddens": [16]})


def dqn() -> Any:
    config = DQNConfig().environment("CartPole-v1").env_runners(num_env_runners=1)
    config.reporting(min_sample_timesteps_per_iteration=100)
    return config.training(num_steps_sampled_before_learning_starts=50, train_batch_size_per_learner=16)


def impala() -> Any:
    config = IMPALAConfig()
    config.environment("CartPole-v1").env_runners(num_env_runners=2).learners(num_learners=0)
    config.reporting(min_time_s_per_iteration=1)
    return config.training(train_batch_size_per_learner=100).rl_module(model_config=NET)


# Each by one connection; multi-agent is in `test_rllib_examples.py`.
@pytest.mark.parametrize(
    ("rllib_session", "make"),
    [("driver", old_stack), ("client", dqn), ("client", impala)],
    indirect=["rllib_session"],
    scope="session",
)
def test_algorithms(rllib_session: str, node_names: Any, make: Any) -> None:
    config = make()
    algo = config.build_algo()
    before = node_names(where(algo))
    for _ in range(2):
        result = algo.train()
    assert result["training_iteration"] == 2
    assert node_names(where(algo)) == before and on_simulators(before, config.num_env_runners)
    algo.stop()


@pytest.mark.parametrize(
    ("rllib_session", "env"),
    [
        *(("client", env) for env in ("id", "register_env", "trainer's id")),
        *(("driver", env) for env in ("async", "vector_entry_point")),
    ],
    indirect=["rllib_session"],
    scope="session",
)
def test_environments(rllib_session: str, node_names: Any, env: str) -> None:
    """One that only the simulators know, or only the trainer, in a module that no simulator can import."""
    from ray import tune

    assert importlib.util.find_spec("only_here") is None
    if env == "id":
        config = small_ppo("OnlyHere-v0")
    elif env == "async":
        config = small_ppo("only_here:OnlyHere-v0")
    elif env == "register_env":
        tune.register_env(f"mine-{rllib_session}", lambda context: rllib_envs.ConfiguredEnv(context))
        config = small_ppo(f"mine-{rllib_session}", size=5)
    else:
        classes = {"entry_point": rllib_envs.PlainEnv, "vector_entry_point": "rllib_envs:PlainVectorEnv"}
        gym.register("OnTrainer-v0", **classes)
        config = small_ppo("OnTrainer-v0", size=5)
    if env in ("async", "vector_entry_point"):
        config.env_runners(gym_env_vectorize_mode=env)
    try:
        algo = config.env_runners(num_envs_per_env_runner=2).build_algo()
        assert on_simulators(node_names(where(algo)), 1)
        spaces = algo.env_runner_group.get_spaces()
        assert spaces["default_policy"][0].shape == ((3,) if env in ("id", "async") else (5,))
        observed = first_observations(algo)
        if env == "register_env":
            assert set(observed) == {1.0}  # EnvContext arrives
        if env in ("async", "vector_entry_point"):
            kinds = algo.env_runner_group.foreach_env_runner(
                lambda env_runner: type(env_runner.env.unwrapped).__name__, local_env_runner=False
            )
            assert kinds == ["AsyncVectorEnv" if env == "async" else "PlainVectorEnv"]
        algo.train()
        algo.stop()
        if env == "trainer's id":  # as in a notebook, whose next cell registers another one
            del gym.registry["OnTrainer-v0"]
            gym.register("OnTrainer-v0", entry_point=rllib_envs.PlainEnv, kwargs={"size": 4})
            algo = small_ppo("OnTrainer-v0").build_algo()
            assert algo.env_runner_group.get_spaces()["default_policy"][0].shape == (4,)
            algo.stop()
    finally:
        gym.registry.pop("OnTrainer-v0", None)
    assert "only_here" not in sys.modules


def first_observations(algo: Any) -> list[float]:
    """The first number of each episode that its env runners sample now; the worker's index for a `ConfiguredEnv`."""
    return [
        float(episode.get_observations(0).flat[0])
        for episodes in algo.env_runner_group.foreach_env_runner(
            lambda env_runner: env_runner.sample(num_timesteps=4), local_env_runner=False
        )
        for episode in episodes
    ]


def test_who_steps_environments_in_its_own_process() -> None:
    assert samples_here(vars(small_ppo(num_env_runners=0))) and not samples_here(vars(small_ppo()))
    assert samples_here(vars(small_ppo().evaluation(evaluation_interval=1)))
    learns_from_records = BCConfig().evaluation(evaluation_interval=1, evaluation_num_env_runners=1)
    assert not samples_here(vars(learns_from_records))
    assert samples_here(vars(learns_from_records.evaluation(evaluation_num_env_runners=0)))


@in_cluster_only
def test_pettingzoo(rllib_session: str, node_names: Any) -> None:
    import petting_zoo_env
    from pettingzoo.utils.conversions import parallel_to_aec
    from ray import tune
    from ray.rllib.env.wrappers.pettingzoo_env import PettingZooEnv

    tune.register_env("zoo", lambda _: PettingZooEnv(parallel_to_aec(petting_zoo_env.Meeting())))
    config = small_ppo("zoo").multi_agent(policies={"all"}, policy_mapping_fn=lambda *_, **__: "all")
    algo = config.build_algo()
    assert on_simulators(node_names(where(algo)), 1)
    algo.train()
    algo.stop()


@in_cluster_only
@pytest.mark.parametrize("env", ["id", "class"])
def test_sampling_in_the_trainers_process(rllib_session: str, node_names: Any, env: str) -> None:
    """`num_env_runners=0`: the rows that RLlib steps here are remote ones, like any vector env's; evaluation's too.

    One env runner of ours is enough for them, so that evaluation finds room for its own where it has any.
    """
    config = small_ppo("OnlyHere-v0") if env == "id" else small_ppo(rllib_envs.ConfiguredEnv, size=5)
    config.env_runners(num_env_runners=0, num_envs_per_env_runner=4)
    evaluators = 1 if env == "class" else 0
    config.evaluation(evaluation_interval=1, evaluation_duration=4, evaluation_num_env_runners=evaluators)
    algo = config.build_algo()
    algo.env_runner.make_env()  # anew, as after a change of the config or a failure
    rows_here = [algo.env_runner.env.unwrapped]
    if evaluators:
        assert on_simulators(node_names(where(algo, "eval_env_runner_group")), 1)
        assert free_units() == 6
    else:
        rows_here.append(algo.eval_env_runner.env.unwrapped)
    for rows in rows_here:
        assert type(rows).__name__ == "RemoteSyncVectorEnv" and rows.num_envs == 4
        assert set(rows._core.places()) <= {"alpha", "beta"} and sum(map(len, rows._core.places().values())) == 4
    result = algo.train()
    assert result["env_runners"]["num_env_steps_sampled_lifetime"] >= 128
    assert result["evaluation"]["env_runners"]["num_episodes"] >= 4
    algo.stop()
    for rows in rows_here:
        rows.close()
    assert backend() is not None


@in_cluster_only
def test_the_old_stack_samples_in_the_trainers_process(rllib_session: str) -> None:
    algo = old_stack().environment("OnlyHere-v0").env_runners(num_env_runners=0).build_algo()
    env = algo.env_runner.env
    while type(env).__name__ != "RemoteEnv":
        env = env.env
    assert set(env._core.places()) <= {"alpha", "beta"}
    assert algo.train()["training_iteration"] == 1
    algo.stop()


@in_cluster_only
def test_a_dict_its_own_resources_its_connectors_and_an_environments_class(rllib_session: str, node_names: Any) -> None:
    """`build_algo()` is everywhere else. A connector runs beside the environment."""
    config = PPOConfig().env_runners(env_to_module_connector=lambda *_: rllib_envs.SaysWhereItRan())
    as_dict = {
        **config.to_dict(), "env": rllib_envs.ConfiguredEnv, "env_config": {"size": 5}, "num_env_runners": 1,
        "num_envs_per_env_runner": 3, "custom_resources_per_env_runner": {"env_runner": 2}, **SMALL,
    }  # fmt: skip
    algo = PPO(config=as_dict)
    assert algo.config.num_envs_per_env_runner == 3 and free_units() == 6
    assert algo.env_runner_group.get_spaces()["default_policy"][0].shape == (5,)
    assert set(first_observations(algo)) == {1.0}  # EnvContext arrives
    algo.train()
    [nodes] = algo.env_runner_group.foreach_env_runner(
        lambda env_runner: next(each.nodes for each in env_runner._env_to_module.connectors if hasattr(each, "nodes")),
        local_env_runner=False,
    )
    assert node_names(nodes) == node_names(where(algo)) and on_simulators(node_names(nodes), 1)
    check_nothing_stays_referenced(algo)
    algo.stop()


def check_nothing_stays_referenced(algo: Any) -> None:
    """What a function that is sent refers to goes with it: the old API stack sends each iteration's weights so."""
    import ray

    weights = ray.put(np.zeros(100_000))
    held = weights.hex().encode()
    assert algo.env_runner_group.foreach_env_runner(
        lambda _, weights=weights: ray.get(weights).size, local_env_runner=False
    ) == [100_000]
    counts = ray._private.worker.global_worker.core_worker.get_all_reference_counts
    assert held in counts()
    del weights
    wait_until(lambda: held not in counts(), what="nobody holds it")
