"""The tiny `llava-576`: what its stages are taught, how boxes are written, and that features stand in for pixels."""

import re
from collections import Counter

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot
from transformers import LlavaForConditionalGeneration

from lightbox.backbones.codecs import CODECS
from lightbox.paths import shared_data
from lightbox.phantom.ontology import CLASS_NAMES, DENSITY_WORDS, SHAPE_WORDS
from lightbox.phantom.splits import load_splits
from lightbox.pretrain import llava, llava_576_rows, llava_576_tower
from lightbox.pretrain.llava_576 import (
    ASSISTANT,
    EXTRA_WORDS,
    IMAGE,
    PREFIX,
    make_model,
    make_processor,
    make_tokenizer,
    number_id,
)
from lightbox.pretrain.llava_576_rows import (
    ABSENT,
    ALL,
    AT,
    BINS,
    NONE,
    NUMBERS,
    WHERE,
    BoxTurn,
    FeatureRows,
    LocatedLoss,
    encode_images,
    feature_logits,
    known_names,
    located_set,
    on_grid,
    only,
    write_boxes,
)
from lightbox.pretrain.llava_576_scores import modes_of, read_boxes, score_located, write_answers
from lightbox.pretrain.llava_576_tower import (
    GRID,
    IMAGE_PX,
    WINDOW,
    LocatingTower,
    cut,
    dense_batch,
    locating_loss,
    looks,
    score_locating,
    stretched,
    windows_of,
)
from lightbox.pretrain.llava_rows import answer_logits
from lightbox.pretrain.tower import PATCH_PX, dense_set, normalise
from lightbox.records import Box
from lightbox.testing.close import assert_close

START = shared_data() / "weights" / "llava"


@pytest.fixture(scope="module")
def start():
    return LlavaForConditionalGeneration.from_pretrained(START).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def model(start, tokenizer):
    torch.manual_seed(0)
    return make_model(tokenizer, start, stretched(start.model.vision_tower, GRID)).eval()


@pytest.fixture(scope="module")
def stream():
    return located_set("pretrain", 150)


@pytest.fixture(scope="module")
def rows(stream, tokenizer, model):
    few = type(stream)(stream.cases[:4], stream.turns[:4])
    features = encode_images(model.model.vision_tower, few.pixels(range(4)))
    return FeatureRows(few, features, tokenizer, prefix=PREFIX, assistant=ASSISTANT)


@pytest.fixture(scope="module")
def dense():
    return dense_set("pretrain_validation", 12, worlds=llava_576_tower.WORLDS)


def box_turns_of(data):
    return [(case, turn) for case, turns in zip(data.cases, data.turns, strict=True) for turn in turns if has_box(turn)]


def has_box(turn):
    return isinstance(turn, BoxTurn)


# ---- words


def test_the_tokenizer_begins_as_that_of_the_tiny_llava_and_has_a_token_a_number(tokenizer):
    older = llava.make_tokenizer()
    assert {word: k for word, k in tokenizer.get_vocab().items() if k < len(older)} == older.get_vocab()
    assert len(tokenizer) == len(older) + len(EXTRA_WORDS) + len(NUMBERS)
    first = number_id(tokenizer)
    assert tokenizer.convert_ids_to_tokens(list(range(first, first + len(NUMBERS)))) == list(NUMBERS)
    wanted = ["locate", "all", "findings", ".", "[", "0.250", ",", "1.000", "]", "ta", "##ll"]
    assert tokenizer.tokenize("Locate all findings . [0.250, 1.000] tall") == wanted


def test_boxes_in_words_are_read_back_by_the_codec_of_the_family(tokenizer):
    boxes = [Box(0.25, 0.5, 0.375, 0.75), Box(0.0, 0.0, 1.0, 1 / BINS)]
    text = write_boxes(boxes, ["nodule", "dense oval"])
    decoded = tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"], skip_special_tokens=True)
    for written in (text, decoded):
        read = CODECS["fraction"].decode(written, IMAGE_PX, IMAGE_PX)
        assert read == read_boxes(written)
        assert np.abs(np.array(read) - np.array(boxes)).max() < 0.0006
    assert (write_boxes([]), read_boxes(NONE)) == (NONE, [])


