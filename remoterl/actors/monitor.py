"""Episode statistics as Stable-Baselines3's `Monitor` makes them, without Stable-Baselines3 or torch.

Stands in for `Monitor` inside env runners (see `shipping.SUBSTITUTES`).
Source of the rules: Stable-Baselines3 2.9, `common/monitor.py`.
"""

from __future__ import annotations

import time
from typing import Any, SupportsFloat

import gymnasium

from remoterl.errors import UnsupportedError

SB3_MONITOR = "stable_baselines3.common.monitor"


class Monitor(gymnasium.Wrapper):
    """Adds `info["episode"] = {"r": return, "l": length, "t": seconds}` at each episode's end.

    Args are those of SB3's Monitor, but for `filename`: a log belongs on the trainer's machine.
    """

    EXT = "monitor.csv"
    results_writer = None  # as without `filename`

    def __init__(
        self,
        env: gymnasium.Env,
        filename: str | None = None,
        allow_early_resets: bool = True,
        reset_keywords: tuple[str, ...] = (),
        info_keywords: tuple[str, ...] = (),
        override_existing: bool = True,
    ) -> None:
        super().__init__(env)
        if filename is not None:
            raise UnsupportedError(
                f"Monitor(filename={filename!r}) would write its log on the simulator. Take "
                "make_vec_env(monitor_dir=...) or SB3's VecMonitor, which write on the trainer's machine."
            )
        self.t_start = time.time()
        self.reset_keywords = reset_keywords
        self.info_keywords = info_keywords
        self.allow_early_resets = allow_early_resets
        self.rewards: list[float] = []
        self.needs_reset = True
        self.episode_returns: list[float] = []
        self.episode_lengths: list[int] = []
        self.episode_times: list[float] = []
        self.total_steps = 0
        self.current_reset_info: dict[str, Any] = {}

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Start an episode; refused in mid-episode where `allow_early_resets` is False."""
        if not self.allow_early_resets and not self.needs_reset:
            raise RuntimeError(
                "Tried to reset an environment before done. If you want to allow early resets, "
                "wrap your env with Monitor(env, path, allow_early_resets=True)"
            )
        self.rewards = []
        self.needs_reset = False
        for key in self.reset_keywords:
            if kwargs.get(key) is None:
                raise ValueError(f"Expected you to pass keyword argument {key} into reset")
            self.current_reset_info[key] = kwargs[key]
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step, and report the episode in the info of its last step."""
        if self.needs_reset:
            raise RuntimeError("Tried to step environment that needs reset")
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.rewards.append(float(reward))
        if terminated or truncated:
            self.needs_reset = True
            seconds = time.time() - self.t_start
            episode_return, length = sum(self.rewards), len(self.rewards)
            episode: dict[str, Any] = {"r": round(episode_return, 6), "l": length, "t": round(seconds, 6)}
            episode.update((key, info[key]) for key in self.info_keywords)
            self.episode_returns.append(episode_return)
            self.episode_lengths.append(length)
            self.episode_times.append(seconds)
            episode.update(self.current_reset_info)
            info["episode"] = episode
        self.total_steps += 1
        return observation, reward, terminated, truncated, info

    def get_total_steps(self) -> int:
        """Steps so far."""
        return self.total_steps

    def get_episode_rewards(self) -> list[float]:
        """Returns of all finished episodes."""
        return self.episode_returns

    def get_episode_lengths(self) -> list[int]:
        """Steps of all finished episodes."""
        return self.episode_lengths

    def get_episode_times(self) -> list[float]:
        """Seconds since the start at which each episode ended."""
        return self.episode_times


def require_gymnasium_env(env: Any) -> gymnasium.Env:
    """Stands in for SB3's `_patch_env`, which converts OpenAI Gym environments: those are refused."""
    if isinstance(env, gymnasium.Env):
        return env
    raise ValueError(
        f"The environment is of type {type(env)}, not a Gymnasium environment. OpenAI Gym environments are "
        "not supported on simulators: convert it with shimmy inside the factory."
    )


def no_folder(_: str) -> None:
    """Stands in for the folder that `make_vec_env(monitor_dir=...)` names, which is one of the trainer's machine."""
