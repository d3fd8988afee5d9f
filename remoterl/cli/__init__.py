"""The command line: thin commands over the package. Keys come from the environment, never from an argument."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from remoterl._protocol import spoken
from remoterl.cli import capacity, demo, doctor, hub, register, run, simulate, status, tracebacks, train

app = typer.Typer(
    name="remoterl",
    help="Reinforcement-learning environments that live on other machines, natively on Ray.",
    epilog="The cluster's key is read from REMOTERL_API_KEY, else where `remoterl register` or Ray keeps it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"remoterl {spoken()}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version, and exit.")
    ] = False,
) -> None:
    pass


app.add_typer(hub.app, name="hub")
app.command("register")(register.register)
app.command("simulate")(simulate.simulate)
app.command("status")(status.status)
app.command("describe")(status.status)
app.command("doctor")(doctor.doctor)
app.command("check")(capacity.check)
app.command("reserve")(capacity.reserve)
app.command("release")(capacity.release)
app.command("run", context_settings=run.CONTEXT)(run.run)
app.add_typer(train.app, name="train")
app.command("demo")(demo.demo)


def main() -> None:
    """Run the command line; an error of ours is one line on stderr and exit code 1."""
    from remoterl.errors import RemoteRLError

    try:
        app()
    except RemoteRLError as error:
        print(f"remoterl: {type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)
    except tracebacks.InterruptedByUser as error:
        raise error.interrupt from None
