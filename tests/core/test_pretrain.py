"""The tiny foundation models: what they may and must not see; shipped files are what their cards say."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Florence2ForConditionalGeneration, LlavaForConditionalGeneration

from lightbox.backbones.florence2 import Florence2Backbone
from lightbox.backbones.loading import load
from lightbox.backbones.qwen_vl import Qwen25VlBackbone
from lightbox.backbones.segmenter import load_segmenter
from lightbox.backbones.seq2seq import load_seq2seq
from lightbox.backbones.towers import load_tower
from lightbox.backbones.weights import CARD, check_card
from lightbox.errors import RequestError, WorkError
from lightbox.paths import shared_data
from lightbox.phantom import VERSION
from lightbox.phantom.facts import sentence_kind
from lightbox.phantom.splits import load_splits, triple_mask
from lightbox.phantom.version import IMAGES_VERSION
from lightbox.pretrain.build import compare_scores
from lightbox.pretrain.catalog import NAMES, build
from lightbox.pretrain.t5 import text_pairs
from lightbox.pretrain.tower import PATCH_PX, dense_set, known_rank
from lightbox.pruning.finding_head import finding_map, load_head
from lightbox.pruning.pipeline import prune

SHIPPED_LIMIT_BYTES = 24_000_000
SHIPPED = sorted(card.parent.name for card in (shared_data() / "weights").glob(f"*/{CARD}"))


def weights(name):
    return shared_data() / "weights" / name


def test_what_is_shipped_can_be_rebuilt():
    assert {"t5", "tower", "llava"} <= set(SHIPPED) <= set(NAMES)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_are_what_the_card_says(name):
    card = check_card(weights(name))
    # the tower saw images and reports, which are older than the questions of today
    assert card["data"]["generator"] == (IMAGES_VERSION if name == "tower" else VERSION)
    assert card["scores"]
    assert card["parameters"] < 6_000_000
    assert set(card["sha256"]) == {p.name for p in weights(name).iterdir()} - {CARD}


def test_shipped_weights_stay_small():
    assert sum(p.stat().st_size for p in (shared_data() / "weights").rglob("*") if p.is_file()) < SHIPPED_LIMIT_BYTES


def test_a_damaged_file_is_named(tmp_path):
    for path in weights("t5").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    data = bytearray((tmp_path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(bytes(data))
    with pytest.raises(WorkError, match=r"model\.safetensors has digest"):
        check_card(tmp_path)


def test_pretraining_seeds_meet_no_other_split():
    ranges = load_splits()["seed_ranges"]
    seen = [ranges[name] for name in ("pretrain", "pretrain_validation")]
    others = [pair for name, pair in ranges.items() if not name.startswith("pretrain")]
    assert len(others) == 5
    assert all(a[1] <= b[0] or b[1] <= a[0] for a in seen for b in others)


def test_text_model_never_sees_a_rationale():
    """In no wording; that the lungs are clear is a sentence of reports too."""
    assert sentence_kind("in the left hilum lies a small dense disc") == "finding"
    for pair in text_pairs("pretrain", 400):
        for text in (pair.source.lower(), pair.target.lower()):
            kinds = {sentence_kind(sentence.strip()) for sentence in re.split(r"[.?:]", text)}
            assert kinds <= {"", "clear"}, text


def test_text_model_sees_questions_with_their_reports_and_spans():
    pairs = text_pairs("pretrain", 200)
    share = np.mean([pair.source.startswith("Question:") for pair in pairs])
    assert 0.6 < share < 0.9
    assert all("Context:" in p.source for p in pairs if p.source.startswith("Question:"))
    assert all("<extra_id_0>" in p.target for p in pairs if not p.source.startswith("Question:"))


def test_tower_sees_known_triples_only():
    rank = known_rank()
    assert (rank > 0).sum() == triple_mask("known").sum()
    data = dense_set("pretrain", 600)
    assert data.patch_ids.max() <= rank.max()
    has_pixels = data.patch_masks.any(axis=2)
    assert (has_pixels == (data.patch_ids > 0)).all()  # a finding with a held-out triple would have pixels and id 0


def test_dense_targets_lie_where_the_finding_is():
    data = dense_set("pretrain", 90)
    side = data.pixels.shape[1] // PATCH_PX
    tiles = data.patch_masks.reshape(-1, side, side, PATCH_PX, PATCH_PX).swapaxes(2, 3)
    full = tiles.reshape(-1, side * PATCH_PX, side * PATCH_PX)
    assert full.shape == data.pixels.shape
    inside, outside = data.pixels[full].astype(float), data.pixels[~full].astype(float)
    assert abs(inside.mean() - outside.mean()) > 10


def test_scores_outside_the_tolerance_are_listed():
    card = {"scores": {"a": 0.5, "b": 0.9}, "tolerance": 0.05}
    assert compare_scores(card, {"scores": {"a": 0.54, "b": 0.8}}) == {"b": (0.9, 0.8)}


def test_unknown_model_is_refused(tmp_path):
    with pytest.raises(RequestError, match="'bert' is asked for"):
        build("bert", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_build_is_repeated_to_the_same_bytes_and_loads_by_name(name, tmp_path):
    cards = [build(name, tmp_path / str(k), max_steps=4)[0] for k in range(2)]
    assert cards[0]["sha256"] == cards[1]["sha256"]
    folder = tmp_path / "0" / "pretrain" / name
    assert json.loads((folder / CARD).read_text())["name"] == name
    if name == "t5":
        model, tokenizer = load_seq2seq(str(folder))
        assert tokenizer.decode(tokenizer("Is there a nodule ?")["input_ids"]) == "is there a nodule ? </s>"
        assert model.config.vocab_size == len(tokenizer)
    elif name == "llava":
        model = LlavaForConditionalGeneration.from_pretrained(folder)
        tokens = model.get_image_features(pixel_values=torch.zeros(2, 3, 64, 64)).pooler_output
        assert [token.shape for token in tokens] == [(64, model.config.text_config.hidden_size)] * 2
    elif name == "llava-576":
        backbone = load(str(folder))
        assert backbone.core.config.image_seq_length == 576
        assert load_head(str(folder)).patch_px == PATCH_PX
        image = Image.new("L", (192, 192))
        with prune(backbone, "lesion_safe", 0.2, finding_map=finding_map(backbone, str(folder))) as handle:
            assert len(backbone.answer([image], ["locate the nodule ."], max_new_tokens=12)) == 1
            assert handle.report().tokens_after == [115]
    elif name == "qwen2_5_vl":
        backbone = load(str(folder))
        assert type(backbone) is Qwen25VlBackbone
        assert {"tower_look", "false_alarms", "false_alarms_blank"} <= cards[0]["scores"].keys()
        assert set(cards[0]["starts_from"]) == {"tiny/llava"}
        image = Image.new("L", (256, 256))
        assert backbone.tokens_per_image(backbone.read_images([image])) == [64]
        assert len(backbone.answer([image], ["locate the nodule ."], max_new_tokens=12)) == 1
    elif name == "florence2":
        model = Florence2ForConditionalGeneration.from_pretrained(folder)
        tokens = model.get_image_features(pixel_values=torch.zeros(2, 3, 64, 64)).pooler_output
        assert tokens.shape == (2, 65, model.config.text_config.d_model)
        backbone = load(str(folder))
        assert (type(backbone), backbone.codec.bins) == (Florence2Backbone, 64)
    elif name == "sam":
        segmenter = load_segmenter(str(folder))
        embeddings = segmenter.embed([Image.new("RGB", (48, 64))])
        encoded = segmenter.encode_prompts(embeddings, boxes=torch.tensor([[0.25, 0.25, 0.5, 0.75]]))
        assert segmenter.decode(embeddings, *encoded).logits[0].shape == (1, 64, 48)
    else:  # tower, modality_tower
        features = load_tower(str(folder)).encode(torch.zeros(2, 64, 64, dtype=torch.uint8))
        assert features.shape == (2, 64, 96)
