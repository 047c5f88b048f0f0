import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from lightbox.adapters import artifact, guards
from lightbox.adapters.attach import attach
from lightbox.adapters.manifest import write_manifest
from lightbox.adapters.merge import merge_to_16_bit
from lightbox.adapters.tokens import add_tokens
from lightbox.backbones.loading import load
from lightbox.backbones.weights import digest_of_weights
from lightbox.config import AdapterConfig
from lightbox.errors import RequestError, WorkError
from lightbox.testing.shrunk import save_shrunk

NAMES = ["llava-1.5-7b", "qwen2.5-vl-7b", "florence-2-base"]
LLAVA = "llava-1.5-7b"


@pytest.fixture
def kept(attached, tmp_path):
    """A saved adapter of the small LLaVA, its backbone and its settings."""
    backbone, adapter = attached(LLAVA, quant="nf4")
    return artifact.save(tmp_path / "adapter", backbone, adapter), backbone, adapter


@pytest.mark.parametrize("dtype", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("quant", ["none", "nf4", "int8"])
@pytest.mark.parametrize("name", NAMES)
def test_what_was_saved_loads_bit_by_bit(loaded, attached, logits_of, tmp_path, name, quant, dtype):
    backbone, adapter = attached(name, quant=quant, dtype=dtype, projector="full")
    with torch.no_grad():
        for parameter_name, parameter in backbone.model.named_parameters():
            if "modules_to_save" in parameter_name:
                parameter.mul_(1.001)  # not a number of bf16 any more
    artifact.save(tmp_path / "adapter", backbone, adapter)
    again = artifact.load(tmp_path / "adapter", loaded(name, quant=quant, dtype=dtype))
    wanted, found = (artifact.trained_state(b.model) for b in (backbone, again))
    assert wanted.keys() == found.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in wanted.items())
    assert any(".multi_modal_projector." in key or ".merger." in key for key in wanted)
    assert torch.equal(logits_of(again), logits_of(backbone.with_model(backbone.model.eval())))
    assert not any(p.requires_grad for p in again.model.parameters())


def test_training_goes_on_from_a_loaded_adapter(kept, loaded, batch_of):
    folder, backbone, adapter = kept
    again = artifact.load(folder, loaded(LLAVA, quant="nf4"), is_trainable=True, checkpoint_layers=True)
    guards.check_trainable(again.model, again.family, adapter)
    again.model.train()
    again.loss(batch_of(again))[0].backward()
    assert all(p.grad is not None for p in again.model.parameters() if p.requires_grad)
    assert all(layer.gradient_checkpointing for layer in again.part("model.language_model.layers"))


def test_the_manifest_says_what_the_adapter_belongs_to(kept, saved):
    folder, backbone, _ = kept
    record = json.loads((folder / "manifest.json").read_text())
    assert record["base"] == {
        "name": str(saved(LLAVA)),
        "revision": "",
        "digest": digest_of_weights(str(saved(LLAVA))),
        "family": "llava",
    }
    assert (record["kind"], record["quant"], record["dtype"]) == ("adapter", "nf4", "float32")
    assert record["attention"]["name"] == backbone.attention.name
    assert record["pruning"] is None
    assert record["new_tokens"] == {}
    assert record["adapter"]["r"] == 4
    assert set(record["files"]) == {"adapter_model.safetensors", "adapter_config.json"}
    assert record["versions"]["peft"].startswith("0.21")
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    ]


def test_settings_of_pruning_are_kept(attached, tmp_path):
    backbone, adapter = attached(LLAVA)
    artifact.save(tmp_path / "a", backbone, adapter, pruning={"method": "uniform", "keep": 64})
    assert json.loads((tmp_path / "a" / "manifest.json").read_text())["pruning"] == {"method": "uniform", "keep": 64}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_plain_peft_loads_the_folder_too(loaded, attached, logits_of, tmp_path, name):
    backbone, adapter = attached(name, quant="nf4", projector="full", use_fused=False)
    artifact.save(tmp_path / "adapter", backbone, adapter)
    base = loaded(name, quant="nf4")
    base.core.requires_grad_(False)
    plain = base.with_model(PeftModel.from_pretrained(base.core, str(tmp_path / "adapter")).eval())
    torch.testing.assert_close(
        logits_of(plain), logits_of(backbone.with_model(backbone.model.eval())), atol=1e-6, rtol=0
    )


def test_saving_again_replaces_an_adapter_and_nothing_else(kept, tmp_path):
    folder, backbone, adapter = kept
    artifact.save(folder, backbone, adapter)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("all of it")
    with pytest.raises(RequestError, match=r"other' is not empty. It does not hold adapter weights, and writing"):
        artifact.save(tmp_path / "other", backbone, adapter)
    assert (tmp_path / "other" / "thesis.txt").read_text() == "all of it"


# ---- refusals


def test_another_base_is_refused(kept, tmp_path):
    folder, backbone, _ = kept
    other = load(str(save_shrunk(LLAVA, tmp_path / "other", seed=1)), quant="nf4")
    with pytest.raises(RequestError, match=r"The adapter .* and the base '.*other' .*It was trained on '.*llava.*Load"):
        artifact.load(folder, other)


def test_a_copy_of_the_base_elsewhere_is_accepted(kept, saved, tmp_path):
    folder, _, _ = kept
    shutil.copytree(saved(LLAVA), tmp_path / "copy")
    artifact.load(folder, load(str(tmp_path / "copy"), quant="nf4"))


def test_a_base_that_is_already_merged_is_refused_as_such(kept, tmp_path):
    folder, backbone, _ = kept
    merge_to_16_bit(backbone, tmp_path / "merged", dtype="fp32")
    merged = load(str(tmp_path / "merged"))
    with pytest.raises(RequestError, match=r"That base is already merged with an adapter.*Load '.*llava"):
        artifact.load(folder, merged)


