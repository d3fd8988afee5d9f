"""What `remoterl doctor` makes of what it saw; `test_doctor` lets it see."""

from __future__ import annotations

import dataclasses
import socket
from typing import Any

import pytest

from remoterl import doctor
from remoterl.actors.simulator import versions

MADE = {"observation_space": "Box(3,)", "action_space": "Discrete(2)", "package": "robots 1.0", "step_s": 1e-3}


def test_versions_are_told_whether_they_differ_or_not() -> None:
    here = versions()
    same = doctor._judge_versions("alpha", here, here)
    assert same.ok and not same.advice and same.check == "versions of alpha"
    assert same.found == (
        f"python {here.python}, ray {here.ray}, remoterl {here.remoterl}, gymnasium {here.gymnasium}, "
        f"protocol {here.protocol}"
    )
    other = doctor._judge_versions("alpha", here, dataclasses.replace(here, gymnasium="1.0.0"))
    assert not other.ok and other.found == same.found.replace(
        f"gymnasium {here.gymnasium}", f"gymnasium 1.0.0 ({here.gymnasium} here)"
    )
    assert "same versions" in other.advice


@pytest.mark.parametrize(("offset", "right"), [(60.0, False), (-60.0, False), (0.2, True)])
def test_a_clock(offset: float, right: bool) -> None:
    finding = doctor._judge_clock("alpha", offset)
    assert finding.ok is right and bool(finding.advice) is not right and f"{offset:+.2f} s" in finding.found


def look(name: str, **made: Any) -> doctor.Look:
    return doctor.Look(name, None, 4, f"{name}'s host", 2, {**MADE, **made}, {"stream": 2e-3, "actor call": 5e-3})


def test_an_environment_that_differs_between_simulators() -> None:
    (suggestion,) = doctor._compare("Robot-v0", [look("alpha"), look("beta")])
    assert suggestion.check == "suggestion" and suggestion.found.startswith("num_env_runners=4 with 8 rows")
    differing, _ = doctor._compare("Robot-v0", [look("alpha"), look("beta"), look("gamma", package="robots 1.1")])
    assert not differing.ok and "same version of its package" in differing.advice
    assert "alpha, beta: Box(3,), Discrete(2), robots 1.0; gamma: Box(3,), Discrete(2), robots 1.1" in differing.found
    assert list(doctor._compare("Robot-v0", [dataclasses.replace(look("alpha"), made={"error": "no"})])) == []


def test_a_closed_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as open_one, socket.socket() as closed_one:
        closed_one.bind(("127.0.0.1", 0))  # and nobody listens
        ports = [one.getsockname()[1] for one in (open_one, closed_one)]
        node = {"Alive": True, "NodeName": "alpha", "NodeManagerAddress": "127.0.0.1"}
        closed, fine = doctor._examine_ports(
            [
                {**node, "NodeManagerPort": ports[0], "ObjectManagerPort": ports[1]},
                {**node, "NodeManagerPort": ports[0], "ObjectManagerPort": ports[0]},
                {**node, "Alive": False},
            ]
        )
    assert fine.ok and fine.found == "reached" and not fine.advice
    assert not closed.ok and f"127.0.0.1:{ports[1]} (Connection refused)" in closed.found and "--ports" in closed.advice
    assert f":{ports[0]}" not in closed.found


def test_no_simulator_is_no_fault_where_an_autoscaler_starts_them() -> None:
    assert not doctor._judge_capacity(0, 0, 0, is_autoscaling=False).ok
    waiting = doctor._judge_capacity(0, 0, 0, is_autoscaling=True)
    assert waiting.ok and "init()" in waiting.advice
    taken = doctor._judge_capacity(0, 16, 2, is_autoscaling=False)
    assert not taken.ok and taken.found == "0 free of 16 on 2 simulators" and taken.advice
    assert doctor._judge_capacity(1, 16, 2, is_autoscaling=False).ok
