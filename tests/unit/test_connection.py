"""What connecting leaves in this process where it fails. No cluster is started here."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gymnasium.vector import AutoresetMode
from ray._private import client_mode_hook
from test_config import DEFAULTS
from typer.testing import CliRunner

import remoterl
from remoterl import messages as m
from remoterl._logging import ensure_visible, logger
from remoterl.actors import directory
from remoterl.cli import app
from remoterl.cluster import auth, connection
from remoterl.config import make_config, parse_address
from remoterl.errors import CapacityError, HubLostError, RemoteRLError, UnknownEnvironmentError
from remoterl.fleet import Fleet
from remoterl.patches import ray as ray_patches
from remoterl.session import Session
from remoterl.vector.core import VectorCore


@pytest.mark.parametrize("there", [None, "", " \n"])
def test_a_token_file_without_a_token(there: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No token would mean a hub that checks none."""
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / ".ray" / "auth_token"
    if there is not None:
        path.parent.mkdir()
        path.write_text(there)
    made = auth.make_key()
    assert len(made) >= 32 and path.read_text().strip() == made == auth.make_key()
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("error", [ConnectionError, RuntimeError, ValueError, KeyboardInterrupt])
def test_ray_is_in_client_mode_no_longer(error: type[BaseException]) -> None:
    """Ray Client's connection switches it on first, and leaves it on whatever happens then."""
    with pytest.raises(error), connection._no_client_mode_after_failure():
        client_mode_hook._explicitly_enable_client_mode()
        raise error
    assert not client_mode_hook.is_client_mode_enabled


def test_a_hub_takes_its_ports_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for words, source in (([], "REMOTERL_PORTS"), (["--ports", "7-8"], "--ports")):
        monkeypatch.setenv("REMOTERL_PORTS", "7-9")
        result = CliRunner().invoke(app, ["hub", *words])
        assert f"{source} must have at least" in str(result.exception)


def test_a_reservation_without_a_free_unit() -> None:
    """RLlib's env runners are in them."""
    fleet = Fleet(make_config(**DEFAULTS), trainer(), None)  # type: ignore[arg-type]
    fleet._grant = SimpleNamespace(reservation="r", nodes=["a", "b"], take=lambda at_most: [])  # type: ignore[assignment]
    with pytest.raises(CapacityError, match="All 2 env runners of the reservation are in use"):
        fleet.place(0.0)


def trainer() -> m.TrainerInfo:
    return m.TrainerInfo(session_id="s", name="t", host="h", pid=1)


