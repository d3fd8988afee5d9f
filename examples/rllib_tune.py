"""A Tune grid over PPO's learning rate and discount: four trials at the hub, their env runners on the simulators."""

import argparse

from ray import tune
from ray.rllib.algorithms.ppo import PPOConfig

import remoterl

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("iterations", type=int, nargs="?", default=30, help="of each trial")
    args = parser.parse_args()
    remoterl.init(role="trainer")
    config = (
        PPOConfig()
        .environment("CartPole-v1")
        .env_runners(num_env_runners=2, num_envs_per_env_runner=8)
        .training(
            lr=tune.grid_search([1e-3, 3e-4]),
            gamma=tune.grid_search([0.98, 0.99]),
            train_batch_size_per_learner=1024,
            minibatch_size=256,
            num_epochs=10,
        )
    )
    tuner = tune.Tuner(
        "PPO",
        param_space=config,
        tune_config=tune.TuneConfig(metric="env_runners/episode_return_mean", mode="max"),
        run_config=tune.RunConfig(stop={"training_iteration": args.iterations}, verbose=1),
    )
    results = tuner.fit()
    for result in results:
        tried = {name: result.config[name] for name in ("lr", "gamma")}
        print(f"{tried}: mean return {result.metrics['env_runners']['episode_return_mean']:.1f}")
    best = results.get_best_result()
    print(f"Best: lr {best.config['lr']}, gamma {best.config['gamma']}.")
    remoterl.shutdown()
