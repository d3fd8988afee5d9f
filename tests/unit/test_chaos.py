"""The chaos benchmark's bookkeeping finds what it is there to find."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from benchmarks import chaos
from benchmarks.chaos_trainer import Recorder, ledger_cartpole

ROWS = 3


class Faulty(VecEnvWrapper):
    """Calls `fault` with the vector env and a step's result, once, after the step of this number."""

    def __init__(self, venv: VecEnv, at: int, fault: Callable[[Any, Any], None]) -> None:
        super().__init__(venv)
        self._left, self._fault = at, fault

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        result = self.venv.step_wait()
        self._left -= 1
        if self._left == 0:
            self._fault(self.venv, result)
        return result


def new_environment(venv: Any, row: int) -> None:
    venv.envs[row] = make_vec_env(ledger_cartpole, 1).envs[0]
    venv.envs[row].reset(seed=0)


def stepped_twice(venv: Any, result: Any) -> None:
    venv.envs[1].unwrapped.steps_beyond_terminated = None
    venv.envs[1].env.step(0)


def lost_without_a_word(venv: Any, result: Any) -> None:
    new_environment(venv, 1)


def lost(venv: Any, result: Any) -> None:
    new_environment(venv, 1)
    _, rewards, dones, infos = result
    rewards[1], dones[1] = 0.0, True
    infos[1] = {"remoterl": {"lost": True}, "TimeLimit.truncated": True, "terminal_observation": np.zeros(4)}


def lost_with_a_reward(venv: Any, result: Any) -> None:
    lost(venv, result)
    result[1][1] = 1.0


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (stepped_twice, "transition 22 of its environment, 21 of the trainer"),
        (lost_without_a_word, "another environment answered, and no loss was told"),
        (lost, ""),
        (lost_with_a_reward, "a loss that is no truncated episode"),
    ],
)
def test_the_recorder_compares_every_step(fault: Any, expected: str) -> None:
    recorder = Recorder(Faulty(make_vec_env(ledger_cartpole, ROWS, seed=1), 20, fault))
    recorder.reset()
    for step in range(60):
        recorder.step(np.array([(step // (row + 1)) % 2 for row in range(ROWS)]))
    recorder.compare_books()
    assert recorder.losses == (fault in (lost, lost_with_a_reward))
    assert recorder.transitions == 60 * ROWS - recorder.losses
    assert bool(recorder.disagreements) == bool(expected)
    if expected:
        assert recorder.disagreements[0].startswith("row 1 ") and expected in recorder.disagreements[0]


def test_a_step_that_nobody_answered_shows_in_the_books() -> None:
    venv = make_vec_env(ledger_cartpole, ROWS, seed=1)
    recorder = Recorder(venv)
    recorder.reset()
    recorder.step(np.zeros(ROWS, int))
    venv.envs[2].env.step(1)
    recorder.compare_books()
    (found,) = recorder.disagreements
    assert found.startswith("row 2 ") and "the ledger says" in found


def test_the_report_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    good = {
        "steps": 9, "transitions": 9, "episodes": 200, "first_return": 20.0, "last_return": 150.0, "losses": 100,
        "restarts": 50, "slowest_s": 2.0, "disagreements": [],
    }  # fmt: skip
    faults = Counter({"env runner": 58, "node": 8})
    assert chaos.report(good, 0, faults, 0, [], "") == []
    assert "node 8" in capsys.readouterr().out
    bad = {**good, "last_return": 30.0, "disagreements": ["row 1: so and so"]}
    failures = chaos.report(bad, 0, faults, 0, ["77"], "")
    assert len(failures) == 3 and failures[0] == "row 1: so and so" and "77" in failures[2]
    assert "did not learn" in failures[1]
    assert "did not end" in chaos.report({}, None, faults, 0, [], "its last words")[0]
