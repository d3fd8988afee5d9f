"""The doctor's pure parts: how long a step takes, and which numbers it suggests."""

from __future__ import annotations

import re
import time

import gymnasium as gym
import pytest

from remoterl.actors import examiner
from remoterl.doctor import MANY_ROWS, Look, count_places, suggest


class Sleeper(gym.Env):
    """Steps for `step_s`; every episode has two steps."""

    observation_space = action_space = gym.spaces.Discrete(2)

    def __init__(self, step_s: float) -> None:
        self.step_s, self.steps, self.resets = step_s, 0, 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[int, dict]:
        self.resets += 1
        return 0, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict]:
        assert self.action_space.contains(action)
        self.steps += 1
        time.sleep(self.step_s)
        return 0, 0.0, self.steps % 2 == 0, False, {}


def test_a_step_is_timed_for_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = Sleeper(0.0)
    assert examiner.time_of_a_step(fast) > 0
    assert fast.steps == examiner.MAX_STEPS and fast.resets == 1 + fast.steps // 2
    monkeypatch.setattr(examiner, "MAX_STEPPING_S", 0.02)
    slow = Sleeper(0.03)
    assert examiner.time_of_a_step(slow) >= 0.03
    assert slow.steps == 1


@pytest.mark.parametrize(
    ("step_s", "round_trip_s", "places", "env_runners", "rows", "because"),
    [
        (0.02, 100e-6, 8, 8, 8, "a row steps longer"),
        (4.5e-6, 40e-6, 14, 4, MANY_ROWS, "36 rows step as long as the messages"),  # where all is on one machine
        (30e-6, 2e-3, 64, 7, MANY_ROWS, "67 rows step as long as the messages"),  # by a network
        (1e-3, 2e-3, 16, 16, 32, "2 rows step as long as the messages"),
        (10e-6, 8e-3, 8, 4, MANY_ROWS, f"even {MANY_ROWS} rows step faster"),
        (0.02, 100e-6, 0, 1, 1, "0 free units"),
    ],
)
def test_numbers_are_suggested(
    step_s: float, round_trip_s: float, places: int, env_runners: int, rows: int, because: str
) -> None:
    text = suggest(step_s, round_trip_s, "stream", places)
    assert re.match(rf"num_env_runners={env_runners} with {rows} rows ", text), text
    assert because in text and "by stream" in text


def test_simulators_of_one_machine_share_its_cores() -> None:
    def look(host: str, free_units: int, cores: int) -> Look:
        return Look("a simulator", None, free_units, host, cores)

    assert count_places([look("10.0.0.1", 32, 2), look("10.0.0.1", 32, 2)]) == 2
    assert count_places([look("10.0.0.1", 1, 8), look("10.0.0.1", 3, 8), look("10.0.0.2", 32, 16)]) == 4 + 16
