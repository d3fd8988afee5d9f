"""What READMEs and docs say of the command line, of files, and of errors is what there is."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import documented
import pytest
import typer
from documented import ROOT

import remoterl
from remoterl import errors
from remoterl.cli import app

COMMAND_LINES = [
    (block, words) for block in documented.blocks("bash", "sh") for words in documented.command_lines(block)
]


# ---- shell ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "words"), COMMAND_LINES, ids=lambda value: str(value) if not isinstance(value, list) else value[0]
)
def test_a_command_line(block: documented.Block, words: list[str]) -> None:
    program, *arguments = words
    if program == "remoterl":
        command, rest = documented.remoterl_command(arguments)
        command.make_context(" ".join(arguments), rest)  # raises where an option or an argument is not one
    elif program == "make":
        assert f"\n{arguments[0]}:" in (ROOT / "Makefile").read_text()
    elif program == "pip" or program.endswith("/pip"):
        project = (ROOT / "pyproject.toml").read_text()
        for extras in re.findall(r"\.\[(.*)\]", " ".join(arguments)):
            assert all(f"\n{extra} = [" in project for extra in extras.split(","))
    for word in words:  # files of this repository
        if word.startswith(("cluster_configs/", "examples/", "tests/")):
            assert (ROOT / word).exists(), word


def test_the_table_of_inits_arguments() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    parameters = inspect.signature(remoterl.init).parameters.values()
    assert [(name, ast.literal_eval(default)) for name, default in rows] == [
        (parameter.name, parameter.default) for parameter in parameters
    ]


def test_the_parser_refuses_what_is_not_there() -> None:
    for line in ("status --no-such-option", "check", "nothing-of-the-kind", "hub --port many"):
        command_line = shlex.split(line)
        with pytest.raises((Exception, SystemExit)):
            command, rest = documented.remoterl_command(command_line)
            command.make_context(line, rest)


def test_every_command_stands_in_the_commands_page() -> None:
    def names(command: typer.core.TyperGroup, before: str = "remoterl") -> Iterator[str]:
        for name, one in command.commands.items():
            yield f"{before} {name}"
            yield from names(one, f"{before} {name}") if getattr(one, "commands", None) else ()

    listed = re.findall(r"^\| `(remoterl [^`]+)`", (ROOT / "docs" / "commands.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(set(names(typer.main.get_command(app))) - {"remoterl train"})


# ---- links ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", documented.pages(), ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target, anchor in re.findall(r"\]\(([^)#\s:]*)(#[^)\s]*)?\)", text):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor[1:] in _anchors(path), f"{page.name} links to {target}{anchor}"


def _anchors(page: Path) -> set[str]:
    """As GitHub and Python-Markdown make them of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_every_example_is_listed() -> None:
    listed = re.findall(r"^\| \[([^]]+)\]\(\1\) \|", (ROOT / "examples" / "README.md").read_text(), re.MULTILINE)
    files = [path.name for path in (ROOT / "examples").iterdir() if path.suffix in (".py", ".ipynb")]
    assert sorted(listed) == sorted(files)


# ---- errors --------------------------------------------------------------------------------------------------

ERRORS_PAGE = (ROOT / "docs" / "errors.md").read_text()
MESSAGES = [line for block in documented.blocks("text") if "errors" in block.page for line in block.text.splitlines()]
# Where a connection fails; each of these lines comes before an `init()` that returns False.
CONNECTING = ("cluster/connection.py", "fleet.py", "session.py", "simulator.py")


def _texts(path: Path) -> Iterator[str]:
    """Every text in a module, with `…` for what is put in."""
    inside: set[int] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        is_text = isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))
        if id(node) in inside or not (is_text or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add))):
            continue
        inside.update(id(part) for part in ast.walk(node) if not isinstance(part, ast.IfExp))
        yield " ".join(_flat(node).split())


def _flat(node: ast.AST) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%[-+,.\d]*[a-z]", "…", node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_flat(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return _flat(node.left) + _flat(node.right)
    return "…"


@functools.cache
def _templates() -> list[tuple[str, re.Pattern[str]]]:
    """Every text of the package that says something, and the expression for what it becomes."""
    texts = {text for path in (ROOT / "remoterl").rglob("*.py") for text in _texts(path)}
    return [
        (text, re.compile(".*".join(re.escape(part) for part in text.split("…"))))
        for text in texts
        if len(re.sub(r"[… ]", "", text)) >= 10
    ]


def _is_said(message: str) -> bool:
    """Is the message a text of the code with its `…` filled in, or a part of one?"""
    parts = _fragments(message)
    return any(pattern.fullmatch(message) or all(part in text for part in parts) for text, pattern in _templates())


def _fragments(message: str) -> list[str]:
    return [part.strip(" .,':)") for part in message.split("…") if len(part.strip(" .,':)")) > 3]


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_of_the_errors_page_is_one_of_the_code(message: str) -> None:
    assert _fragments(message)
    assert _is_said(message)


def test_a_message_that_is_none_is_seen() -> None:
    assert _is_said("No hub answers at … within … s. Check that it runs, …")
    assert not _is_said("No hub answers at … within … seconds. Check that it runs, …")


def test_every_class_of_error_has_its_section() -> None:
    sections = re.findall(r"^## .*$", ERRORS_PAGE, re.MULTILINE)
    for name in set(errors.__all__) - {"RemoteTraceback"}:
        assert any(f"`{name}`" in section for section in sections), name


@pytest.mark.parametrize("module", CONNECTING)
def test_every_line_of_a_failed_init_is_on_the_errors_page(module: str) -> None:
    tree = ast.parse((ROOT / "remoterl" / module).read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "logger.error"]
    assert calls
    for call in calls:
        said = " ".join(_flat(call.args[0]).split())
        assert any(_fragments(message) == _fragments(said) for message in MESSAGES), said


# ---- the package ---------------------------------------------------------------------------------------------


def test_make_help_explains_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    command = ["make", "--no-print-directory", "help"]  # a make below a make (`make test` runs this) says where it is
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    [phony] = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert [line.split()[1] for line in told.splitlines()] == phony.split()


def test_pre_commit_runs_what_make_check_runs() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    for tool in re.findall(r"^\t(\.venv/bin/(?:ruff \w+|mypy.*))", _target("check"), re.MULTILINE):
        assert tool in hooks


def _target(name: str) -> str:
    return (ROOT / "Makefile").read_text().split(f"\n{name}:")[1].split("\n\n")[0]
