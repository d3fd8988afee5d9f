"""Plain Gymnasium: a vector env whose rows live on simulators, and a single one.

Set REMOTERL_ADDRESS to the hub's address (ray://host:10001) and REMOTERL_API_KEY to the cluster's key.
"""

import gymnasium as gym

import remoterl

if not remoterl.init(role="trainer", num_env_runners=4):
    raise SystemExit("no simulators: see the line above")

envs = gym.make_vec("CartPole-v1", num_envs=8, vectorization_mode="sync")
observations, infos = envs.reset(seed=42)  # (num_envs, 4)
episodes = 0
for _ in range(200):
    observations, rewards, terminations, truncations, infos = envs.step(envs.action_space.sample())
    episodes += int((terminations | truncations).sum())
print(f"{episodes} episodes in {200 * envs.num_envs} remote steps")
envs.close()

env = gym.make("Pendulum-v1")
observation, info = env.reset(seed=42)
print("one remote Pendulum:", env.step(env.action_space.sample())[0])
env.close()

remoterl.shutdown()
