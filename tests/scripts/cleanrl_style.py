"""PPO in CleanRL's manner, one file, that has never heard of remoterl. Prints what it did as JSON."""

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
    size = int(np.prod(envs.single_observation_space.shape))
    actor, critic = (nn.Sequential(nn.Linear(size, 32), nn.Tanh(), nn.Linear(32, out)) for out in (2, 1))
    parameters = [*actor.parameters(), *critic.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    obs = torch.zeros((num_steps, num_envs, size))
    actions, log_probs, rewards, dones, values = (torch.zeros((num_steps, num_envs)) for _ in range(5))
    next_obs, next_done = torch.tensor(envs.reset(seed=1)[0]), torch.zeros(num_envs)
    returns = []
    for _ in range(updates):
        for step in range(num_steps):
            obs[step], dones[step] = next_obs, next_done
            with torch.no_grad():
                distribution = torch.distributions.Categorical(logits=actor(next_obs))
                actions[step] = distribution.sample()
                log_probs[step] = distribution.log_prob(actions[step])
                values[step] = critic(next_obs).flatten()
            new, reward, terminations, truncations, infos = envs.step(actions[step].long().numpy())
            rewards[step] = torch.tensor(reward)
            next_obs, next_done = torch.tensor(new), torch.tensor(np.logical_or(terminations, truncations)).float()
            if "episode" in infos:
                returns += [float(infos["episode"]["r"][i]) for i in np.flatnonzero(infos["_episode"])]
        with torch.no_grad():
            advantages, last, next_value = torch.zeros_like(rewards), 0, critic(next_obs).flatten()
            for t in reversed(range(num_steps)):
                alive = 1 - (next_done if t == num_steps - 1 else dones[t + 1])
                following = next_value if t == num_steps - 1 else values[t + 1]
                last = rewards[t] + 0.99 * following * alive - values[t] + 0.99 * 0.95 * alive * last
                advantages[t] = last
            targets = advantages + values
        for _ in range(3):
            distribution = torch.distributions.Categorical(logits=actor(obs))
            ratio = (distribution.log_prob(actions) - log_probs).exp()
            policy_loss = -torch.min(advantages * ratio, advantages * ratio.clamp(0.8, 1.2)).mean()
            value_loss = (critic(obs).squeeze(-1) - targets).pow(2).mean()
            optimizer.zero_grad()
            (policy_loss + 0.5 * value_loss - 0.01 * distribution.entropy().mean()).backward()
            nn.utils.clip_grad_norm_(parameters, 0.5)
            optimizer.step()
    weights = sum(float(parameter.abs().sum()) for parameter in parameters)
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
