"""DQN in CleanRL's manner, one file, that has never heard of remoterl. Prints what it learnt as JSON."""

import json
import random
import sys

import gymnasium as gym
import numpy as np
import torch
from torch import nn


def make_env(env_id):
    def thunk():
        return gym.wrappers.RecordEpisodeStatistics(gym.make(env_id))

    return thunk


if __name__ == "__main__":
    env_id, total_steps = sys.argv[1], 400
    random.seed(2)
    np.random.seed(2)
    torch.manual_seed(2)
    torch.set_num_threads(1)
    envs = gym.vector.SyncVectorEnv([make_env(env_id)] * 2, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)
    assert isinstance(envs.single_action_space, gym.spaces.Discrete)
    size = int(np.prod(envs.single_observation_space.shape))
    q, target = (nn.Sequential(nn.Linear(size, 32), nn.ReLU(), nn.Linear(32, envs.single_action_space.n)) for _ in "qt")
    target.load_state_dict(q.state_dict())
    optimizer, memory, returns = torch.optim.Adam(q.parameters(), lr=1e-3), [], []
    obs, _ = envs.reset(seed=2)
    for step in range(total_steps):
        if random.random() < max(0.1, 1 - step / 200):
            actions = np.array([random.randrange(2) for _ in range(envs.num_envs)])
        else:
            actions = torch.argmax(q(torch.tensor(obs)), dim=1).numpy()
        next_obs, rewards, terminations, truncations, infos = envs.step(actions)
        real_next = next_obs.copy()
        for row in np.flatnonzero(terminations | truncations):
            real_next[row] = infos["final_obs"][row]
            returns.append(float(infos["final_info"]["episode"]["r"][row]))
        memory += list(zip(obs, actions, rewards, real_next, terminations, strict=True))
        obs = next_obs
        if step > 50:
            batch = [np.stack(column) for column in zip(*random.sample(memory, 32), strict=True)]
            o, a, r, n, d = (torch.tensor(column) for column in batch)
            with torch.no_grad():
                goal = r.float() + 0.99 * target(n).max(1).values * (~d).float()
            loss = nn.functional.mse_loss(q(o).gather(1, a[:, None]).squeeze(1), goal)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if step % 50 == 0:
            target.load_state_dict(q.state_dict())
    weights = sum(float(parameter.abs().sum()) for parameter in q.parameters())
    print(json.dumps({"returns": returns, "weights": weights, "kind": type(envs).__name__}))
    envs.close()
