"""The fusion is the paper's, leaves T5 alone when it is off, and survives a reload."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from lightbox.backbones.rows import VlmBatch
from lightbox.backbones.seq2seq import load_seq2seq, quiet_loading
from lightbox.backbones.t5 import FusedT5Backbone
from medthink.model import MedThinkT5
from medthink.objective import target_loss

WIDTH = 24


@pytest.fixture
def fused(t5_folder):
    torch.manual_seed(0)
    model, _ = load_seq2seq(
        str(t5_folder), model_class=MedThinkT5, allow_missing=r"fusion\.", vision_width=WIDTH, dropout_rate=0.0
    )
    return model


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 20, (3, 9), generator=generator)
    ids[1, 6:], ids[2, 4:] = 0, 0
    labels = torch.randint(4, 20, (3, 7), generator=generator)
    labels[1, 5:] = -100
    vision = torch.randn(3, 16, WIDTH, generator=generator)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": labels, "vision": vision}


def generate_greedy(model, input_ids, attention_mask, vision, *, max_new_tokens):
    """What `FusedT5Backbone.answer` makes of a batch, as ids."""
    backbone = FusedT5Backbone.__new__(FusedT5Backbone)
    backbone.model = model
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "vision": vision}
    inputs = backbone.generation_inputs(VlmBatch(inputs))
    return model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1)[:, 1:]


def shut_gate(model):
    with torch.no_grad():
        model.fusion.gate.weight.zero_()
        model.fusion.gate.bias.fill_(-200.0)  # sigmoid is 0 exactly in float32


def test_closed_gate_reproduces_the_plain_t5_exactly(fused, batch, t5_folder):
    plain, _ = load_seq2seq(str(t5_folder), dropout_rate=0.0)
    shut_gate(fused)
    with torch.no_grad():
        text_only = plain(**{k: v for k, v in batch.items() if k != "vision"}).logits
        assert torch.equal(fused(**batch).logits, text_only)
        assert torch.equal(fused(**(batch | {"vision": None})).logits, text_only)


def test_fusion_is_the_formula_of_the_paper(fused, batch):
    """Single-head attention written out, then F = (1 - lambda) H + lambda A."""
    fusion, vision = fused.fusion, batch["vision"]
    text = torch.randn(3, 9, fused.config.d_model, generator=torch.Generator().manual_seed(2))
    d = text.shape[-1]
    wq, wk, wv = fusion.attend.in_proj_weight.split(d)
    seen = vision @ fusion.project.weight.T + fusion.project.bias
    weights = torch.softmax(text @ wq.T @ (seen @ wk.T).transpose(1, 2) / d**0.5, dim=-1)
    attended = (weights @ (seen @ wv.T)) @ fusion.attend.out_proj.weight.T
    share = torch.sigmoid(F.linear(torch.cat([text, attended], -1), fusion.gate.weight, fusion.gate.bias))
    torch.testing.assert_close(fusion(text, vision), (1 - share) * text + share * attended)


def test_new_parameters_are_those_of_the_paper(fused):
    d = fused.config.d_model
    count = sum(p.numel() for p in fused.fusion.parameters())
    assert count == (WIDTH * d + d) + (4 * d * d + 4 * d) + (2 * d * d + d)
    assert fused.fusion.attend.num_heads == 1


def test_paper_sizes_give_the_papers_parameter_count():
    from_dossier = 197_376 + 2_362_368 + 1_180_416
    d, c = 768, 256
    assert (c * d + d) + (4 * d * d + 4 * d) + (2 * d * d + d) == from_dossier


def test_missing_gate_starts_half_open_and_everything_else_is_finite(fused):
    assert fused.fusion.gate.bias.tolist() == [0.0] * fused.config.d_model
    for name, parameter in fused.fusion.named_parameters():
        assert torch.isfinite(parameter).all(), name
        if name.endswith("weight"):
            assert 0 < parameter.abs().max() < 1, name


def test_fresh_model_starts_at_the_configured_gate(fused):
    fused.config.gate_bias = -1.5
    fresh = MedThinkT5(fused.config)
    assert set(fresh.fusion.gate.bias.tolist()) == {-1.5}
    assert fresh.fusion.project.weight.abs().max() <= WIDTH**-0.5


def test_trained_gate_survives_a_reload(fused, tmp_path, t5_folder):
    with torch.no_grad():
        for parameter in fused.fusion.parameters():
            parameter.add_(0.123)
    with quiet_loading():
        fused.save_pretrained(tmp_path)
        load_seq2seq(str(t5_folder))[1].save_pretrained(tmp_path)
    again, _ = load_seq2seq(str(tmp_path), model_class=MedThinkT5)
    for (name, before), (_, after) in zip(fused.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(before, after), name
    assert again.fusion.gate.bias[0].item() == pytest.approx(0.123)


def test_only_what_the_file_lacks_is_initialised(fused, tmp_path, t5_folder):
    """A file with a trained gate weight and no gate bias: the weight stays, the bias starts at 0."""
    with torch.no_grad():
        fused.fusion.gate.weight.fill_(0.5)
        fused.fusion.gate.bias.fill_(3.0)
    with quiet_loading():
        fused.save_pretrained(tmp_path)
        load_seq2seq(str(t5_folder))[1].save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["fusion.gate.bias"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again, _ = load_seq2seq(str(tmp_path), model_class=MedThinkT5, allow_missing=r"fusion\.")
    assert set(again.fusion.gate.weight.flatten().tolist()) == {0.5}
    assert set(again.fusion.gate.bias.tolist()) == {0.0}


def test_arms_of_a_seed_start_alike(t5_folder):
    def fusion_of(seed):
        torch.manual_seed(seed)
        return load_seq2seq(str(t5_folder), model_class=MedThinkT5, allow_missing=r"fusion\.", vision_width=WIDTH)[
            0
        ].fusion.state_dict()

    one, two, other = fusion_of(0), fusion_of(0), fusion_of(1)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["attend.in_proj_weight"], other["attend.in_proj_weight"])


@pytest.mark.parametrize("with_vision", [True, False])
def test_cached_generation_equals_step_by_step(fused, batch, with_vision):
    given = (batch["input_ids"], batch["attention_mask"], batch["vision"] if with_vision else None)
    cached = generate_greedy(fused, *given, max_new_tokens=8)
    ids = torch.zeros((3, 1), dtype=torch.long)
    ended = torch.zeros(3, dtype=torch.bool)
    with torch.no_grad():
        for _ in range(cached.shape[1]):
            logits = fused(*given, decoder_input_ids=ids).logits[:, -1]
            step = logits.argmax(dim=-1).masked_fill(ended, 0)
            ids, ended = torch.cat([ids, step[:, None]], dim=1), ended | (step == 1)
    assert torch.equal(ids[:, 1:], cached)


def test_vision_reaches_the_answer(fused, batch):
    with torch.no_grad():
        fused.fusion.gate.bias.fill_(0.0)
        seen = fused(**batch).logits
        other = fused(**(batch | {"vision": batch["vision"].flip(0)})).logits
    assert not torch.allclose(seen, other)


def test_all_parameters_learn_and_the_gate_opens_through_its_gradient(fused, batch):
    fused.train()
    logits = fused(**{k: v for k, v in batch.items() if k != "labels"}, decoder_input_ids=batch["labels"].clamp(min=0))
    total, tokens, _ = target_loss(logits.logits, batch["labels"])
    (total / tokens).backward()
    still = [name for name, p in fused.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # keys get one shared bias, which softmax ignores; everything else must move
    assert still == []


@pytest.mark.parametrize("extra", [1, 5])
def test_padding_changes_neither_loss_nor_generation(fused, batch, extra):
    wide = dict(batch)
    for name, value in (("input_ids", 0), ("attention_mask", 0), ("labels", -100)):
        wide[name] = F.pad(batch[name], (0, extra), value=value)

    def loss(given):
        with torch.no_grad():
            return target_loss(fused(**given).logits, given["labels"])[0]

    torch.testing.assert_close(loss(batch), loss(wide), atol=1e-4, rtol=1e-6)
    made = [
        generate_greedy(fused, *(b[k] for k in ("input_ids", "attention_mask", "vision")), max_new_tokens=5)
        for b in (batch, wide)
    ]
    assert torch.equal(*made)
