"""Lets pages link to files of the repository as GitHub shows them (`../examples/rllib_ppo.py`).

What a page links to outside of `docs/` becomes a file of the site, below `repository/`; a link to a folder, which a
site can't show, becomes plain text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")  # in the navigation
LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")
SOURCE = re.compile(r'(?P<before>src=")(?P<target>[^":]+)(?P<after>")')
FOLDER = "repository"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what pages link to, and what those link to, if they are pages."""
    waiting = [PurePosixPath("docs", file.src_uri) for file in files if file.src_uri.endswith(".md")]
    waiting += [PurePosixPath(name) for name in PAGES]
    seen: set[PurePosixPath] = set()
    while waiting:
        path = waiting.pop()
        if path in seen or not (ROOT / path).is_file():
            continue
        seen.add(path)
        if path.parts[0] != "docs":
            files.append(File.generated(config, f"{FOLDER}/{path}", abs_src_path=str(ROOT / path)))
        if path.suffix == ".md":
            text = (ROOT / path).read_text()
            waiting += [_in_repository(path, match["target"]) for match in LINK.finditer(text)]
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between files of the site."""
    here = page.file.src_uri
    in_repository = PurePosixPath(here.removeprefix(f"{FOLDER}/") if here.startswith(FOLDER) else f"docs/{here}")

    def link(match: re.Match[str]) -> str:
        target = _in_repository(in_repository, match["target"])
        if (ROOT / target).is_dir():
            return match["text"]
        return f"[{match['text']}]({_from(here, _in_site(target))}{match['anchor'] or ''})"

    def source(match: re.Match[str]) -> str:
        target = _in_repository(in_repository, match["target"])
        return f"{match['before']}{_from(here, _in_site(target)).replace('.md', '.html')}{match['after']}"

    return SOURCE.sub(source, _outside_code(markdown, lambda text: LINK.sub(link, text)))


def _outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """Change what is neither in a fenced block nor in backticks that hold brackets."""
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else change(part) for part in parts)


def _in_repository(page: PurePosixPath, target: str) -> PurePosixPath:
    parts: list[str] = []
    for part in (page.parent / target).parts:
        if part == "..":
            del parts[-1:]
        else:
            parts.append(part)
    return PurePosixPath(*parts)


def _in_site(path: PurePosixPath) -> str:
    return str(PurePosixPath(*path.parts[1:])) if path.parts[:1] == ("docs",) else f"{FOLDER}/{path}"


def _from(here: str, target: str) -> str:
    ups = len(PurePosixPath(here).parts) - 1
    return "../" * ups + target
