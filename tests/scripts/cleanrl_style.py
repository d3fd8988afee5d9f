"""A trainer in CleanRL's manner, one file, that has never heard of remoterl. Prints what it did as JSON."""

import json
import os
import random
import sys

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import SyncVectorEnv
from torch import nn


def make_env(env_id, idx, capture_video, folder):
    def thunk():
        env = gym.make(env_id, render_mode="rgb_array") if capture_video and idx == 0 else gym.make(env_id)
        return gym.wrappers.RecordEpisodeStatistics(env)

    return thunk


if __name__ == "__main__":
    env_id, num_envs, num_steps, updates = sys.argv[1], 4, 32, 4
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    torch.set_num_threads(1)
    envs = SyncVectorEnv([make_env(env_id, i, False, None) for i in range(num_envs)])
    assert isinstance(envs.single_action_space, gym.spaces.Discrete)
    agent = nn.Sequential(nn.Linear(int(np.prod(envs.single_observation_space.shape)), 32), nn.Tanh(), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(agent.parameters(), lr=1e-2)
    obs, _ = envs.reset(seed=1)
    returns = []
    for _ in range(updates):
        log_probs, rewards = [], []
        for _ in range(num_steps):
            distribution = torch.distributions.Categorical(logits=agent(torch.tensor(obs)))
            action = distribution.sample()
            obs, reward, terminations, truncations, infos = envs.step(action.numpy())
            log_probs.append(distribution.log_prob(action))
            rewards.append(torch.tensor(reward))
            if "episode" in infos:
                returns += [float(infos["episode"]["r"][i]) for i in np.flatnonzero(infos["_episode"])]
        loss = -(torch.stack(log_probs) * torch.stack(rewards).flip(0).cumsum(0).flip(0)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weights = sum(float(parameter.abs().sum()) for parameter in agent.parameters())
    env = gym.wrappers.RecordVideo(gym.make(env_id, render_mode="rgb_array"), sys.argv[2], disable_logger=True)
    env.reset(seed=1)
    done = False
    while not done:
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        done = terminated or truncated
    env.close()
    print(json.dumps({"returns": returns, "weights": weights, "kind": type(envs).__name__, "pid": os.getpid()}))
    envs.close()
    if "--fail" in sys.argv:
        raise SystemExit(3)
