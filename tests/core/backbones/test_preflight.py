"""What is refused before anything is loaded, each with what to do; in well under a second and without torch."""

import importlib.util
import json
import shutil
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file, save_file

from lightbox.backbones.preflight import check_config, check_request
from lightbox.errors import RequestError
from lightbox.testing.tiny_models import save_llava, save_t5

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def set_config(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(config))


def test_a_good_folder_gives_its_family_within_a_tenth_of_a_second(folder):
    begin = time.perf_counter()
    family = check_request(str(folder), max_tokens=256)
    assert time.perf_counter() - begin < 0.1
    assert family is not None
    assert family.name == "llava"


def test_checking_needs_no_torch(folder):
    code = (
        f"from lightbox.backbones.preflight import check_request; check_request({str(folder)!r}); "
        "import sys; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("revision", ["", "main"])
def test_missing_revision(revision):
    with pytest.raises(RequestError, match="Set model.backbone_revision to the full commit hash"):
        check_request("owner/model", revision)


def test_a_hub_id_is_checked_once_its_config_is_at_hand():
    assert check_request("owner/model", COMMIT) is None
    with pytest.raises(RequestError, match="of model_type 'gpt2'"):
        check_config({"model_type": "gpt2"}, name="owner/model")


def test_pickle_only_checkpoint(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(RequestError, match="unpickling can run any code"):
        check_request(str(copy))


def test_remote_code_model(copy):
    set_config(copy, model_type="own_vlm", auto_map={"AutoModel": "modeling_own.Own"})
    with pytest.raises(RequestError, match="can do anything on this machine"):
        check_request(str(copy))


def test_remote_code_beside_a_class_that_transformers_has_is_not_run_and_not_needed(copy):
    set_config(copy, auto_map={"AutoModel": "modeling_own.Own"})
    assert check_request(str(copy)) is not None


def test_florence_in_the_layout_of_its_own_code():
    config = {"model_type": "florence2", "auto_map": {}, "text_config": {"model_type": "florence2_language"}}
    with pytest.raises(RequestError, match="florence-community"):
        check_config(config, name="microsoft/Florence-2-base")


def test_unknown_family(copy):
    set_config(copy, model_type="gpt2")
    with pytest.raises(RequestError, match="The families known here are llava, llava_next, qwen2_vl"):
        check_request(str(copy))


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "llava_mistral"},
        {"model_type": "llava_llama"},
        {"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"]},
        {"model_type": "llava", "mm_vision_tower": "openai/clip-vit-large-patch14-336"},
    ],
)
def test_original_llava_layout_names_the_converter(copy, changes):
    set_config(copy, **changes)
    with pytest.raises(RequestError, match="lightbox data convert .* NEW-FOLDER"):
        check_request(str(copy))


def test_quantisation_without_its_backend(folder, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else real(name))
    with pytest.raises(RequestError, match="adapter.quant is nf4. Quantised weights need bitsandbytes"):
        check_request(str(folder), quant="nf4")
    assert check_request(str(folder)) is not None


def test_unknown_quantisation(folder):
    with pytest.raises(RequestError, match="adapter.quant is 'nf5'"):
        check_request(str(folder), quant="nf5")


def test_quantised_files(copy):
    set_config(copy, quantization_config={"load_in_4bit": True})
    with pytest.raises(RequestError, match="quantised already"):
        check_request(str(copy))


def test_prompt_longer_than_the_context(folder, tmp_path):
    with pytest.raises(RequestError, match=r"data.max_tokens is 257 .* positions for 256 tokens"):
        check_request(str(folder), max_tokens=257, tokens_key="data.max_tokens")
    assert check_request(str(save_t5(tmp_path, ["a"])), max_tokens=10_000) is not None  # relative positions


def test_adapter_in_place_of_its_base(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/models/llava"}))
    with pytest.raises(
        RequestError, match="Load this folder with .*artifact.load, .* set model.backbone to /models/llava"
    ):
        check_request(str(tmp_path))


def test_missing_shard(copy):
    tensors = load_file(copy / "model.safetensors")
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, half in halves.items():
        save_file({name: tensors[name] for name in half}, copy / file, metadata={"format": "pt"})
    (copy / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, half in halves.items() for name in half}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert check_request(str(copy)) is not None
    (copy / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(RequestError, match="1 are missing, the first is model-00002-of-00002.safetensors"):
        check_request(str(copy))


@pytest.mark.parametrize(
    "content", [b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", b"\x10\x00\x00\x00\x00\x00\x00\x00no"]
)
def test_pointer_in_place_of_the_file(copy, content):
    (copy / "model.safetensors").write_bytes(content)
    with pytest.raises(RequestError, match="a pointer to it"):
        check_request(str(copy))


def test_file_that_was_cut_off(copy):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RequestError, match="its header says"):
        check_request(str(copy))


def test_missing_tokenizer(copy):
    (copy / "tokenizer.json").unlink()
    with pytest.raises(RequestError, match="without a tokenizer"):
        check_request(str(copy))


def test_missing_image_processor(copy):
    (copy / "processor_config.json").unlink()
    with pytest.raises(RequestError, match="without an image processor"):
        check_request(str(copy))


def test_tokenizer_with_new_tokens_on_a_model_without_them(copy):
    path = copy / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["added_tokens"].append(tokenizer["added_tokens"][-1] | {"id": 5000, "content": "<new>"})
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(RequestError, match="ids up to 5000 and the model 260 embeddings"):
        check_request(str(copy))


def test_damaged_config(copy):
    (copy / "config.json").write_text("{")
    with pytest.raises(RequestError, match=r"config.json is no JSON"):
        check_request(str(copy))
