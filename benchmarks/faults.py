"""`python -m benchmarks.faults [WAY ...]`: how long a trainer's call takes in which something fails, by each way
(`client-stream`, `client-actor`, `driver-stream`, `driver-actor`; all where none is said).

Prints one row of a Markdown table for each fault, a column for each connection and channel: seconds of the call (or,
where that is said, until what it tells). Everything runs on this machine, in processes of their own. The environments
that misbehave are the tests' own (`tests/bad_envs.py`). A fault that is not told as it should be ends the run.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil

from benchmarks.chaos import ROOT, SIMULATORS, START_TIMEOUT_S, UNITS, Child, Cluster, wait_until

WAYS = ["client-stream", "client-actor", "driver-stream", "driver-actor"]
ROWS = 8
ENV_RUNNERS = 4
STEP_TIMEOUT_S = 2.0
GONE_WITHIN_S = 60.0
WAY_TIMEOUT_S = 500.0

# When: what an environment does there, and the name of what the trainer gets.
RAISED = {
    "raises, in its constructor": ("raise", "init", "ValueError"),
    "raises, in `reset`": ("raise", "reset", "ValueError"),
    "raises, in `step`": ("raise", "step", "ValueError"),
    "raises, in `render`": ("raise", "render", "ValueError"),
    "raises, in a method of its own": ("raise", "add", "ValueError"),
    "raises, in `close`": ("raise", "close", "ValueError"),
    "raises what can't be pickled": ("raise_unpicklable", "step", "RemoteEnvError"),
    "raises what can't be unpickled": ("raise_only_here", "step", "RemoteEnvError"),
    "raises what can't even be shown": ("raise_unspeakable", "step", "UnspeakableError"),
    "calls `sys.exit`": ("exit", "step", "RemoteEnvError"),
    "raises `KeyboardInterrupt`": ("interrupt", "step", "RemoteEnvError"),
    "asks for more memory than its process may have": ("use_up_memory", "step", "MemoryError"),
    "returns an observation of another shape": ("return_longer", "step", "ValueError"),
    "returns four values of a step": ("return_four", "step", "ValueError"),
    "returns a reward that is no number": ("reward_with_a_word", "step", "ValueError"),
    "a factory that returns no environment": ("no_env", "init", "AttributeError"),
    "an observation without one of its parts": ("part_missing", "step", "KeyError"),
    "ends its process at every `reset`": ("crash", "reset", "EnvRunnerLostError"),
    "ends its process in its constructor": ("crash", "init", "EnvRunnerLostError"),
    f"loops for ever in its constructor, `step_timeout_s={STEP_TIMEOUT_S:g}`": ("loop", "init", "StepTimeoutError"),
    "loops for ever in `reset`": ("loop", "reset", "StepTimeoutError"),
    "loops for ever in `step`": ("loop", "step", "StepTimeoutError"),
    "loops for ever in a method of its own": ("loop", "add", "StepTimeoutError"),
}
HARMLESS = {
    "returns an observation outside its space": "return_outside",
    "returns an observation of another dtype that can be cast": "return_small_integers",
    "returns an info of 30 MB": "return_a_huge_info",
    "prints megabytes": "print_megabytes",
    "changes to a folder that is then removed": "lose_its_folder",
    "leaves threads": "leave_threads",
    "ignores signals": "take_signals",
    "forks, and the child comes back from `step`": "fork_and_come_back",
    "closes its output": "close_its_output",
}
ENDS_ITS_PROCESS = {
    "ends its process in a step: `os._exit`": "exit_at_once",
    "the same: a segfault": "crash",
    "the same: `kill -9`, as from the kernel for want of memory": "be_killed",
    "the same, and leaves child processes: until they are ended too": "leave_children_and_die",
}


def main() -> None:
    """Measure all ways and print the table."""
    ways = sys.argv[1:] or WAYS
    table: dict[str, dict[str, str]] = {}
    with Cluster() as cluster:
        for way in ways:
            connection, channel = way.split("-")
            address = {"client": cluster.client_address, "driver": cluster.address}[connection]
            trainer = cluster.start_as_trainer(["-m", "benchmarks.faults", "trainer", "measure", address, channel])
            began = time.monotonic()
            while "MEASURED" not in trainer.output:
                cluster.revive()
                time.sleep(0.5)
                ended = trainer.process.poll() is not None and "MEASURED" not in trainer.output
                if ended or time.monotonic() - began > WAY_TIMEOUT_S:
                    raise SystemExit(f"{way} ended, or takes too long; it said:\n{trainer.output[-5000:]}")
            for fault, took in json.loads(trainer.output.split("MEASURED")[1].splitlines()[0]).items():
                table.setdefault(fault, {})[way] = took
            trainer.end()
            for end, fault in ENDS.items():
                trainer = cluster.start_as_trainer(["-m", "benchmarks.faults", "trainer", end, address, channel])
                trainer.wait_for("HELD", START_TIMEOUT_S)
                table.setdefault(fault, {})[way] = _until_gone(cluster, trainer, end)
    print("\n".join([f"| what fails | {' | '.join(ways)} |", "| --- |" + " --- |" * len(ways)]))
    for fault, seconds_by_way in table.items():
        print(f"| {fault} | {' | '.join(seconds_by_way.get(way, '-') for way in ways)} |")


def _until_gone(cluster: Cluster, trainer: Child, end: str) -> str:
    began = time.monotonic()
    if end == "kill":
        trainer.process.kill()
    elif end == "interrupt":
        trainer.process.send_signal(signal.SIGINT)
    else:
        assert trainer.process.stdin is not None
        trainer.process.stdin.close()
    wait_until(lambda: not cluster.env_runners(), GONE_WITHIN_S, f"the env runners of a trainer are gone: {end}")
    took = time.monotonic() - began
    trainer.process.wait(30)
    return f"{took:.1f} s"


# ---- in the trainer --------------------------------------------------------------------------------------------------

ENDS = {
    "kill": "a trainer is killed (`kill -9`): until its env runners are gone",
    "interrupt": "a trainer is interrupted (SIGINT): the same",
    "exit": "a trainer's script ends: the same",
    "raise": "a trainer's script ends with an exception: the same",
}


def hold(address: str, channel: str, end: str) -> None:
    """A trainer that steps until it is ended."""
    import gymnasium as gym

    import remoterl

    assert remoterl.init(address=address, channel=channel, num_env_runners=ENV_RUNNERS)
    vec = gym.make_vec("CartPole-v1", num_envs=ROWS, vectorization_mode="sync")
    vec.reset(seed=1)
    vec.step(vec.action_space.sample())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print("HELD", flush=True)
    sys.stdin.read()
    if end == "raise":
        raise RuntimeError("as it was told to")


class Trainer:
    """Measures one fault after the other by one way."""

    def __init__(self, address: str, channel: str) -> None:
        self._address, self._channel = address, channel
        self.told: dict[str, str] = {}

    @contextlib.contextmanager
    def session(self, **options: Any) -> Iterator[None]:
        import remoterl

        settings = {"num_env_runners": ENV_RUNNERS, "step_timeout_s": STEP_TIMEOUT_S, **options}
        assert remoterl.init(address=self._address, channel=self._channel, timeout_s=60.0, **settings)
        try:
            yield
        finally:
            took = timed(remoterl.shutdown)
            self.told.setdefault("`shutdown()`", f"{took:.1f} s")

    def tell(self, fault: str, once: Callable[[], float], times: int = 1) -> None:
        """Measure, and keep the median."""
        print(f"{fault} ...", flush=True)
        self.told[fault] = f"{statistics.median(once() for _ in range(times)):.1f} s"

    def measure(self) -> None:
        """All faults, by one way; prints the seconds as JSON."""
        with self.session():
            self.recoveries()
            self.bad_environments()
        with self.session(max_restarts=0):
            self.tell("more losses than `max_restarts`", lambda: fails(1, error_of("EnvRunnerLostError", step)))
        self.simulators()
        print("MEASURED" + json.dumps(self.told), flush=True)

    def recoveries(self) -> None:
        self.tell("an env runner is killed, between two steps", lambda: fails(1, loses), 3)
        self.tell("the same, in a step (of 0.5 s)", lambda: fails_while(1, loses) - 0.5, 3)
        self.tell("the same, before a `reset()`", lambda: fails(1, lambda vec: vec.reset(seed=1)), 3)
        self.tell("the same, before a call (`get_attr`)", lambda: fails(1, lambda vec: vec.get_attr("spec")), 3)
        self.tell("all env runners are killed", lambda: fails(ENV_RUNNERS, loses), 3)

    def bad_environments(self) -> None:
        for fault, (what, when, error) in RAISED.items():
            self.tell(fault, lambda what=what, when=when, error=error: raises(what, when, error))
        self.tell("loops for ever in `close`", lambda: timed(lambda: use("loop", "close")))
        for fault, what in HARMLESS.items():
            self.tell(fault, lambda what=what: harmless(what))
        for fault, what in ENDS_ITS_PROCESS.items():
            self.tell(fault, lambda what=what: ends_its_process(what))

    def simulators(self) -> None:
        from remoterl._process import current_session

        for fault, number in (
            ("a simulator's process is killed (`kill -9`)", signal.SIGKILL),
            ("a simulator is told to end (SIGTERM)", signal.SIGTERM),
        ):
            cases = [(ENV_RUNNERS, ""), (UNITS * len(SIMULATORS), ", and no unit is free")]
            for units, more in cases if number == signal.SIGKILL else cases[:1]:
                with self.session(num_env_runners=units, step_timeout_s=60.0):
                    vec = made(rows=2 * units)
                    name = current_session().runners[0].simulator  # type: ignore[union-attr]
                    simulator = simulator_process(name)
                    simulator.send_signal(number)
                    if number == signal.SIGKILL:
                        simulator.wait(10)
                        self.tell(fault + more, lambda vec=vec: timed(lambda: loses(vec)))
                    else:
                        # Its rows move at some step soon; nobody knows of it before.
                        self.tell(fault + more, lambda vec=vec: timed(lambda: until_it_loses(vec)))
                        simulator.wait(60)
                    vec.close()
                wait_until(lambda: all(map(there, SIMULATORS)), START_TIMEOUT_S, "the simulator is back")
                time.sleep(5.0)


def timed(call: Callable[[], Any]) -> float:
    """Seconds of the call."""
    began = time.monotonic()
    call()
    return time.monotonic() - began


def made(factory: Any = None, rows: int = ROWS) -> Any:
    """A vector env that has been stepped once."""
    import gymnasium as gym
    from ledger import LedgerEnv

    vec = gym.vector.SyncVectorEnv([factory or LedgerEnv] * rows)
    vec.reset(seed=1)
    step(vec)
    return vec


def step(vec: Any) -> Any:
    import numpy as np

    return vec.step(np.zeros(vec.num_envs, np.int64))


def loses(vec: Any) -> None:
    assert step(vec)[3].any()


def until_it_loses(vec: Any) -> None:
    until = time.monotonic() + 30.0
    while not step(vec)[3].any():
        assert time.monotonic() < until
        time.sleep(0.02)


def kill(count: int) -> None:
    """So many env runners of this session."""
    from remoterl._process import current_session

    for runner in current_session().runners[:count]:  # type: ignore[union-attr]
        process = psutil.Process(runner.pid)
        process.kill()
        with contextlib.suppress(psutil.NoSuchProcess):
            process.wait(10)


def fails(count: int, call: Callable[[Any], Any]) -> float:
    vec = made()
    try:
        kill(count)
        return timed(lambda: call(vec))
    finally:
        vec.close()


def fails_while(count: int, call: Callable[[Any], Any]) -> float:
    vec = made(slow_env())
    killer = threading.Timer(0.25, kill, (count,))
    killer.start()
    try:
        return timed(lambda: call(vec))
    finally:
        killer.join()
        vec.close()


def slow_env() -> Any:
    from ledger import LedgerEnv

    class Slow(LedgerEnv):
        def step(self, action: int) -> Any:
            time.sleep(0.25)  # two rows to an env runner
            return super().step(action)

    return Slow


def error_of(name: str, call: Callable[..., Any]) -> Callable[..., None]:
    """A call that has to raise this."""

    def calling(*arguments: Any) -> None:
        try:
            call(*arguments)
        except Exception as error:
            if name in (base.__name__ for base in type(error).__mro__):
                return
            raise
        raise AssertionError(f"no {name}")

    return calling


def bad_vec(what: str, when: str) -> Any:
    """One row of it misbehaves."""
    import bad_envs
    import gymnasium as gym

    if what == "no_env":
        return gym.vector.SyncVectorEnv([bad_envs.BadEnv] * (ROWS - 1) + [bad_envs.NoEnv])  # type: ignore[list-item]
    if what == "part_missing":
        bad = {"place": [0.0, 0.0]}
        return gym.vector.SyncVectorEnv(
            [lambda i=i: bad_envs.BadDictEnv(bad if i == 1 else None) for i in range(ROWS)]  # type: ignore[misc]
        )
    return gym.vector.SyncVectorEnv(
        [lambda i=i: bad_envs.BadEnv(what if i == 1 else "nothing", when) for i in range(ROWS)]  # type: ignore[misc]
    )


def use(what: str, when: str) -> None:
    """All that one does with a vector env; a bad row does its own `when` it is told to."""
    vec = bad_vec(what, when)
    try:
        vec.reset(seed=1)
        for _ in range(3):
            step(vec)
        if what != "part_missing":
            vec.render()
            vec.call("add", 1)
    except BaseException:
        with contextlib.suppress(Exception):
            vec.close()
        raise
    vec.close()


def raises(what: str, when: str, error: str) -> float:
    """Seconds of the very call that raises."""
    if when in ("init", "close"):
        return timed(lambda: error_of(error, use)(what, when))
    vec = bad_vec(what, when)
    try:
        call: Callable[[Any], Any] = lambda vec: vec.reset(seed=1)  # noqa: E731
        if when != "reset":
            vec.reset(seed=1)
            step(vec)
            call = {"step": step, "render": lambda vec: vec.render(), "add": lambda vec: vec.call("add", 1)}[when]
        return timed(lambda: error_of(error, call)(vec))
    finally:
        with contextlib.suppress(Exception):
            vec.close()


def harmless(what: str) -> float:
    """Seconds of the step in which a row does what harms nobody; the next one goes as if nothing had been."""
    vec = bad_vec(what, "step")
    vec.reset(seed=1)
    step(vec)
    took = timed(lambda: step(vec))
    assert not step(vec)[3].any()
    vec.close()
    return took


def ends_its_process(what: str) -> float:
    vec = bad_vec(what, "step")
    vec.reset(seed=1)
    step(vec)
    took = timed(lambda: loses(vec))
    if what == "leave_children_and_die":
        took = timed(lambda: wait_until(lambda: not sleepers(), 30.0, "its children are ended"))
    vec.close()
    return took


def sleepers() -> list[psutil.Process]:
    """The programs that `bad_envs` starts; its fork, which looks like an env runner, is the tests' own to wait for."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.cmdline() == ["sleep", "1000"]:
                found.append(process)
    return found


def simulator_process(name: str) -> psutil.Process:
    """That of the cluster in which we are, by its name."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            line = process.cmdline()
            ours = process.environ().get("TMPDIR") == os.environ["TMPDIR"]
            if ours and "simulate" in line and name in line and line[1:3] == ["-m", "remoterl"]:
                return process
    raise LookupError(name)


def there(name: str) -> bool:
    try:
        return simulator_process(name).status() != psutil.STATUS_ZOMBIE
    except (LookupError, psutil.NoSuchProcess):
        return False


if __name__ == "__main__":
    if sys.argv[1:2] == ["trainer"]:
        sys.path.insert(0, str(ROOT / "tests"))
        what, address, channel = sys.argv[2:]
        Trainer(address, channel).measure() if what == "measure" else hold(address, channel, what)
    else:
        main()
