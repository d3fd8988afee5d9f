"""`remoterl status`: the simulators of a cluster, their env runners, and the trainers that use them."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from remoterl.cli.options import Address, Timeout


def status(
    address: Address = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    timeout: Timeout = 10.0,
) -> None:
    """Show simulators, their env runners, and trainers."""
    from remoterl import capacity
    from remoterl._logging import ensure_visible
    from remoterl.actors import directory
    from remoterl.cluster.connection import connect
    from remoterl.config import find_address, find_api_key

    ensure_visible()
    logging.getLogger("ray").setLevel(logging.WARNING)
    hub = find_address(address)
    connection = connect(
        hub,
        api_key=find_api_key(None, address=hub),
        timeout_s=timeout,
        address_was_argument=address is not None,
    )
    if connection is None:
        raise typer.Exit(1)
    try:
        simulators = directory.find_simulators(create=False)
        known = {simulator.node_id for simulator in simulators}
        free = capacity.free_units(simulators, time.monotonic() + timeout)
        silent = [node["NodeName"] for node in directory.simulator_nodes() if node["NodeID"] not in known]
    finally:
        connection.close()
    report = describe(simulators, silent, free)
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        _show(report)


def describe(simulators: Sequence[Any], silent: Sequence[str], free: Mapping[str, int]) -> dict[str, Any]:
    """What `--json` prints: plain lists and dicts. Of RLlib's env runners only the units are known."""
    trainers: dict[str, dict[str, Any]] = {}
    described = []
    for simulator in simulators:
        env_runners = []
        for runner in simulator.info.env_runners:
            trainer = trainers.setdefault(
                runner.trainer.session_id,
                {
                    **dataclasses.asdict(runner.trainer),
                    "env_runners": 0,
                    "rows": 0,
                    "steps": 0,
                    "channels": [],
                },
            )
            trainer["env_runners"] += 1
            trainer["rows"] += runner.rows
            trainer["steps"] += runner.steps
            trainer["channels"] = sorted({*trainer["channels"], runner.channel})
            env_runners.append({**dataclasses.asdict(runner), "trainer": runner.trainer.session_id})
        described.append(
            {
                "name": simulator.name,
                "node_id": simulator.node_id,
                "host": simulator.info.host,
                "labels": simulator.info.labels,
                "versions": dataclasses.asdict(simulator.info.versions),
                "units": simulator.units,
                "free_units": free[simulator.node_id],
                "environments": sorted(simulator.info.environments),
                "steps": simulator.info.steps,
                "env_runners": env_runners,
            }
        )
    return {
        "simulators": described,
        "trainers": list(trainers.values()),
        "simulators_without_actor": list(silent),
    }


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title="Simulators", title_justify="left")
    for column in ("name", "host", "env runners", "rows", "steps", "environments", "labels"):
        table.add_column(column)
    for simulator in report["simulators"]:
        runners = simulator["env_runners"]
        table.add_row(
            simulator["name"],
            simulator["host"],
            f"{simulator['units'] - simulator['free_units']} of {simulator['units']}",
            str(sum(runner["rows"] for runner in runners)),
            f"{simulator['steps']:,}",
            str(len(simulator["environments"])),
            ", ".join(f"{key}={value}" for key, value in simulator["labels"].items()),
        )
    console.print(table)
    for name in report["simulators_without_actor"]:
        console.print(f"{name}: a node with env_runner units that no trainer has used yet")
    if not report["trainers"]:
        console.print("No trainer.")
        return
    table = Table(title="Trainers", title_justify="left")
    for column in ("script", "host", "pid", "env runners", "rows", "steps", "channel"):
        table.add_column(column)
    for trainer in report["trainers"]:
        table.add_row(
            trainer["name"],
            trainer["host"],
            str(trainer["pid"]),
            str(trainer["env_runners"]),
            str(trainer["rows"]),
            f"{trainer['steps']:,}",
            ", ".join(trainer["channels"]),
        )
    console.print(table)
