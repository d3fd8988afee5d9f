"""Small trainings that are run remotely and in a clean process; same seed, same weights."""

from __future__ import annotations

from typing import Any

import envs
import numpy as np


def weights(model: Any) -> dict[str, np.ndarray]:
    """All of a policy's tensors."""
    return {name: tensor.detach().numpy().copy() for name, tensor in model.policy.state_dict().items()}


def train(name: str, steps: int, subproc: bool = False) -> dict[str, np.ndarray]:
    """The weights of an SB3 algorithm after some thousand steps."""
    import torch
    from sb3_contrib import MaskablePPO
    from stable_baselines3 import A2C, DQN, PPO, SAC, HerReplayBuffer
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

    torch.set_num_threads(1)
    kind = {"vec_env_cls": SubprocVecEnv, "vec_env_kwargs": {"start_method": "fork"}} if subproc else {}
    vec: dict[str, Any] = {"seed": 3, **kind}
    small = {"policy_kwargs": {"net_arch": [16, 16]}, "seed": 3, "device": "cpu"}
    off_policy = {"learning_starts": 200, "buffer_size": 5000, "batch_size": 32, **small}
    if name == "PPO":
        model: Any = PPO("MlpPolicy", make_vec_env("CartPole-v1", 4, **vec), n_steps=128, **small)
    elif name == "PPO normalized":
        model = PPO("MlpPolicy", VecNormalize(make_vec_env("Pendulum-v1", 3, **vec)), n_steps=128, **small)
    elif name == "PPO dict":
        model = PPO("MultiInputPolicy", make_vec_env(envs.GoalEnv, 4, **vec), n_steps=128, **small)
    elif name == "A2C":
        model = A2C("MlpPolicy", make_vec_env("CartPole-v1", 4, **vec), **small)
    elif name == "DQN":
        model = DQN("MlpPolicy", make_vec_env("CartPole-v1", 2, **vec), train_freq=8, **off_policy)
    elif name == "SAC":
        model = SAC("MlpPolicy", make_vec_env("Pendulum-v1", 2, **vec), train_freq=8, gradient_steps=2, **off_policy)
    elif name == "HER":
        model = DQN(
            "MultiInputPolicy", make_vec_env(envs.GoalEnv, 2, **vec), replay_buffer_class=HerReplayBuffer,
            train_freq=8, **off_policy,
        )  # fmt: skip
    else:
        model = MaskablePPO("MultiInputPolicy", make_vec_env(envs.GoalEnv, 3, **vec), n_steps=128, **small)
    model.learn(steps)
    result = weights(model)
    model.get_env().close()
    return result
