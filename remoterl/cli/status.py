"""`remoterl status`: the simulators of a cluster, their env runners, and the trainers that use them."""

from __future__ import annotations

import json
import logging
from typing import Annotated, Any

import typer

from remoterl.cli.options import Address, Labels, Timeout


def status(
    address: Address = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    label: Labels = None,
    timeout: Timeout = 10.0,
) -> None:
    """Show simulators, their env runners, and trainers."""
    import remoterl
    from remoterl.labels import parse_options

    logging.getLogger("ray").setLevel(logging.WARNING)
    report = remoterl.describe(parse_options(label), address=address, timeout_s=timeout)
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        _show(report)


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False)
    if not console.is_terminal:
        console.width = 10_000  # whole names, for grep
    table = Table(title="Simulators", title_justify="left")
    for column in ("name", "host", "env runners", "rows", "steps", "environments", "labels"):
        table.add_column(column, overflow="fold")
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
    for one in report["unused_simulators"]:
        by = "no trainer uses it" if one["free_units"] == one["units"] else "RLlib's env runners, or a reservation"
        console.print(f"{one['name']}: {one['free_units']} of {one['units']} units free; {by}")
    for name in report["simulators_without_actor"]:
        console.print(f"{name}: does not answer")
    if not report["trainers"]:
        console.print("No trainer.")
        return
    table = Table(title="Trainers", title_justify="left")
    for column in ("script", "host", "pid", "env runners", "restarts", "rows", "steps", "channel"):
        table.add_column(column, overflow="fold")
    for trainer in report["trainers"]:
        table.add_row(
            trainer["name"],
            trainer["host"],
            str(trainer["pid"]),
            str(trainer["env_runners"]),
            str(trainer["restarts"]),
            str(trainer["rows"]),
            f"{trainer['steps']:,}",
            ", ".join(trainer["channels"]),
        )
    console.print(table)