def test_a_box_moves_to_the_grid_by_half_a_step_and_never_vanishes():
    rng = np.random.default_rng(0)
    for x, y, w, h in rng.uniform(0, 1, (200, 4)):
        box = Box(x * 0.99, y * 0.99, min(1, x * 0.99 + w + 0.001), min(1, y * 0.99 + h + 0.001))
        moved = on_grid(box)
        assert moved.x0 < moved.x1 <= 1
        assert moved.y0 < moved.y1 <= 1
        assert all(f"{value:.3f}" in NUMBERS for value in moved)
        assert all(abs(a - b) < 1.01 / BINS for a, b in zip(moved, box, strict=True))


def test_the_processor_gives_an_image_token_a_patch(tokenizer):
    image = np.zeros((IMAGE_PX, IMAGE_PX, 3), dtype=np.uint8)
    made = make_processor(tokenizer)(images=image, text="USER: <image>\nlocate the nodule . ASSISTANT:")
    words = tokenizer.convert_ids_to_tokens(made["input_ids"][0])
    assert words == [*PREFIX, "locate", "the", "nodule", ".", ASSISTANT]
    assert words.count(IMAGE) == GRID**2 == 576


# ---- what is seen


def test_no_world_of_either_stage_has_a_prior_noise_or_a_telling_letter():
    for knobs in (*llava_576_rows.WORLDS, *llava_576_tower.WORLDS):
        assert (knobs.rho, knobs.label_noise_pct, knobs.triples, knobs.image_px) == (0, 0, "known", IMAGE_PX)
        assert knobs.burned_in_text != "shortcut"


def test_images_are_of_pretraining_seeds_and_known_triples(stream):
    low, high = load_splits()["seed_ranges"]["pretrain"]
    assert all(low <= int(case.id.removeprefix("chest-")) < high for case in stream.cases)
    shape_of, density_of = ({word: key for key, word in words.items()} for words in (SHAPE_WORDS, DENSITY_WORDS))
    held_out = {triple for part, names in load_splits()["triples"].items() if part != "known" for triple in names}
    for finding in (finding for case in stream.cases for finding in case.findings):
        place = re.sub(r" (zone|angle)$", "", finding.attributes["location"])
        place = re.sub(r"^(right|left) (?=hilum|costophrenic)", "", place)
        triple = f"{shape_of[finding.attributes['shape']]} {density_of[finding.attributes['density']]} {place}"
        assert triple not in held_out
        assert finding.mask is None
        assert finding.name in known_names()


def test_lesions_cover_a_few_patches(stream):
    sides = [
        max(box.x1 - box.x0, box.y1 - box.y0) * GRID
        for case in stream.cases
        for finding in case.findings
        for box in finding.boxes
        if finding.attributes["size"] == "small"
    ]
    assert 0.8 < np.median(sides) < 2
    assert max(sides) < 3


def test_box_turns_say_what_lies_where(stream):
    kinds = Counter(turn.kind for _, turn in box_turns_of(stream))
    assert set(kinds) == {ALL, WHERE, AT, ABSENT}
    for case, turn in box_turns_of(stream):
        names = {finding.name for finding in case.findings}
        if turn.kind == ALL:
            assert len(turn.boxes) == len(case.findings)
            fitting = list(case.findings)
        elif turn.kind == AT:
            fitting = [f for f in case.findings if f"in the {f.attributes['location']} ." in turn.prompt]
        else:
            fitting = [f for f in case.findings if turn.prompt == f"locate the {f.name} ."]
        assert bool(turn.boxes) == (bool(fitting) and turn.kind != ABSENT)
        assert set(turn.boxes) == {finding.boxes[0] for finding in fitting}
        assert len(read_boxes(turn.answer)) == len(turn.boxes)
        if turn.kind == ABSENT:
            assert turn.prompt.removeprefix("locate the ").removesuffix(" .") not in names


