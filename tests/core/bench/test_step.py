"""The benchmark of one QLoRA step: both sides train the same thing, and ours keeps what was promised of it."""

import pytest
import torch

from lightbox.bench import step
from lightbox.errors import WorkError


@pytest.mark.slow
# peft's own default, which is what is compared with
@pytest.mark.filterwarnings("ignore:torch.utils.checkpoint. the use_reentrant parameter:UserWarning")
def test_a_step_keeps_its_promise_of_speed_and_memory():
    threads = torch.get_num_threads()
    try:
        rows = {row["case"]: row["ratio"] for row in step.run(repeats=3, steps=1)}  # raises where losses differ
    finally:
        torch.set_num_threads(threads)
    assert len(rows) == 4
    for dtype in step.TOLERANCE:
        assert rows[f"training step {dtype}"] >= 1.3
        assert rows[f"training step {dtype}, peak of live bytes"] <= 0.75


@pytest.mark.parametrize(
    ("ours", "stock", "message"),
    [
        ([3.0, 2.0, 1.0], [2.9, 2.0, 1.0], "At step 1 in fp32 our loss is 3.000000 and the stock one 2.900000"),
        ([2.9, 2.0, 0.9], [2.9, 2.0, 1.0], "At step 3 in fp32"),
        ([2.9, 2.0, 2.9], [2.9, 2.0, 2.9], "In fp32 the loss went from 2.900000 to 2.900000"),
    ],
)
def test_sides_that_train_different_things_or_learn_nothing_are_not_timed(monkeypatch, tmp_path, ours, stock, message):
    for name, losses in {"our_side": ours, "stock_side": stock}.items():
        side = step.Side(iter(losses).__next__, list)
        monkeypatch.setattr(step, name, lambda *_, side=side: side)
    with pytest.raises(WorkError, match=message):
        step.compare(tmp_path, "fp32", repeats=1, steps=1, device="cpu")
