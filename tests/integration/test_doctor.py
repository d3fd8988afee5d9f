"""`remoterl doctor` on a cluster that is well, and on what goes wrong most."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from processes import KEY, clean_environment, free_ports


def doctor(*options: str, **environment: str) -> tuple[int, dict[str, dict[str, object]], str]:
    """Its exit code, its findings by name, and everything it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "remoterl", "doctor", "--json", *options],
        env=clean_environment(**environment),
        capture_output=True,
        text=True,
        timeout=180,
    )
    findings = json.loads(done.stdout[done.stdout.index("[") :])
    return done.returncode, {one["check"]: one for one in findings}, done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["client", "driver"])
def test_a_cluster_that_is_well(cluster, kind: str) -> None:
    code, findings, printed = doctor("--address", cluster.address(kind), "--env-id", "OnlyHere-v0")
    assert code == 0, printed
    assert all(one["ok"] and not one["advice"] for one in findings.values())
    assert "16 free of 16 on 2 simulators" in str(findings["env runners"]["found"])
    for name in ("alpha", "beta"):
        assert {f"versions of {name}", f"clock of {name}", f"round trip to {name}"} <= findings.keys()
        assert "Box(-1.0, 1.0, (3,), float32)" in str(findings[f"OnlyHere-v0 on {name}"]["found"])
    assert ("ports of alpha" in findings) == (kind == "driver")
    assert KEY not in printed


def test_what_goes_wrong_is_named_with_what_to_do(cluster) -> None:
    nobody = f"ray://127.0.0.1:{free_ports(1)[0]}"
    port = cluster.gcs_address.rpartition(":")[2]
    for address, key, check in [
        (nobody, KEY, "hub"),
        (f"ray://127.0.0.1:{port}", KEY, "hub"),
        (cluster.client_address, "not-the-key", "key"),
        ("nonsense", KEY, "address"),
    ]:
        code, findings, printed = doctor("--address", address, REMOTERL_API_KEY=key)
        assert code == 1 and key not in printed
        assert not findings[check]["ok"] and findings[check]["advice"]
    code, findings, _ = doctor("--address", cluster.client_address, "--env-id", "NobodyHasIt-v0")
    assert code == 1 and not findings["NobodyHasIt-v0 on beta"]["ok"]
    assert "--register" in str(findings["NobodyHasIt-v0 on beta"]["advice"])