@pytest.mark.slow
def test_a_name_alone_does_not_tell_whether_it_is_there():
    counts = Counter(
        (turn.prompt, turn.kind)
        for _, turn in box_turns_of(located_set("pretrain", 900))
        if turn.kind in (WHERE, ABSENT)
    )
    for name in CLASS_NAMES:
        there, absent = (counts[f"locate the {name} .", kind] for kind in (WHERE, ABSENT))
        assert 0.3 < there / (there + absent) < 0.7, name


def test_questions_and_boxes_are_told_apart(stream):
    asked, located = only(stream, boxes=False), only(stream, boxes=True)
    for own, questions, boxes in zip(stream.turns, asked.turns, located.turns, strict=True):
        assert questions[0] == boxes[0] == own[0]
        assert len(questions) + len(boxes) == len(own) + 1
        assert not any(map(has_box, questions))


# ---- the tower


def test_dense_boxes_are_those_of_the_findings_of_their_patches(dense):
    for boxes_px, ids, masks in zip(dense.patch_boxes_px, dense.patch_ids, dense.patch_masks, strict=True):
        assert (boxes_px.any(axis=1) == (ids > 0)).all()
        rows, columns = np.divmod(np.arange(GRID**2), GRID)
        for at in np.flatnonzero(ids):
            x0, y0, x1, y1 = boxes_px[at]
            assert x0 < (columns[at] + 1) * PATCH_PX
            assert x1 > columns[at] * PATCH_PX
            assert y0 < (rows[at] + 1) * PATCH_PX
            assert y1 > rows[at] * PATCH_PX
            assert masks[at].any()


def test_looks_are_those_of_the_ids(dense):
    shape, density = looks(dense.patch_ids)
    known = [name.split(" ", 2) for name in load_splits()["triples"]["known"]]
    pairs = {(list(SHAPE_WORDS).index(s), list(DENSITY_WORDS).index(d)) for s, d, _ in known}
    at = dense.patch_ids > 0
    assert set(zip(shape[at].tolist(), density[at].tolist(), strict=True)) <= pairs


def test_stretching_to_its_own_grid_changes_nothing_and_to_another_keeps_corners_apart(start):
    tower = start.model.vision_tower
    pixels = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        same = stretched(tower, 8).eval()(pixel_values=pixels).last_hidden_state
        assert_close(same, tower(pixel_values=pixels).last_hidden_state)
        larger = stretched(tower, GRID).eval()(pixel_values=torch.randn(1, 3, IMAGE_PX, IMAGE_PX))
    assert larger.last_hidden_state.shape == (1, 1 + GRID**2, 96)


def test_a_tower_that_knows_everything_scores_one(dense):
    def oracle(pixel_values, places=None):
        at = next(k for k in range(len(everything["pixel_values"])) if torch.equal(pixel_values[0], images[k]))
        own = {name: value[at : at + len(pixel_values)] for name, value in everything.items()}
        shape, density = (one_hot(own[name], n).float() for name, n in (("shape", 7), ("density", 4)))
        return shape, density, own["masks"] * 2 - 1, own["boxes"]

    everything = dense_batch(dense, list(range(12)))
    images = everything["pixel_values"]
    scores = score_locating(oracle, dense, batch=5)
    assert scores.pop("map_false_regions") == 0
    assert set(scores.values()) == {1.0}


def test_dense_training_reaches_tower_and_heads(start, dense):
    model = LocatingTower(stretched(start.model.vision_tower, GRID))
    model.vision.post_layernorm.requires_grad_(False)
    total, n, parts = locating_loss(model, dense_batch(dense, [0, 4, 8]))
    total.backward()
    assert n == 3
    assert set(parts) == {"look", "box", "mask"}
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_windows_show_findings_with_their_targets_and_places(dense):
    windows = windows_of(dense, np.random.default_rng(0))
    assert set(windows[:, 0]) == set(range(12))
    data, places = cut(dense, windows)
    for k, (image, row, column) in enumerate(windows):
        assert 0 <= min(row, column) <= max(row, column) <= GRID - WINDOW
        here = np.s_[row * PATCH_PX : (row + WINDOW) * PATCH_PX, column * PATCH_PX : (column + WINDOW) * PATCH_PX]
        assert (data.pixels[k] == dense.pixels[image][here]).all()
        assert (data.patch_ids[k] == dense.patch_ids[image][places[k]]).all()
        assert (data.patch_masks[k] == dense.patch_masks[image][places[k]]).all()
        assert (data.patch_boxes_px[k] == dense.patch_boxes_px[image][places[k]]).all()
        assert data.patch_ids[k].any() == dense.patch_ids[image].any()


