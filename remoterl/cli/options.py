"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="The hub: ray://HOST:10001, HOST:6379 or auto. Default: REMOTERL_ADDRESS, RAY_ADDRESS, this machine.",
        show_default=False,
    ),
]
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
    typer.Option("--label", help="KEY=VALUE, !VALUE or in(ONE,TWO): only simulators that match; several."),
]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]
