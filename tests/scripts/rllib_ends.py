"""An RLlib script that ends in the way that its argument names, with an algorithm still up."""

import os
import signal
import sys
import time

import ray

import remoterl

if __name__ == "__main__":
    assert remoterl.init(num_env_runners=1)
    from ray.rllib.algorithms.ppo import PPOConfig  # imported later than init(), which makes no difference

    ray.init()  # a script's own bare call finds the session's connection
    config = PPOConfig().environment("CartPole-v1").env_runners(num_env_runners=2)
    algo = config.training(train_batch_size_per_learner=64, minibatch_size=32, num_epochs=1).build_algo()
    algo.train()
    print("TRAINED", flush=True)
    if sys.argv[1] == "ray.shutdown":
        ray.shutdown()
        assert not remoterl.is_initialized()
    elif sys.argv[1] == "shutdown":
        remoterl.shutdown()
        assert not ray.is_initialized()
    elif sys.argv[1] == "exception":
        raise ZeroDivisionError
    elif sys.argv[1] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[1] != "end":
        print("WAITING", flush=True)
        time.sleep(60)  # the test looks whether everything is gone meanwhile
