"""The benchmark of one QLoRA step: both sides train the same thing, and ours keeps what was promised of it."""

import pytest
import torch

from lightbox.bench import step

pytestmark = [
    pytest.mark.slow,
    # peft's own default, which is what is compared with
    pytest.mark.filterwarnings("ignore:torch.utils.checkpoint. the use_reentrant parameter:UserWarning"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    step.save_model(place)
    return place


@pytest.mark.parametrize("dtype", step.TOLERANCE)
def test_both_sides_give_the_same_losses_for_several_steps(folder, dtype):
    ours, stock = step.our_side(folder, dtype, "cpu"), step.stock_side(folder, dtype, "cpu")
    pairs = [(ours.step(), stock.step()) for _ in range(3)]
    assert all(abs(mine - theirs) <= step.TOLERANCE[dtype] * theirs for mine, theirs in pairs)
    assert pairs[2][0] < pairs[0][0]


def test_a_step_keeps_its_promise_of_speed_and_memory():
    threads = torch.get_num_threads()
    try:
        rows = {row["case"]: row["ratio"] for row in step.run(repeats=3, steps=2)}
    finally:
        torch.set_num_threads(threads)
    assert len(rows) == 4
    for dtype in step.TOLERANCE:
        assert rows[f"training step {dtype}"] >= 1.3
        assert rows[f"training step {dtype}, peak of live bytes"] <= 0.75
