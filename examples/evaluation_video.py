"""Train on simulators, then watch the agent: episodes are drawn on a simulator and recorded on this machine.

Needs `gymnasium[classic-control]` on the simulators, and moviepy here. Set REMOTERL_ADDRESS to the hub's address
(ray://host:10001), or to `local` for a private cluster on this machine.
"""

import argparse
from pathlib import Path

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import RecordVideo
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

import remoterl

parser = argparse.ArgumentParser(description="A video of an agent, recorded here, drawn on a simulator.")
parser.add_argument("--timesteps", type=int, default=50_000)
parser.add_argument("--episodes", type=int, default=3)
parser.add_argument("--videos", type=Path, default=Path("runs/videos"), help="the folder for them")
args = parser.parse_args()

if not remoterl.init(role="trainer", num_env_runners=2):
    raise SystemExit("no simulators: see the line above")

# What `make` returns is remote; a wrapper around it is here. (Inside a function for a vector env it would be there.)
watched = gym.make("CartPole-v1", render_mode="rgb_array")
watched.reset()
watched.render()  # before the training: what lacks to draw (pygame there) or to record (moviepy here) is said now
watched = RecordVideo(watched, str(args.videos), episode_trigger=lambda episode: True, name_prefix="cartpole")

env = make_vec_env("CartPole-v1", n_envs=16, seed=1)
model = PPO(  # Stable-Baselines3 Zoo's settings
    "MlpPolicy", env, n_steps=32, batch_size=256, n_epochs=20, gamma=0.98, gae_lambda=0.8, learning_rate=1e-3, seed=1,
    device="cpu",
)  # fmt: skip
model.learn(args.timesteps)
env.close()

returns = []
for episode in range(args.episodes):
    observation, _ = watched.reset(seed=episode)
    episode_return, over = 0.0, False
    while not over:
        action, _ = model.predict(observation, deterministic=True)
        observation, reward, terminated, truncated, _ = watched.step(action)
        episode_return, over = episode_return + float(reward), terminated or truncated
    returns.append(episode_return)
watched.close()  # writes the last video
print(f"Mean return {np.mean(returns):.1f}; {len(list(args.videos.glob('*.mp4')))} videos in {args.videos}.")
remoterl.shutdown()
