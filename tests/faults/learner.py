"""A Stable-Baselines3 training that saves its model when the hub is lost; says what happens, as `trainer` does.

`python learner.py ADDRESS CHANNEL ENV_RUNNERS`
"""

from __future__ import annotations

import faulthandler
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import ray
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from trainer import PAUSE_S, say

import remoterl
from remoterl.errors import HubLostError, RemoteRLError


class Beat(BaseCallback):
    """Says once a second that steps are made, and knows when the last was."""

    last = 0.0
    said = 0.0

    def _on_step(self) -> bool:
        self.last = time.monotonic()
        if self.last - self.said > 1.0:
            self.said = self.last
            say("step", step=self.num_timesteps)
        time.sleep(PAUSE_S)
        return True


def main(address: str, channel: str, num_env_runners: str) -> None:
    assert remoterl.init(address=address, channel=channel, num_env_runners=int(num_env_runners), timeout_s=60.0)
    env = make_vec_env("CartPole-v1", 6)
    model = PPO("MlpPolicy", env, n_steps=32, batch_size=64, n_epochs=1, device="cpu")
    say("up", places=env.unwrapped._core.places())
    beat = Beat()
    try:
        model.learn(10**9, beat)
    except HubLostError as error:
        say("hub lost", took=time.monotonic() - beat.last, message=str(error), closed=env.unwrapped._core.closed)
        faulthandler.dump_traceback_later(15)  # where it hangs, should it not get on from here
        path = Path(tempfile.mkdtemp(), "model.zip")  # of this learner alone: another one on this host saves too
        model.save(path)
        loaded = PPO.load(path, device="cpu")
        say("saved", same=loaded.num_timesteps == model.num_timesteps > 0)
        try:
            env.step(np.zeros(6, int))
        except RemoteRLError as closed:
            say("closed", message=str(closed))
        faulthandler.cancel_dump_traceback_later()
    remoterl.shutdown()
    assert not ray.is_initialized()  # nor has Ray started a cluster of its own here
    say("end", initialized=remoterl.is_initialized())


if __name__ == "__main__":
    main(*sys.argv[1:])
