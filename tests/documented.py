"""The code blocks of READMEs and docs, and a process that runs those in Python.

A block is run where it stands; blocks of a page share their names, as a reader's do. One that can't be run here has the
reason in a comment before it, `<!-- not run: REASON -->`, and is checked: its imports, and what it takes of remoterl.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import io
import json
import re
import shlex
import sys
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
IMAGINARY = {"my_robot"}  # a user's own package
FENCE = re.compile(
    r"^(?:<!-- not run: (?P<reason>.+?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    page: str  # its file, from the repository's root
    line: int  # of the block's first line of code
    language: str
    text: str
    reason: str | None  # why it is not run

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    return [page for folder in (ROOT, ROOT / "docs", ROOT / "examples") for page in sorted(folder.glob("*.md"))]


def blocks(*languages: str) -> list[Block]:
    return [
        Block(
            str(page.relative_to(ROOT)),
            1 + text.count("\n", 0, match.start("text")),
            match["language"],
            match["text"],
            match["reason"],
        )
        for page in pages()
        for text in [page.read_text()]
        for match in FENCE.finditer(text)
        if match["language"] in languages
    ]


def command_lines(block: Block) -> list[list[str]]:
    """The commands of a block of shell: words, without assignments before them, prompts and comments."""
    joined = block.text.replace("\\\n", " ")
    found = []
    for line in joined.splitlines():
        words = shlex.split(line, comments=True)
        while words and re.match(r"[A-Z][A-Za-z_]*=", words[0]):
            del words[0]
        if words and words[0] != "export":
            found.append(words)
    return found


def remoterl_command(arguments: list[str]) -> tuple[Any, list[str]]:
    """The command of remoterl's that these words name, and the words that are left for it."""
    import typer

    from remoterl.cli import app

    root = typer.main.get_command(app)
    command, rest = root, list(arguments)
    while rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest.pop(0)]
    assert command is not root, f"remoterl has no command {rest[0]!r}"
    return command, rest


# ---- what is checked without running it ----------------------------------------------------------------------


def faults(text: str) -> list[str]:
    """Imports that can't be, names that remoterl has not, and calls of it that its signatures refuse."""
    tree = ast.parse(text)
    return [fault for node in ast.walk(tree) for fault in (*_import_faults(node), *_use_faults(node))]


def _import_faults(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        wanted = [(name.name, None) for name in node.names]
    elif isinstance(node, ast.ImportFrom):
        wanted = [(node.module or "", name.name) for name in node.names]
    else:
        return
    for module, name in wanted:
        if module.partition(".")[0] in IMAGINARY:
            continue
        try:
            found = importlib.import_module(module)
        except ImportError as error:
            yield f"import {module}: {error}"
        else:
            if name is not None and not hasattr(found, name):
                yield f"from {module} import {name}: there is no such name"


def _use_faults(node: ast.AST) -> Iterator[str]:
    import remoterl

    if (name := _of_remoterl(node)) is not None and not hasattr(remoterl, name):
        yield f"remoterl.{name}: there is no such name"
    elif isinstance(node, ast.Call) and (name := _of_remoterl(node.func)) is not None and hasattr(remoterl, name):
        keywords = {keyword.arg: None for keyword in node.keywords if keyword.arg is not None}
        try:
            inspect.signature(getattr(remoterl, name)).bind(*[None] * len(node.args), **keywords)
        except TypeError as error:
            yield f"remoterl.{name}(...): {error}"


def _of_remoterl(node: ast.AST) -> str | None:
    """The name, where the node is `remoterl.NAME`."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "remoterl":
        return node.attr
    return None


# ---- the process that runs them ------------------------------------------------------------------------------


def _outcomes(given: list[Block]) -> Iterator[dict[str, Any]]:
    """What is wrong with each block; an empty text where nothing is."""
    names: dict[str, Any] = {}
    page = ""
    for block in given:
        if block.page != page:
            _end_page()
            page, names = block.page, {"__name__": "__main__"}
        wrong = "\n".join(faults(block.text))
        if not wrong and block.reason is None:
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    exec(compile(block.text, str(block), "exec"), names)
            except BaseException:
                wrong = traceback.format_exc()
        yield {"block": str(block), "wrong": wrong}
    _end_page()


def _end_page() -> None:
    import remoterl

    remoterl.shutdown()


def lines(given: list[Block]) -> list[str]:
    """What this file, run as a script, reads."""
    return [json.dumps(asdict(block)) for block in given]


if __name__ == "__main__":
    for outcome in _outcomes([Block(**json.loads(line)) for line in sys.stdin]):
        print(json.dumps(outcome), flush=True)
