"""Options that the subcommands of `remoterl train` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# What is not an option of the command is a parameter of the framework's algorithm.
CONTEXT = {"allow_extra_args": True, "ignore_unknown_options": True}

EnvId = Annotated[str, typer.Option("--env-id", help="A Gymnasium id that the simulators (or this machine) know.")]
NumEnvs = Annotated[
    int | None,
    typer.Option(
        "--num-envs", min=1, help="Rows over all env runners. Default: two each (RLlib: one each).", show_default=False
    ),
]
Steps = Annotated[
    int,
    typer.Option("--steps", "--timesteps", min=1, help="Environment steps of all rows together, in whole rollouts."),
]
Target = Annotated[
    float | None,
    typer.Option("--target", help="Mean return of the last 100 episodes that ends it earlier.", show_default=False),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", file_okay=False, help="Folder of what is saved. Default: a new one under runs/.", show_default=False
    ),
]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Of environments and algorithm.", show_default=False)]


def option_names(context: typer.Context) -> list[str]:
    """The command's own options, without their dashes."""
    return [name.removeprefix("--") for option in context.command.params for name in option.opts]
