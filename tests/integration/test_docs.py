"""Every block of Python in README and docs, on the shared cluster: one process runs them all, page by page."""

from __future__ import annotations

import json
import subprocess
import sys

import documented
import pytest
from conftest import assert_free
from processes import ROOT, Cluster, clean_environment

BLOCKS = documented.blocks("python")


@pytest.fixture(scope="module")
def outcomes(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Block -> what is wrong with it."""
    done = subprocess.run(
        [sys.executable, documented.__file__],
        input="\n".join(documented.lines(BLOCKS)),
        env=clean_environment(REMOTERL_ADDRESS=cluster.gcs_address),
        cwd=tmp_path_factory.mktemp("docs"),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, done.stdout + done.stderr
    assert_free(cluster)
    return {one["block"]: one["wrong"] for one in found}


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_of_python(outcomes: dict[str, str], block: documented.Block) -> None:
    assert outcomes[str(block)] == "", outcomes[str(block)]


def test_most_blocks_really_run() -> None:
    by_page = {page: [block for block in BLOCKS if block.page == page] for page in {block.page for block in BLOCKS}}
    assert len(by_page) >= 10
    assert sum(block.reason is None for block in BLOCKS) > len(BLOCKS) / 2
    assert any(block.reason is None for block in by_page["README.md"])


def test_the_readmes_trainer_is_the_example_that_is_trained_for_real() -> None:
    """`test_scripts.py` trains it."""
    example = (ROOT / "examples" / "sb3_cartpole.py").read_text()
    [readmes] = [block for block in BLOCKS if block.page == "README.md" and "PPO(" in block.text]

    def calls(text: str) -> list[str]:
        return sorted(line for line in text.splitlines() if line and not line.startswith(('"', "Set ")))

    assert calls(readmes.text) == calls(example)
