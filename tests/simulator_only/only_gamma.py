"""A package of one simulator: the others of the tests' cluster do not register it."""

import gymnasium as gym

gym.register("OnlyGamma-v0", entry_point="only_here:OnlyHereEnv")
