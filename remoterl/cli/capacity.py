"""`remoterl check`, `reserve`, `release`: capacity, asked for from a shell."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer

from remoterl.cli.options import Address, Json, Labels, Timeout

NumEnvRunners = Annotated[int, typer.Argument(help="How many env runners.", metavar="ENV_RUNNERS")]


def check(
    num_env_runners: NumEnvRunners,
    label: Labels = None,
    address: Address = None,
    as_json: Json = False,
    timeout: Timeout = 10.0,
) -> None:
    """Are so many env runners free? Exit code 0: yes, 1: no."""
    import remoterl
    from remoterl.labels import parse_options

    free = remoterl.check(num_env_runners, parse_options(label), address=address, timeout_s=timeout)
    print(json.dumps(free) if as_json else "yes" if free else "no")
    raise typer.Exit(0 if free else 1)


def reserve(
    num_env_runners: NumEnvRunners,
    label: Labels = None,
    ttl: Annotated[float, typer.Option(help="Seconds until an unused reservation is let go.")] = 30.0,
    address: Address = None,
    as_json: Json = False,
    timeout: Timeout = 10.0,
) -> None:
    """Hold so many env runners, all or none, and print the id that `init(reservation=...)` takes."""
    import remoterl
    from remoterl.labels import parse_options

    reservation = remoterl.reserve(num_env_runners, parse_options(label), ttl, address=address, timeout_s=timeout)
    print(json.dumps(dataclasses.asdict(reservation)) if as_json else reservation.id)


def release(
    reservation: Annotated[str, typer.Argument(help="Its id.")],
    address: Address = None,
    as_json: Json = False,
    timeout: Timeout = 10.0,
) -> None:
    """Give a reservation's env runners back. Exit code 1: there was none of this id."""
    import remoterl

    released = remoterl.release(reservation, address=address, timeout_s=timeout)
    print(json.dumps(released) if as_json else "released" if released else "there is no such reservation (any more)")
    raise typer.Exit(0 if released else 1)
