"""`remoterl run` runs a script as Python does. There is no session here."""

from __future__ import annotations

import json
import py_compile
import signal
import subprocess
import sys
import zipapp
from pathlib import Path

from processes import clean_environment

RUN = (
    "import remoterl._process as process; from remoterl.cli import main; "
    "process.init_of_a_command = lambda **given: print(given['labels'], given['runtime_env']) or True; main()"
)


def run(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", RUN, "run", *words], env=clean_environment(), cwd=folder, capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip


def test_where_a_script_lies(tmp_path: Path) -> None:
    (tmp_path / "project" / "bin").mkdir(parents=True)
    script = tmp_path / "project" / "train.py"
    script.write_text(
        "import atexit, json, os, sys, threading\n"
        "first = __file__, sys.path[0], sys.argv\n"
        "os.chdir('/')\n"
        "def say():\n"
        "    import __main__\n"
        "    print(json.dumps([*__main__.first, __name__, __spec__]))\n"
        "threading.Timer(0.3, say).start()\n"
        "atexit.register(say)\n"
    )
    (tmp_path / "project" / "bin" / "train").symlink_to(script)
    done = [
        subprocess.run(
            [sys.executable, "bin/train", "--seed", "1"], cwd=script.parent, capture_output=True, text=True, check=True
        ),
        run("bin/train", "--seed", "1", folder=script.parent),
    ]
    by_python, ours = (one.stdout.splitlines()[-2:] for one in done)
    assert ours == by_python, done[1].stderr
    expected = [f"{script.parent}/bin/train", str(script.parent), ["bin/train", "--seed", "1"], "__main__", None]
    assert json.loads(ours[0]) == json.loads(ours[1]) == expected


def test_a_module_and_what_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(
        "import atexit, os, sys\n"
        "class Mine: pass\n"
        "def say():\n"
        "    import __main__\n"
        "    print(__main__.Mine.__name__, os.path.basename(sys.argv[0]), sys.argv[1:], __name__, __main__.__file__)\n"
        "atexit.register(say)\n"
    )
    as_module = subprocess.run(
        [sys.executable, "-m", "train", "7"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    ours = run("-m", "train", "7", folder=tmp_path)
    assert ours.stdout.splitlines()[-1] == as_module.stdout.strip(), ours.stderr
    assert "No module named nothing_of_it" in run("-m", "nothing_of_it", folder=tmp_path).stderr
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__main__.py").write_text("print('packed')\n")
    zipapp.create_archive(tmp_path / "app", tmp_path / "app.pyz")
    py_compile.compile(str(tmp_path / "app" / "__main__.py"), str(tmp_path / "compiled.pyc"))
    for name in ("app.pyz", "compiled.pyc"):
        assert run(name, folder=tmp_path).stdout.splitlines()[-1] == "packed"


def test_ctrl_c_in_a_script_is_pythons(tmp_path: Path) -> None:
    """A shell's loop over seeds stops with it."""
    script = tmp_path / "train.py"
    script.write_text("import atexit\natexit.register(print, 'the end')\nraise KeyboardInterrupt\n")
    done = run("train.py", folder=tmp_path)
    assert done.returncode == -signal.SIGINT and "the end" in done.stdout
    assert 'train.py", line 3' in done.stderr and done.stderr.endswith("KeyboardInterrupt\n")
    assert "Interrupted" not in done.stderr


def test_labels_and_variables(tmp_path: Path) -> None:
    (tmp_path / "train.py").touch()
    done = run("--label", "zone=a", "--env", "TOKEN=a=b", "--env", "B=", "train.py", folder=tmp_path)
    assert done.stdout == "{'zone': 'a'} {'env_vars': {'TOKEN': 'a=b', 'B': ''}}\n"
    assert run("train.py", folder=tmp_path).stdout == "None None\n"
    assert "--env takes NAME=VALUE, got 'TOKEN'" in run("--env", "TOKEN", "train.py", folder=tmp_path).stderr


READ_AGAIN = """
import logging, multiprocessing, sys, remoterl
if __name__ == "__mp_main__":
    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    print(remoterl.init(address="127.0.0.1:1", timeout_s=0.2), flush=True)
if __name__ == "__main__":
    for method in ("spawn", "forkserver"):
        process = multiprocessing.get_context(method).Process(target=print, args=(method,))
        process.start()
        process.join()
"""


def test_a_child_that_reads_the_script_again_opens_no_session(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(READ_AGAIN)
    done = subprocess.run(
        [sys.executable, "train.py"], env=clean_environment(), cwd=tmp_path, capture_output=True, text=True,
        timeout=120, check=True,
    )  # fmt: skip
    said = done.stdout.splitlines()
    assert [line for line in said if not line.startswith("init()")] == ["False", "spawn", "False", "forkserver"]
    assert (
        sum("init() is left out, and returns False: a child process of multiprocessing" in line for line in said) == 2
    )
    assert "No hub answers" not in done.stdout + done.stderr
