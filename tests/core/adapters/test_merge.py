import json
import weakref

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file

from lightbox.adapters import artifact, merge
from lightbox.adapters.attach import attach
from lightbox.adapters.merge import merge_to_16_bit
from lightbox.adapters.tokens import add_tokens
from lightbox.backbones.loading import load
from lightbox.backbones.published import GENERATORS
from lightbox.backbones.quantisation import quantised_as
from lightbox.backbones.weights import digest_of_weights
from lightbox.config import AdapterConfig
from lightbox.errors import RequestError, WorkError

LLAVA = "llava-1.5-7b"
LIMITS = {"fp32": 1e-4, "bf16": 3e-2}
NOISE = ("dropout", "activation_dropout", "attention_dropout")


def tensor_names(folder):
    return {name for file in folder.glob("*.safetensors") for name in load_file(file)}


def in_training_mode_without_noise(backbone):
    """Training mode, in which int8 is computed from dequantised weights on the CPU, with nothing dropped."""
    for module in backbone.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in NOISE:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return backbone.with_model(backbone.model.train())


@pytest.mark.parametrize("dtype", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("quant", ["none", "nf4", "int8"])
@pytest.mark.parametrize("name", GENERATORS)
def test_a_merged_model_computes_what_base_and_adapter_do(attached, saved, logits_of, tmp_path, name, quant, dtype):
    mode = "full" if name != "unifiedqa-t5-base" else "frozen"
    backbone, _ = attached(name, quant=quant, dtype=dtype, projector=mode)
    wanted = logits_of(in_training_mode_without_noise(backbone))
    merge_to_16_bit(backbone, tmp_path / "merged", dtype=dtype)
    assert tensor_names(tmp_path / "merged") == tensor_names(saved(name))
    merged = load(str(tmp_path / "merged"), dtype=dtype)
    assert {quantised_as(m) for m in merged.core.modules()} == {"none"}
    difference = (logits_of(merged).float() - wanted.float()).abs().max()
    # the small T5's logits reach 6, where neighbouring numbers of bf16 are 0.03 apart; all others stay near 1
    scale = float(wanted.abs().max()) if name == "unifiedqa-t5-base" else 1.0
    assert difference < LIMITS[dtype] * scale, (difference, scale)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"use_rslora": True},
        {"projector": "lora"},
        {"targets": r"model\.language_model\..*\.v_proj"},  # other layers are dequantised without an addition
    ],
)
@pytest.mark.parametrize("quant", ["none", "nf4"])
def test_every_kind_of_addition_is_merged(attached, logits_of, tmp_path, quant, settings):
    backbone, _ = attached(LLAVA, quant=quant, **settings)
    merge_to_16_bit(backbone, tmp_path / "merged", dtype="fp32")
    assert (logits_of(load(str(tmp_path / "merged"))) - logits_of(backbone)).abs().max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", [LLAVA, "qwen2.5-vl-7b", "florence-2-base"])
def test_rows_of_new_tokens_are_merged_and_their_tokens_saved(loaded, logits_of, tmp_path, name):
    backbone = loaded(name, quant="nf4")
    tokens = add_tokens(backbone.core, backbone.tokenizer, [f"<n{i}>" for i in range(40)])  # the table grows
    trained = attach(backbone, AdapterConfig(kind="lora", quant="nf4", r=4), new_token_ids=list(tokens.values()))
    with torch.no_grad():
        for parameter_name, parameter in trained.model.named_parameters():
            if "trainable_tokens_delta" in parameter_name:
                parameter.add_(0.1)
    merge_to_16_bit(trained, tmp_path / "merged", dtype="fp32")
    merged = load(str(tmp_path / "merged"))
    assert merged.tokenizer.convert_tokens_to_ids("<n7>") == tokens["<n7>"]
    assert (logits_of(merged) - logits_of(trained)).abs().max() < 1e-4


