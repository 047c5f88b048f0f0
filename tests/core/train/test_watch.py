"""What the driver watches in a partly frozen model: gradients arrive, the quantised base stays, the card says it."""

import json
import signal

import bitsandbytes
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lightbox.errors import WorkError
from lightbox.files import file_sha256
from lightbox.testing.training import VOCABULARY, Tagger, fit_tagger, tagger_step
from lightbox.train import checkpoint, weights


class Spare(Tagger):
    """A tagger with a layer that nothing reads."""

    def __init__(self):
        super().__init__(dropout=0.0)
        self.spare = nn.Linear(3, 3)


class Stored(nn.Module):
    """A tagger whose output passes through a frozen 4-bit layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tagger = Tagger(dropout=0.0)
        self.wide = nn.Linear(VOCABULARY, 64)
        self.base = bitsandbytes.nn.Linear4bit(64, 64, quant_type="nf4", compute_dtype=torch.float32)
        self.base.to("cpu")  # this is what quantises
        self.base.requires_grad_(False)
        self.narrow = nn.Linear(64, VOCABULARY)

    def forward(self, ids):
        return self.narrow(self.base(self.wide(self.tagger(ids))))


def llama(seed=0, *, dropout=0.2):
    """A tiny Llama with LoRA, one projection trained in full, and two rows of its token table."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=False, **sizes))
    lora = LoraConfig(
        r=2,
        lora_alpha=4,
        lora_dropout=dropout,
        target_modules=["q_proj", "v_proj"],
        modules_to_save=["gate_proj"],
        trainable_token_indices={"embed_tokens": [3, 4]},
    )
    return get_peft_model(base, lora)


def llama_step(model, batch):
    labels = batch["labels"]
    logits = model(input_ids=batch["ids"]).logits
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    return loss, (labels != -100).sum(), {}


def test_a_trainable_tensor_without_gradient_is_named_where_a_part_is_frozen(tmp_path):
    model = Spare()
    model.norm.requires_grad_(False)
    calls = []

    def step(model, batch):
        calls.append(None)
        return tagger_step(model, batch)

    with pytest.raises(WorkError, match=r"No gradient reached 2 trainable .* spare\.weight, spare\.bias\. "):
        fit_tagger(tmp_path, model=model, step=step)
    assert len(calls) == 2
    assert checkpoint.latest(tmp_path / "checkpoints") is None


def test_a_model_that_trains_as_a_whole_may_hold_parts_without_use(tmp_path):
    model = Spare()
    before = model.spare.weight.clone()
    fit_tagger(tmp_path, model=model)
    assert torch.equal(model.spare.weight, before)


def test_steps_without_anything_to_learn_from_do_not_count(tmp_path):
    """LoRA's A has no gradient while B is 0, so two idle steps at the start must not condemn it."""
    calls = []

    def step(model, batch):
        calls.append(None)
        if len(calls) <= 2:
            batch = batch | {"labels": torch.full_like(batch["labels"], -100)}
        return llama_step(model, batch)

    _, history = fit_tagger(tmp_path, model=llama(), step=step, optim={"max_steps": 5})
    assert len(history["train/loss"]) == 2


def test_adapters_saved_modules_and_token_rows_continue_to_the_same_bits(tmp_path):
    options = {"optim": {"max_steps": 8}, "save_every_steps": 4}
    fit_tagger(tmp_path / "straight", model=llama(), step=llama_step, **options)
    calls = []

    def step(model, batch):
        calls.append(None)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGTERM)
        return llama_step(model, batch)

    with pytest.raises(SystemExit):
        fit_tagger(tmp_path / "cut", model=llama(), step=step, **options)
    fresh = llama()
    with torch.no_grad():
        for parameter in fresh.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)  # all of it must come from the checkpoint
    fit_tagger(tmp_path / "cut", model=fresh, step=llama_step, **options)
    for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
        one, two = (tmp_path / run / "checkpoints/step-00000008" / name for run in ("straight", "cut"))
        assert file_sha256(one) == file_sha256(two), name


def test_a_checkpoint_of_an_adapter_holds_what_trains_and_nothing_of_the_base(tmp_path):
    model = llama()
    fit_tagger(tmp_path, model=model, step=llama_step, optim={"max_steps": 2})
    stored = weights.read_tensors(checkpoint.latest(tmp_path / "checkpoints") / "model.safetensors")
    assert stored.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    kinds = {
        kind for kind in ("lora_A", "lora_B", "modules_to_save", "trainable_tokens") for name in stored if kind in name
    }
    assert kinds == {"lora_A", "lora_B", "modules_to_save", "trainable_tokens"}
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["trained"]["base_model.model.model.layers.*.self_attn.q_proj.lora_A.default.weight"] == 2 * 2 * 16
    assert sum(card["trained"].values()) == card["parameters_trained"] == sum(t.numel() for t in stored.values())


def test_scales_of_a_quantised_layer_are_neither_saved_nor_asked_for(tmp_path):
    model = Stored()
    assert "base.weight.absmax" in model.state_dict()
    fit_tagger(tmp_path, model=model, optim={"max_steps": 2}, save_every_steps=1)
    stored = weights.read_tensors(checkpoint.latest(tmp_path / "checkpoints") / "model.safetensors")
    assert not any(name.startswith("base.") for name in stored)
    fit_tagger(tmp_path, model=Stored(), optim={"max_steps": 2})
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["notes"] == ["continued from step 2"]
    around = sum(p.numel() for part in (model.tagger, model.wide, model.narrow) for p in part.parameters())
    assert card["parameters"] == around + 64 * 64 + 64  # two numbers in a byte, and the bias


def test_a_base_that_changes_in_training_is_named_at_the_end(tmp_path):
    def step(model, batch):
        with torch.no_grad():
            model.base.weight[5] ^= 1
        return tagger_step(model, batch)

    with pytest.raises(WorkError, match=r"stored weights of 1 quantised layers changed in training: base\. "):
        fit_tagger(tmp_path, model=Stored(), step=step, optim={"max_steps": 3})


def test_the_card_says_what_the_caller_knows(tmp_path):
    facts = {"attention": {"name": "sdpa", "reason": "no GPU"}, "quant": "nf4"}
    fit_tagger(tmp_path, optim={"max_steps": 1}, extras={"facts": facts})
    card = json.loads((tmp_path / "card.json").read_text())
    assert (card["attention"], card["quant"], card["optimizer"]) == (facts["attention"], "nf4", "adamw")
    assert card["processes"] == {"count": 1, "model": "whole in each"}
