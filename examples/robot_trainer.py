"""Stable-Baselines3's SAC learns on a robot, in real time: on the one arm of robot_simulator.py, at 50 Hz.

Start that first. Set REMOTERL_ADDRESS to the hub's address (ray://host:10001) and REMOTERL_API_KEY to the cluster's
key. 6,000 steps are two minutes on the robot. Expect about -80 an episode at the start, and -20 or better after 2,500
steps.
"""

import argparse

import numpy as np
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env

import remoterl

parser = argparse.ArgumentParser(description="SAC on a robot, in real time.")
parser.add_argument("--timesteps", type=int, default=6_000)
parser.add_argument("--episodes", type=int, default=5, help="of the evaluation at the end, 2 s each")
args = parser.parse_args()

# While another trainer has the robot, this waits for it, two minutes at most.
if not remoterl.init(role="trainer", num_env_runners=1, labels={"robot": "arm-1"}, timeout_s=120):
    raise SystemExit("the robot is not there, or not free: see the line above")

env = make_vec_env("RobotArm-v0", n_envs=1, seed=1)  # one robot, one row
# It learns between episodes, when the robot rests: an update takes longer than a period.
model = SAC(
    "MlpPolicy", env, train_freq=(1, "episode"), gradient_steps=-1, learning_starts=400, gamma=0.95, learning_rate=1e-3,
    policy_kwargs={"net_arch": [64, 64]}, seed=1, device="cpu", verbose=1,
)  # fmt: skip
print("The robot is ours.", flush=True)
model.learn(args.timesteps, log_interval=5)

returns, periods_s, late = [], [], 0
observations = env.reset()
while len(returns) < args.episodes:
    actions, _ = model.predict(observations, deterministic=True)
    observations, _, _, [info] = env.step(actions)
    periods_s.append(info["period_s"])
    late += info["late"]
    if "episode" in info:
        returns.append(info["episode"]["r"])
env.close()
print(
    f"Periods of {1000 * np.mean(periods_s):.2f} ms (99 of 100 below {1000 * np.percentile(periods_s, 99):.2f}), "
    f"{late} of {len(periods_s)} commands too late."
)
print(f"Mean return {np.mean(returns):.1f} after {args.timesteps} steps.")
remoterl.shutdown()
