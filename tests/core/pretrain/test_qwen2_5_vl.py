"""The tiny `qwen2_5_vl`: what it sees and must not see, how boxes are written, and that it loads as any Qwen2.5-VL."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import one_hot
from transformers import LlavaForConditionalGeneration
from transformers.vision_utils import get_vision_window_index

from lightbox.backbones.loading import load
from lightbox.backbones.qwen_vl import Qwen25VlBackbone
from lightbox.errors import RequestError
from lightbox.paths import shared_data
from lightbox.phantom import draw_cases
from lightbox.phantom.ontology import DENSITY_WORDS, SHAPE_WORDS
from lightbox.phantom.splits import load_splits
from lightbox.pretrain import catalog, llava
from lightbox.pretrain.build import NAMES as EARLIER
from lightbox.pretrain.llava_576_rows import ABSENT, ALL, AT, WHERE, BoxTurn
from lightbox.pretrain.llava_rows import ChatSet, Turn
from lightbox.pretrain.qwen2_5_vl import (
    EXTRA_WORDS,
    IMAGE_STD,
    TAGS,
    location_embeddings,
    make_model,
    make_processor,
    make_tokenizer,
    settle,
)
from lightbox.pretrain.qwen2_5_vl_rows import (
    ASSISTANT,
    BINS,
    IMAGE,
    LOCATIONS,
    ORIGINAL_PX,
    PREFIX,
    SCALES,
    SEEN_PX,
    SIDE,
    TOKENS,
    WORLDS,
    WholeLoss,
    WholeRows,
    all_but_boxes,
    boxes_in,
    encode_images,
    merged,
    places,
    read_patches,
    reduced,
    token_logits,
    tower_inputs,
    whole_set,
)
from lightbox.pretrain.qwen2_5_vl_scores import box_values, by_size, score_located, shown_images
from lightbox.pretrain.qwen2_5_vl_tower import TARGETS, SeeingTower, dense_batch, middles, score_tower, seeing_loss
from lightbox.records import Box
from lightbox.runs.sources import closure
from lightbox.testing.close import assert_close

ANSWER = "nodule<loc_3><loc_4><loc_15><loc_127> dense oval<loc_0><loc_1><loc_2><loc_3>"


@pytest.fixture(scope="module")
def start():
    return LlavaForConditionalGeneration.from_pretrained(shared_data() / "weights" / "llava").eval()


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def model(start, tokenizer):
    torch.manual_seed(0)
    return make_model(tokenizer, start).eval()


@pytest.fixture(scope="module")
def backbone(model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen")
    model.save_pretrained(folder)
    make_processor(tokenizer).save_pretrained(folder)
    return load(str(folder))


@pytest.fixture(scope="module")
def stream():
    return whole_set("pretrain", 60)


@pytest.fixture(scope="module")
def rows(stream, tokenizer, model):
    few = ChatSet(stream.cases[:4], stream.turns[:4])
    features = encode_images(model.model.visual, few.pixels(range(4)))
    return WholeRows(few, features, tokenizer, prefix=PREFIX, assistant=ASSISTANT)


def one_turn(rows, tokenizer, prompt, answer):
    """The first image of `rows` with one turn."""
    data = ChatSet(rows.data.cases[:1], [[Turn("any", prompt, answer)]])
    return WholeRows(data, rows.features[:1], tokenizer, prefix=PREFIX, assistant=ASSISTANT)


def picture(rows):
    return Image.fromarray(rows.data.pixels([0])[0])


# ---- words


def test_the_tokenizer_begins_as_that_of_the_tiny_llava(tokenizer):
    older = llava.make_tokenizer()
    assert {word: k for word, k in tokenizer.get_vocab().items() if k < len(older)} == older.get_vocab()
    assert tokenizer.tokenize("Locate all findings .") == ["locate", "all", "findings", "."]
    for word in (*EXTRA_WORDS, *TAGS, *LOCATIONS, *PREFIX):
        assert tokenizer.tokenize(word) == [word]


def test_locations_and_tags_stay_in_a_text_without_special_tokens_and_are_read_again_as_they_were(tokenizer):
    for text in (ANSWER, f"<mark>{ANSWER}<answer>disc"):
        ids = tokenizer(text)["input_ids"]
        said = tokenizer.decode(ids, skip_special_tokens=True)
        assert tokenizer(said)["input_ids"] == ids
        assert len(boxes_in(said)) == 2
        assert said.replace(" ", "") == text.replace(" ", "")
    assert "<mark>" in said


def test_ids_of_locations_follow_each_other(tokenizer):
    ids = tokenizer.convert_tokens_to_ids(list(LOCATIONS))
    assert ids == list(range(ids[0], ids[0] + BINS))


# ---- what is seen


def test_no_world_has_a_prior_noise_a_letter_or_a_held_out_triple():
    assert {knobs.lesion_scale_pct for knobs in WORLDS} == set(SCALES)
    for knobs in WORLDS:
        assert (knobs.rho, knobs.label_noise_pct, knobs.triples, knobs.image_px) == (0, 0, "known", ORIGINAL_PX)
        assert (knobs.burned_in_text, knobs.shifted) == ("none", False)


def test_images_are_whole_ones_of_pretraining_seeds_as_they_were_drawn(stream):
    low, high = load_splits()["seed_ranges"]["pretrain"]
    seeds = [int(case.id.removeprefix("chest-")) for case in stream.cases]
    assert all(low <= seed < high for seed in seeds)
    assert len(set(seeds)) == len(stream.cases) == 60
    share = len(seeds) // len(WORLDS)
    for k, knobs in enumerate(WORLDS):
        drawn = draw_cases([seeds[k * share]], knobs)[0]
        whole = reduced(np.stack(drawn.images))[0]
        assert np.array_equal(whole, stream.cases[k * share].images[0])  # no crop, and no mark on it
    assert stream.pixels(range(60)).shape == (60, SEEN_PX, SEEN_PX)


def test_findings_are_of_known_triples(stream):
    shape_of, density_of = ({word: key for key, word in words.items()} for words in (SHAPE_WORDS, DENSITY_WORDS))
    held_out = {triple for part, names in load_splits()["triples"].items() if part != "known" for triple in names}
    findings = [finding for case in stream.cases for finding in case.findings]
    assert len(findings) > 40
    for finding in findings:
        place = re.sub(r" (zone|angle)$", "", finding.attributes["location"])
        place = re.sub(r"^(right|left) (?=hilum|costophrenic)", "", place)
        triple = f"{shape_of[finding.attributes['shape']]} {density_of[finding.attributes['density']]} {place}"
        assert triple not in held_out


def test_no_turn_knows_of_a_second_look(stream):
    for turn in (turn for turns in stream.turns for turn in turns):
        assert not any(tag in turn.prompt + turn.answer for tag in TAGS)
        assert IMAGE not in turn.prompt + turn.answer


def test_the_smallest_lesions_are_a_few_pixels_as_seen_and_many_in_the_original(stream):
    sides = [
        max(box.x1 - box.x0, box.y1 - box.y0)
        for case, scale in zip(stream.cases, stream.scales, strict=True)
        for finding in case.findings
        for box in finding.boxes
        if finding.attributes["size"] == "small" and scale == min(SCALES)
    ]
    assert len(sides) > 5
    assert 1.5 < min(sides) * SEEN_PX < max(sides) * SEEN_PX < 3.1
    assert min(sides) * ORIGINAL_PX > 6.9


def test_boxes_are_answered_in_locations_that_are_read_back(stream):
    asked = [(case, turn) for case, own in zip(stream.cases, stream.turns, strict=True) for turn in own]
    asked = [(case, turn) for case, turn in asked if isinstance(turn, BoxTurn)]
    assert {turn.kind for _, turn in asked} == {ALL, WHERE, AT, ABSENT}
    for case, turn in asked:
        read = boxes_in(turn.answer)
        assert len(read) == len(turn.boxes)
        for drawn, true in zip(read, turn.boxes, strict=True):
            outward = (np.array(true) - np.array(drawn)) * (1, 1, -1, -1)  # to the ends of the first and last bin
            assert outward.min() >= -1e-9
            assert outward.max() < 1 / BINS
        if turn.kind == ALL:
            names = [finding.name for finding in sorted(case.findings, key=lambda f: (f.boxes[0].y0, f.boxes[0].x0))]
            assert re.split(r"(?:<loc_\d+>)+ ?", turn.answer)[:-1] == names
        if turn.size:
            assert turn.size in {f"{size}_{scale}" for size in ("small", "large") for scale in SCALES}


def test_each_image_is_first_asked_for_all_and_questions_are_told_apart(stream):
    asked = all_but_boxes(stream)
    for own, questions in zip(stream.turns, asked.turns, strict=True):
        assert own[0] == questions[0]
        assert own[0].kind == ALL
        assert not any(isinstance(turn, BoxTurn) for turn in questions[1:])
        assert len(questions) - 1 == sum(not isinstance(turn, BoxTurn) for turn in own)


def test_dense_targets_lie_where_the_findings_are(stream):
    dense = stream.dense
    assert dense.shape.shape == (60, TOKENS)
    assert ((dense.shape >= 0) == dense.boxes.any(axis=2)).all()
    assert (dense.shape >= 0)[dense.masks.any(axis=2)].all()
    drawn = {tuple(np.float32(box)) for case in stream.cases for finding in case.findings for box in finding.boxes}
    for image, token in zip(*np.nonzero(dense.shape >= 0), strict=True):
        x0, y0, x1, y1 = dense.boxes[image, token] * SIDE
        row, column = divmod(token, SIDE)
        assert x0 < column + 1
        assert x1 > column
        assert y0 < row + 1
        assert y1 > row
        assert tuple(dense.boxes[image, token]) in drawn
    token_px = SEEN_PX // SIDE
    full = dense.masks.reshape(-1, SIDE, SIDE, token_px, token_px).swapaxes(2, 3).reshape(-1, SEEN_PX, SEEN_PX)
    pixels = stream.pixels(range(60)).astype(float)
    assert abs(pixels[full].mean() - pixels[~full].mean()) > 10


# ---- images through the processor


def test_every_square_is_sixty_four_tokens_and_the_seen_size_stays(backbone):
    assert {backbone.seen_size(side, side) for side in range(8, 1025)} == {(SEEN_PX, SEEN_PX)}
    width, height = backbone.seen_size(256, 128)
    assert width * height <= SEEN_PX**2
    assert backbone.tokens_per_image(backbone.read_images([Image.new("L", (256, 256))])) == [TOKENS]


def test_what_training_reads_is_what_the_processor_makes_of_the_original(backbone):
    drawn = draw_cases([7], WORLDS[0])[0].images[0]
    own = tower_inputs(reduced(drawn[None]))
    for image in (Image.fromarray(drawn), Image.fromarray(reduced(drawn[None])[0])):
        fields = backbone.read_images([image])
        torch.testing.assert_close(own["pixel_values"], fields["pixel_values"], rtol=0, atol=1e-5)
        assert torch.equal(own["image_grid_thw"], fields["image_grid_thw"])


# ---- the tower


def test_the_tower_has_windows_of_eight_by_eight_patches_and_every_second_layer_sees_all(model):
    config = model.config.vision_config
    grid = torch.tensor([[1, 2 * SIDE, 2 * SIDE]])
    settings = {"spatial_merge_size": config.spatial_merge_size, "patch_size": config.patch_size}
    _, ends = get_vision_window_index(grid, window_size=config.window_size, **settings)
    assert ends.tolist() == [0, 64, 128, 192, 256]
    assert list(config.fullatt_block_indexes) == [1, 3]


def test_patches_are_in_reading_order_and_the_merger_gives_the_towers_own_tokens(model, backbone, rows):
    tower, inputs = model.model.visual, tower_inputs(rows.data.pixels([0, 1]))
    with torch.inference_mode():
        patches = read_patches(tower, inputs)
        own = tower(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]).pooler_output
        assert_close(merged(tower, patches).flatten(0, 1), own)
        features = backbone.tower([picture(rows)])
    torch.testing.assert_close(features.patches[0], patches[0], rtol=1e-4, atol=1e-5)


def test_dense_training_reaches_every_part(model, stream, start, tokenizer):
    seeing = SeeingTower(make_model(tokenizer, start).model.visual, model.config.text_config.hidden_size)
    total, n, parts = seeing_loss(seeing, dense_batch(stream, [0, 25, 50]))
    total.backward()
    assert n == 3
    assert set(parts) == {"look", "box", "place", "mask"}
    assert all(p.grad is not None for p in seeing.parameters())


def test_a_tower_that_knows_everything_scores_one(stream):
    def oracle(inputs):
        own = {name: inputs[name] for name in TARGETS}
        shape, density = (one_hot(own[name].clamp(min=0), n).float() for name, n in (("shape", 7), ("density", 4)))
        return shape, density, own["masks"] * 2.0 - 1, own["boxes"], middles().expand(len(shape), -1, -1)

    scores = score_tower(oracle, stream, batch=25)
    assert scores.pop("tower_place_error") == 0
    assert set(scores.values()) == {1.0}


def test_settling_keeps_what_tokens_tell(model, rows, start, tokenizer):
    tower = make_model(tokenizer, start).eval().model.visual
    before = merged(tower, rows.features.float())
    settle(tower, rows.features.float())
    after = merged(tower, rows.features.float())
    flat = after.flatten(0, 1)
    near = {"rtol": 1e-3, "atol": 1e-3}  # small channels are scaled up, and rounding with them
    torch.testing.assert_close(flat.std(dim=0), torch.full((flat.shape[1],), IMAGE_STD), **near)
    assert flat.mean(dim=0).abs().max() < 1e-3
    scale = before.flatten(0, 1).std(dim=0) / IMAGE_STD
    torch.testing.assert_close(after * scale + before.flatten(0, 1).mean(dim=0), before, **near)


# ---- the language model


def test_the_folder_loads_by_the_path_of_a_real_one_with_the_same_words(backbone, tokenizer):
    assert type(backbone) is Qwen25VlBackbone
    assert backbone.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert backbone.tokenizer(ANSWER)["input_ids"] == tokenizer(ANSWER)["input_ids"]
    assert backbone.read_ids(torch.tensor(tokenizer(ANSWER)["input_ids"])) == ANSWER
    backbone.check_texts([ANSWER, *TAGS])
    with pytest.raises(RequestError, match="control token"):
        backbone.check_texts(["<|im_end|>"])


def test_the_language_model_begins_as_that_of_the_tiny_llava(start, tokenizer, model):
    ids = torch.tensor([tokenizer("is there a nodule ?")["input_ids"]])
    with torch.inference_mode():
        own, old = model(input_ids=ids).logits, start(input_ids=ids).logits
    assert_close(own[..., : old.shape[-1]], old)


def test_near_locations_begin_alike():
    table = location_embeddings(128, std=0.1)
    assert_close(table.std(), torch.tensor(0.1))
    near, far = (table[1:] - table[:-1]).norm(dim=1).mean(), (table[64:] - table[:64]).norm(dim=1).mean()
    assert near < far / 3


def test_a_row_is_what_the_backbone_makes_of_the_same_conversation(rows, backbone, tokenizer):
    prompt = "locate the nodule ."
    own = one_turn(rows, tokenizer, prompt, ANSWER).collate([0])
    batch = backbone.prepare([picture(rows)], [prompt], [ANSWER], max_tokens=200)
    assert torch.equal(own["input_ids"], batch.inputs["input_ids"])
    assert torch.equal(own["labels"][:, :-1], batch.labels[:, 1:])  # ours stand where they are predicted
    sides, _ = backbone.core.model.get_rope_index(
        batch.inputs["input_ids"],
        batch.inputs["mm_token_type_ids"],
        image_grid_thw=batch.inputs["image_grid_thw"],
        attention_mask=batch.inputs["attention_mask"],
    )
    assert torch.equal(places(own["position_ids"]), sides)


def test_ready_patches_and_joined_turns_give_the_logits_of_each_conversation_alone(model, rows, backbone, tokenizer):
    batch = rows.collate([0])
    with torch.inference_mode():
        logits, is_label = token_logits(model, batch)
        turns = batch["turns"][is_label]
        for number, turn in enumerate(rows.data.turns[0], 2):
            alone = backbone.prepare([picture(rows)], [turn.prompt], [turn.answer], max_tokens=200)
            whole, targets, _ = backbone.supervised_logits(alone)
            assert torch.equal(batch["labels"][is_label][turns == number], targets)
            # patches are kept in 16 bits
            torch.testing.assert_close(logits[turns == number], whole, rtol=0, atol=0.01)


def test_locations_weigh_more_and_are_told_apart(model, rows):
    batch = rows.collate([0, 1, 2, 3])
    with torch.inference_mode():
        plain, n, means = WholeLoss(rows.first_location, location_weight=1.0)(model, batch)
        heavy, _, _ = WholeLoss(rows.first_location, location_weight=3.0)(model, batch)
    labels = batch["labels"]
    n_locations = int(((labels >= rows.first_location) & (labels < rows.first_location + BINS)).sum())
    assert n_locations == 4 * sum(len(t.boxes) for turns in rows.data.turns for t in turns if isinstance(t, BoxTurn))
    assert n_locations > 0
    assert int(n) == int((labels != -100).sum())
    torch.testing.assert_close(heavy - plain, 2 * n_locations * means["location"], rtol=1e-4, atol=1e-2)


# ---- scores


def test_box_values_by_hand():
    box = Box(0.25, 0.25, 0.5, 0.5)
    half = Box(0.25, 0.25, 0.5, 0.375)
    turn = BoxTurn(AT, "", "", boxes=(box,), size="small_50")
    assert box_values(turn, [box]) == dict.fromkeys(
        ("iou_box_at", "acc50_box_at", "iou_small_50", "acc50_small_50"), 1.0
    )
    assert box_values(turn, [half])["iou_small_50"] == pytest.approx(0.5)
    assert set(box_values(turn, []).values()) == {0.0}
    both = BoxTurn(ALL, "", "", boxes=(box,))
    assert box_values(both, [box, half])["paired_iou_box_all"] == pytest.approx(0.5)
    assert box_values(BoxTurn(ABSENT, "", ""), [box]) == {"false_alarms": 1.0}
    assert box_values(BoxTurn(ALL, "", "none"), [box]) == {}


def test_names_are_asked_by_size_and_scale_of_what_lies_there(stream):
    data = by_size(stream)
    kinds = set()
    for case, scale, own in zip(stream.cases, stream.scales, data.turns, strict=True):
        for turn in own[1:]:
            finding = next(f for f in case.findings if f.attributes["location"] in turn.prompt)
            assert turn.kind == f"naming_{finding.attributes['size']}_{scale}"
            assert turn.answer == finding.name
            kinds.add(turn.kind)
    assert len(kinds) > 3


def test_shown_are_the_image_grey_or_that_of_another_case(stream):
    shown = shown_images(stream, [3, 4, 5])
    own = stream.pixels([3, 4, 5])
    assert [np.array_equal(a, b) for a, b in zip(shown[""], own, strict=True)] == [True] * 3
    assert [np.array_equal(a, b) for a, b in zip(shown["_shuffled"], own[[1, 2, 0]], strict=True)] == [True] * 3
    assert {level for image in shown["_blank"] for level in np.unique(image)} == {102}


@pytest.mark.slow
def test_boxes_are_scored_through_the_backbone_by_what_is_shown(backbone, stream):
    scores = score_located(backbone, stream, [0, 30])
    assert all(0 <= value <= 1 for value in scores.values())
    assert {f"false_alarms{suffix}" for suffix in ("", "_blank", "_shuffled")} <= set(scores)


# ---- the catalogue


def test_the_catalogue_has_the_earlier_models_and_refuses_others(tmp_path):
    assert catalog.NAMES == (*EARLIER, "qwen2_5_vl", "sam", "modality_tower")
    with pytest.raises(RequestError, match=r"'bert' is asked for.*qwen2_5_vl"):
        catalog.build("bert", tmp_path)


def test_later_models_are_no_code_of_published_results():
    modules = closure("lightbox.studies.pruning")
    assert "lightbox.pretrain.build" in modules
    assert not [name for name in modules if "qwen2_5_vl" in name or name == "lightbox.pretrain.catalog"]
