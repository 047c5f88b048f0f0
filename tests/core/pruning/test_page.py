"""docs/pruning.md: its blocks run one after the other, as it says, and its table names every method."""

import re
from pathlib import Path

import pytest

from lightbox.pruning.methods.table import METHODS

PAGE = Path(__file__).resolve().parents[3] / "docs" / "pruning.md"
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.mark.slow
def test_every_block_of_the_page_runs(capsys):
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert len(blocks) == 4
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)  # noqa: S102  our own page
    printed = capsys.readouterr().out
    assert "576 visual tokens -> 115" in printed
    assert printed.count("[0.") + printed.count("[ 0.") + printed.count("none") >= 2  # boxes, or that there are none
    assert "random choices" in printed


def test_the_table_names_every_method():
    text = PAGE.read_text(encoding="utf-8").partition("## Methods")[2].partition("## What it loses")[0]
    assert set(re.findall(r"`(\w+)`", text)) >= set(METHODS)
