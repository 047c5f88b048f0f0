"""`lightbox export`: what a user of peft or transformers finds in the folder, and what is refused."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
from peft import AutoPeftModel, LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file

from lightbox.adapters import artifact
from lightbox.adapters.attach import attach
from lightbox.adapters.tokens import add_tokens
from lightbox.backbones.loading import load
from lightbox.cli.export import export
from lightbox.config import AdapterConfig
from lightbox.errors import RequestError
from lightbox.runs import folders
from lightbox.testing.shrunk import save_shrunk

LLAVA, T5 = "llava-1.5-7b", "unifiedqa-t5-base"
CLASSES = {
    LLAVA: transformers.AutoModelForImageTextToText,
    "qwen2.5-vl-7b": transformers.AutoModelForImageTextToText,
    "florence-2-base": transformers.Florence2ForConditionalGeneration,
    T5: transformers.AutoModelForSeq2SeqLM,
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return {name: save_shrunk(name, folder / name) for name in CLASSES}


def batch_for(backbone):
    images = [Image.new("RGB", (70, 90), (90, 30, 200))] if backbone.family.has_vision else None
    return backbone.prepare(images, ["Is it <lesion>?"], ["yes"], max_tokens=300).inputs


def logits(model, inputs):
    with torch.no_grad():
        return model.eval()(**inputs, use_cache=False).logits.float()


def train(base, folder, *, tokens=("<lesion>",), **settings):
    """An adapter whose every part differs from its start, as a finished run keeps it; and what it computes."""
    adapter = AdapterConfig(**({"kind": "lora", "r": 4} | settings))
    torch.manual_seed(0)
    backbone = load(str(base), quant=adapter.quant)
    ids = add_tokens(backbone.core, backbone.tokenizer, tokens)
    backbone = attach(backbone, adapter, new_token_ids=list(ids.values()))
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    artifact.save(folder / folders.MODEL, backbone, adapter)
    config = {"data": {"source": "vqa_rad", "n_train": 200}}
    record = {"paper": "toy", "arm": "explained", "seed": 3, "preset": "quick", "commit": "abc123", "config": config}
    folders.write_scores(folder, [], [])
    (folder / folders.MODEL / "purpose.json").write_text('{"purpose": {}}')
    folders.mark_finished(folder, record)
    inputs = batch_for(backbone)
    return inputs, logits(backbone.model, inputs)


def tensor_names(folder):
    return {name for file in folder.glob("*.safetensors") for name in load_file(file)}


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_a_merged_export_is_the_adapter_s_model_to_plain_transformers(bases, tmp_path, name):
    projector = {"projector": "full"} if name != T5 else {}
    inputs, wanted = train(bases[name], tmp_path / "run", **projector)
    export(tmp_path / "run", tmp_path / "out", merge=True, dtype="fp32")
    model, info = CLASSES[name].from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] | info["unexpected_keys"]
    assert (logits(model, inputs) - wanted).abs().max() < 1e-4
    assert tensor_names(tmp_path / "out") == tensor_names(bases[name])
    reader = transformers.AutoTokenizer if name == T5 else transformers.AutoProcessor
    processor = reader.from_pretrained(tmp_path / "out")
    assert len(getattr(processor, "tokenizer", processor)("<lesion>", add_special_tokens=False)["input_ids"]) == 1
    own, base = (json.loads((at / "generation_config.json").read_text()) for at in (tmp_path / "out", bases[name]))
    assert own == base
    assert (tmp_path / "out" / "purpose.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", [LLAVA, T5])
def test_an_export_is_plain_peft_with_processor_and_tokens(bases, tmp_path, name):
    inputs, wanted = train(bases[name], tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out")
    if name == T5:
        model = AutoPeftModel.from_pretrained(tmp_path / "out")
    else:
        base = CLASSES[name].from_pretrained(bases[name])
        model = PeftModel.from_pretrained(base, str(tmp_path / "out"))
        assert transformers.AutoProcessor.from_pretrained(tmp_path / "out").image_processor is not None
    assert (logits(model, inputs) - wanted).abs().max() < 1e-5
    again = artifact.load(tmp_path / "out")
    assert (logits(again.model, inputs) - wanted).abs().max() < 1e-5
    (tmp_path / "out" / "README.md").write_text("my own words")
    artifact.load(tmp_path / "out")


@pytest.mark.slow
def test_a_merged_export_is_a_base_again(bases, tmp_path):
    train(bases[T5], tmp_path / "first")
    export(tmp_path / "first", tmp_path / "base", merge=True, dtype="fp32")
    inputs, wanted = train(tmp_path / "base", tmp_path / "second", tokens=("<nodule>",))
    export(tmp_path / "second", tmp_path / "out", merge=True, dtype="fp32")
    assert (logits(CLASSES[T5].from_pretrained(tmp_path / "out"), inputs) - wanted).abs().max() < 1e-4


def test_an_export_of_plain_peft_needs_no_run(bases, tmp_path):
    backbone = load(str(bases[T5]))
    model = get_peft_model(backbone.core, LoraConfig(r=2, target_modules=["q", "v"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "plain")
    inputs = batch_for(backbone)
    for merge in (False, True):
        export(tmp_path / "plain", tmp_path / f"out-{merge}", merge=merge, dtype="fp32")
    assert not (tmp_path / "out-False" / "manifest.json").exists()
    merged = CLASSES[T5].from_pretrained(tmp_path / "out-True")
    assert (logits(merged, inputs) - logits(model, inputs)).abs().max() < 1e-4


@pytest.mark.slow
def test_a_base_that_was_in_4_bit_is_merged_from_its_own_files(bases, tmp_path):
    """16 bit of the file plus the addition, not the rounded 4 bit; a LoftQ adapter is for the rounded one."""
    train(bases[LLAVA], tmp_path / "run", tokens=(), quant="nf4")
    export(tmp_path / "run", tmp_path / "out", merge=True, dtype="fp32")
    on_whole = artifact.load(tmp_path / "run" / "model", load(str(bases[LLAVA])), allow_quant=True)
    inputs = batch_for(on_whole)
    merged = CLASSES[LLAVA].from_pretrained(tmp_path / "out")
    assert (logits(merged, inputs) - logits(on_whole.model, inputs)).abs().max() < 1e-4
    inputs, wanted = train(bases[LLAVA], tmp_path / "loftq", tokens=(), quant="nf4", init="loftq")
    export(tmp_path / "loftq", tmp_path / "out-loftq", merge=True, dtype="fp32")
    assert (logits(CLASSES[LLAVA].from_pretrained(tmp_path / "out-loftq"), inputs) - wanted).abs().max() < 1e-4


def test_the_card_says_what_was_trained_on_what_and_for_what(bases, tmp_path):
    train(bases[LLAVA], tmp_path / "run", quant="nf4", projector="full", modules=[r"model\.language_model\.norm"])
    export(tmp_path / "run", tmp_path / "out", merge=True)
    text = (tmp_path / "out" / "README.md").read_text()
    for part in (
        f'base_model: "{bases[LLAVA]}"',
        "library_name: transformers",
        "| stored in training as | nf4 |",
        "LoRA of rank 4, alpha 32, on `language`",
        r"| trained as a whole | `model\.language_model\.norm`, the projector |",
        "| new tokens | `<lesion>` |",
        "| paper and arm | toy, explained, seed 3, preset quick |",
        "| data | vqa_rad, 200 items at most |",
        "Research and teaching. Not for clinical use",
    ):
        assert part in text
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


# ---- refusals


@pytest.mark.parametrize("merge", [False, True])
def test_a_base_that_is_gone_is_named(bases, tmp_path, merge):
    base = shutil.copytree(bases[T5], tmp_path / "base")
    train(base, tmp_path / "run")
    shutil.rmtree(base)
    with pytest.raises(RequestError, match=f"adapter that was trained on '{base}'. Without that model"):
        export(tmp_path / "run", tmp_path / "out", merge=merge)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_exported_is_refused(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(RequestError, match=r"neither job.json of a finished run nor adapter_config.json of an adapter"):
        export(run, tmp_path / "out")
    (run / "job.json").write_text("{}")
    with pytest.raises(RequestError, match="That run kept no model. Name a training"):
        export(run, tmp_path / "out")
    (run / "model").mkdir()
    with pytest.raises(RequestError, match=r"a whole model and no adapter. That is in transformers' layout"):
        export(run, tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(RequestError, match="It is there already, and an export replaces nothing. Name a new folder"):
        export(run, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "message"),
    [((), "It holds neither job.json"), (("--merge", "--dtype", "nf4"), "--dtype is 'nf4'")],
)
def test_arguments_are_checked_before_torch_is_imported(tmp_path, more, message):
    code = "import sys; from lightbox.cli import main\ntry: main()\nfinally: print('torch' in sys.modules)"
    words = ["export", str(tmp_path), str(tmp_path / "out"), *more]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout.strip() == "False"
