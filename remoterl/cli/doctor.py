"""`remoterl doctor`: is everything as it must be between this machine and the cluster?"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import sys
from typing import Annotated

import typer

from remoterl.cli.options import Address, Json, Timeout
from remoterl.config import ChannelName


def doctor(
    address: Address = None,
    env_id: Annotated[
        str | None, typer.Option(help="Can each simulator make it, with which spaces, and how fast is it?")
    ] = None,
    channel: Annotated[ChannelName, typer.Option(help="As for init(): auto takes a stream where it can.")] = "auto",
    as_json: Json = False,
    timeout: Timeout = 10.0,
) -> None:
    """Look at address, key, ports, versions, clocks, round trips and simulators; each line is OK or says what to do.

    Exit code 0 where everything is OK (a NOTE is, but could be better), 1 otherwise.
    """
    from remoterl import doctor as doctors

    logging.getLogger("ray").setLevel(logging.WARNING)
    findings = []
    # What an environment prints, Ray prints here: not among what is for programs.
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        for finding in doctors.examine(address, env_id, timeout, channel):
            findings.append(finding)
            if as_json:
                continue
            mark = "FAIL" if not finding.ok else "NOTE" if finding.advice else "OK  "
            print(f"{mark}  {finding.check}: {finding.found}", flush=True)
            if finding.advice:
                print(f"      -> {finding.advice}", flush=True)
    if as_json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    raise typer.Exit(0 if all(finding.ok for finding in findings) else 1)
