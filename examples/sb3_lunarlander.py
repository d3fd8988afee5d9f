"""Stable-Baselines3's DQN lands on the moon: LunarLander, whose physics (Box2D) is stepped on simulators.

Needs Box2D (`gymnasium[box2d]`) on the simulators, not here. Set REMOTERL_ADDRESS to the hub's address
(ray://host:10001), or to `local` for a private cluster on this machine. Expect about -200 at the start; 200 is a
landing; it was not trained to that here.
"""

import argparse

from stable_baselines3 import DQN
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

import remoterl

parser = argparse.ArgumentParser(description="DQN on LunarLander, its physics on simulators.")
parser.add_argument("--timesteps", type=int, default=100_000)
parser.add_argument("--episodes", type=int, default=20, help="of the evaluation at the end")
args = parser.parse_args()

if not remoterl.init(role="trainer", num_env_runners=2):
    raise SystemExit("no simulators: see the line above")

env = make_vec_env("LunarLander-v3", n_envs=4, seed=1)
model = DQN(  # Stable-Baselines3 Zoo's settings
    "MlpPolicy",
    env,
    learning_rate=6.3e-4,
    batch_size=128,
    buffer_size=50_000,
    learning_starts=0,
    train_freq=1,  # after each step of all four rows ...
    gradient_steps=-1,  # ... as many updates as there were transitions
    target_update_interval=250,
    exploration_fraction=0.12,
    exploration_final_eps=0.1,
    policy_kwargs={"net_arch": [256, 256]},
    seed=1,
    device="cpu",
    verbose=1,
)
model.learn(args.timesteps, log_interval=40)

mean_return, deviation = evaluate_policy(model, env, n_eval_episodes=args.episodes)
print(f"Mean return {mean_return:.0f} +- {deviation:.0f} after {args.timesteps} steps.")
env.close()
remoterl.shutdown()
