"""Every claim's code path from the command line, at the size of CI; it needs the shipped weights."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from medplib.claims import PAPER


@pytest.mark.slow
def test_all_claims_run_at_smoke_and_no_verdict_is_drawn(tmp_path):
    command = [str(Path(sys.executable).with_name("lightbox")), "reproduce", "medplib", "--preset", "smoke"]
    command += ["--out", str(tmp_path), "--workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    folder = tmp_path / "reproduce" / "medplib-smoke"
    claims = json.loads((folder / "results.json").read_text())["claims"]
    assert [claim["id"] for claim in claims] == [claim.id for claim in PAPER.claims if "smoke" in claim.presets]
    assert {claim["verdict"] for claim in claims} == {"no verdict"}
    assert all(claim["effect"] is not None for claim in claims)
    assert (folder / "report.html").is_file()
