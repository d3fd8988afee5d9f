"""Who gets in, who does not, how soon they hear of it, and where no secret may ever be seen."""

from __future__ import annotations

import base64
import contextlib
import itertools
import logging
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import pytest
import ray
from bad_envs import BadEnv
from processes import KEY, Cluster, Process, Way, clean_environment, free_ports, start_simulator
from ray.util.state import list_actors, list_nodes, list_workers

import remoterl
from remoterl._process import current_session
from remoterl.cluster import auth
from remoterl.errors import AuthenticationError, ConfigurationError

WITHIN_S = 5.0  # a refusal

# ---- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["trainer", "simulator"])
@pytest.mark.parametrize("kind", ["client", "driver"])
def test_a_wrong_a_missing_and_an_empty_key(
    cluster: Cluster, role: Any, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # no token file of Ray's own
    monkeypatch.delenv("REMOTERL_API_KEY")
    for key, error, words in (
        ("not-the-key", AuthenticationError, "refused the key"),
        (KEY + "x", AuthenticationError, "refused the key"),
        (None, AuthenticationError, "needs a key and none was given"),
        ("", ConfigurationError, "api_key is empty"),
    ):
        start = time.monotonic()
        with pytest.raises(error, match=words) as caught:
            remoterl.init(key, role=role, address=cluster.address(kind))
        assert time.monotonic() - start < WITHIN_S
        assert isinstance(caught.value, RuntimeError)
        assert KEY not in repr(caught.value) and "not-the-key" not in repr(caught.value)
    assert not remoterl.is_initialized()


def test_a_hub_without_simulators_that_checks_no_key(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever gives it a key is told that it is worth nothing; with a simulator, all else works."""
    gcs_port, client_port = free_ports(2)
    folder = tempfile.mkdtemp(prefix="rrl-", dir="/tmp")
    options = [
        "--head", "--block", "--disable-usage-stats", "--include-dashboard=false", "--num-cpus=0",
        f"--port={gcs_port}", f"--ray-client-server-port={client_port}", f"--temp-dir={folder}",
        "--min-worker-port=0", "--max-worker-port=0", "--object-store-memory=150000000",
    ]  # fmt: skip
    hub = Process(
        sys.executable, "-m", "ray.scripts.scripts", "start", *options, RAY_AUTH_MODE="disabled", HOME=str(tmp_path)
    )
    simulator = None
    try:
        hub.wait_for("Ray runtime started")
        assert remoterl.init(KEY, address=f"127.0.0.1:{gcs_port}", timeout_s=2) is False
        assert "checks none" in caplog.text and KEY not in caplog.text
        assert "no simulator" in caplog.text and "remoterl simulate" in caplog.text
        simulator = start_simulator("--address", f"127.0.0.1:{gcs_port}")
        simulator.wait_for("is up")
        assert "checks none" in simulator.output
        caplog.clear()
        assert remoterl.init(KEY, address=f"ray://127.0.0.1:{client_port}", num_env_runners=1, channel="actor")
        assert "checks none" in caplog.text and KEY not in caplog.text
        vec = gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync")
        vec.reset()
        vec.step(np.zeros(2, int))
    finally:
        remoterl.shutdown()
        if simulator is not None:
            assert simulator.end() == 0
        hub.end(signal.SIGINT)


# ---- TLS, and a key that is made ------------------------------------------------------------------------------------


def certificates(folder: Path, address: str) -> dict[str, str]:
    """Ray's variables for a new authority and a certificate of it that names this address."""
    folder.mkdir()
    names = f"subjectAltName=IP:{address},IP:127.0.0.1,DNS:localhost"
    (folder / "names").write_text(names)
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    for command in (
        ["req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "1", "-subj", f"/CN={folder.name}"],
        ["req", *new_key, "-keyout", "node.key", "-out", "node.csr", "-subj", "/CN=node"],
        ["x509", "-req", "-in", "node.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out", "node.pem",
         "-days", "1", "-extfile", "names"],
    ):  # fmt: skip
        subprocess.run(["openssl", *command], cwd=folder, check=True, capture_output=True)
    return {
        "RAY_USE_TLS": "1",
        "RAY_TLS_SERVER_CERT": str(folder / "node.pem"),
        "RAY_TLS_SERVER_KEY": str(folder / "node.key"),
        "RAY_TLS_CA_CERT": str(folder / "ca.pem"),
    }


TRAINER = """
import socket
import sys
import gymnasium as gym
import numpy as np
import ray
import remoterl
from remoterl._process import current_session
from remoterl.actors.env_runner import EnvRunner
from remoterl.channels.handshake import MAGIC
from remoterl.messages import TrainerInfo
assert remoterl.init(address=sys.argv[1], num_env_runners=1, channel="stream")
vec = gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync")
vec.reset(seed=1)
for _ in range(10):
    vec.step(np.zeros(2, int))
[runner] = current_session().runners
print("stepped", runner.channel.frames.socket.version())
if "ray://" not in sys.argv[1]:  # a peer without TLS that comes to an env runner
    options = {"num_cpus": 0, "resources": {"env_runner": 1}}
    actor = ray.remote(EnvRunner).options(**options).remote(TrainerInfo("another", "script", "host", 1))
    offer = ray.get(actor.open_stream.remote(), timeout=60)
    assert offer.uses_tls
    with socket.create_connection((offer.host, offer.port), 10) as plain:
        plain.sendall(MAGIC + bytes(32))
        try:
            said = plain.recv(1000)
        except ConnectionError:
            said = b""
    print("heard", len(said), said[:1].hex())
"""


def test_tls_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub makes its key by itself, too: it is kept in one file, and shown to nobody who does not ask."""
    from ray.util import get_node_ip_address

    folder = tempfile.mkdtemp(prefix="rrl-", dir="/tmp")
    ours, theirs = (certificates(tmp_path / name, get_node_ip_address()) for name in ("ours", "theirs"))
    home = {"HOME": str(tmp_path), "REMOTERL_HOME": str(tmp_path / "kept"), "RAY_TMPDIR": folder}
    secured = {name: value for name, value in clean_environment(**home, **ours).items() if name != "REMOTERL_API_KEY"}
    gcs_port, client_port, dashboard_port = free_ports(3)
    ports = [f"--port={gcs_port}", f"--client-port={client_port}", f"--dashboard-port={dashboard_port}"]
    addresses = [f"ray://127.0.0.1:{client_port}", f"127.0.0.1:{gcs_port}"]
    hub = Process(sys.executable, "-m", "remoterl", "hub", "--block", *ports, environ=secured)
    simulator = None
    try:
        hub.wait_for("The hub is up")
        simulator = start_simulator("--address", addresses[1], "--max-env-runners", "2", environ=secured)
        token_file = tmp_path / ".ray" / "auth_token"
        token = token_file.read_text().strip()
        assert token_file.stat().st_mode & 0o777 == 0o600
        assert "`ray get-auth-token`" in hub.output and token not in hub.output
        for variables, words in (({}, "uses TLS.*this process does not"), (theirs, "certificate")):
            with monkeypatch.context() as patched:
                for name, value in variables.items():
                    patched.setenv(name, value)
                for role, address in itertools.product(("trainer", "simulator"), addresses):
                    start = time.monotonic()
                    with pytest.raises(ConfigurationError, match=words):
                        remoterl.init(token, role=role, address=address)
                    assert time.monotonic() - start < 4 * WITHIN_S  # well before `timeout_s`
        simulator.wait_for("is up")
        printed = [hub.output, simulator.output]
        for address in addresses:
            trainer = subprocess.run(
                [sys.executable, "-c", TRAINER, address],
                env=secured,
                capture_output=True,
                text=True,
                timeout=120,
                cwd=tempfile.gettempdir(),
            )
            assert trainer.stdout.startswith("stepped TLSv1."), trainer.stderr
            printed += [trainer.stdout, trainer.stderr]
        length, *first = trainer.stdout.split("heard")[1].split()
        assert length == "0" or (int(length) < 32 and first == ["15"])  # a TLS alert, but no byte of ours
        assert not any(token in text for text in printed)
        assert places_of(token.encode(), [Path(folder)]) == []
    finally:
        codes = [process.end() for process in (simulator, hub) if process is not None]
    assert codes == [0, 0]
    with monkeypatch.context() as patched:
        patched.setenv("HOME", str(tmp_path))
        assert auth.make_key() == token  # made once


def places_of(secret: bytes, folders: list[Path]) -> list[Path]:
    """The files that hold it."""
    found = []
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                try:
                    content = path.read_bytes()
                except OSError:
                    continue
                if secret in content:
                    found.append(path)
    return found


# ---- where secrets are not -------------------------------------------------------------------------------------------


@pytest.fixture
def offers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What env runners offer to this process's sessions, secrets among it, as it goes to `connect`.

    No session stays open, also where the test fails: those that follow would be remote.
    """
    from remoterl.channels import opening

    seen: list[Any] = []
    connect = opening.connect
    monkeypatch.setattr(opening, "connect", lambda offer, *more: seen.append(offer) or connect(offer, *more))
    yield seen
    remoterl.shutdown()


def test_no_secret_is_to_be_seen(cluster: Cluster, offers: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    said = []
    for connection in ("client", "driver"):
        Way(connection, "stream").open(cluster)
        session = current_session()
        vec = gym.vector.SyncVectorEnv([lambda: BadEnv("raise")] * 2)
        vec.reset()
        vec.step(np.zeros(2, int))
        with pytest.raises(ValueError, match="the arm") as caught:
            vec.step(np.zeros(2, int))
        said.append("".join(traceback.format_exception(caught.value)))
        said += map(repr, (session, session.connection, session._config, session.fleet.__dict__, *session.runners))
        if connection == "driver":
            # The cluster is that of all tests: by default Ray lists a hundred actors, and raises where there are more,
            # or where another cluster of the tests runs on this machine.
            where = {"address": cluster.gcs_address, "detail": True, "limit": 10_000}
            listings = [listed(**where) for listed in (list_actors, list_nodes, list_workers)]
            said += [str(one) for listing in listings for one in listing]
            assert any("EnvRunner" in one for one in said)
            said += [metrics_of(node) for node in ray.nodes() if node["Alive"]]
        said += command_lines(cluster)
        vec.close()
        remoterl.shutdown()
    assert len({offer.secret for offer in offers}) == len(offers) == 4
    assert places_of(b"raylet", folders_of(cluster)) != []  # it is the right place
    said += [caplog.text, *map(repr, offers), *(simulator.output for simulator in cluster.simulators.values())]
    for secret in (KEY.encode(), *(offer.secret for offer in offers)):
        shapes = (secret, secret.hex().encode(), repr(secret)[2:-1].encode(), base64.b64encode(secret))
        for text in said:
            assert not any(shape in text.encode(errors="replace") for shape in shapes), text
        for shape in shapes:
            assert places_of(shape, folders_of(cluster)) == []


def command_lines(cluster: Cluster) -> list[str]:
    """Of every process of the cluster."""
    lines = []
    for simulator in cluster.simulators.values():
        for process in simulator.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                lines.append(" ".join(process.cmdline()))
    assert any("raylet" in line for line in lines)
    return lines


def folders_of(cluster: Cluster) -> list[Path]:
    """Where the cluster's nodes keep their logs and all else."""
    folders = {Path(cluster.folder)}
    for line in command_lines(cluster):
        words = line.split()
        if "--temp-dir" in words:
            folders.add(Path(words[words.index("--temp-dir") + 1]).parent)
    assert len(folders) == 1 + len(cluster.simulators)
    return list(folders)


def metrics_of(node: dict[str, Any]) -> str:
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    request = urllib.request.Request(address, headers={"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read().decode()
