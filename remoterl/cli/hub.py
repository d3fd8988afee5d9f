"""`remoterl hub` and `remoterl hub stop`: the head node that simulators and trainers meet at."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from remoterl.cli.options import Host, Ports
from remoterl.config import (
    DEFAULT_CLIENT_PORT,
    DEFAULT_DASHBOARD_PORT,
    DEFAULT_GCS_PORT,
    HOST_VARIABLE,
    PORTS_VARIABLE,
)

app = typer.Typer()


@app.callback(invoke_without_command=True)
def hub(
    context: typer.Context,
    host: Host = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Simulators join here.")] = DEFAULT_GCS_PORT,
    client_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Trainers connect here (ray://).")
    ] = DEFAULT_CLIENT_PORT,
    dashboard_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Jobs are submitted here.")
    ] = DEFAULT_DASHBOARD_PORT,
    dashboard_host: Annotated[
        str, typer.Option(help="Where the dashboard listens; 0.0.0.0 to submit jobs from other machines.")
    ] = "127.0.0.1",
    ports: Ports = None,
    num_cpus: Annotated[
        int | None, typer.Option(min=0, help="CPUs for RLlib's learners and trials. Default: this machine's.")
    ] = None,
    block: Annotated[bool, typer.Option("--block", help="Stay in the foreground until Ctrl-C or SIGTERM.")] = False,
) -> None:
    """Start a hub on this machine: a Ray head node that hosts no env runners. `remoterl hub stop` ends it.

    Its key is REMOTERL_API_KEY, else Ray's token of this machine, made where there is none.
    """
    if context.invoked_subcommand is not None:
        return
    from remoterl import hub as hubs
    from remoterl.cluster import node
    from remoterl.config import parse_ports

    host = host or os.environ.get(HOST_VARIABLE) or None
    source, ports = "--ports" if ports else PORTS_VARIABLE, ports or os.environ.get(PORTS_VARIABLE) or None
    rest = None if ports is None else parse_ports(ports, source)
    chosen = node.Ports(gcs=port, client=client_port, dashboard=dashboard_port, rest=rest)
    if block:
        hubs.run(
            host=host,
            ports=chosen,
            dashboard_host=dashboard_host,
            num_cpus=num_cpus,
            announce=lambda running: print(f"{running.instructions()}\nCtrl-C stops it.", flush=True),
        )
        return
    hubs.refuse_what_cannot_start(chosen)
    options = {
        "--host": host,
        "--port": port,
        "--client-port": client_port,
        "--dashboard-port": dashboard_port,
        "--dashboard-host": dashboard_host,
        "--ports": ports,
        "--num-cpus": num_cpus,
    }
    started = hubs.start([word for name, value in options.items() if value is not None for word in (name, str(value))])
    print(f"{started.instructions()}\nIt runs in the background; `remoterl hub stop` ends it.")


@app.command()
def stop() -> None:
    """End the hub that `remoterl hub` started for this user on this machine, and nothing else."""
    from remoterl import hub as hubs

    stopped = hubs.stop()
    print("No hub of yours runs on this machine." if stopped is None else f"The hub at {stopped.address} is stopped.")
