"""Memory that runs out in a step: the same step again in smaller micro-batches, or an error that says what fits."""

import json
import signal
import weakref

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lightbox.config import TrainConfig
from lightbox.errors import WorkError
from lightbox.files import file_sha256
from lightbox.testing.training import Counting, fit_tagger, make_source, make_tagger, tagger_step
from lightbox.train import shortage

AUTO = {"train": TrainConfig(auto_batch=True)}
CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 11.9 GiB of which 0 is free"
TOO_MUCH = 1 << 46


def narrow(limit, *, error=None, from_call=0):
    """A step that finds no memory for more than `limit` rows; it draws random numbers before it fails."""
    calls = []

    def step(model, batch):
        calls.append(len(batch["ids"]))
        torch.rand(3)
        result = tagger_step(model, batch)
        if len(batch["ids"]) > limit and len(calls) > from_call:
            raise torch.OutOfMemoryError(CUDA) if error is None else error
        return result

    step.calls = calls
    return step


def drawing(model, batch):
    """The same draws without the failure."""
    torch.rand(3)
    return tagger_step(model, batch)


def tensors_of(out, step=12):
    names = ("model.safetensors", "optimizer.safetensors")
    return [file_sha256(out / "checkpoints" / f"step-{step:08d}" / name) for name in names]


def fit(out, *, step, micro=0, model=None, extras=AUTO, **options):
    optim = {"batch_size": 12, "micro_batch_size": micro} | options.pop("optim", {})
    source = make_source(batch_size=12, n_items=30)
    model = Counting() if model is None else model
    return fit_tagger(out, model=model, source=source, step=step, optim=optim, extras=extras, **options)


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "fits"), [(11, 6), (6, 6), (5, 3), (1, 1)])
def test_a_run_that_halves_has_the_bits_of_one_that_had_the_size_from_the_start(tmp_path, limit, fits):
    """With dropout, and with running statistics that the failed passes had already moved."""
    _, history = fit(tmp_path / "halved", step=narrow(limit))
    _, expected = fit(tmp_path / "small", step=drawing, micro=fits)
    cuts = history.pop("train/micro_batch_size")
    assert cuts == [[1, float(size)] for size in (6, 3, 1) if size >= fits]
    assert history == expected
    assert tensors_of(tmp_path / "halved") == tensors_of(tmp_path / "small")


def test_every_try_is_told_in_the_card_and_later_steps_start_small(tmp_path):
    step = narrow(3)
    fit(tmp_path, step=step, optim={"max_steps": 2})
    assert step.calls == [12, 6, *[3] * 4, *[3] * 4]
    notes = json.loads((tmp_path / "card.json").read_text())["notes"]
    assert notes == [
        "step 1: memory ran out with 12 items in a forward pass, 6 from here on",
        "step 1: memory ran out with 6 items in a forward pass, 3 from here on",
    ]


def test_a_shortage_in_a_later_pass_drops_the_gradients_of_the_passes_before(tmp_path):
    """The second pass of step 1 fails; what the first left would otherwise be added again."""
    fit(tmp_path / "halved", step=narrow(3, from_call=1), micro=6, model=make_tagger(dropout=0.0))
    fit(tmp_path / "small", step=drawing, micro=3, model=make_tagger(dropout=0.0))
    assert tensors_of(tmp_path / "halved") == tensors_of(tmp_path / "small")


def test_a_continued_run_keeps_the_smaller_size(tmp_path):
    calls = []

    def stopping(model, batch):
        calls.append(len(batch["ids"]))
        if len(calls) == 8:
            signal.raise_signal(signal.SIGTERM)
        return narrow(6)(model, batch)

    with pytest.raises(SystemExit):
        fit(tmp_path / "cut", step=stopping)
    again = narrow(6)
    fit(tmp_path / "cut", step=again)
    assert max(again.calls) == 6
    fit(tmp_path / "straight", step=narrow(6))
    assert tensors_of(tmp_path / "cut") == tensors_of(tmp_path / "straight")
    assert (tmp_path / "cut/history.json").read_bytes() == (tmp_path / "straight/history.json").read_bytes()


