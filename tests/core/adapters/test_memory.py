"""The memory model: counts equal to the models' own, sizes as published formulas have them, and what it refuses."""

from dataclasses import fields, replace

import pytest
import torch
import transformers
from transformers import AutoConfig

from lightbox.adapters.memory.layers import packed_bytes
from lightbox.adapters.memory.prediction import GIB, PARTS, predict, state_bytes
from lightbox.adapters.memory.request import Request
from lightbox.backbones import sizes
from lightbox.backbones.families import BY_MODEL_TYPE, family_of
from lightbox.backbones.named import NAMED
from lightbox.backbones.quantisation import part_of
from lightbox.backbones.seq2seq import quiet_loading
from lightbox.backbones.sizes import DEFAULTS, Images, sizes_of
from lightbox.config import AdapterConfig, OptimConfig, TrainConfig
from lightbox.errors import RequestError
from lightbox.paper.forecast import advice, adviser, largest, reductions
from lightbox.report.gpus import largest_batches

QLORA = AdapterConfig(kind="lora", quant="nf4")


def request_of(name, **changes):
    return Request(NAMED[name], family_of(NAMED[name], name=name), **({"adapter": QLORA} | changes))


def bare_model(name):
    config = NAMED[name]
    with torch.device("meta"), quiet_loading():
        return getattr(transformers, BY_MODEL_TYPE[config["model_type"]].model_class)(AutoConfig.for_model(**config))


def group_of(path, family):
    part = part_of(path, family)
    if part in ("vision", "projector"):
        return "vision weights"
    is_table = part == "head" or path == f"{family.embeddings}.weight" or "embed_positions" in path
    return "table and head" if is_table else "language weights"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMED if name != "lingshu-7b"])  # the same as Qwen2.5-VL
def test_numbers_of_every_part_are_those_of_the_model_itself(name):
    """Up to biases and small tables, which are left out."""
    family, wanted = family_of(NAMED[name], name=name), {}
    for path, parameter in bare_model(name).named_parameters():
        group = "vision weights" if path == "model.image_newline" else group_of(path, family)
        wanted[group] = wanted.get(group, 0) + parameter.numel()
    assert predict(request_of(name, tokens=4096, device="cpu")).counts == pytest.approx(wanted, rel=5e-3)


@pytest.mark.parametrize("kind", DEFAULTS)
def test_what_a_file_leaves_out_is_the_default_of_transformers(kind):
    config = AutoConfig.for_model(kind)
    for key, ours in DEFAULTS[kind].items():
        theirs = getattr(config, key, None)
        if ours is None:  # theirs is made from the other sizes
            continue
        assert (list(theirs) if isinstance(theirs, tuple) else theirs or 0) == (
            list(ours) if isinstance(ours, tuple) else ours or 0
        ), key


def test_adapters_have_the_counts_that_others_print():
    """LLaVA with rank 128 in every linear layer: 319,815,680 numbers; MedGemma-4B with rank 16: 29.8 million."""
    wide = request_of("llava-1.5-7b", adapter=replace(QLORA, r=128))
    assert predict(wide).trained == 319_815_680
    assert predict(request_of("medgemma-4b")).trained == pytest.approx(29.8e6, rel=1e-3)


def test_nf4_with_double_quantisation_takes_half_a_byte_and_the_scales():
    report = predict(request_of("llava-1.5-7b"))
    assert report.parts["quantised weights"] / report.counts["language weights"] == pytest.approx(0.5159, abs=3e-4)
    assert packed_bytes("nf4", 64 * 256, 64) == 64 * 128 + 256 + 4 * (1 + 16 + 256 + 1)
    eight = predict(request_of("llava-1.5-7b", adapter=replace(QLORA, quant="int8")))
    assert eight.parts["quantised weights"] / eight.counts["language weights"] == pytest.approx(1.0, abs=2e-3)


