"""`remoterl train`: trainings from the command line, each a thin layer over its framework."""

from __future__ import annotations

import typer

from remoterl.cli.train import gym, rllib, sb3
from remoterl.cli.train.options import CONTEXT

app = typer.Typer(
    help="Train on the simulators with a framework's own algorithms; `--name value` hands a parameter to them.",
    no_args_is_help=True,
)
app.command("gym")(gym.gym)
app.command("sb3", context_settings=CONTEXT)(sb3.sb3)
app.command("rllib", context_settings=CONTEXT)(rllib.rllib)
