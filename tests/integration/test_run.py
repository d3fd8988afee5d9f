"""`remoterl run`: scripts that know nothing of remoterl."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from commands import Call, run_in_turn
from conftest import assert_free
from processes import ROOT, clean_environment, free_ports, run_in_one_process

SCRIPT = ROOT / "tests" / "scripts" / "cleanrl_style.py"


def python(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], env=clean_environment(**environment), cwd=cwd, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip


def told(stdout: str) -> list[dict]:
    return [json.loads(line) for line in stdout.splitlines() if line.startswith("{")]


def test_scripts_in_cleanrls_manner_are_the_same_with_and_without(cluster, tmp_path: Path) -> None:
    ppo, dqn, sac = (str(SCRIPT.with_name(f"{name}_style.py")) for name in ("cleanrl", "dqn", "sac"))
    lines = [[ppo, "CartPole-v1", str(tmp_path / "local")], [dqn, "CartPole-v1"], [sac, "Pendulum-v1"]]
    local = told(run_in_one_process(*lines).stdout)
    lines[0][-1] = str(tmp_path / "far")
    addresses = (cluster.client_address, cluster.gcs_address, cluster.gcs_address)
    calls = [Call(["run", "--address", address, *line]) for address, line in zip(addresses, lines, strict=True)]
    # A module in the working directory, its arguments, and its exit code.
    (tmp_path / "a_module.py").write_text(SCRIPT.read_text())
    as_module = ["run", "--address", cluster.gcs_address, "--num-env-runners", "1", "-m", "a_module"]
    calls.append(Call([*as_module, "CartPole-v1", str(tmp_path), "--fail"]))
    *scripts, module = run_in_turn(*calls, cwd=tmp_path)
    remote = []
    for done in scripts:
        assert done.returncode == 0, done.stderr
        remote += told(done.stdout)
    assert module.returncode == 3 and told(module.stdout)[-1]["kind"] == "RemoteSyncVectorEnv", module.stderr
    for one in (*local, *remote):
        one.pop("pid", None)
    assert [one["kind"] for one in local] == ["SyncVectorEnv"] * 3
    assert remote == [{**one, "kind": "RemoteSyncVectorEnv"} for one in local]
    assert all(len(one["returns"]) > 3 for one in local)
    assert [path.stat().st_size > 1000 for path in (tmp_path / "far").glob("*.mp4")] == [True]
    assert_free(cluster)


def test_a_scripts_own_init_and_its_errors(cluster, tmp_path: Path) -> None:
    script = tmp_path / "own.py"
    script.write_text(
        "import atexit, os, threading, gymnasium, ray, remoterl\n"
        "ray.shutdown()\n"
        "ray.init(ignore_reinit_error=True)\n"
        "assert remoterl.init(num_env_runners=3)\n"
        "from remoterl._process import current_session\n"
        "assert current_session().info.name == 'own.py'\n"
        "def kind(): return type(gymnasium.make('CartPole-v1')).__name__\n"
        "class Where(gymnasium.Wrapper):\n"
        "    def __init__(self): super().__init__(gymnasium.make('CartPole-v1')); self.token = os.environ['TOKEN']\n"
        "print(kind(), gymnasium.vector.SyncVectorEnv([Where]).get_attr('token'))\n"
        "remoterl.shutdown()\n"
        "print(kind())\n"
        "assert remoterl.init(timeout_s=5)\n"
        "threading.Timer(1, lambda: print('a thread', kind())).start()\n"
        "atexit.register(lambda: print('at exit', kind()))\n"
        "gymnasium.make('NoSuchThing-v0')\n"
    )
    options = ["--address", cluster.gcs_address, "--label", "zone=b", "--env", "TOKEN=one"]
    done = python("-m", "remoterl", "run", *options, str(script), cwd=tmp_path)
    assert done.stdout.splitlines()[-4:] == [
        "RemoteEnv ('one',)", "TimeLimit", "a thread RemoteEnv", "at exit RemoteEnv"
    ]  # fmt: skip
    assert done.returncode == 1
    for line in (
        "ray.shutdown() is left out",
        "The script's own init(num_env_runners) is left out: `remoterl run` has opened the session.",
        "The script's own init(timeout_s) opens the session again, as `remoterl run` had it.",
    ):
        assert line in done.stderr, done.stderr
    assert done.stderr.count("env runners over beta") == 2
    assert "own.py" in done.stderr and "UnknownNameError" in done.stderr  # the script's own traceback
    cut = tmp_path / "cut.py"
    cut.write_text("raise EOFError('cut short')\n")
    wrong = {"no_such.py": "no script", "-m no_such_module": "no_such_module", str(cut): "EOFError: cut short"}
    calls = [Call(["run", "--address", cluster.gcs_address, *what.split()]) for what in wrong]
    for refused, expected in zip(run_in_turn(*calls, cwd=tmp_path), wrong.values(), strict=True):
        assert refused.returncode == 1 and expected in refused.stderr
    assert_free(cluster)


def test_without_a_hub_the_script_does_not_run(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("print('it ran')\n")
    address = f"127.0.0.1:{free_ports(1)[0]}"
    done = python("-m", "remoterl", "run", "--address", address, "--timeout", "1", str(script), cwd=tmp_path)
    assert done.returncode == 1 and "No hub answers" in done.stderr and "it ran" not in done.stdout
    assert "A script that goes on" not in done.stderr


def test_names_imported_earlier_and_later(cluster, tmp_path: Path) -> None:
    (tmp_path / "earlier.py").write_text(
        "from gymnasium import make, make_vec\nfrom gymnasium.vector import SyncVectorEnv as Sync\n"
        "from stable_baselines3.common.vec_env import SubprocVecEnv\nKEPT = {'make': make}\n"
    )
    (tmp_path / "later.py").write_text(
        "from gymnasium import make\nfrom stable_baselines3.common.env_util import make_vec_env\n"
    )
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nlate = sys.argv[2] == 'late'\n"
        "if not late: import earlier\n"
        "import gymnasium, remoterl\n"
        "assert remoterl.init(address=sys.argv[1], num_env_runners=1)\n"
        "assert late != ('stable_baselines3' in sys.modules)\n"
        "import earlier, later\n"
        "kinds = [earlier.make('CartPole-v1'), earlier.KEPT['make']('CartPole-v1'), later.make('CartPole-v1'),\n"
        "    earlier.make_vec('CartPole-v1', 2, 'sync'), earlier.Sync([lambda: gymnasium.make('CartPole-v1')]),\n"
        "    earlier.SubprocVecEnv([lambda: gymnasium.make('CartPole-v1')]), later.make_vec_env('CartPole-v1', 2)]\n"
        "print([type(env).__name__ for env in kinds])\n"
        "makes = (earlier.make, later.make, gymnasium.make)\n"
        "remoterl.shutdown()\n"
        "assert makes == (earlier.make, later.make, gymnasium.make) and len(set(makes)) == 1\n"
        "kind = type(later.make_vec_env('CartPole-v1')).__name__\n"
        "print([type(make('CartPole-v1')).__name__ for make in makes], kind)\n"
    )
    for when in ("early", "late"):
        done = python(str(script), cluster.gcs_address, when, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        remote, local = done.stdout.strip().splitlines()[-2:]
        assert eval(remote) == [
            *["RemoteEnv"] * 3,
            *["RemoteSyncVectorEnv"] * 2,
            "RemoteSubprocVecEnv",
            "RemoteDummyVecEnv",
        ]
        assert local == "['TimeLimit', 'TimeLimit', 'TimeLimit'] DummyVecEnv"
