"""Command lines of remoterl, several in one process: what costs in each of its own is importing Ray and PyTorch.

Run as a script: reads lines of JSON, writes one for each.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from processes import clean_environment


@dataclass
class Call:
    """A command line, what is set in the environment for it, and what is typed when it asks."""

    words: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    typed: str = ""


@dataclass
class Done:
    """How a command line ended."""

    returncode: int
    stdout: str
    stderr: str


def run_in_turn(*calls: Call, cwd: Path | str = "/", timeout_s: float = 240.0) -> list[Done]:
    """Run `remoterl WORDS` for each, one after the other in one process."""
    done = subprocess.run(
        [sys.executable, __file__],
        input="\n".join(json.dumps(asdict(call)) for call in calls),
        env=clean_environment(),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    found = [Done(**json.loads(line)) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) == len(calls), done.stdout + done.stderr
    return found


def _one(words: Sequence[str], environment: Mapping[str, str], typed: str) -> Done:
    import remoterl
    from remoterl.cli import main

    sys.argv = ["remoterl", *words]
    sys.stdin = io.StringIO(typed)
    before = dict(os.environ)
    os.environ.update(environment)
    code: object = 0
    with _written_to(1) as out, _written_to(2) as err:
        try:
            main()
        except SystemExit as end:
            code = end.code
            if isinstance(code, str):  # what Python would do with it
                print(code, file=sys.stderr, flush=True)
        except BaseException:  # here too
            traceback.print_exc()
            code = 1
        remoterl.shutdown()  # as the process's end does
    os.environ.clear()
    os.environ.update(before)
    return Done(code if isinstance(code, int) else int(code is not None), "".join(out), "".join(err))


@contextmanager
def _written_to(descriptor: int) -> Iterator[list[str]]:
    """What this process writes there, by whatever means: filled at the end."""
    written: list[str] = []
    kept = os.dup(descriptor)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), descriptor)
        try:
            yield written
        finally:
            (sys.stdout if descriptor == 1 else sys.stderr).flush()
            os.dup2(kept, descriptor)
            os.close(kept)
            file.seek(0)
            written.append(file.read().decode())


if __name__ == "__main__":
    for line in sys.stdin.read().splitlines():
        print(json.dumps(asdict(_one(**json.loads(line)))), flush=True)
