"""`remoterl run`: scripts that know nothing of remoterl."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import Call, run_in_turn
from conftest import assert_free
from processes import ROOT, clean_environment, free_ports

SCRIPT = ROOT / "tests" / "scripts" / "cleanrl_style.py"


def python(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], env=clean_environment(**environment), cwd=cwd, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip


def told(done: subprocess.CompletedProcess[str]) -> dict:
    return json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])


def test_a_cleanrl_style_script_is_the_same_with_and_without(cluster, tmp_path: Path) -> None:
    local = told(python(str(SCRIPT), "CartPole-v1", str(tmp_path / "local"), cwd=tmp_path))
    done = python(
        "-m", "remoterl", "run", "--address", cluster.client_address, str(SCRIPT), "CartPole-v1", str(tmp_path / "far"),
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    remote = told(done)
    assert (local["kind"], remote["kind"]) == ("SyncVectorEnv", "RemoteSyncVectorEnv")
    assert remote["returns"] == local["returns"] and len(local["returns"]) > 3
    assert remote["weights"] == local["weights"]
    assert [path.stat().st_size > 1000 for path in (tmp_path / "far").glob("*.mp4")] == [True]
    assert_free(cluster)


@pytest.mark.parametrize(("name", "env_id"), [("dqn_style", "CartPole-v1"), ("sac_style", "Pendulum-v1")])
def test_off_policy_scripts_are_the_same_with_and_without(cluster, name: str, env_id: str, tmp_path: Path) -> None:
    script = str(SCRIPT.with_name(f"{name}.py"))
    local = told(python(script, env_id, cwd=tmp_path))
    done = python("-m", "remoterl", "run", "--address", cluster.gcs_address, script, env_id, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert told(done) == {**local, "kind": "RemoteSyncVectorEnv"}
    assert len(local["returns"]) > 3
    assert_free(cluster)


def test_a_module_its_arguments_and_its_exit_code(cluster, tmp_path: Path) -> None:
    options = ("run", "--address", cluster.gcs_address, "--num-env-runners", "3", "-m", "cleanrl_style")
    path = {"PYTHONPATH": str(SCRIPT.parent)}
    done = python("-m", "remoterl", *options, "CartPole-v1", str(tmp_path), "--fail", cwd=tmp_path, **path)
    assert done.returncode == 3, done.stderr
    assert told(done)["kind"] == "RemoteSyncVectorEnv"
    assert_free(cluster)


def test_a_scripts_own_init_and_its_errors(cluster, tmp_path: Path) -> None:
    script = tmp_path / "own.py"
    script.write_text(
        "import gymnasium, remoterl\n"
        "assert remoterl.init(num_env_runners=5)\n"
        "print(type(gymnasium.make('CartPole-v1')).__name__)\n"
        "gymnasium.make('NoSuchThing-v0')\n"
    )
    done = python("-m", "remoterl", "run", "--address", cluster.gcs_address, str(script), cwd=tmp_path)
    assert "RemoteEnv" in done.stdout and done.returncode == 1
    assert "own.py" in done.stderr and "UnknownNameError" in done.stderr  # the script's own traceback
    wrong = {"no_such.py": "no script", "-m no_such_module": "no_such_module"}
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
        "assert remoterl.init(address=sys.argv[1])\n"
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
