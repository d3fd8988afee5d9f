"""`remoterl doctor` on a cluster that is well, and on what goes wrong most."""

from __future__ import annotations

import json
import platform
import re
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import ray
from commands import Call, Done, run_in_turn
from processes import KEY, ROOT, SIMULATOR_PYTHON, Process, free_ports, start_simulator

from remoterl import __version__
from remoterl._protocol import digest

OURS = (
    f"python {platform.python_version()}, ray {ray.__version__}, remoterl {__version__}, "
    f"gymnasium {gymnasium.__version__}, protocol {digest()}"
)


def told(done: Done) -> tuple[int, dict[str, dict[str, Any]], str]:
    """Its exit code, its findings by name, and everything it printed."""
    findings = json.loads(done.stdout[done.stdout.index("[") :])
    return done.returncode, {one["check"]: one for one in findings}, done.stdout + done.stderr


def node_with_another_remoterl(address: str, folder: Path) -> tuple[Process, str]:
    """A node as an autoscaler starts it, named delta."""
    shutil.copytree(ROOT / "remoterl", folder / "remoterl")
    (folder / "remoterl" / "_version.py").write_text('__version__ = "0.0.1"\n')
    nodes_own = tempfile.mkdtemp(prefix="rrl-", dir="/tmp")
    node = Process(
        str(SIMULATOR_PYTHON), "-m", "ray.scripts.scripts", "start", "--block",
        "--address", address,
        "--node-name", "delta",
        "--num-cpus", "0",
        "--resources", '{"env_runner": 1}',
        "--temp-dir", nodes_own,
        "--min-worker-port", "0",
        "--max-worker-port", "0",
        "--dashboard-agent-listen-port", "0",
        "--object-store-memory", "150000000",
        "--disable-usage-stats",
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN=KEY,
        PYTHONPATH=str(folder),
    )  # fmt: skip
    return node, nodes_own


@pytest.mark.parametrize("kind", ["client", "driver"])
def test_a_cluster_that_is_well(cluster, kind: str) -> None:
    words = ["doctor", "--json", "--address", cluster.address(kind), "--env-id", "OnlyHere-v0"]
    [done] = run_in_turn(Call(words))
    code, findings, printed = told(done)
    assert code == 0, printed
    assert all(one["ok"] and not one["advice"] for one in findings.values())
    assert "16 free of 16 on 2 simulators" in str(findings["env runners"]["found"])
    for name in ("alpha", "beta"):
        assert {f"clock of {name}", f"round trip to {name}"} <= findings.keys()
        assert findings[f"versions of {name}"]["found"] == OURS
        assert "from only_here;" in str(findings[f"OnlyHere-v0 on {name}"]["found"])
        assert "there and back" in str(findings[f"stream to {name}"]["found"])
        assert "Box(-1.0, 1.0, (3,), float32)" in str(findings[f"OnlyHere-v0 on {name}"]["found"])
    assert findings["versions of hub"]["found"] == OURS and "clock of hub" in findings
    assert "by stream" in str(findings["suggestion"]["found"])
    assert ("ports of alpha" in findings) == (kind == "driver")
    assert KEY not in printed


def test_what_goes_wrong_is_named_with_what_to_do(cluster, tmp_path: Path) -> None:
    nobody = f"ray://127.0.0.1:{free_ports(1)[0]}"
    port = cluster.gcs_address.rpartition(":")[2]
    wrong = [
        (nobody, KEY, "hub"),
        (f"ray://127.0.0.1:{port}", KEY, "hub"),
        (cluster.client_address, "not-the-key", "key"),
        ("nonsense", KEY, "address"),
    ]
    calls = [Call(["doctor", "--json", "--address", address], {"REMOTERL_API_KEY": key}) for address, key, _ in wrong]
    for done, (_, key, check) in zip(run_in_turn(*calls), wrong, strict=True):
        code, findings, printed = told(done)
        assert code == 1 and key not in printed
        assert not findings[check]["ok"] and findings[check]["advice"]
    with socket.create_server(("", 0)) as taken:  # the one port that this simulator may use for streams
        port = str(taken.getsockname()[1])
        where = {"REMOTERL_ADDRESS": cluster.gcs_address, "REMOTERL_STREAM_PORTS": port}
        gamma = start_simulator("--name", "gamma", **where)
        delta, folder = node_with_another_remoterl(cluster.gcs_address, tmp_path)
        try:
            gamma.wait_for("is up")
            delta.wait_for("Ray runtime started")
            [done] = run_in_turn(Call(["doctor", "--address", cluster.client_address, "--env-id", "NobodyHasIt-v0"]))
        finally:
            delta.end()
            shutil.rmtree(folder, ignore_errors=True)
            assert gamma.end() == 0
    # Another remoterl: its versions are told, and everybody's; what needs the same on both sides is left out.
    lines = re.findall(r"^(OK|NOTE|FAIL) +([^:\n]+): (.*)(?:\n      -> (.*))?$", done.stdout, re.MULTILINE)
    found = {check: (mark, what) for mark, check, what, _ in lines}
    advice = {check: more for _, check, _, more in lines}
    theirs = OURS.replace(f"remoterl {__version__}", f"remoterl 0.0.1 ({__version__} here)")
    assert found["versions of delta"] == ("FAIL", theirs) and advice["versions of delta"].startswith("Install")
    assert found["versions of alpha"] == found["versions of hub"] == ("OK", OURS)
    assert "clock of delta" in found and not any("to delta" in check for check in found)
    mark, stream = found["stream to gamma"]
    assert mark == "NOTE" and "no free port" in stream and "REMOTERL_STREAM_PORTS" in advice["stream to gamma"]
    assert done.returncode == 1 and found["NobodyHasIt-v0 on beta"][0] == "FAIL"
    assert "--register" in advice["NobodyHasIt-v0 on beta"]