def test_without_its_hub_a_session_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where RLlib has its env runners, and none of its own would find out."""
    session = Session(connection.Connection("driver", "hub:6379", None, lambda: None), make_config(**DEFAULTS))
    session._lose_the_hub("it was switched off")
    for call in (
        lambda: session.simulators_know("CartPole-v1"),
        lambda: session.room_for({"env_runner": 1}, "an algorithm").__enter__(),
        session.units,
        lambda: session._runners_for("CartPole-v1"),
    ):
        with pytest.raises(HubLostError, match="switched off"):
            call()


def test_a_fork_of_a_connected_process_does_not_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(connection, "_parent_was_connected", False)
    connection._after_fork_in_child()
    assert not connection._parent_was_connected
    monkeypatch.setattr(ray._private.worker.global_worker, "_is_connected", True)
    connection._after_fork_in_child()
    monkeypatch.setattr(ray._private.worker.global_worker, "_is_connected", False)
    for call in (lambda: remoterl.init(address="127.0.0.1:1"), remoterl.describe):
        with pytest.raises(RemoteRLError, match="is a fork of one that is connected to Ray"):
            call()


@pytest.mark.parametrize(
    ("asked", "there"),
    [
        ("127.0.0.1:6379", True),
        ("localhost:6379", True),
        ("127.0.0.1:6380", False),
        ("ray://127.0.0.1:10001", True),  # the client's port of the same hub
        ("192.0.2.1:6379", False),
        ("ray://192.0.2.1:10001", False),
        ("auto", True),
        ("local", False),
    ],
)
def test_another_address_than_the_open_connections(asked: str, there: bool) -> None:
    hub = parse_address("127.0.0.1:6379", "")
    existing = connection.Connection("existing", "127.0.0.1:6379", None, lambda: None, hub)
    assert connection.is_elsewhere(parse_address(asked, ""), existing) is not there


def test_rays_shutdown_at_the_head_of_a_commands_script(caplog: pytest.LogCaptureFixture) -> None:
    session = Session(connection.Connection("driver", "hub:6379", None, lambda: None), make_config(**DEFAULTS))
    session.is_of_a_command = True
    assert not session._before_rays_shutdown(False) and not session.closed
    assert "ray.shutdown() is left out" in caplog.text
    with session.room_for({}, "an algorithm"):
        pass
    assert session._before_rays_shutdown(False) and session.closed
    assert session._before_rays_shutdown(False)
    assert caplog.text.count("ray.shutdown() has ended remoterl's session") == 1


def test_a_script_that_takes_another_ray_ends_the_session_after_all(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []
    init, shutdown = ray_patches.table("ours", lambda for_good: bool(told.append(for_good)) or for_good)
    ray_init = init.replacement(lambda address, **_: address)
    ray_shutdown = shutdown.replacement(lambda: "ended")
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    assert ray_init("elsewhere:6379") == "elsewhere:6379" and told == []  # Ray says what it thinks of that
    assert ray_shutdown() is None and told == [False]
    assert ray_init() == "ours" and told == [False]
    assert ray_init("elsewhere:6379") == "elsewhere:6379" and told == [False, True]


def test_lines_are_not_doubled_where_the_script_shows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(logger, "handlers", [])
    ensure_visible()
    [handler] = logger.handlers
    record = logging.LogRecord("remoterl", logging.INFO, "", 1, "", None, None)
    assert handler.filter(record)
    root.addHandler(logging.NullHandler())
    assert not handler.filter(record)


def test_what_nobody_is_asked_for_goes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before an autoscaler has started a simulator, or where a reservation was before its simulator died."""
    session = Session(connection.Connection("driver", "hub:6379", None, lambda: None), make_config(**DEFAULTS))
    simulator = SimpleNamespace(name="b", info=SimpleNamespace(environments=frozenset({"CartPole-v1"})))
    there: dict[str, Any] = {}
    monkeypatch.setattr(
        directory,
        "find_simulators",
        lambda *_, labels=None, among=there: [there[node] for node in there if node in among],
    )
    assert not session.simulators_know("CartPole-v1") and session.simulators_know("TheirsAlone-v0")
    there["b"] = simulator
    moved = SimpleNamespace(nodes=["b"])
    session.fleet._grant = SimpleNamespace(reservation="r", nodes=["a"], looked_at_again=lambda: moved)  # type: ignore[assignment]
    assert session.simulators_know("CartPole-v1")
    with pytest.raises(UnknownEnvironmentError):
        session.simulators_know("TheirsAlone-v0")


@pytest.fixture
def session() -> Session:
    return Session(connection.Connection("driver", "hub:6379", None, lambda: None), make_config(**DEFAULTS))


def test_rows_go_to_those_with_the_fewest_in_their_order(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever of them another thread lets go meanwhile, as RLlib's algorithms have it: the next try is without it."""
    monkeypatch.setattr(VectorCore, "open", lambda assignments, *_: [one.runner.rows for one in assignments])
    runners: Any = [SimpleNamespace(rows=rows, environments=(), mirrored={}, sources={}) for rows in (3, 2, 4, 1)]
    session.fleet.runners = runners[1:]
    chosen: Any = session._open_on(runners, [len, len, len], m.Semantics.GYMNASIUM_SYNC, AutoresetMode.NEXT_STEP, None)
    assert chosen == [3, 2, 1]


@pytest.mark.parametrize(("failure", "said"), [("out of memory", "failed with: out of memory"), ("", "the line above")])
def test_why_there_is_no_env_runner(session: Session, monkeypatch: pytest.MonkeyPatch, failure: str, said: str) -> None:
    session.fleet.last_failure = failure
    monkeypatch.setattr(session.fleet, "place", lambda *_: False)
    with pytest.raises(CapacityError, match=said):
        session._runners_for("CartPole-v1")
