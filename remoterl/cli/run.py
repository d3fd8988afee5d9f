"""`remoterl run`: an unmodified script becomes a trainer, as `torchrun` does it."""

from __future__ import annotations

import builtins
import importlib.machinery
import os
import runpy
import sys
import types
import zipfile
from typing import Annotated

import typer

from remoterl.cli import tracebacks
from remoterl.cli.options import Address, Labels, NumEnvRunners, NumWorkers, Timeout

# Everything behind the script's name is the script's own.
CONTEXT = {"allow_interspersed_args": False}


def run(
    script: Annotated[str, typer.Argument(help="The script, or with -m the module.", metavar="SCRIPT")],
    arguments: Annotated[list[str] | None, typer.Argument(help="Handed to the script as they are.")] = None,
    module: Annotated[bool, typer.Option("-m", help="SCRIPT is a module, as `python -m` takes it.")] = False,
    address: Address = None,
    num_workers: NumWorkers = 1,
    num_env_runners: NumEnvRunners = 2,
    label: Labels = None,
    env: Annotated[
        list[str] | None, typer.Option("--env", help="NAME=VALUE, a variable where the environments step; several.")
    ] = None,
    timeout: Timeout = 30.0,
) -> None:
    """Run a script whose environments live on simulators, without a change to it."""
    from remoterl import _process
    from remoterl.errors import ConfigurationError, RemoteRLError
    from remoterl.labels import parse_options

    if not module and not os.path.isfile(script):
        raise ConfigurationError(f"there is no script {script!r} (for a module: remoterl run -m MODULE).")
    variables = parse_options(env, "--env", "NAME=VALUE")
    sys.argv = [script, *(arguments or [])]  # a trainer is shown by its script's name
    with tracebacks.interrupts():
        connected = _process.init_of_a_command(
            address=address,
            num_workers=num_workers,
            num_env_runners=num_env_runners,
            labels=parse_options(label) or None,
            runtime_env={"env_vars": variables} if variables else None,
            timeout_s=timeout,
        )
        if not connected:
            raise typer.Exit(1)
        with tracebacks.shown(RemoteRLError):  # the script's, not the command line's
            if module:
                sys.path.insert(0, os.getcwd())
                sys.modules["__main__"] = types.ModuleType("__main__")
                runpy._run_module_as_main(script)  # type: ignore[attr-defined] # what `python -m` itself calls
            else:
                _run_script(script)


def _run_script(script: str) -> None:
    """As Python does it: the script stays `__main__` until its threads and its handlers of the end are done."""
    path = os.path.abspath(script)
    if zipfile.is_zipfile(path) or path.endswith(".pyc"):
        runpy.run_path(path, run_name="__main__")
        return
    sys.path.insert(0, os.path.dirname(os.path.realpath(script)))
    loader = importlib.machinery.SourceFileLoader("__main__", path)
    main = types.ModuleType("__main__")
    vars(main).update(__file__=path, __loader__=loader, __builtins__=builtins, __cached__=None)
    sys.modules["__main__"] = main
    exec(loader.source_to_code(loader.get_data(path), path), vars(main))
