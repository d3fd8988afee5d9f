"""A robot as an environment: a control loop of 50 Hz that keeps its period, and hardware that there is once.

robot_trainer.py learns on it. Start this on the robot's computer. Set REMOTERL_ADDRESS to the hub's address
(host:6379) and REMOTERL_API_KEY to the cluster's key; without an address, it starts a hub too. Ctrl-C or a signal
stops it.
"""

import fcntl
import tempfile
import time
from pathlib import Path

import gymnasium as gym
import numpy as np

import remoterl

PERIOD_S = 0.02  # 50 Hz
WATCHDOG_S = 0.1  # without a command for so long, the motor is off


class Motor:
    """Stands for the robot's driver, which is opened once at a time: a joint that moves on, commanded or not."""

    def __init__(self):
        self._lock = open(Path(tempfile.gettempdir(), "robot-arm.lock"), "w")  # noqa: SIM115
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: somebody else has the robot
        self._angle, self._speed, self._torque = 0.0, 0.0, 0.0
        self._then = self._commanded = time.monotonic()

    def read(self):
        """Angle (rad) and speed (rad/s) now."""
        now = time.monotonic()
        for begin in np.arange(self._then, now, 0.002):
            torque = self._torque if begin - self._commanded < WATCHDOG_S else 0.0
            self._speed += (20 * torque - 4 * self._speed) * min(0.002, now - begin)
            self._angle += self._speed * min(0.002, now - begin)
        self._then = now
        return self._angle, self._speed

    def command(self, torque):
        self.read()
        self._torque, self._commanded = torque, time.monotonic()

    def close(self):
        self._lock.close()


class RobotArm(gym.Env):
    """Turn the joint to an angle and hold it there; nobody puts it back between episodes.

    Observations, (2,) float32: radians to go, speed. Actions, (1,) float32: torque. Reward: minus the radians to go.
    """

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self):
        self._motor = Motor()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._motor.command(0.0)
        self._goal = self.np_random.uniform(-1, 1)
        self._tick = None  # the clock starts with the first command: a trainer may learn between episodes
        return self._observe(), {}

    def step(self, action):
        start = time.monotonic()
        self._motor.command(float(np.clip(action[0], -1, 1)))
        late = self._tick is not None and start > self._tick + PERIOD_S  # the next reading was due already
        before = start if self._tick is None or late else self._tick
        self._tick = before + PERIOD_S  # from the last tick, not from now: what the trainer takes is part of the period
        time.sleep(max(0.0, self._tick - time.monotonic()))
        observation = self._observe()
        info = {"period_s": time.monotonic() - before, "late": late}
        return observation, -abs(float(observation[0])), False, False, info

    def _observe(self):
        angle, speed = self._motor.read()
        return np.array([self._goal - angle, speed], np.float32)

    def close(self):
        self._motor.close()


gym.register("RobotArm-v0", entry_point=RobotArm, max_episode_steps=100)  # 2 s

if __name__ == "__main__":
    # One unit, so one env runner at most, of one trainer: whoever asks meanwhile waits.
    remoterl.init(role="simulator", max_env_runners=1, labels={"robot": "arm-1"})  # blocks here
    remoterl.shutdown()
