"""Stable-Baselines3's PPO heats a greenhouse that it knows by name only: greenhouse_simulator.py has it.

Start that first. Set REMOTERL_ADDRESS to the hub's address (ray://host:10001) and REMOTERL_API_KEY to the cluster's
key. Expect about -140 a day at the start, and -10 after 60,000 steps, which take a minute.
"""

import argparse

import gymnasium as gym
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

import remoterl

ENV_ID = "Greenhouse-v0"
parser = argparse.ArgumentParser(description="PPO on an environment that only the simulators have.")
parser.add_argument("--timesteps", type=int, default=60_000)
args = parser.parse_args()

# Of all simulators, those that offer it: env runners on others could not make it.
if not remoterl.init(role="trainer", num_env_runners=2, labels={"offers": "greenhouse"}):
    raise SystemExit("no simulator offers a greenhouse: see the line above")
offering = [one["name"] for one in remoterl.describe()["simulators"] if ENV_ID in one["environments"]]
print(f"{ENV_ID} is {'known' if ENV_ID in gym.registry else 'unknown'} here, and offered by {', '.join(offering)}.")

env = make_vec_env(ENV_ID, n_envs=8, seed=1)
model = PPO("MlpPolicy", env, n_steps=96, batch_size=128, learning_rate=1e-3, gamma=0.9, seed=1, device="cpu")
before, _ = evaluate_policy(model, env, n_eval_episodes=16)
model.learn(args.timesteps)
after, _ = evaluate_policy(model, env, n_eval_episodes=16)
print(f"Mean return {after:.1f} after {model.num_timesteps} steps, {before:.1f} before.")
env.close()
remoterl.shutdown()
