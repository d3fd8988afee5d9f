"""Two agents with a policy each, in an environment of this script: RLlib steps it on the simulators."""

import gymnasium as gym
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.env.multi_agent_env import MultiAgentEnv

import remoterl


class TwoCartPoles(MultiAgentEnv):
    """Each agent balances a pole of its own; the episode ends when one of them falls."""

    def __init__(self, config=None):
        super().__init__()
        self.agents = self.possible_agents = ["left", "right"]
        self.poles = {agent: gym.make("CartPole-v1") for agent in self.agents}
        self.observation_spaces = {agent: pole.observation_space for agent, pole in self.poles.items()}
        self.action_spaces = {agent: pole.action_space for agent, pole in self.poles.items()}

    def reset(self, *, seed=None, options=None):
        return {agent: pole.reset(seed=seed)[0] for agent, pole in self.poles.items()}, {}

    def step(self, actions):
        steps = {agent: self.poles[agent].step(action) for agent, action in actions.items()}
        observations, rewards, terminated, truncated, _ = (
            {agent: step[part] for agent, step in steps.items()} for part in range(5)
        )
        terminated["__all__"], truncated["__all__"] = any(terminated.values()), any(truncated.values())
        return observations, rewards, terminated, truncated, {}


if __name__ == "__main__":
    remoterl.init(role="trainer")
    config = (
        PPOConfig()
        .environment(TwoCartPoles)
        .env_runners(num_env_runners=2)
        .multi_agent(policies={"left", "right"}, policy_mapping_fn=lambda agent, *_, **__: agent)
        .training(train_batch_size_per_learner=512, minibatch_size=128, num_epochs=5, lr=1e-3)
    )
    algo = config.build_algo()
    for iteration in range(1, 11):
        result = algo.train()
        print(f"iteration {iteration:2}  returns by agent {result['env_runners'].get('agent_episode_returns_mean')}")
    print(f"Mean return {result['env_runners']['episode_return_mean']:.1f} of both after {iteration} iterations.")
    algo.stop()
    remoterl.shutdown()
