"""RLlib's PPO learns CartPole; its env runners sit on the simulators, one unit each. Nothing else is configured."""

import math

from ray.rllib.algorithms.ppo import PPOConfig

import remoterl

if __name__ == "__main__":
    remoterl.init(role="trainer")  # the hub is in REMOTERL_ADDRESS, its key in REMOTERL_API_KEY
    config = (
        PPOConfig()
        .environment("CartPole-v1")
        .env_runners(num_env_runners=4, num_envs_per_env_runner=8)
        .training(
            lr=1e-3, gamma=0.98, lambda_=0.8, train_batch_size_per_learner=1024, minibatch_size=256, num_epochs=10
        )
        .rl_module(model_config={"fcnet_hiddens": [64, 64], "fcnet_activation": "tanh"})
    )
    algo = config.build_algo()
    mean_return = float("nan")
    for iteration in range(1, 301):
        result = algo.train()
        latest = result["env_runners"].get("episode_return_mean", float("nan"))
        mean_return = mean_return if math.isnan(latest) else latest  # RLlib's is nan where no episode ended
        if iteration % 10 == 0:
            print(f"iteration {iteration:3}  mean return {mean_return:6.1f}")
        if mean_return >= 450:
            break
    print(f"Mean return {mean_return:.1f} after {iteration} iterations.")
    algo.stop()
    remoterl.shutdown()
