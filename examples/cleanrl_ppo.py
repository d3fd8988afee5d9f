"""PPO in one file, in CleanRL's manner: a loop around a Gymnasium vector env, whose rows live on simulators.

Set REMOTERL_ADDRESS to the hub's address (ray://host:10001), or to `local` for a private cluster on this machine. A
script without the lines that say `remoterl` runs on simulators as well: `remoterl run SCRIPT`. Expect a mean return of
60 after 10,000 steps and 500, all there is, after 80,000, within a minute.
"""

import argparse

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import nn
from torch.distributions import Categorical

import remoterl

parser = argparse.ArgumentParser(description="PPO in one file, its environments on simulators.")
parser.add_argument("--env-id", default="CartPole-v1", help="an environment with a flat observation, discrete actions")
parser.add_argument("--total-timesteps", type=int, default=100_000)
parser.add_argument("--num-envs", type=int, default=16)
parser.add_argument("--num-steps", type=int, default=64, help="of each row in a rollout")
parser.add_argument("--learning-rate", type=float, default=1e-3)
parser.add_argument("--gamma", type=float, default=0.98)
parser.add_argument("--gae-lambda", type=float, default=0.9)
parser.add_argument("--epochs", type=int, default=8)
parser.add_argument("--minibatches", type=int, default=4)
parser.add_argument("--clip", type=float, default=0.2)
parser.add_argument("--seed", type=int, default=1)


def make_env(env_id):
    def thunk():
        return gym.wrappers.RecordEpisodeStatistics(gym.make(env_id))

    return thunk


def layer(inputs, outputs, gain=2**0.5):
    linear = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(linear.weight, gain)
    nn.init.zeros_(linear.bias)
    return linear


if __name__ == "__main__":
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    if not remoterl.init(role="trainer", num_env_runners=2):
        raise SystemExit("no simulators: see the line above")

    num_steps, num_envs = args.num_steps, args.num_envs
    envs = SyncVectorEnv([make_env(args.env_id)] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)
    size, num_actions = envs.single_observation_space.shape[0], int(envs.single_action_space.n)
    actor = nn.Sequential(layer(size, 64), nn.Tanh(), layer(64, 64), nn.Tanh(), layer(64, num_actions, 0.01))
    critic = nn.Sequential(layer(size, 64), nn.Tanh(), layer(64, 64), nn.Tanh(), layer(64, 1, 1.0))
    parameters = [*actor.parameters(), *critic.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=args.learning_rate, eps=1e-5)

    obs = torch.zeros((num_steps, num_envs, size))
    actions, log_probs, rewards, dones, values = (torch.zeros((num_steps, num_envs)) for _ in range(5))
    next_obs = torch.tensor(envs.reset(seed=args.seed)[0])  # (num_envs, size)
    returns = []  # of all episodes that have ended
    num_updates = max(1, args.total_timesteps // (num_steps * num_envs))
    for update in range(1, num_updates + 1):
        for step in range(num_steps):
            with torch.no_grad():
                policy = Categorical(logits=actor(next_obs))
                action = policy.sample()  # (num_envs,)
                obs[step], actions[step], log_probs[step] = next_obs, action, policy.log_prob(action)
                values[step] = critic(next_obs).squeeze(1)
            new_obs, reward, terminations, truncations, infos = envs.step(action.numpy())
            rewards[step], dones[step] = torch.tensor(reward), torch.tensor(terminations | truncations)
            for row in np.flatnonzero(truncations):  # the time was up, not the pole down: what was still to come counts
                with torch.no_grad():
                    rewards[step, row] += args.gamma * critic(torch.tensor(infos["final_obs"][row])).item()
            if "final_info" in infos:
                ended = infos["final_info"]["episode"]
                returns += ended["r"][ended["_r"]].tolist()
            next_obs = torch.tensor(new_obs)

        with torch.no_grad():  # generalized advantage estimation, backwards
            advantages, last = torch.zeros((num_steps, num_envs)), torch.zeros(num_envs)
            next_values = critic(next_obs).squeeze(1)
            for step in reversed(range(num_steps)):
                going_on = 1 - dones[step]
                delta = rewards[step] + args.gamma * next_values * going_on - values[step]
                advantages[step] = last = delta + args.gamma * args.gae_lambda * going_on * last
                next_values = values[step]

        flat_obs, flat_actions, flat_log_probs = obs.flatten(0, 1), actions.flatten(), log_probs.flatten()
        flat_advantages, targets = advantages.flatten(), (advantages + values).flatten()
        for _ in range(args.epochs):
            for batch in torch.randperm(num_steps * num_envs).chunk(args.minibatches):
                policy = Categorical(logits=actor(flat_obs[batch]))
                ratio = (policy.log_prob(flat_actions[batch]) - flat_log_probs[batch]).exp()
                gain = flat_advantages[batch]
                gain = (gain - gain.mean()) / (gain.std() + 1e-8)
                policy_loss = -torch.min(gain * ratio, gain * ratio.clamp(1 - args.clip, 1 + args.clip)).mean()
                value_loss = (critic(flat_obs[batch]).squeeze(1) - targets[batch]).pow(2).mean()
                optimizer.zero_grad()
                (policy_loss + 0.5 * value_loss - 0.001 * policy.entropy().mean()).backward()
                nn.utils.clip_grad_norm_(parameters, 0.5)
                optimizer.step()
        if update % 10 == 0 and returns:
            print(f"{update * num_steps * num_envs:7} steps  mean return {np.mean(returns[-100:]):.1f}")

    steps = num_updates * num_steps * num_envs
    print(f"Mean return {np.mean(returns[-100:]):.1f} of the last {len(returns[-100:])} episodes after {steps} steps.")
    envs.close()
    remoterl.shutdown()
