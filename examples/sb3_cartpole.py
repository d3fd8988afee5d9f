"""Stable-Baselines3's PPO on CartPole, its environments on simulators.

Set REMOTERL_ADDRESS to the hub's address (ray://host:10001) and REMOTERL_API_KEY to the cluster's key.
"""

from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

import remoterl

remoterl.init(role="trainer", num_workers=1, num_env_runners=8)
env = make_vec_env("CartPole-v1", n_envs=32)  # actually runs on remote simulators
model = PPO("MlpPolicy", env, verbose=1)
model.learn(total_timesteps=100_000)
remoterl.shutdown()
