"""An RLlib script with every kind of end, which prints a line of its configs and of RLlib's own code after each.

It ends by an exception, after two sessions that ended otherwise. RLlib is imported later than the first `init()`.
"""

import atexit
import json
import os
import re
import time
from typing import Any

import ray

import remoterl
from remoterl import capacity

_configs: list[Any] = []


def configs() -> list[Any]:
    """The script's own config, made once, in the first session."""
    from ray.rllib.algorithms.ppo import PPOConfig

    if not _configs:
        config = PPOConfig().environment("CartPole-v1").env_runners(num_env_runners=1)
        _configs.append(config.training(train_batch_size_per_learner=64, minibatch_size=32, num_epochs=1))
    return _configs


def fields() -> dict[str, Any]:
    """Every field of new configs and of the script's own; in `code` what of RLlib and Tune is not theirs."""
    from ray import tune
    from ray.rllib.algorithms.algorithm import Algorithm
    from ray.rllib.algorithms.dqn import DQNConfig
    from ray.rllib.algorithms.impala import IMPALAConfig
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.env.env_runner_group import EnvRunnerGroup

    said: dict[str, Any] = {}
    for number, config in enumerate([PPOConfig(), DQNConfig(), IMPALAConfig(), *configs()]):
        values = {name: re.sub(r" at 0x\w+", "", repr(value)) for name, value in config.to_dict().items()}
        said[f"{number} {type(config).__name__}"] = values
    classes = (Algorithm, EnvRunnerGroup, tune.Tuner, tune.registry._Registry)
    functions = [(f"{cls.__name__}.{name}", value) for cls in classes for name, value in vars(cls).items()]
    functions += [("ray.init", ray.init), ("ray.shutdown", ray.shutdown), ("tune.run", tune.run)]
    return {**said, "code": sorted(filter(None, map(not_rays, functions)))}


def say_fields(when: str) -> None:
    print("FIELDS", when, json.dumps(fields()), flush=True)


def not_rays(named: tuple[str, Any]) -> str | None:
    name, value = named
    value = getattr(value, "__func__", value)
    code = getattr(value, "__code__", None)
    return f"{name}: {code.co_filename}" if code and "remoterl" in code.co_filename.split(os.sep) else None


def trained() -> Any:
    """An algorithm in a session of its own, after an iteration."""
    assert remoterl.init(num_env_runners=1)
    ray.init()  # a script's own bare call finds the session's connection
    algo = configs()[0].build_algo()
    algo.train()
    return algo


def wait_for_units() -> None:
    """All are free again, with nobody's help."""
    deadline = time.monotonic() + 60
    with capacity.connected(os.environ["REMOTERL_ADDRESS"], os.environ["REMOTERL_API_KEY"], 60.0):
        while not remoterl.check(8):
            assert time.monotonic() < deadline, "units are held still"
            time.sleep(0.5)
    print("FREE", flush=True)


if __name__ == "__main__":
    atexit.register(say_fields, "exception")  # before init(), so that it runs after all that init() registers
    algo = trained()
    algo.stop()
    say_fields("algo.stop")
    remoterl.shutdown()
    assert not ray.is_initialized()
    say_fields("remoterl.shutdown")
    wait_for_units()

    algo = trained()
    ray.shutdown()
    assert not remoterl.is_initialized()
    say_fields("ray.shutdown")
    wait_for_units()

    algo = trained()
    raise ZeroDivisionError
