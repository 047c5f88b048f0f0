"""The closed form against the trace of the real model, in the sizes of published models."""

import random

import pytest
import torch

from lightbox.adapters.memory.prediction import SPREAD, predict
from lightbox.adapters.memory.request import Request
from lightbox.backbones.families import family_of
from lightbox.backbones.named import NAMED
from lightbox.backbones.published import merged
from lightbox.backbones.sizes import Images
from lightbox.bench.memory_trace import trace
from lightbox.config import AdapterConfig

FAMILIES = (
    "llava-1.5-7b",
    "llava-med-7b",
    "llava-next-7b",
    "qwen2-vl-7b",
    "qwen2.5-vl-7b",
    "medgemma-4b",
    "florence-2-base",
    "florence-2-large",
    "unifiedqa-t5-base",
    "unifiedqa-t5-large",
)
TOKENS = {"llava-next-7b": (3072, 4000), "florence-2-base": (600, 1000), "florence-2-large": (600, 1000)}
TOKENS |= {"unifiedqa-t5-base": (128, 512), "unifiedqa-t5-large": (128, 512)}


def of_fewer_layers(name, draw):
    """Published widths, heads and vocabularies; only how often a layer is repeated is less, which costs time alone."""
    layers, others = draw.choice([2, 3]), draw.choice([1, 2])
    if name.startswith("unifiedqa"):
        return {"num_layers": layers, "num_decoder_layers": others}
    if name.startswith("florence"):
        text = {"encoder_layers": layers, "decoder_layers": others}
        return {"text_config": text, "vision_config": {"depths": [1, 1, 1, 1]}}
    text = {"num_hidden_layers": layers}
    if name == "medgemma-4b":
        text["layer_types"] = ["sliding_attention"] * (layers - 1) + ["full_attention"]
    vision = {"num_hidden_layers": others}
    if name.startswith("qwen"):
        vision = {"depth": others} | ({"fullatt_block_indexes": [others - 1]} if name.startswith("qwen2.5") else {})
    return {"text_config": text, "vision_config": vision}


def drawn(seed):
    """A step of a published model: any batch, length, adapter, precision, device."""
    draw, name = random.Random(seed), FAMILIES[seed % len(FAMILIES)]
    config, is_text = merged(NAMED[name], of_fewer_layers(name, draw)), name.startswith("unifiedqa")
    kind = draw.choice(["none", "lora", "lora", "lora"])
    quant = "none" if kind == "none" else draw.choice(["none", "nf4", "nf4", "int8"])
    modes = ["frozen"] if kind == "none" or is_text else ["frozen", "full", "lora"]
    dtypes = ["fp32", "bf16", "bf16", "fp16"]
    adapter = AdapterConfig(
        kind=kind,
        quant=quant,
        r=draw.choice([8, 16, 64]),
        use_fused=draw.random() < 0.7,
        dropout_prob=draw.choice([0.0, 0.0, 0.1]),
        projector=draw.choice([mode for mode in modes if mode != "lora" or name != "medgemma-4b"]),
        use_dora=kind == "lora" and quant != "int8" and draw.random() < 0.1,
    )
    return Request(
        config,
        family_of(config, name=name),
        adapter,
        batch=draw.choice([1, 2, 3, 6]),
        tokens=draw.choice(TOKENS.get(name, (700, 1024, 2048))),
        supervised=draw.choice([16, 64, 100]),
        dtype=draw.choice(dtypes[:3] if is_text else dtypes),  # fp16 widens layers of T5, which a run refuses
        optimizer=draw.choice(["adamw", "adamw", "adamw_8bit"]),
        checkpoint_layers=draw.random() < 0.5,
        device=draw.choice(["cuda", "cuda", "cpu"]),
        attention=draw.choice(["sdpa"] * 5 + ["eager"]),
        images=Images(count=draw.choice([1, 1, 1, 0]) if not is_text and name != "llava-next-7b" else 1),
        accumulates=draw.random() < 0.2,
    )


def error_of(request):
    return predict(request).tensors / trace(request) - 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12000, 12030))
def test_a_step_drawn_at_random_is_within_the_promise(seed):
    assert abs(error_of(drawn(seed))) < SPREAD


@pytest.mark.slow
def test_a_whole_7b_model_is_within_the_promise():
    config = NAMED["qwen2.5-vl-7b"]
    request = Request(config, family_of(config, name=""), AdapterConfig(kind="lora", quant="nf4"), batch=2)
    assert abs(error_of(request)) < SPREAD


def test_one_published_layer_is_within_the_promise():
    config = merged(
        NAMED["llava-1.5-7b"], {"text_config": {"num_hidden_layers": 1}, "vision_config": {"num_hidden_layers": 1}}
    )
    config["vision_feature_layer"] = -1
    request = Request(config, family_of(config, name=""), AdapterConfig(kind="lora"), checkpoint_layers=False)
    assert abs(error_of(request)) < SPREAD


def test_a_trace_leaves_nothing_behind():
    attend, drop = torch.nn.functional.scaled_dot_product_attention, torch.nn.functional.dropout
    config = NAMED["unifiedqa-t5-base"] | {"num_layers": 1, "num_decoder_layers": 1}
    adapter = AdapterConfig(kind="lora", quant="nf4")
    trace(Request(config, family_of(config, name=""), adapter, tokens=16, supervised=4, optimizer="adamw_8bit"))
    assert torch.nn.functional.scaled_dot_product_attention is attend
    assert torch.nn.functional.dropout is drop
    from bitsandbytes import functional  # noqa: PLC0415

    assert not any(table.is_meta for table in functional.name2qmap.values())