def test_a_merged_folder_is_plain_transformers_in_the_dtype_that_was_asked(attached, batch_of, tmp_path):
    backbone, _ = attached("qwen2.5-vl-7b", quant="nf4")
    folder = merge_to_16_bit(backbone, tmp_path / "merged", dtype="fp16")
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "float16"
    assert config["architectures"] == ["Qwen2_5_VLForConditionalGeneration"]
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.float16}
    model, found = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype="auto", output_loading_info=True
    )
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert model.dtype == torch.float16
    record = json.loads((folder / "manifest.json").read_text())
    assert (record["kind"], record["stored_as"], record["base"]["digest"]) == (
        "merged",
        "fp16",
        digest_of_weights(backbone.name),
    )
    assert "model.safetensors" in record["files"]


def test_merging_leaves_the_model_in_memory_as_it_was(attached, logits_of, tmp_path):
    for quant in ("none", "nf4"):
        backbone, _ = attached(LLAVA, quant=quant, projector="lora")
        before = logits_of(backbone)
        merge_to_16_bit(backbone, tmp_path / quant, dtype="fp32")
        assert torch.equal(logits_of(backbone), before)


def test_a_large_model_is_written_in_parts_with_an_index(attached, logits_of, tmp_path):
    backbone, _ = attached(LLAVA, quant="nf4")
    folder = merge_to_16_bit(backbone, tmp_path / "merged", dtype="fp32", max_shard_gib=100 / (1 << 20))
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 3
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            sizes = [tensors.get_tensor(key).nbytes for key in tensors.keys()]
        assert sum(sizes) <= 100 * 1024 or len(sizes) == 1
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {file.name for file in files}
    assert (logits_of(load(str(folder))) - logits_of(backbone)).abs().max() < 1e-4


def test_no_more_than_one_file_of_tensors_is_held(attached, tmp_path, monkeypatch):
    """Peak of what merging holds: a file of tensors, however many layers the model has."""
    backbone, _ = attached(LLAVA, quant="nf4")
    alive, most = {}, []
    original = merge.merged_tensor

    def counted(base, name):
        tensor = original(base, name).clone()
        alive[name] = tensor.nbytes
        most.append(sum(alive.values()))
        weakref.finalize(tensor, alive.pop, name)
        return tensor

    monkeypatch.setattr(merge, "merged_tensor", counted)
    merge_to_16_bit(backbone, tmp_path / "merged", dtype="fp32", max_shard_gib=100 / (1 << 20))
    largest = max(p.numel() for p in backbone.core.parameters()) * 4
    assert len(most) > 60
    assert max(most) <= 100 * 1024 + largest


def test_repacked_weights_are_not_merged(attached, tmp_path):
    backbone, _ = attached(LLAVA, quant="nf4")
    layer = backbone.part("model.language_model.layers.0.mlp.up_proj").get_base_layer()
    layer.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(WorkError, match="4-bit weights of 1 layers were repacked"):
        merge_to_16_bit(backbone, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_model_without_an_adapter_or_merged_in_memory_is_refused(loaded, attached, tmp_path):
    with pytest.raises(RequestError, match="has no adapter"):
        merge_to_16_bit(loaded(LLAVA), tmp_path / "merged")
    backbone, _ = attached(LLAVA)
    backbone.model.merge_adapter()
    with pytest.raises(RequestError, match="Adapters are merged into 14 layers"):
        merge_to_16_bit(backbone, tmp_path / "merged")


def test_4_bit_is_no_dtype_to_merge_into(attached, tmp_path):
    backbone, _ = attached(LLAVA, quant="nf4")
    with pytest.raises(RequestError, match="dtype is 'nf4'. The choices are fp32, bf16, fp16"):
        merge_to_16_bit(backbone, tmp_path / "merged", dtype="nf4")


def test_an_adapter_s_folder_is_not_overwritten_by_a_merged_model(attached, tmp_path):
    backbone, adapter = attached(LLAVA)
    artifact.save(tmp_path / "adapter", backbone, adapter)
    with pytest.raises(RequestError, match="It does not hold merged weights"):
        merge_to_16_bit(backbone, tmp_path / "adapter")
