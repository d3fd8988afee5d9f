"""Stable-Baselines3's SAC learns to run: HalfCheetah, whose physics (MuJoCo) is stepped on simulators.

Needs `gymnasium[mujoco]` on the simulators, not here. Set REMOTERL_ADDRESS to the hub's address (ray://host:10001), or
to `local` for a private cluster on this machine.

Expect about -250 at the start, and 5,200 from the trained policy after 300,000 steps, a quarter of an hour. Most of its
time goes into updates.

`--where process` and `--where subprocesses` train without simulators, to compare: the same seed gives the same curve.
"""

import argparse
import csv
from pathlib import Path

import matplotlib.pyplot as plt
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import SubprocVecEnv

import remoterl

parser = argparse.ArgumentParser(description="SAC on HalfCheetah, its physics on simulators.")
parser.add_argument("--timesteps", type=int, default=300_000)
parser.add_argument("--num-envs", type=int, default=8)
parser.add_argument("--num-env-runners", type=int, default=2)
parser.add_argument("--where", choices=["simulators", "process", "subprocesses"], default="simulators")
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--output", type=Path, help="a folder for the learning curve (CSV, PNG) and the model")


def draw_learning_curve(folder: Path) -> None:
    """From progress.csv, which the logger writes a row of for each round of episodes."""
    with open(folder / "progress.csv") as file:
        rows = [row for row in csv.DictReader(file) if row.get("rollout/ep_rew_mean")]
    figure, axes = plt.subplots()
    axes.plot([int(row["time/total_timesteps"]) for row in rows], [float(row["rollout/ep_rew_mean"]) for row in rows])
    axes.set(title="SAC on HalfCheetah-v5", xlabel="environment steps", ylabel="mean return of the last 100 episodes")
    axes.grid()
    figure.savefig(folder / "learning_curve.png")


if __name__ == "__main__":
    args = parser.parse_args()
    if args.where == "simulators" and not remoterl.init(role="trainer", num_env_runners=args.num_env_runners):
        raise SystemExit("no simulators: see the line above")

    vec_env_cls = SubprocVecEnv if args.where == "subprocesses" else None
    env = make_vec_env("HalfCheetah-v5", n_envs=args.num_envs, seed=args.seed, vec_env_cls=vec_env_cls)
    model = SAC(
        "MlpPolicy",
        env,
        learning_starts=min(10_000, args.timesteps // 2),
        train_freq=1,  # after each step of all rows ...
        gradient_steps=max(1, args.num_envs // 4),  # ... an update for four transitions: a quarter of SAC's usual
        seed=args.seed,
        device="cpu",
        verbose=1,
    )
    if args.output:
        model.set_logger(configure(str(args.output), ["stdout", "csv"]))
    model.learn(args.timesteps, log_interval=args.num_envs)

    mean_return, deviation = evaluate_policy(model, env, n_eval_episodes=args.num_envs)
    print(f"Mean return {mean_return:.0f} +- {deviation:.0f} after {args.timesteps} steps.")
    if args.output:
        model.save(args.output / "model")
        draw_learning_curve(args.output)
    env.close()
    remoterl.shutdown()
