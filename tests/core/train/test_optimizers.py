"""AdamW with 8-bit moments: what it keeps, what it costs, and that a continued run has the same bits."""

import json
import signal

import bitsandbytes
import pytest
import torch
from torch import nn

from lightbox.adapters.optimizers import has_own_slots, make_optimizer
from lightbox.errors import RequestError
from lightbox.files import file_sha256
from lightbox.testing.training import fit_tagger, make_tagger, tagger_step
from lightbox.train import checkpoint, updates
from lightbox.train.checkpoint import ResumeState
from lightbox.train.updates import decay_groups

WIDTH = 80  # the recurrent matrices have 240 x 80 elements, so their moments take 8 bits; the others keep float32


def stepped(name="adamw_8bit", seed=0, steps=3):
    model = make_tagger(seed, width=WIDTH, dropout=0.0)
    optimizer = make_optimizer(name, decay_groups(model, lr=0.01, weight_decay=0.1), lr=0.01, weight_decay=0.1)
    for _ in range(steps):
        model(torch.arange(6)[None]).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def test_adamw_is_torch_s_own_and_fused():
    _, optimizer = stepped("adamw", steps=0)
    assert type(optimizer) is torch.optim.AdamW
    assert [(group["lr"], group["weight_decay"], group["fused"]) for group in optimizer.param_groups] == [
        (0.01, 0.1, True),
        (0.01, 0.0, True),
    ]
    assert not has_own_slots(optimizer)


def test_large_moments_take_8_bits_and_small_ones_32():
    model, optimizer = stepped()
    assert type(optimizer) is bitsandbytes.optim.AdamW8bit
    state = optimizer.state
    large, small = state[model.mix.weight_hh_l0], state[model.head.bias]
    assert (large["state1"].dtype, small["state1"].dtype) == (torch.uint8, torch.float32)
    elements = model.mix.weight_hh_l0.numel()
    kept = [large[slot].nbytes for slot in ("state1", "state2", "absmax1", "absmax2")]
    assert sum(kept) == elements * 2 + 2 * 4 * -(-elements // 256)  # a quarter of float32 moments, and the scales


def test_the_state_survives_as_tensors_and_numbers_to_the_same_bits(tmp_path):
    model, optimizer = stepped(seed=1)
    path = checkpoint.save(tmp_path, model, optimizer, ResumeState(step=3))
    other, fresh = stepped(seed=2, steps=0)
    checkpoint.load(path, other, fresh)
    ours, theirs = (updates.state_tensors(m, o) for m, o in ((model, optimizer), (other, fresh)))
    assert ours.keys() == theirs.keys()
    assert {key.rpartition("|")[2] for key in ours} == {"state1", "state2", "absmax1", "absmax2", "qmap1", "qmap2"}
    for key, tensor in ours.items():
        assert tensor.dtype == theirs[key].dtype
        assert torch.equal(tensor, theirs[key]), key
    assert all(slots["step"] == 3 for slots in fresh.state.values())
    tables = {slots["qmap1"].data_ptr() for slots in fresh.state.values() if "qmap1" in slots}
    assert len(tables) == 1  # one table of code values for all, as the optimiser itself has it


def test_a_continued_run_has_the_bits_of_an_uninterrupted_one(tmp_path):
    options = {"optim": {"optimizer": "adamw_8bit", "max_steps": 8}, "save_every_steps": 4, "log_every_steps": 1}
    fit_tagger(tmp_path / "straight", model=make_tagger(width=WIDTH), **options)
    calls = []

    def step(model, batch):
        calls.append(None)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGTERM)
        return tagger_step(model, batch)

    with pytest.raises(SystemExit):
        fit_tagger(tmp_path / "cut", model=make_tagger(width=WIDTH), step=step, **options)
    fit_tagger(tmp_path / "cut", model=make_tagger(9, width=WIDTH), **options)
    for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
        one, two = (tmp_path / run / "checkpoints/step-00000008" / name for run in ("straight", "cut"))
        assert file_sha256(one) == file_sha256(two), name
    assert json.loads((tmp_path / "cut" / "card.json").read_text())["optimizer"] == "adamw_8bit"


def test_8_bit_moments_learn_nearly_what_32_bit_moments_learn(tmp_path):
    losses = {}
    for name in ("adamw", "adamw_8bit"):
        model = make_tagger(width=WIDTH, dropout=0.0)
        optim = {"optimizer": name, "max_steps": 40, "lr": 0.01}
        _, history = fit_tagger(tmp_path / name, model=model, optim=optim, log_every_steps=10)
        losses[name] = [value for _, value in history["train/loss"]]
    assert losses["adamw"][-1] < 0.5 * losses["adamw"][0]
    assert losses["adamw_8bit"] == pytest.approx(losses["adamw"], rel=0.05)
    assert losses["adamw_8bit"] != losses["adamw"]


def test_paged_moments_without_cuda_are_refused():
    groups = [{"params": [nn.Parameter(torch.zeros(3))]}]
    with pytest.raises(RequestError, match=r"paged_adamw_8bit and the model trains on cpu\. .*=adamw_8bit"):
        make_optimizer("paged_adamw_8bit", groups, lr=0.1, weight_decay=0.0)
