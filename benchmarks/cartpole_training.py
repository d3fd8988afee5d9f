"""SB3's PPO on CartPole, with the demo's settings, until the mean of the last 100 episodes is 475.

`python -m benchmarks.cartpole_training --where process`. Its options are those of `examples/sb3_halfcheetah.py`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import SubprocVecEnv

import remoterl
from remoterl.cli.demo import PPO_SETTINGS

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--timesteps", type=int, default=500_000, help="give up after so many")
parser.add_argument("--num-envs", type=int, default=16)
parser.add_argument("--num-env-runners", type=int, default=2)
parser.add_argument("--where", choices=["simulators", "process", "subprocesses"], default="simulators")
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--output", type=Path, required=True, help="a folder for progress.csv and the model")


class UntilSolved(BaseCallback):
    def _on_step(self) -> bool:
        returns = [episode["r"] for episode in self.model.ep_info_buffer or ()]
        return len(returns) < 100 or float(np.mean(returns)) < 475


def main() -> None:
    args = parser.parse_args()
    if args.where == "simulators" and not remoterl.init(role="trainer", num_env_runners=args.num_env_runners):
        raise SystemExit("no simulators: see the line above")
    vec_env_cls = SubprocVecEnv if args.where == "subprocesses" else None
    env = make_vec_env("CartPole-v1", args.num_envs, seed=args.seed, vec_env_cls=vec_env_cls)
    model = PPO("MlpPolicy", env, seed=args.seed, device="cpu", **PPO_SETTINGS)
    model.set_logger(configure(str(args.output), ["csv"]))
    model.learn(args.timesteps, UntilSolved())
    mean_return, deviation = evaluate_policy(model, env, n_eval_episodes=100)
    print(f"Mean return {mean_return:.1f} +- {deviation:.1f} after {model.num_timesteps} steps.")
    model.save(args.output / "model")
    env.close()
    remoterl.shutdown()


if __name__ == "__main__":
    main()