def test_a_run_may_be_continued_with_another_micro_batch(tmp_path):
    """Which is what the message below tells to do; it changes rounding only."""
    calls = []

    def until_full(model, batch):
        calls.append(None)
        return narrow(12 if len(calls) <= 6 else 6)(model, batch)

    with pytest.raises(WorkError, match=r"step 7 .* smaller optim\.micro_batch_size"):
        fit(tmp_path, step=until_full, extras=None, save_every_steps=1)
    _, history = fit(tmp_path, step=narrow(6), extras=None, micro=6, save_every_steps=1)
    assert history["train/loss"][-1][0] == 12


@pytest.mark.slow
def test_one_item_that_does_not_fit_ends_the_run(tmp_path):
    step = narrow(0)
    with pytest.raises(WorkError) as caught:
        fit(tmp_path, step=step, extras=AUTO | {"memory_advice": "The largest part is the logits, 9.1 of 11 GiB"})
    assert step.calls == [12, 6, 3, 1]
    assert caught.value.given == (
        "Memory ran out at step 1 with 1 item in a forward pass (CUDA out of memory. Tried to allocate 2.00 GiB)."
    )
    assert caught.value.why == "The largest part is the logits, 9.1 of 11 GiB."
    assert "train.checkpoint_layers=true" in caught.value.do


def test_without_auto_batch_the_error_asks_what_would_fit_for_the_size_at_hand(tmp_path):
    asked = []

    def advice(size):
        asked.append(size)
        return f"Activations of {size} items take 7 GiB; 3 would fit"

    with pytest.raises(WorkError, match=r"with 6 items .* 3 would fit\. .*train\.auto_batch=true"):
        fit(tmp_path, step=narrow(3), micro=6, extras={"memory_advice": advice})
    assert asked == [6]


@pytest.mark.slow
def test_the_allocator_of_the_cpu_is_understood_and_other_errors_pass(tmp_path):
    def greedy(model, batch):
        if len(batch["ids"]) > 4:
            torch.empty(TOO_MUCH, dtype=torch.uint8)
        return tagger_step(model, batch)

    _, history = fit(tmp_path / "greedy", step=greedy, optim={"max_steps": 1})
    assert history["train/micro_batch_size"] == [[1, 6.0], [1, 3.0]]
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fit(tmp_path / "other", step=narrow(3, error=RuntimeError("mat1 and mat2 shapes cannot be multiplied")))
    with pytest.raises(WorkError, match="MemoryError"):
        fit(tmp_path / "host", step=narrow(0, error=MemoryError()))


def test_no_tensor_of_a_failed_pass_is_held_while_it_is_tried_again(tmp_path):
    """Else the memory that ran out would still be full."""
    held, alive = [], []

    def step(model, batch):
        alive.append([reference() is not None for reference in held])
        result = tagger_step(model, batch)
        if len(batch["ids"]) > 3:
            held.append(weakref.ref(result[0]))
            raise torch.OutOfMemoryError(CUDA)
        return result

    fit(tmp_path, step=step, optim={"max_steps": 1})
    assert alive[:3] == [[], [False], [False, False]]


def test_memory_that_runs_out_in_the_update_or_an_evaluation_is_told_too(tmp_path):
    def greedy(*_):
        torch.empty(TOO_MUCH, dtype=torch.uint8)

    with pytest.raises(WorkError, match=r"in the evaluation after step 12 \(.*can't allocate memory.* adapter\.quant"):
        fit(tmp_path / "evaluation", step=drawing, evaluate=greedy)
    handle = register_optimizer_step_pre_hook(greedy)
    try:
        with pytest.raises(WorkError, match=r"in the update of step 1 \(.*can't allocate memory.* adapter\.quant"):
            fit(tmp_path / "update", step=drawing)
    finally:
        handle.remove()


def test_halves_are_divisors_of_the_share():
    assert [shortage.half(size, 28) for size in (28, 14, 7, 2, 1)] == [14, 7, 2, 1, 0]
    assert shortage.half(5, 5) == 1
