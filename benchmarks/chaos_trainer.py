"""The trainer of `benchmarks.chaos`: PPO on CartPole until stdin is closed, every step checked against a ledger.

`python -m benchmarks.chaos_trainer ADDRESS CHANNEL ENV_RUNNERS SEED` prints one line of JSON after `RESULT`.
"""

from __future__ import annotations

import json
import secrets
import statistics
import sys
import threading
import time
import zlib
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

import remoterl
from remoterl.cli.demo import PPO_SETTINGS

ROWS = 16
PROGRESS_S = 5.0
EPISODES = 100  # of which the mean return is taken


class Ledger(gymnasium.Wrapper):
    """Numbers every transition in its info, and keeps a checksum of all actions. `life`: which of all ledgers it is."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.life = secrets.randbits(60)
        self.given = self.returned = self.checksum = 0

    def step(self, action: Any) -> Any:
        self.given += 1
        self.checksum = add(self.checksum, action)
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.returned += 1
        return observation, reward, terminated, truncated, {**info, "life": self.life, "number": self.returned}

    def book(self) -> tuple[int, int, int, int]:
        """Its life, the actions given, the transitions returned, the actions' checksum."""
        return self.life, self.given, self.returned, self.checksum


def add(checksum: int, action: Any) -> int:
    """The checksum of some actions and one more."""
    return zlib.crc32(bytes([int(action)]), checksum)


def ledger_cartpole() -> gymnasium.Env:
    return Ledger(gymnasium.make("CartPole-v1"))


@dataclass
class Record:
    """What the trainer knows of one life of a row. `life` is None until its first transition."""

    life: int | None = None
    steps: int = 0
    checksum: int = 0

    @property
    def book(self) -> tuple[int | None, int, int, int]:
        """As the ledger's."""
        return self.life, self.steps, self.steps, self.checksum


class Recorder(VecEnvWrapper):
    """Checks at every step that each row took the one action given to it, or said that it was lost.

    Attributes:
        disagreements: what was wrong, in words.
        returns: of all episodes that ended by themselves.
        losses: rows that were lost, and said so.
    """

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self.disagreements: list[str] = []
        self.returns: list[float] = []
        self.losses = self.transitions = 0
        self.slowest_s = 0.0
        self._records = [Record() for _ in range(self.num_envs)]
        self._over: set[int] = set()  # lives that a loss ended
        self._actions = np.zeros(0)
        self._sent = 0.0

    def reset(self) -> Any:
        return self.venv.reset()

    def step_async(self, actions: np.ndarray) -> None:
        self._actions, self._sent = actions.copy(), time.monotonic()
        self.venv.step_async(actions)

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        self.slowest_s = max(self.slowest_s, time.monotonic() - self._sent)
        for row, info in enumerate(infos):
            if "remoterl" in info:
                self._hear_of_a_loss(row, rewards[row], dones[row], info)
            else:
                self._compare(row, info)
            if "episode" in info:
                self.returns.append(info["episode"]["r"])
        return observations, rewards, dones, infos

    def compare_books(self) -> None:
        """At the end: the rows' ledgers against what was recorded. Rows that were lost meanwhile say so in a step."""
        for _ in range(3):
            books = [tuple(book) for book in self.venv.env_method("book")]
            if all(record.life in (None, book[0]) for record, book in zip(self._records, books, strict=True)):
                break
            self.step(np.zeros(self.num_envs, int))
        for row, (record, book) in enumerate(zip(self._records, books, strict=True)):
            if record.book[1:] != book[1:] or record.life not in (None, book[0]):
                self._disagree(row, f"the ledger says {book}, the trainer {record.book}")

    def _hear_of_a_loss(self, row: int, reward: float, done: bool, info: dict[str, Any]) -> None:
        self.losses += 1
        truncated = done and info.get("TimeLimit.truncated") and "terminal_observation" in info
        if not truncated or reward or not info["remoterl"]["lost"]:
            self._disagree(row, f"a loss that is no truncated episode: done {done}, reward {reward}, info {info}")
        life = self._records[row].life
        if life is not None:
            self._over.add(life)
        self._records[row] = Record()

    def _compare(self, row: int, info: dict[str, Any]) -> None:
        self.transitions += 1
        record = self._records[row]
        record.steps += 1
        record.checksum = add(record.checksum, self._actions[row])
        if record.life is None:
            record.life = info["life"]
        if record.life != info["life"] or info["life"] in self._over:
            self._disagree(row, "another environment answered, and no loss was told")
            record.life = info["life"]
        if record.steps != info["number"]:
            self._disagree(row, f"transition {info['number']} of its environment, {record.steps} of the trainer")
            record.steps = info["number"]

    def _disagree(self, row: int, what: str) -> None:
        self.disagreements.append(f"row {row} after {self.transitions:,} transitions: {what}")


class Progress(BaseCallback):
    """Ends the training when it is told to, and says where it is."""

    def __init__(self, recorder: Recorder, stop: threading.Event) -> None:
        super().__init__()
        self._recorder = recorder
        self._stop = stop
        self._said = 0.0

    def _on_step(self) -> bool:
        now = time.monotonic()
        if now - self._said > PROGRESS_S:
            self._said = now
            recent = _mean(self._recorder.returns[-EPISODES:])
            print(f"learning: {self.num_timesteps:,} steps, mean return {recent:.0f}", flush=True)
        return not self._stop.is_set()


def main(address: str, channel: str, num_env_runners: str, seed: str) -> None:
    import torch

    torch.set_num_threads(1)
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    assert remoterl.init(address=address, channel=channel, num_env_runners=int(num_env_runners), timeout_s=60.0)
    recorder = Recorder(make_vec_env(ledger_cartpole, ROWS, seed=int(seed)))
    model = PPO("MlpPolicy", recorder, seed=int(seed), device="cpu", **PPO_SETTINGS)
    model.learn(10**9, Progress(recorder, stop))
    recorder.compare_books()
    (own,) = remoterl.describe()["trainers"]
    result = {
        "steps": model.num_timesteps,
        "transitions": recorder.transitions,
        "episodes": len(recorder.returns),
        "first_return": _mean(recorder.returns[:EPISODES]),
        "last_return": _mean(recorder.returns[-EPISODES:]),
        "losses": recorder.losses,
        "restarts": own["restarts"],
        "slowest_s": recorder.slowest_s,
        "disagreements": recorder.disagreements[:20],
    }
    recorder.close()
    remoterl.shutdown()
    print("RESULT", json.dumps(result), flush=True)


def _mean(returns: list[float]) -> float:
    return statistics.fmean(returns) if returns else 0.0


if __name__ == "__main__":
    main(*sys.argv[1:])
