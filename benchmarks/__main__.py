"""`python -m benchmarks [--quick] [--rounds 5] [--seconds 2] [--only EXPRESSION] [--out out/benchmarks]`.

Every contender runs in a process of its own, on one private cluster with two simulators on this machine; the
contenders take turns, round after round. Tables go to the terminal, JSON and plots to the folder.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from benchmarks import plans, report
from benchmarks.contenders import Cell
from benchmarks.measure import Measured

TIMEOUT_S = 300.0


def main() -> None:
    """Measure everything that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer sizes, one second a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, help="of a turn; 2, quick 1")
    parser.add_argument(
        "--only", default="", help="cells whose name holds this regular expression, and their baselines"
    )
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"))
    options = parser.parse_args()
    seconds = options.seconds or (1.0 if options.quick else 2.0)
    cells = _cells(options.quick, options.only)
    results: report.Results = {cell: [] for cell in cells}
    console, progress = Console(width=170), Console(stderr=True)
    from remoterl.cli.demo import private_cluster

    with private_cluster(progress) as gcs_address:
        addresses = {"driver": gcs_address, "client": client_address(gcs_address)}
        for number in range(options.rounds):
            for cell in cells:
                if results[cell] and results[cell][-1].error:
                    continue
                results[cell].append(_in_a_process(cell, addresses, seconds))
                measured = results[cell][-1]
                progress.print(f"round {number + 1}: {cell}: {measured.error or f'{measured.steps_per_s:,.0f}'}")
            report.save(results, _machine(), options.out)
    report.show(results, console)
    console.print(f"JSON and plots are in {options.out}.")


def _cells(quick: bool, only: str) -> list[Cell]:
    cells: dict[Cell, None] = {}
    for wanted in plans.figures():
        if re.search(only, str(wanted.cell)):
            cells.update({wanted.cell: None, wanted.baseline: None})
            if wanted.at_least:
                cells[plans.limit(wanted.cell)] = None
    rest = [*(cell for cell, _ in plans.ideal()), *plans.others(), *plans.growth(quick)]
    cells.update((cell, None) for cell in rest if re.search(only, str(cell)))
    return list(cells)


def _in_a_process(cell: Cell, addresses: dict[str, str], seconds: float) -> Measured:
    call = json.dumps({"cell": asdict(cell), "addresses": addresses, "seconds": seconds})
    command = [sys.executable, "-m", "benchmarks.measure", call]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return Measured(error=f"not done after {TIMEOUT_S:.0f} s")
    if "RESULT" not in done.stdout:
        return Measured(error=(done.stderr.strip().splitlines() or ["it printed nothing"])[-1])
    return Measured(**json.loads(done.stdout.split("RESULT")[1]))


def client_address(gcs_address: str) -> str:
    """Of the private hub: Ray Client's usual port may have been taken."""
    for process in psutil.Process().children(recursive=True):
        command = process.cmdline()
        if "--ray-client-server-port" in command:
            port = command[command.index("--ray-client-server-port") + 1]
            return f"ray://{gcs_address.rpartition(':')[0]}:{port}"
    raise SystemExit("the private cluster has no port for Ray Client")


def _machine() -> dict[str, Any]:
    import gymnasium
    import ray

    return {
        "date": time.strftime("%Y-%m-%d"),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "ray": ray.__version__,
        "gymnasium": gymnasium.__version__,
    }


if __name__ == "__main__":
    main()
