"""`accelerate launch -m medthink train ...`: two processes train one arm, the first one scores and writes."""

import json
import os
import subprocess
import sys

import pytest

from lightbox.runs import folders
from medthink import cli

pytestmark = pytest.mark.slow

LAUNCH = ("--multi_gpu", "--num_processes", "2", "--main_process_port", "0", "-m", "medthink", "train")


@pytest.fixture(params=["t5", "llava"])
def arm(tiny, tiny_llava, request):
    """A training of 3 steps with LoRA: of the T5, or of a vision-language model."""
    own = {"t5": [*tiny, "adapter.kind=lora", "adapter.r=4"], "llava": tiny_llava}[request.param]
    return [*own, "experiment=explanation", "optim.max_steps=3", "run.log_every_steps=1"]


def test_two_processes_leave_one_run_with_the_scores_of_one(arm, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "index_run", lambda *_: None)
    cli.train([*arm, f"run.out={tmp_path / 'one'}"])
    command = [sys.executable, "-W", "ignore", "-m", "accelerate.commands.launch", *LAUNCH]
    done = subprocess.run(
        [*command, *arm, f"run.out={tmp_path / 'two'}"],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("baseline / majority") == 1
    one, two = (next((tmp_path / name / "runs").iterdir()) for name in ("one", "two"))
    assert one.name == two.name
    losses = [[loss for _, loss in folders.read_history(run)["train/loss"]] for run in (one, two)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    assert folders.read_scores(two).column_names == folders.read_scores(one).column_names
    assert folders.read_scores(two).num_rows == 12 * 3
    assert json.loads((two / "card.json").read_text())["processes"]["count"] == 2
    assert (tmp_path / "two" / "mlflow.db").is_file()
    assert {path.name for path in (two / "model").iterdir()} == {path.name for path in (one / "model").iterdir()}
