"""Stable-Baselines3's PPO learns from pixels to cross a room past lava, in MiniGrid's rooms on simulators.

Needs `minigrid` on the simulators and here. Its wrappers run beside each room: the agent sees the 7 x 7 tiles before it
as a picture of 56 x 56 x 3. Set REMOTERL_ADDRESS to the hub's address (ray://host:10001), or to `local` for a private
cluster on this machine.

Expect 0.07 at the start, 0.9 after 30,000 steps, and dips on the way; 1 would be a room crossed in no time.

`--where process` and `--where subprocesses` train without simulators, to compare: the same seed gives the same curve.
"""

import argparse
import csv
from pathlib import Path

import gymnasium
import matplotlib.pyplot as plt
from minigrid.wrappers import ImgObsWrapper, RGBImgPartialObsWrapper
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import SubprocVecEnv

import remoterl

parser = argparse.ArgumentParser(description="PPO on MiniGrid from pixels, its rooms on simulators.")
parser.add_argument("--timesteps", type=int, default=100_000)
parser.add_argument("--num-envs", type=int, default=16)
parser.add_argument("--num-env-runners", type=int, default=2)
parser.add_argument("--where", choices=["simulators", "process", "subprocesses"], default="simulators")
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--output", type=Path, help="a folder for the learning curve (CSV, PNG) and the model")


def pixels(env: gymnasium.Env) -> gymnasium.Env:
    """What the agent sees as an image, and nothing else."""
    return ImgObsWrapper(RGBImgPartialObsWrapper(env))


def draw_learning_curve(folder: Path) -> None:
    """From progress.csv, which the logger writes a row of for each rollout."""
    with open(folder / "progress.csv") as file:
        rows = [row for row in csv.DictReader(file) if row.get("rollout/ep_rew_mean")]
    figure, axes = plt.subplots()
    axes.plot([int(row["time/total_timesteps"]) for row in rows], [float(row["rollout/ep_rew_mean"]) for row in rows])
    axes.set(
        title="PPO on MiniGrid-LavaGapS5, from pixels", xlabel="environment steps", ylabel="mean return of 100 episodes"
    )
    axes.grid()
    figure.savefig(folder / "learning_curve.png")


if __name__ == "__main__":
    args = parser.parse_args()
    if args.where == "simulators" and not remoterl.init(role="trainer", num_env_runners=args.num_env_runners):
        raise SystemExit("no simulators: see the line above")

    vec_env_cls = SubprocVecEnv if args.where == "subprocesses" else None
    env = make_vec_env(
        "MiniGrid-LavaGapS5-v0", args.num_envs, seed=args.seed, wrapper_class=pixels, vec_env_cls=vec_env_cls
    )
    model = PPO(
        "CnnPolicy",
        env,
        n_steps=128,
        batch_size=256,
        n_epochs=4,
        learning_rate=5e-4,
        ent_coef=0.01,
        seed=args.seed,
        device="cpu",
        verbose=1,
    )
    if args.output:
        model.set_logger(configure(str(args.output), ["stdout", "csv"]))
    model.learn(args.timesteps)

    mean_return, deviation = evaluate_policy(model, env, n_eval_episodes=100, deterministic=False)
    print(f"Mean return {mean_return:.2f} +- {deviation:.2f} after {model.num_timesteps} steps.")
    if args.output:
        model.save(args.output / "model")
        draw_learning_curve(args.output)
    env.close()
    remoterl.shutdown()
