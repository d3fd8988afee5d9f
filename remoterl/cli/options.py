"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="The hub: ray://HOST:10001, HOST:6379 or auto (for a trainer also local: a private one). "
        "Default: REMOTERL_ADDRESS, RAY_ADDRESS, what `remoterl register` keeps, this machine.",
        show_default=False,
    ),
]
NumWorkers = Annotated[int, typer.Option("--num-workers", min=1, help="As init() has it.")]
NumEnvRunners = Annotated[int, typer.Option("--num-env-runners", min=1, help="As init() has it: for each worker.")]
Timeout = Annotated[float, typer.Option("--timeout", help="Seconds to reach the hub.")]
Host = Annotated[
    str | None,
    typer.Option("--host", help="This machine's address for the others. Default: REMOTERL_HOST, Ray's guess."),
]
Ports = Annotated[
    str | None,
    typer.Option(
        "--ports",
        help="FIRST-LAST: every other port lies in this range, for a firewall. Default: REMOTERL_PORTS, or any.",
    ),
]
Labels = Annotated[
    list[str] | None,
    typer.Option("--label", help="KEY=VALUE, KEY=!VALUE or KEY=in(ONE,TWO): only simulators that match; several."),
]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]
