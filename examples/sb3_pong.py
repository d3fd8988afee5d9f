"""Stable-Baselines3's PPO learns Pong from pixels, four stacked frames at a time, its games played on simulators.

Needs `ale-py`, OpenCV and Stable-Baselines3 on the simulators (all in `stable-baselines3[extra]`): `make_atari_env`
wraps each game in SB3's AtariWrapper, which runs beside the game, so that a row sends 7 kB a step (84 x 84, grey), not
100. Set REMOTERL_ADDRESS to the hub's address (ray://host:10001), or to `local` for a private cluster on this machine,
which has what this script has.

Expect -21 to -20 at the start: nearly every point is lost. Published curves of PPO win games after a million steps or
two; it was not trained to that here. Two cores make about 200 steps a second, updates included.

`--where process` and `--where subprocesses` train without simulators, to compare: the same seed gives the same curve.
"""

import argparse
import csv
from pathlib import Path

import matplotlib.pyplot as plt
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import SubprocVecEnv, VecFrameStack

import remoterl

ENV_ID = "ale_py:PongNoFrameskip-v4"  # the module that registers it is imported where the game is made
parser = argparse.ArgumentParser(description="PPO on Pong from pixels, its games on simulators.")
parser.add_argument("--timesteps", type=int, default=2_000_000, help="steps of four frames each")
parser.add_argument("--num-envs", type=int, default=8)
parser.add_argument("--num-env-runners", type=int, default=2)
parser.add_argument("--where", choices=["simulators", "process", "subprocesses"], default="simulators")
parser.add_argument("--episodes", type=int, default=8, help="games of the evaluation at the end")
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--output", type=Path, help="a folder for the learning curve (CSV, PNG) and the model")


def draw_learning_curve(folder: Path) -> None:
    """From progress.csv, which the logger writes a row of for each rollout."""
    with open(folder / "progress.csv") as file:
        rows = [row for row in csv.DictReader(file) if row.get("rollout/ep_rew_mean")]
    figure, axes = plt.subplots()
    axes.plot([int(row["time/total_timesteps"]) for row in rows], [float(row["rollout/ep_rew_mean"]) for row in rows])
    axes.set(title="PPO on Pong, from pixels", xlabel="steps of four frames", ylabel="mean of the last 100 games")
    axes.grid()
    figure.savefig(folder / "learning_curve.png")


if __name__ == "__main__":
    args = parser.parse_args()
    if args.where == "simulators" and not remoterl.init(role="trainer", num_env_runners=args.num_env_runners):
        raise SystemExit("no simulators: see the line above")

    vec_env_cls = SubprocVecEnv if args.where == "subprocesses" else None
    games = make_atari_env(ENV_ID, n_envs=args.num_envs, seed=args.seed, vec_env_cls=vec_env_cls)
    env = VecFrameStack(games, n_stack=4)  # in this script: the three older frames are here already
    model = PPO(  # Stable-Baselines3 Zoo's settings for Atari games
        "CnnPolicy",
        env,
        n_steps=128,
        batch_size=256,
        n_epochs=4,
        learning_rate=lambda left: 2.5e-4 * left,
        clip_range=lambda left: 0.1 * left,
        ent_coef=0.01,
        seed=args.seed,
        device="cpu",
        verbose=1,
    )
    if args.output:
        model.set_logger(configure(str(args.output), ["stdout", "csv"]))
    model.learn(args.timesteps)

    mean_score, deviation = evaluate_policy(model, env, n_eval_episodes=args.episodes, deterministic=False)
    print(f"Mean score {mean_score:.1f} +- {deviation:.1f} after {model.num_timesteps} steps.")
    if args.output:
        model.save(args.output / "model")
        draw_learning_curve(args.output)
    env.close()
    remoterl.shutdown()
