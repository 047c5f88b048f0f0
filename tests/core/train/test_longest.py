"""The longest items are tried before the first step, and nothing of it stays but a smaller micro-batch."""

import json
import signal

import numpy as np
import pytest
import torch

from lightbox.config import TrainConfig
from lightbox.errors import WorkError
from lightbox.files import file_sha256
from lightbox.testing.training import Counting, fit_tagger, make_rows, make_source, tagger_step

AUTO = {"train": TrainConfig(auto_batch=True)}
ROWS = make_rows()
LONGEST = np.argsort([-len(row) for row in ROWS], kind="stable")[:4].tolist()


def fit(out, *, lengths=True, step=tagger_step, extras=AUTO, **options):
    """12 steps of 4 rows; gives the history and the indices of each micro-batch that was made."""
    source, made = make_source(), []
    usual = source.collate

    def collate(indices):
        made.append(indices)
        return usual(indices)

    source.collate = collate
    if lengths:
        source.row_lengths = lambda: [len(row) for row in ROWS]
    _, history = fit_tagger(out, model=Counting(), source=source, step=step, extras=extras, **options)
    return history, made


def bits(out):
    folder = out / "checkpoints/step-00000012"
    return {path.name: file_sha256(path) for path in [*folder.iterdir(), out / "history.json"]}


def test_the_trial_changes_no_bit_and_comes_before_step_1_beside_moments_and_after_a_resume(tmp_path):
    """With dropout, and running statistics that the trial moves."""
    _, plain = fit(tmp_path / "plain", lengths=False)
    _, tried = fit(tmp_path / "tried")
    assert tried == [LONGEST, plain[0], LONGEST, *plain[1:]]
    assert bits(tmp_path / "tried") == bits(tmp_path / "plain")

    calls = []

    def stopping(model, batch):
        calls.append(None)
        if len(calls) == 2:  # of step 1, after its trial
            signal.raise_signal(signal.SIGTERM)
        return tagger_step(model, batch)

    with pytest.raises(SystemExit):
        fit(tmp_path / "cut", step=stopping)
    _, again = fit(tmp_path / "cut")
    assert again == [LONGEST, *plain[1:]]
    assert bits(tmp_path / "cut") == bits(tmp_path / "plain")


def test_a_cpu_tries_nothing_unless_memory_may_be_short(tmp_path):
    _, made = fit(tmp_path / "plain", extras=None)
    assert len(made) == 12
    _, made = fit(tmp_path / "prepared", extras=AUTO | {"prepare": lambda model, indices: indices})
    assert len(made) == 12


def narrow(cells):
    """A step without memory for more than `cells` tokens, padding counted."""

    def step(model, batch):
        result = tagger_step(model, batch)
        if batch["ids"].numel() > cells:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return result

    return step


@pytest.mark.slow
def test_memory_that_the_longest_items_lack_runs_out_before_the_first_step(tmp_path):
    """4 rows of 12 tokens do not fit, 2 do; a run that had 2 from the start has the same bits."""
    history, _ = fit(tmp_path / "halved", step=narrow(2 * 12))
    assert history.pop("train/micro_batch_size") == [[1, 2.0]]
    notes = json.loads((tmp_path / "halved/card.json").read_text())["notes"]
    assert notes == [
        "the trial of the longest items before step 1: memory ran out with 4 items in a forward pass, 2 from here on"
    ]
    expected, _ = fit(tmp_path / "small", optim={"micro_batch_size": 2})
    assert history == expected
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert bits(tmp_path / "halved")[name] == bits(tmp_path / "small")[name]
    with pytest.raises(WorkError, match=r"trial of the longest items before step 1 with 1 item .*adapter\.quant"):
        fit(tmp_path / "none", step=narrow(11))