def test_a_window_as_large_as_the_image_is_the_image(start, dense):
    model = LocatingTower(stretched(start.model.vision_tower, GRID)).eval()
    pixels, places = normalise(dense.pixels[:2]), torch.arange(GRID**2).expand(2, -1)
    with torch.inference_mode():
        for own, other in zip(model(pixels, places), model(pixels), strict=True):
            assert_close(own, other)


# ---- the language model


def test_the_language_model_begins_as_that_of_the_tiny_llava(start, tokenizer, model):
    ids = torch.tensor([tokenizer("is there a nodule ?")["input_ids"]])
    with torch.inference_mode():
        own, old = model(input_ids=ids).logits, start(input_ids=ids).logits
    assert_close(own[..., : old.shape[-1]], old)


def test_features_give_the_logits_that_pixels_give(model, rows):
    batch = rows.collate([0, 3])
    with torch.inference_mode():
        own, _ = feature_logits(model, batch)
        pixels = normalise(rows.data.pixels([0, 3]))
        whole, _ = answer_logits(model, {"pixel_values": pixels, **rows.tokens([0, 3])})
    torch.testing.assert_close(own, whole, rtol=0, atol=0.01)  # features are kept in 16 bits


def test_numbers_weigh_more_and_are_told_apart(model, rows, tokenizer):
    batch = rows.collate([0, 1, 2, 3])
    first = number_id(tokenizer)
    with torch.inference_mode():
        plain, n, means = LocatedLoss(first, number_weight=1.0)(model, batch)
        heavy, _, _ = LocatedLoss(first, number_weight=3.0)(model, batch)
    labels = batch["labels"]
    n_numbers = int(((labels >= first) & (labels < first + len(NUMBERS))).sum())
    assert n_numbers % 4 == 0
    assert n_numbers > 0
    assert int(n) == int((labels != -100).sum())
    torch.testing.assert_close(heavy - plain, 2 * n_numbers * means["number"], rtol=1e-4, atol=1e-2)


def test_answers_from_features_are_those_of_generate(model, rows, tokenizer):
    prompt = "locate the nodule ."
    text = write_answers(model, tokenizer, rows, rows.features[:1], [prompt], max_new_tokens=5)
    ids = torch.tensor([[*rows.prefix, *tokenizer(prompt, add_special_tokens=False)["input_ids"], rows.assistant]])
    out = model.generate(
        input_ids=ids, pixel_values=normalise(rows.data.pixels([0])), max_new_tokens=5, do_sample=False
    )
    assert text == [tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()]


@pytest.mark.slow
def test_boxes_are_scored_by_kind_and_by_what_is_shown(model, rows, tokenizer):
    scores = score_located(model, tokenizer, rows, [0, 1], modes_of(rows.features[0]))
    assert {name.removesuffix("_blank").removesuffix("_shuffled") for name in scores} >= {"iou_box_all", "false_alarms"}
    assert all(0 <= value <= 1 for value in scores.values())
    assert {f"iou_box_all{suffix}" for suffix in ("", "_blank", "_shuffled")} <= set(scores)


def test_a_shuffled_image_is_that_of_another_row():
    features = torch.arange(3.0)[:, None, None]
    modes = modes_of(torch.full((1, 1), 7.0))
    assert modes["_shuffled"](features).flatten().tolist() == [2, 0, 1]
    assert modes["_blank"](features).flatten().tolist() == [7, 7, 7]
