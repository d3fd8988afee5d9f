"""Who waits for units hears of the end of its session, and of its hub; what was asked for is given back."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from test_config import DEFAULTS

from remoterl import capacity
from remoterl.cluster.connection import Connection
from remoterl.config import make_config
from remoterl.errors import CapacityError, HubLostError, RemoteRLError
from remoterl.session import Session

PATIENCE_S = 20.0


class Groups:
    """Placement groups that get no units, but for the first `ready`; `removed` are their numbers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ready: int = 0) -> None:
        self.made: list[Any] = []
        self.removed: list[int] = []
        self.asked = threading.Event()
        self._ready = ready
        monkeypatch.setattr(capacity, "make_group", self._make)
        monkeypatch.setattr(capacity, "remove_group", lambda group: self.removed.append(int(group.id.hex())))
        monkeypatch.setattr(capacity, "_created", self._created)
        monkeypatch.setattr(capacity, "_autoscalers_progress", lambda: "")
        monkeypatch.setattr(capacity.directory, "simulator_nodes", lambda _: [])
        monkeypatch.setattr(ray, "is_initialized", lambda: True)

    def _make(self, units: int, labels: Any) -> Any:
        number = str(len(self.made))
        self.made.append(SimpleNamespace(id=SimpleNamespace(hex=lambda: number)))
        return self.made[-1]

    def _created(self) -> set[str]:
        self.asked.set()
        return {group.id.hex() for group in self.made[: self._ready]}


@pytest.fixture
def session() -> Session:
    return Session(Connection("driver", "hub:6379", None, lambda: None), make_config(**DEFAULTS))


@pytest.mark.parametrize("autoscaling", [True, False])
def test_shutdown_ends_the_waiting_of_another_thread(
    monkeypatch: pytest.MonkeyPatch, session: Session, autoscaling: bool
) -> None:
    groups = Groups(monkeypatch)
    waits = groups.asked if autoscaling else threading.Event()

    def missing(*_: Any) -> str:
        if not autoscaling:
            waits.set()
        return "two env runners are missing"

    monkeypatch.setattr(capacity, "is_autoscaling", lambda: autoscaling)
    monkeypatch.setattr(capacity, "_missing", missing)
    raised: list[BaseException] = []

    def build() -> None:
        try:
            with session.room_for({"env_runner": 2}, "an algorithm"):
                pass
        except BaseException as error:
            raised.append(error)

    building = threading.Thread(target=build, daemon=True)
    building.start()
    assert waits.wait(PATIENCE_S)
    closing = threading.Thread(target=session.close, daemon=True)
    closing.start()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    building.join(PATIENCE_S)
    assert not isinstance(raised[0], CapacityError) and "The session was closed" in str(raised[0])
    assert groups.removed == ([0, 1] if autoscaling else [])


def test_nobody_waits_for_a_hub_that_is_lost(monkeypatch: pytest.MonkeyPatch, session: Session) -> None:
    """Ray itself would, in any call: for an hour."""
    groups = Groups(monkeypatch)
    answers = iter([True, False])
    session._watch = SimpleNamespace(  # type: ignore[assignment]
        answers=lambda: next(answers), why=lambda: "it was switched off", stop=lambda: None
    )
    with pytest.raises(HubLostError, match="switched off"):
        capacity.wait_for_autoscaler(2, {}, float("inf"), session._go_on)
    assert len(groups.made) == 2 and groups.removed == []  # Ray would wait for the hub there, too


@pytest.mark.parametrize("where", ["make_group", "Grant"])
def test_what_was_asked_for_is_given_back_wherever_it_ends(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    groups = Groups(monkeypatch, ready=3)

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    def make_two(units: int, labels: Any) -> Any:
        return groups._make(units, labels) if len(groups.made) < 2 else interrupted()

    if where == "Grant":
        monkeypatch.setattr(capacity.Grant, "of", interrupted)
    else:
        monkeypatch.setattr(capacity, "make_group", make_two)
    with pytest.raises(KeyboardInterrupt):
        capacity.wait_for_autoscaler(3, {}, float("inf"), lambda: None)
    assert groups.removed == ([0, 1, 2] if where == "Grant" else [0, 1])


def test_a_closed_session_waits_for_nothing(session: Session) -> None:
    session.close()
    with pytest.raises(RemoteRLError, match="was closed"):
        session._go_on()
