"""`remoterl doctor`: is everything as it must be between this machine and the cluster?"""

from __future__ import annotations

import dataclasses
import json
import logging
from typing import Annotated

import typer

from remoterl.cli.options import Address, Json, Timeout


def doctor(
    address: Address = None,
    env_id: Annotated[str | None, typer.Option(help="Can each simulator make it, and with which spaces?")] = None,
    as_json: Json = False,
    timeout: Timeout = 10.0,
) -> None:
    """Look at address, key, ports, versions, clocks, round trips and simulators; each line is OK or says what to do.

    Exit code 0 where everything is OK, 1 otherwise.
    """
    from remoterl import doctor as doctors

    logging.getLogger("ray").setLevel(logging.WARNING)
    findings = []
    for finding in doctors.examine(address, env_id, timeout):
        findings.append(finding)
        if not as_json:
            print(f"{'OK  ' if finding.ok else 'FAIL'}  {finding.check}: {finding.found}", flush=True)
            if finding.advice:
                print(f"      -> {finding.advice}", flush=True)
    if as_json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    raise typer.Exit(0 if all(finding.ok for finding in findings) else 1)
