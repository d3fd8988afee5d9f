"""The examples and the command line, as a user runs them: each script in a process of its own."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from commands import Call, run_in_turn
from processes import (
    KEY,
    PATIENCE_S,
    ROOT,
    SIMULATOR_PYTHON,
    Process,
    clean_environment,
    free_ports,
    inheriting,
    run_python,
    wait_until,
)

import remoterl
from remoterl import capacity, registration
from remoterl.registration import Registration

EXAMPLES = ROOT / "examples"


def test_plain_gymnasium_needs_no_cluster(tmp_path: Path) -> None:
    mark = str(tmp_path)
    done = run_python(EXAMPLES / "gymnasium_random.py", REMOTERL_ADDRESS="local", TESTED_BY=mark)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d+ episodes in 1600 remote steps", done.stdout) and "Pendulum" in done.stdout
    wait_until(lambda: inheriting(mark) == [], what="Ray's processes")


@pytest.mark.long
def test_the_demo(tmp_path: Path) -> None:
    """As `make demo` runs it, with a lower target. The hub that is registered here is none of its business."""
    picture, home = tmp_path / "curve.png", {"REMOTERL_HOME": str(tmp_path / "home")}
    registration.write(Registration(f"127.0.0.1:{free_ports(1)[0]}", KEY), home)
    command = [sys.executable, "-m", "remoterl", "demo", "--target", "100", "--output", str(picture)]
    done = subprocess.run(
        command,
        env=clean_environment(**home),
        capture_output=True,
        text=True,
        timeout=240,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "run on simulator-1" in done.stdout and "run on simulator-2" in done.stdout
    assert re.search(r"Solved: mean return 1\d\d", done.stdout) and "steps/s" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_demo_that_is_told_to_end_leaves_nothing(tmp_path: Path) -> None:
    mark = str(tmp_path)
    with open(tmp_path / "output", "w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "remoterl", "demo", "--target", "1000", "--output", str(tmp_path / "curve.png")],
            env=clean_environment(TESTED_BY=mark), stdout=output, stderr=subprocess.STDOUT, cwd=tmp_path,
        )  # fmt: skip
        wait_until(lambda: "run on simulator-2" in Path(output.name).read_text(), 240, "the demo trains")
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM, Path(output.name).read_text()
    wait_until(lambda: inheriting(mark) == [], what="Ray's processes")


def test_the_command_line_explains_its_errors(cluster, tmp_path: Path) -> None:
    calls: list[tuple[Call, str]] = [
        (Call(["simulate", "--register", "no_such_module"]), "no_such_module"),
        (Call(["simulate", "--label", "nonsense"]), "KEY=VALUE"),
        (Call(["simulate", "--max-env-runners", "0"]), "max_env_runners"),
        (Call(["status", "--address", "nonsense"]), "address must be"),
        (Call(["check", "1", "--address", "local"]), "private cluster"),
        (Call(["status", "--address", "127.0.0.1:1", "--timeout", "1"]), "No hub answers"),
        (Call(["status", "--address", cluster.gcs_address], {"REMOTERL_API_KEY": "not-the-key"}), "refused the key"),
    ]
    helped, *refused = run_in_turn(Call(["--help"]), *(call for call, _ in calls), cwd=tmp_path)
    assert helped.returncode == 0 and "simulate" in helped.stdout
    for done, (_, expected) in zip(refused, calls, strict=True):
        assert done.returncode == 1 and expected in done.stderr and "Traceback" not in done.stderr, done.stderr
        assert KEY not in done.stderr


# ---- the simulator and the trainer of the README; last, since their cluster would idle through what follows -----


@pytest.fixture(scope="module")
def examples_cluster():
    """`simulator.py` twice, word for word, of which the first is the hub."""
    folder = tempfile.mkdtemp(prefix="rrl-", dir="/tmp")
    hub = Process(str(SIMULATOR_PYTHON), str(EXAMPLES / "simulator.py"), RAY_TMPDIR=folder)
    hub.wait_for("is up")
    [client] = re.findall(r"trainers REMOTERL_ADDRESS=(ray://[\d.]+:\d+)", hub.output)
    [gcs] = re.findall(r"simulators REMOTERL_ADDRESS=([\d.]+:\d+)", hub.output)
    second = Process(str(SIMULATOR_PYTHON), str(EXAMPLES / "simulator.py"), REMOTERL_ADDRESS=gcs)
    second.wait_for("is up")
    yield {"client": client, "driver": gcs, "processes": [hub, second]}
    trees = [process for simulator in (hub, second) for process in simulator.tree()]
    assert [second.end(), hub.end()] == [0, 0]
    _, alive = psutil.wait_procs(trees, timeout=PATIENCE_S)
    assert alive == []


@pytest.mark.long
def test_the_trainer_of_the_readme_learns_cartpole(examples_cluster, tmp_path: Path) -> None:
    """Word for word, but for fewer steps and smaller rollouts, so that it learns within them, and fewer env runners."""
    script = (EXAMPLES / "sb3_cartpole.py").read_text()
    few = script.replace("num_env_runners=8", "num_env_runners=2")
    short = few.replace("100_000", "24_000").replace(
        "verbose=1", "verbose=1, seed=1, n_steps=64, batch_size=512, n_epochs=20, gae_lambda=0.8, gamma=0.98, "
        "learning_rate=1e-3"
    )  # fmt: skip
    assert short.count("24_000") == 1 and "n_steps=64" in short and "num_env_runners=2" in short
    short = short.replace("remoterl.shutdown()", "print('PLACES', env._core.places())\nremoterl.shutdown()")
    path = tmp_path / "trainer.py"
    path.write_text(short)
    done = run_python(path, timeout_s=280, REMOTERL_ADDRESS=examples_cluster["client"])
    assert done.returncode == 0, done.stderr
    assert len(eval(done.stdout.split("PLACES")[1].strip())) == 2  # rows on both simulators
    returns = [float(value) for value in re.findall(r"ep_rew_mean\s*\|\s*([\d.e+]+)", done.stdout)]
    assert returns[0] < 60 and max(returns) > 100, returns
    wait_until(lambda: not [p for s in examples_cluster["processes"] for p in s.tree() if _is_env_runner(p)])


def _is_env_runner(process: psutil.Process) -> bool:
    try:
        return "ray::EnvRunner" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


def test_the_trainer_of_the_readme_runs_word_for_word(examples_cluster, tmp_path: Path) -> None:
    """The very file, stopped by Ctrl-C in its first rollout."""
    address = examples_cluster["driver"]
    trainer = Process(sys.executable, str(EXAMPLES / "sb3_cartpole.py"), REMOTERL_ADDRESS=address)
    with capacity.connected(address, KEY, PATIENCE_S):
        wait_until(lambda: sum(one["steps"] for one in remoterl.describe()["trainers"]) > 320, what="it trains")
    assert trainer.end(signal.SIGINT) != 0
    wait_until(lambda: not [p for s in examples_cluster["processes"] for p in s.tree() if _is_env_runner(p)])
