"""Micro-batches of a partly frozen model: 8 of 1 give the gradient of 1 of 8, whatever the lengths."""

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lightbox.testing.training import VOCABULARY, fit_tagger, make_source


def adapted_llama(*, is_quantised):
    """A tiny Llama with LoRA, on a plain or an NF4 base."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes))
    if is_quantised:
        for layer in base.model.layers:
            layer.self_attn.q_proj = quantised(layer.self_attn.q_proj)
            layer.mlp.down_proj = quantised(layer.mlp.down_proj)
    return get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"]))


def quantised(linear):
    options = {"bias": False, "quant_type": "nf4", "compute_dtype": torch.float32}
    stored = Linear4bit(linear.in_features, linear.out_features, **options)
    stored.load_state_dict(linear.state_dict())
    stored.support_avx512bf16_for_cpu = False
    return stored.to("cpu")  # this is what quantises


def step(model, batch):
    logits = model(input_ids=batch["ids"]).logits
    labels = batch["labels"]
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    return loss, (labels != -100).sum(), {}


@pytest.mark.slow
@pytest.mark.parametrize("is_quantised", [False, True])
@pytest.mark.parametrize("is_bucketed", [False, True])
def test_eight_of_one_equal_one_of_eight_with_adapters(tmp_path, is_quantised, is_bucketed):
    runs = {}
    for micro in (0, 1):
        model, history = fit_tagger(
            tmp_path / str(micro),
            model=adapted_llama(is_quantised=is_quantised),
            source=make_source(batch_size=8, is_bucketed=is_bucketed),
            step=step,
            optim={"max_steps": 9, "batch_size": 8, "micro_batch_size": micro, "lr": 1e-3},
            log_every_steps=1,
        )
        runs[micro] = model, history
    for key in ("train/loss", "train/grad_norm"):
        gaps = [a - b for (_, a), (_, b) in zip(runs[0][1][key], runs[1][1][key], strict=True)]
        assert max(map(abs, gaps)) < 1e-5
        assert abs(sum(gaps)) / len(gaps) < 2e-6
    stored = [module.weight for module in runs[1][0].modules() if isinstance(module, Linear4bit)]
    assert [weight.dtype for weight in stored] == [torch.uint8] * 4 * is_quantised
    moved = 0
    for (name, one), two in zip(runs[0][0].named_parameters(), runs[1][0].parameters(), strict=True):
        if one.requires_grad:
            moved += 1
            assert torch.allclose(one, two, rtol=0, atol=1e-5), name
    assert moved == 2 * 2 * 3
