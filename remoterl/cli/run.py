"""`remoterl run`: an unmodified script becomes a trainer, as `torchrun` does it."""

from __future__ import annotations

import os
import runpy
import sys
from typing import Annotated

import typer

from remoterl.cli import tracebacks
from remoterl.cli.options import Address, NumEnvRunners, NumWorkers, Timeout

# Everything behind the script's name is the script's own.
CONTEXT = {"allow_interspersed_args": False}


def run(
    script: Annotated[str, typer.Argument(help="The script, or with -m the module.", metavar="SCRIPT")],
    arguments: Annotated[list[str] | None, typer.Argument(help="Handed to the script as they are.")] = None,
    module: Annotated[bool, typer.Option("-m", help="SCRIPT is a module, as `python -m` takes it.")] = False,
    address: Address = None,
    num_workers: NumWorkers = 1,
    num_env_runners: NumEnvRunners = 2,
    timeout: Timeout = 30.0,
) -> None:
    """Run a script whose environments live on simulators, without a change to it."""
    from remoterl import _process
    from remoterl.errors import ConfigurationError, RemoteRLError

    if not module and not os.path.isfile(script):
        raise ConfigurationError(f"there is no script {script!r} (for a module: remoterl run -m MODULE).")
    sys.argv = [script, *(arguments or [])]  # a trainer is shown by its script's name
    with _process.session_of_a_command(
        address=address,
        num_workers=num_workers,
        num_env_runners=num_env_runners,
        timeout_s=timeout,
    ) as connected:
        if not connected:
            raise typer.Exit(1)
        with tracebacks.shown(RemoteRLError):  # the script's, not the command line's
            if module:
                sys.path.insert(0, os.getcwd())
                runpy.run_module(script, run_name="__main__", alter_sys=True)
            else:
                sys.path.insert(0, os.path.dirname(os.path.abspath(script)))
                runpy.run_path(script, run_name="__main__")
