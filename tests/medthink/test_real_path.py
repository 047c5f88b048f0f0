"""The real path is the same code: T5-base's architecture at tiny width, DETR's shapes, data in R-SLAKE's format."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5ForConditionalGeneration

from lightbox.backbones.seq2seq import load_seq2seq
from lightbox.readers.convert import convert
from lightbox.runs import folders
from medthink import cli
from medthink.model import MedThinkT5

TEXT = "The chest image shows a dense nodule in the left upper zone."
EXTRA_KEY = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


@pytest.fixture
def unified_qa(tmp_path, t5_folder):
    """12 + 12 layers, 12 heads, relu, tied embeddings, and the stray tensor of old T5 files, at width 24."""
    folder = tmp_path / "unifiedqa-t5-base"
    _, tokenizer = load_seq2seq(str(t5_folder))
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer) + 28,  # T5 has more embeddings than tokens
        d_model=24,
        d_kv=2,
        d_ff=48,
        num_layers=12,
        num_heads=12,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {EXTRA_KEY: torch.zeros(32, 12)}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def r_slake(tmp_path):
    root = tmp_path / "r_slake"
    names = {}
    for split, numbers in (("train", range(8)), ("test", range(8, 12))):
        rows = {}
        for number in numbers:
            folder = root / "images" / f"xmlab{number}"
            folder.mkdir(parents=True)
            pixels = np.random.default_rng(number).integers(0, 256, (50, 40), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "source.jpg")
            names[str(number)] = str(len(names))
            rows[f"{number}1"] = {
                "question": "Is the lung healthy?",
                "choices": ["Yes", "No"],
                "answer": number % 2,
                "solution": TEXT,
                "img_id": number,
                "img_name": f"xmlab{number}/source.jpg",
            }
        (root / "closed-end").mkdir(exist_ok=True)
        (root / "closed-end" / f"{split}set.json").write_text(json.dumps(rows))
    (root / "name_map.json").write_text(json.dumps(names))
    return root


@pytest.fixture
def overrides(unified_qa, r_slake):
    return [
        "preset=paper",
        "run.device=cpu",
        "run.seed=0",
        f"model.backbone={unified_qa}",
        f"data.root={r_slake}",
        "optim.max_steps=2",
        "optim.batch_size=4",
        "eval.rationale_tokens=4",
    ]


def scored(out):
    return folders.read_scores(next((out / "runs").iterdir()))


@pytest.mark.slow
def test_official_features_go_through_convert_and_train(overrides, r_slake, tmp_path):
    """The official .pth is one tensor n x 100 x 256; the gate starts at PyTorch's default in the paper profile."""
    torch.save(torch.randn(12, 100, 256), tmp_path / "detr.pth")
    convert(tmp_path / "detr.pth", r_slake / "detr.safetensors")
    out = tmp_path / "out"
    given = [*overrides, f"model.features={r_slake / 'detr.safetensors'}", "experiment=explanation", f"run.out={out}"]
    cli.train([*given, "objective.pads=official"])
    table = scored(out)
    assert table.num_rows == 4 * 3
    assert table["fact_f1"].null_count == table.num_rows  # facts can be parsed on the phantom only
    model, _ = load_seq2seq(str(next((out / "runs").iterdir()) / "model"), model_class=MedThinkT5)
    assert model.fusion.project.in_features == 256
    assert (model.config.num_layers, model.config.num_heads) == (12, 12)
    purpose = json.loads((next((out / "runs").iterdir()) / "model" / "purpose.json").read_text())
    assert purpose["purpose"] == {"objective.method": "explanation", "data.form": "closed"}


@pytest.mark.slow
def test_leaks_and_baselines_stand_beside_a_real_score(overrides, tower_folder, tmp_path, capsys):
    out = tmp_path / "out"
    cli.train([*overrides, f"model.tower={tower_folder}", "experiment=reasoning", f"run.out={out}"])
    shown = capsys.readouterr().out
    assert "baseline / question_only" in shown
    assert "0 of 4 test images" in " ".join(shown.split())
    card = folders.read_card(next((out / "runs").iterdir()))
    assert card["baselines"] == {"majority": 0.5, "question_only": 0.5}


@pytest.mark.slow
def test_saved_model_is_scored_again_with_the_same_result(overrides, r_slake, tower_folder, tmp_path, capsys):
    out = tmp_path / "out"
    given = [*overrides, f"model.tower={tower_folder}", "experiment=none"]
    cli.train([*given, f"run.out={out}"])
    folder = next((out / "runs").iterdir())
    again = [o for o in given if not o.startswith("model.backbone")] + [f"model.backbone={folder / 'model'}"]
    cli.evaluate([*again, f"run.out={tmp_path / 'again'}"])
    assert scored(tmp_path / "again").equals(scored(out))
    # as it is on a part that was held back, which comes without what was trained on
    (r_slake / "closed-end" / "trainset.json").unlink()
    cli.evaluate([*again, f"run.out={tmp_path / 'held'}"])
    assert scored(tmp_path / "held").equals(scored(out))
    card = folders.read_card(next((tmp_path / "held" / "runs").iterdir()))
    assert (card["baselines"], card["items"]) == ({}, {"train": 0, "test": 4})
    for command, more in ((cli.train, []), (cli.evaluate, ["experiment=majority"])):
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            command([*again, *more, f"run.out={tmp_path / 'refused'}"])
        assert caught.value.code == 2
        assert "its split 'train'" in capsys.readouterr().err
