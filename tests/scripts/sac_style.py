"""A continuous actor-critic in the manner of CleanRL's SAC, one file, that has never heard of remoterl."""

import json
import random
import sys

import gymnasium as gym
import numpy as np
import torch
from torch import nn


def make_env(env_id):
    def thunk():
        env = gym.make(env_id)
        env = gym.wrappers.RecordEpisodeStatistics(env)
        env.action_space.seed(3)
        return env

    return thunk


class Actor(nn.Module):
    def __init__(self, envs):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(int(np.prod(envs.single_observation_space.shape)), 32), nn.ReLU())
        self.mean, self.log_std = nn.Linear(32, 1), nn.Linear(32, 1)
        low, high = envs.single_action_space.low, envs.single_action_space.high
        self.scale, self.bias = torch.tensor((high - low) / 2), torch.tensor((high + low) / 2)

    def forward(self, obs):
        hidden = self.body(obs)
        normal = torch.distributions.Normal(self.mean(hidden), self.log_std(hidden).clamp(-5, 2).exp())
        raw = normal.rsample()
        squashed = torch.tanh(raw)
        log_prob = normal.log_prob(raw) - torch.log(self.scale * (1 - squashed.pow(2)) + 1e-6)
        return squashed * self.scale + self.bias, log_prob.sum(1, keepdim=True)


if __name__ == "__main__":
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    torch.set_num_threads(1)
    envs = gym.vector.SyncVectorEnv([make_env(sys.argv[1])] * 2, autoreset_mode="SameStep")
    assert isinstance(envs.single_action_space, gym.spaces.Box)
    actor, critic = Actor(envs), nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 1))
    actor_optimizer = torch.optim.Adam(actor.parameters(), lr=1e-3)
    critic_optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3)
    memory, returns = [], []
    obs, _ = envs.reset(seed=3)
    for step in range(450):
        if step < 50:
            actions = np.array([envs.single_action_space.sample() for _ in range(envs.num_envs)])
        else:
            actions = actor(torch.tensor(obs))[0].detach().numpy()
        next_obs, rewards, terminations, truncations, infos = envs.step(actions)
        real_next = next_obs.copy()
        for row in np.flatnonzero(truncations):
            real_next[row] = infos["final_obs"][row]
            returns.append(float(infos["final_info"]["episode"]["r"][row]))
        memory += list(zip(obs, actions, rewards, real_next, strict=True))
        obs = next_obs
        if step > 60:
            o, a, r, n = (torch.tensor(np.stack(column)) for column in zip(*random.sample(memory, 32), strict=True))
            with torch.no_grad():
                next_action, next_log_prob = actor(n)
                value = critic(torch.cat([n, next_action], 1)) - 0.2 * next_log_prob
                goal = r.float()[:, None] + 0.99 * value
            loss = nn.functional.mse_loss(critic(torch.cat([o, a], 1)), goal)
            critic_optimizer.zero_grad()
            loss.backward()
            critic_optimizer.step()
            action, log_prob = actor(o)
            loss = (0.2 * log_prob - critic(torch.cat([o, action], 1))).mean()
            actor_optimizer.zero_grad()
            loss.backward()
            actor_optimizer.step()
    weights = sum(float(parameter.abs().sum()) for parameter in [*actor.parameters(), *critic.parameters()])
    print(json.dumps({"returns": returns, "weights": weights, "kind": type(envs).__name__}))
    envs.close()
