"""docs/backbones.md: its blocks run one after the other, as it says."""

import re
import tempfile
from pathlib import Path

PAGE = Path(__file__).resolve().parents[3] / "docs" / "backbones.md"


def test_blocks_of_the_page_run(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 5
    names = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)  # noqa: S102  our own page
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == lines[-1]  # an adapter that has learned nothing answers as its base
    is_image = names["shorter"].inputs["input_ids"] == names["model"].image_token_id
    assert is_image.sum() == len(names["few"]) == 16