def by_hand(name, batch, tokens, supervised=64):
    """The usual estimate in closed form: checkpointed layers, rank 16 in float32 with AdamW, chosen rows only."""
    report, config = predict(request_of(name)), sizes.text_of(NAMED[name])
    rows, width, inner, layers = batch * tokens, config.hidden_size, config.intermediate_size, config.num_hidden_layers
    counts = report.counts
    rest = sum(counts.values()) - counts["language weights"]
    largest = width * max(inner, config.num_attention_heads * config.head_width)
    weights = 0.5159 * counts["language weights"] + 2 * rest
    adapters = 12 * report.trained
    layer = 2 * rows * (12 * width + 4 * inner)
    logits = 12 * batch * supervised * config.vocab_size
    return weights + adapters + 2 * rows * width * layers + max(layer + 2 * largest, logits)


@pytest.mark.parametrize("name", ["llava-1.5-7b", "qwen2.5-vl-7b", "medgemma-4b"])
@pytest.mark.parametrize("batch", [1, 4])
def test_the_step_agrees_with_the_closed_formula(name, batch):
    assert predict(request_of(name, batch=batch)).tensors == pytest.approx(by_hand(name, batch, 1024), rel=0.07)


def test_kept_inputs_are_one_value_a_layer():
    report = predict(request_of("llava-1.5-7b", tokens=1000))
    assert report.parts["kept layer inputs"] == 2 * 1000 * 4096 * 32


def test_full_training_takes_weights_gradients_and_two_moments():
    report = predict(request_of("unifiedqa-t5-base", adapter=AdapterConfig(), dtype="fp32", tokens=16, supervised=4))
    numbers = sum(report.counts.values())
    assert report.trained == numbers
    assert report.parts["optimiser"] == 8 * numbers
    # the table is the head too: a gradient of each use and their sum are there together
    assert report.tensors == pytest.approx(16 * numbers + 2 * 4 * 32128 * 768, rel=0.001)


def test_gradients_are_there_from_the_first_pass_on_where_a_step_has_several():
    one = request_of("unifiedqa-t5-base", adapter=AdapterConfig(), dtype="fp32", batch=64, tokens=256, device="cpu")
    many = predict(replace(one, accumulates=True))
    assert many.total > predict(one).total
    assert many.parts["gradients"] >= 4 * many.trained


@pytest.mark.parametrize(
    ("changes", "less"),
    [
        ({"keep": 0.25}, True),
        ({"optimizer": "adamw_8bit"}, True),
        ({"adapter": AdapterConfig(kind="lora", quant="int8")}, False),
        ({"adapter": AdapterConfig(kind="lora")}, False),
        ({"adapter": replace(QLORA, use_fused=False)}, False),
        ({"adapter": replace(QLORA, use_dora=True)}, False),
        ({"adapter": replace(QLORA, projector="full")}, False),
        ({"checkpoint_layers": False}, False),
        ({"attention": "eager"}, False),
        ({"dtype": "fp32"}, False),
        ({"tokens": 2048}, False),
    ],
)
def test_a_setting_moves_the_peak_in_the_direction_that_it_should(changes, less):
    base = request_of("llava-1.5-7b", batch=4, supervised=32)
    change = predict(replace(base, **changes)).total - predict(base).total
    assert change < 0 if less else change > 0


def test_logits_of_all_positions_take_more_than_a_layer():
    chosen, whole = (predict(request_of("qwen2.5-vl-7b", supervised=count)) for count in (32, 1000))
    assert whole.parts["logits"] == pytest.approx(12 * 1000 * 152064, rel=0.01)
    assert largest(whole) == "quantised weights"
    assert whole.total - chosen.total > GIB


def test_pruned_visual_tokens_leave_the_row_and_not_the_tower():
    base = request_of("llava-1.5-7b")
    kept = replace(base, keep=0.25)
    assert (kept.row_tokens, kept.row_images.visual, kept.row_images.tiles) == (1024 - 432, 144, 1)
    assert (base.row_tokens, base.row_images.visual) == (1024, 576)


@pytest.mark.parametrize(
    ("name", "visual", "other"),
    [
        ("llava-1.5-7b", 576, {"tiles": 1}),
        ("llava-next-7b", 576 + 48 * 49, {"tiles": 5}),
        ("qwen2.5-vl-7b", 576, {"patches": 2304}),
        ("medgemma-4b", 256, {"tiles": 1}),
        ("florence-2-base", 577, {"image_px": 768}),
        ("unifiedqa-t5-base", 0, {"tiles": 0}),
    ],
)
def test_an_image_costs_what_the_family_says(name, visual, other):
    image = sizes_of(NAMED[name], family_of(NAMED[name], name=name), Images())
    assert image.visual == visual
    assert {key: getattr(image, key) for key in other} == other


