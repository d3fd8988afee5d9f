"""A trainer that steps ledgers until SIGTERM, and says what happens: a line of JSON for each event.

`python trainer.py ADDRESS CHANNEL ENV_RUNNERS`. Every step is compared with environments of its own that get the same
actions, a lost row's with a new one.
"""

from __future__ import annotations

import functools
import json
import signal
import sys
import threading
import time
from typing import Any

import gymnasium as gym
import numpy as np
from ledger import LedgerEnv

import remoterl
from remoterl._process import current_session
from remoterl.errors import HubLostError

ROWS = 6
EPISODE = 40
SLOW_S = 1.0  # a step that is worth a line
PAUSE_S = 0.1  # the other half of the tests runs on this machine too


def say(event: str, **more: Any) -> None:
    print(json.dumps({"event": event, "at": time.monotonic(), **more}), flush=True)


class Twins:
    """What the rows would do here, in this process."""

    def __init__(self, observations: np.ndarray) -> None:
        self.envs = [LedgerEnv(EPISODE) for _ in range(ROWS)]
        self._restarts = [False] * ROWS  # does the row's next step reset it?
        self._last = observations.copy()
        for env, observation in zip(self.envs, observations, strict=True):
            same(env.reset(seed=int(observation[3]))[0], observation, "reset")

    def step(self, actions: np.ndarray, stepped: Any) -> list[int]:
        """Compare a step with what these environments do; returns the rows that were lost in it."""
        observations, rewards, terminations, truncations, infos = stepped
        told = infos.get("_remoterl", np.zeros(ROWS, bool))
        for row, action in enumerate(actions):
            result = (observations[row], rewards[row], terminations[row], truncations[row])
            if told[row]:
                same((self._last[row], 0.0, False, True), result, f"the loss of row {row}")
                self.envs[row] = LedgerEnv(EPISODE)
                seed = None
            elif self._restarts[row]:
                seed = None if self.envs[row].book else int(observations[row][3])
                same((self.envs[row].reset(seed=seed)[0], 0.0, False, False), result, f"the reset of row {row}")
            else:
                same(self.envs[row].step(int(action))[:4], result, f"the step of row {row}")
                assert infos["number"][row] == len(self.envs[row].book)
            self._restarts[row] = bool(terminations[row] or truncations[row])
        self._last = observations.copy()
        return np.flatnonzero(told).tolist()


def same(expected: Any, got: Any, what: str) -> None:
    for one, other in zip(expected, got, strict=True):
        assert np.array_equal(one, other), f"{what}: expected {expected}, got {got}"


def main(address: str, channel: str, num_env_runners: str) -> None:
    assert remoterl.init(address=address, channel=channel, num_env_runners=int(num_env_runners), timeout_s=60.0)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    runners = current_session().runners
    vec = gym.vector.SyncVectorEnv([functools.partial(LedgerEnv, EPISODE)] * ROWS)
    say(
        "up", channels=sorted({runner.channel.name for runner in runners}), places=vec._core.places(),
        runners=[[runner.simulator, runner.pid] for runner in runners],
    )  # fmt: skip
    twins = Twins(vec.reset(seed=7)[0])
    step, said, slowest = 0, 0.0, 0.0
    lost: set[int] = set()
    while not stop.is_set():
        actions = np.array([(step * 10 + row) % 1000 for row in range(ROWS)])
        began = time.monotonic()
        try:
            stepped = vec.step(actions)
        except HubLostError as error:
            say("hub lost", took=time.monotonic() - began, message=str(error), closed=vec._core.closed)
            remoterl.shutdown()
            return
        took = time.monotonic() - began
        slowest = max(slowest, took)
        rows = twins.step(actions, stepped)
        step += 1
        if rows:
            lost.update(rows)
            say("lost", rows=rows, step=step, took=took)
        elif took > SLOW_S:
            say("slow", step=step, took=took)
        if began - said > 1.0:
            said = began
            say("step", step=step)
        time.sleep(PAUSE_S)
    books = [[tuple(entry) for entry in book] for book in vec.get_attr("book")]
    say(
        "end", steps=step, lost=sorted(lost), slowest=slowest, agree=books == [env.book for env in twins.envs],
        places=vec._core.places(),
    )  # fmt: skip
    vec.close()
    remoterl.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
