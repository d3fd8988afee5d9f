from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest
from processes import wait_until

from remoterl import hub, registration
from remoterl.cluster.node import SERVICES, Ports
from remoterl.config import Address, find_address, find_api_key, parse_ports
from remoterl.errors import ConfigurationError
from remoterl.hub import RunningHub
from remoterl.registration import Registration

KEY = "a-long-key-that-nobody-may-see-1234"


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"REMOTERL_HOME": str(tmp_path / "home"), "HOME": str(tmp_path)}


def test_what_is_registered_comes_last(environ: dict[str, str]) -> None:
    assert registration.read(environ) is None and not registration.forget(environ)
    registration.write(Registration("ray://hub:10001", KEY), environ)
    known = Address("client", "hub", 10001)
    assert find_address(None, environ) == known
    assert find_api_key(None, environ, known) == KEY
    assert find_address(None, {**environ, "RAY_ADDRESS": "other:1"}) == Address("gcs", "other", 1)
    assert find_api_key(None, {**environ, "RAY_AUTH_TOKEN": "rays"}, known) == "rays"
    assert registration.forget(environ) and find_address(None, environ) is None


def test_a_registered_key_goes_to_its_own_hub_only(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path(environ["HOME"]))
    registration.write(Registration("ray://hub:10001", KEY), environ)
    assert find_api_key(None, environ, Address("gcs", "hub", 6379)) == KEY
    for other in (Address("client", "elsewhere", 10001), Address("auto"), Address("local"), None):
        assert find_api_key(None, environ, other) is None


def test_only_this_user_can_read_it(environ: dict[str, str]) -> None:
    path = registration.write(Registration("hub:6379", KEY), environ)
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    kept = registration.read(environ)
    assert kept == Registration("hub:6379", KEY) and KEY not in repr(kept)
    assert kept.masked_key == "****1234" and Registration("hub:1", "short").masked_key == "****"


def test_a_broken_file_is_an_error_that_shows_nothing_of_it(environ: dict[str, str]) -> None:
    path = registration.write(Registration("hub:6379", KEY), environ)
    path.write_text(f'{{"address": "hub:1", "key": "{KEY}"')
    with pytest.raises(ConfigurationError, match="remoterl register") as raised:
        registration.read(environ)
    assert KEY not in str(raised.value)


def test_ports_of_a_firewall() -> None:
    assert parse_ports(" 20000-20099", "--ports") == (20000, 20099)
    for text in ("20000", "5-1", "0-100", "1000-70000", "a-b", "1-2-3"):
        with pytest.raises(ConfigurationError, match="--ports must be a range"):
            parse_ports(text, "--ports")
    with pytest.raises(ConfigurationError, match="at least 32 ports"):
        parse_ports("20000-20010", "--ports")
    options = Ports(rest=(20000, 20099)).options()
    given = dict(zip(options[::2], map(int, options[1::2]), strict=True))
    assert sorted(given.values()) == [*range(20000, 20000 + len(SERVICES) + 1), 20099]
    assert given["--max-worker-port"] == 20099


def test_a_port_of_a_range_that_is_taken() -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        taken = other.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"Port {taken} .* of --ports, it is for Ray's node-manager-port"):
            Ports(rest=(taken, taken + 40)).refuse_taken()
        with pytest.raises(ConfigurationError, match="another --client-port"):
            Ports(client=taken).refuse_taken()


def test_a_hub_is_known_by_more_than_its_pid() -> None:
    own = {"address": "a:1", "client_address": "ray://a:2", "dashboard": "http://a:3", "key_hint": ""}
    with subprocess.Popen(["sleep", "60"]) as process:
        state, started = hub._stat(process.pid)
        assert state in "RSD" and started > hub._stat(os.getpid())[1] > 0
        known = RunningHub(pid=process.pid, started=started, **own)
        assert known.lives() and not RunningHub(pid=process.pid, started=started - 1, **own).lives()
        process.kill()
        wait_until(lambda: not known.lives(), what="a zombie is none")
    assert not known.lives()
