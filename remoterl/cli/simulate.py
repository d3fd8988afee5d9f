"""`remoterl simulate`: this machine becomes a simulator."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Annotated

import typer

from remoterl.cli.options import Address, Host, Ports, Timeout


def simulate(
    address: Address = None,
    name: Annotated[str | None, typer.Option(help="Its name. Default: the host's name and a short id.")] = None,
    max_env_runners: Annotated[int, typer.Option(help="How many env runners it hosts at most.")] = 32,
    label: Annotated[list[str] | None, typer.Option(help="KEY=VALUE, a label of its Ray node; several.")] = None,
    register: Annotated[
        list[str] | None, typer.Option(help="MODULE to import, which registers environments; several.")
    ] = None,
    host: Host = None,
    ports: Ports = None,
    timeout: Timeout = 30.0,
    rejoin_timeout: Annotated[
        float, typer.Option(help="Seconds that it tries to come back once it has lost the hub; 0: it does not.")
    ] = 600.0,
) -> None:
    """Offer this machine's environments to trainers, until Ctrl-C.

    Without an address, and with no Ray on this machine, it starts a hub too.
    """
    import remoterl
    from remoterl.config import HOST_VARIABLE, PORTS_VARIABLE, parse_ports
    from remoterl.errors import ConfigurationError
    from remoterl.labels import parse_options

    if host is not None:
        os.environ[HOST_VARIABLE] = host
    if ports is not None:
        parse_ports(ports, "--ports")
        os.environ[PORTS_VARIABLE] = ports
    if os.getcwd() not in sys.path:  # as `python script.py` would find modules beside it
        sys.path.insert(0, os.getcwd())
    for module in register or []:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ConfigurationError(f"--register {module}: it can't be imported here ({error}).") from error
    served = remoterl.init(
        role="simulator",
        address=address,
        name=name,
        max_env_runners=max_env_runners,
        labels=parse_options(label),
        timeout_s=timeout,
        rejoin_timeout_s=rejoin_timeout,
    )
    raise typer.Exit(0 if served else 1)