def test_a_row_without_an_image_runs_no_tower():
    text = predict(request_of("qwen2.5-vl-7b", images=Images(count=0)))
    assert "vision" not in text.parts
    assert text.parts["vision weights"] > GIB


def test_the_largest_batch_is_the_last_that_fits():
    request, usable = request_of("qwen2.5-vl-7b"), 11 * GIB
    largest, none = largest_batches(request, [usable, 6 * GIB])
    assert none == 0
    assert predict(replace(request, batch=largest)).total <= usable < predict(replace(request, batch=largest + 1)).total


def test_parts_are_known_and_only_a_card_has_a_context():
    card, cpu = predict(request_of("llava-1.5-7b")), predict(request_of("llava-1.5-7b", device="cpu"))
    assert list(card.parts) == [part for part in PARTS if part in card.parts]
    assert "context" not in cpu.parts
    assert card.tensors == card.total - card.parts["context"]


def test_moments_of_8_bits_take_two_bytes_and_the_scales():
    assert state_bytes("adamw", 10_000, 4) == 80_000
    assert state_bytes("adamw_8bit", 10_000, 4) == 20_000 + 8 * 40
    assert state_bytes("adamw_8bit", 4_000, 4) == 32_000


def test_advice_names_the_largest_part_and_the_first_setting_that_fits():
    request = request_of("llava-1.5-7b", batch=32, checkpoint_layers=False)
    said = advice(predict(request), request, 11 * GIB)
    assert "predicted most are layers" in said
    assert "; train.checkpoint_layers=true and optim.micro_batch_size=8 would take " in said
    fitting = dict(reductions(request))["train.checkpoint_layers=true and optim.micro_batch_size=8"]
    assert (fitting.batch, fitting.checkpoint_layers) == (8, True)
    assert predict(fitting).total <= 11 * GIB


def test_advice_says_so_where_nothing_fits():
    request = request_of("llava-1.5-7b", adapter=AdapterConfig(), dtype="fp32")
    said = advice(predict(request), request, 2 * GIB)
    assert "nothing fits 2.0 GiB, the smallest is adapter.kind=lora and adapter.quant=nf4" in said


def test_an_adviser_speaks_of_the_items_that_it_is_asked_about():
    say = adviser(request_of("qwen2.5-vl-7b"), 11 * GIB)
    assert "optim.micro_batch_size=4 would take" in say(32)
    assert say(32) != say(64)


def test_settings_of_an_advice_are_settings_of_a_run():
    settings = {"train": TrainConfig, "optim": OptimConfig, "adapter": AdapterConfig}
    request = request_of("llava-1.5-7b", adapter=AdapterConfig(), batch=2, checkpoint_layers=False)
    *_, (names, _) = reductions(request)
    keys = [pair.partition("=")[0] for pair in names.split(" and ")]
    assert keys[-1] == "tokens a row"
    for section, name in (key.split(".") for key in keys[:-1]):
        assert name in {field.name for field in fields(settings[section])}
    assert len(keys) == 6


def test_a_config_without_a_tower_or_with_an_unknown_body_is_refused():
    config = dict(NAMED["llava-1.5-7b"])
    with pytest.raises(RequestError, match="without vision_config"):
        sizes.vision_of({key: value for key, value in config.items() if key != "vision_config"})
    with pytest.raises(RequestError, match="model_type 'mamba'"):
        sizes.text_of(config | {"text_config": {"model_type": "mamba"}})


def test_older_files_hold_the_sizes_of_the_text_part_at_the_top():
    nested = NAMED["qwen2.5-vl-7b"]
    flat = {key: value for key, value in nested.items() if key != "text_config"} | {
        key: value for key, value in nested["text_config"].items() if key != "model_type"
    }
    flat["vision_config"] = nested["vision_config"] | {"model_type": "qwen2_5_vl"}
    family = family_of(flat, name="")
    assert predict(Request(flat, family, QLORA)).parts == predict(Request(nested, family, QLORA)).parts