def test_another_storage_of_the_base_is_refused_unless_allowed(kept, loaded):
    folder, _, _ = kept
    with pytest.raises(RequestError, match=r"was trained on a base stored as nf4, and this one is none.*allow_quant"):
        artifact.load(folder, loaded(LLAVA))
    artifact.load(folder, loaded(LLAVA), allow_quant=True)


def test_a_loftq_adapter_belongs_to_one_storage(attached, loaded, tmp_path):
    backbone, adapter = attached(LLAVA, quant="nf4", init="loftq", is_awake=False)
    artifact.save(tmp_path / "adapter", backbone, adapter)
    with pytest.raises(RequestError, match=r"Its LoftQ start is the error of that storage. Load .*quant=nf4\.$"):
        artifact.load(tmp_path / "adapter", loaded(LLAVA), allow_quant=True)


def test_tokens_with_other_ids_are_refused_and_the_base_is_left_alone(loaded, tmp_path):
    backbone = loaded(LLAVA)
    tokens = add_tokens(backbone.core, backbone.tokenizer, ["<mask_0>", "<lesion>"])
    adapter = AdapterConfig(kind="lora", r=4)
    trained = attach(backbone, adapter, new_token_ids=list(tokens.values()))
    artifact.save(tmp_path / "adapter", trained, adapter)
    other = loaded(LLAVA)
    add_tokens(other.core, other.tokenizer, ["<lesion>"])
    known = len(other.tokenizer)
    with pytest.raises(RequestError, match=r"with '<mask_0>' as token \d+. The tokenizer of .* has \d+ for it"):
        artifact.load(tmp_path / "adapter", other)
    assert len(other.tokenizer) == known


def test_a_trained_row_without_a_token_is_not_saved(loaded, tmp_path):
    backbone = loaded(LLAVA)
    trained = attach(backbone, AdapterConfig(kind="lora", r=4), new_token_ids=[len(backbone.tokenizer) + 1])
    with pytest.raises(RequestError, match=r"Rows \[\d+\] of the token table were trained, and their tokens are"):
        artifact.save(tmp_path / "adapter", trained)


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_changed_file_is_refused(kept, loaded, file):
    folder, _, _ = kept
    data = bytearray((folder / file).read_bytes())
    data[-20] ^= 1
    (folder / file).write_bytes(data)
    with pytest.raises(WorkError, match=rf"{file} has SHA-256 \w+, its manifest says"):
        artifact.load(folder, loaded(LLAVA, quant="nf4"))


def test_tensors_that_do_not_belong_to_the_description_are_refused(kept, loaded):
    """A file that lost a tensor, with a manifest that agrees: peft itself would start that tensor anew in silence."""
    folder, _, _ = kept
    tensors = load_file(folder / "adapter_model.safetensors")
    lost = tensors.pop("base_model.model.model.language_model.layers.0.mlp.up_proj.lora_B.weight")
    assert lost.count_nonzero()
    save_file(tensors, folder / "adapter_model.safetensors")
    record = json.loads((folder / "manifest.json").read_text())
    facts = {key: record[key] for key in ("base", "quant", "dtype", "adapter", "new_tokens", "pruning")}
    write_manifest(folder, "adapter", facts)
    with pytest.raises(WorkError, match=r"1 tensors of .* are not in the model as saved, the first is .*up_proj"):
        artifact.load(folder, loaded(LLAVA, quant="nf4"))


def test_a_missing_file_is_refused(kept, loaded):
    folder, _, _ = kept
    (folder / "adapter_config.json").unlink()
    with pytest.raises(WorkError, match=r"adapter_config.json has SHA-256 missing"):
        artifact.load(folder, loaded(LLAVA, quant="nf4"))


def test_a_folder_without_an_adapter_is_refused(loaded, tmp_path):
    with pytest.raises(RequestError, match=r"There is no manifest.json, .* or one of peft, with adapter_config.json"):
        artifact.load(tmp_path, loaded(LLAVA))


def test_a_damaged_manifest_is_refused(kept, loaded):
    folder, _, _ = kept
    (folder / "manifest.json").write_text("{")
    with pytest.raises(WorkError, match=r"manifest.json cannot be read"):
        artifact.load(folder, loaded(LLAVA, quant="nf4"))


def test_repacked_weights_are_not_saved(attached, tmp_path):
    backbone, adapter = attached(LLAVA, quant="nf4")
    layer = backbone.part("model.language_model.layers.0.mlp.up_proj").get_base_layer()
    layer.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(WorkError, match=r"of 1 layers were repacked .* model\.language_model\.layers\.0\.mlp\.up_proj"):
        artifact.save(tmp_path / "adapter", backbone, adapter)
    assert not (tmp_path / "adapter").exists()


def test_a_model_without_an_adapter_has_nothing_to_save(loaded, tmp_path):
    with pytest.raises(RequestError, match="has no adapter"):
        artifact.save(tmp_path / "adapter", loaded(LLAVA), AdapterConfig(kind="lora"))


def test_merged_additions_are_not_saved(attached, tmp_path):
    backbone, adapter = attached(LLAVA)
    backbone.model.merge_adapter()
    with pytest.raises(RequestError, match="Adapters are merged into 14 layers"):
        artifact.save(tmp_path / "adapter", backbone, adapter)


def test_loading_moves_no_random_generator(kept, loaded):
    folder, _, _ = kept
    base = loaded(LLAVA, quant="nf4")
    state = torch.get_rng_state()
    artifact.load(folder, base)
    assert torch.equal(torch.get_rng_state(), state)
