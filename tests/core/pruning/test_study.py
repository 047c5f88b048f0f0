"""The study of pruning: what is asked, what counts as kept, and that its claims run."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lightbox.errors import RequestError
from lightbox.paper import box_examples
from lightbox.paper.conditions import Pictures
from lightbox.paper.learner import open_backbone
from lightbox.paper.pretrained import find_pretrained
from lightbox.paper.pruned import pruned
from lightbox.paper.pruning_config import PruningConfig
from lightbox.paper.samples import Sample
from lightbox.pretrain.llava_rows import Turn
from lightbox.records import Box, Case, Finding
from lightbox.studies.pruning import evaluate as scoring
from lightbox.studies.pruning.claims import PAPER
from lightbox.studies.pruning.config import Config, check, resolve
from lightbox.studies.pruning.data import Asked, ask, draw_split, load_split, usual_places
from lightbox.studies.pruning.evaluate import (
    Seen,
    asking,
    blind_map,
    box_row,
    dim,
    lesions_kept,
    question_row,
    write_examples,
)
from lightbox.studies.pruning.views import forget, rows_about, see


def config(*overrides: str) -> Config:
    return resolve(["preset=smoke", *overrides])


@pytest.fixture(scope="module")
def split():
    return load_split(config("data.n_test=40"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["pruning.budget=0"], "pruning.budget"),
        (["pruning.budget=1.5"], "pruning.budget"),
        (["pruning.positions=here"], "pruning.positions"),
        (["experiment=unpruned", "pruning.budget=0.5"], "Without a method"),
        (["data.burned_in_text=shortcut"], "data.burned_in_text"),
        (["data.source=bccd", "data.root=x"], "known to the pixel"),
        (["objective.is_trained=true"], "trains nothing"),
        (["eval.box_tokens=0"], "eval.box_tokens"),
        (["eval.map=none"], "eval.map"),
    ],
)
def test_an_impossible_setting_is_refused(overrides, message):
    with pytest.raises(RequestError, match=message):
        config(*overrides)


def test_a_family_whose_boxes_are_not_read_is_refused():
    with pytest.raises(RequestError, match="of family florence2"):
        check(config(), find_pretrained("tiny/florence2"))


def test_each_image_is_asked_about_the_one_finding_of_a_place(split):
    for sample in split.samples:
        asked = sample.record
        place = asked.prompt.removeprefix("locate the finding in the ").removesuffix(" .")
        there = [finding for finding in asked.case.findings if finding.attributes["location"] == place]
        assert [finding.boxes for finding in there] == [asked.boxes]
        assert asked.size == there[0].attributes["size"]


def test_both_sizes_and_several_places_are_asked_for(split):
    assert {sample.record.size for sample in split.samples} == {"small", "large"}
    assert len({sample.record.prompt for sample in split.samples}) > 5


def test_seeds_share_no_image_and_repeat(split):
    other = load_split(config("data.n_test=40", "run.seed=1"))
    draw_split.cache_clear()
    again = load_split(config("data.n_test=40"))
    assert again is not split
    assert set(split.case_ids).isdisjoint(other.case_ids)
    assert split.digest() == again.digest()


def test_a_case_without_a_finding_is_not_asked_about():
    assert ask(Case("chest-1", ())) is None


def test_usual_places_are_those_of_other_images_and_look_at_none(split):
    cfg = config("experiment=usual_places")
    places = usual_places(cfg)
    masks = [finding.mask for sample in split.samples for finding in sample.record.case.findings]
    inside = np.mean([places[mask].mean() for mask in masks])
    assert (places.shape, places.min(), places.max()) == ((192, 192), 0.0, 1.0)
    assert inside > 2 * places.mean()
    first, second = blind_map(cfg)({"pixel_values": [0, 1]})
    assert torch.equal(first, second)
    assert blind_map(config("experiment=finding_topk")) is None


def lesion(rows: slice, columns: slice, side: int = 16) -> Finding:
    mask = np.zeros((side, side), bool)
    mask[rows, columns] = True
    box = Box(columns.start / side, rows.start / side, columns.stop / side, rows.stop / side)
    return Finding("nodule", True, {"location": "right upper zone", "size": "small"}, (box,), mask)


LESIONS = (lesion(slice(0, 4), slice(0, 4)), lesion(slice(6, 9), slice(12, 16)))
"""On a grid of 4 x 4 tokens of 4 pixels: one in its first token; one in two tokens, one above the other."""


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([(0, 0)], [True, False]),
        ([(1, 3)], [False, True]),
        ([(2, 3)], [False, True]),  # its last row of pixels alone
        ([(0, 1), (3, 3)], [False, False]),
        ([(0, 0), (1, 3)], [True, True]),
    ],
)
def test_a_lesion_is_kept_where_a_kept_patch_shows_some_of_it(tokens, expected):
    kept = torch.zeros(4, 4, dtype=torch.bool)
    for row, column in tokens:
        kept[row, column] = True
    assert lesions_kept(Case("c", (), findings=LESIONS), kept) == expected


def test_where_nothing_is_dropped_every_lesion_is_kept():
    assert lesions_kept(Case("c", (), findings=LESIONS), None) == [True, True]


def planted(which: int, method: str, kept: torch.Tensor | None, text: str) -> dict[str, object]:
    case = Case("c-1", (), findings=LESIONS)
    asked = Asked("box_at", "p", "a", boxes=LESIONS[which].boxes, size="small", case=case)
    cfg = replace(config(), pruning=PruningConfig(method=method, budget=0.5))
    return box_row(cfg, Sample("c-1/box", asked, "c-1", 0), "image", Seen(text, kept))


def test_a_box_is_scored_against_the_lesion_that_is_asked_for():
    kept = torch.zeros(4, 4, dtype=torch.bool)
    kept[0, 0] = True
    right = planted(0, "random", kept, "[0.000, 0.000, 0.250, 0.250]")
    wrong = planted(1, "random", kept, "[0.000, 0.000, 0.250, 0.250]")
    assert (right["acc50"], right["best_iou"], right["kept"], right["asked_kept"]) == (1.0, 1.0, 0.5, 1.0)
    assert (wrong["acc50"], wrong["best_iou"], wrong["kept"], wrong["asked_kept"]) == (0.0, 0.0, 0.5, 0.0)


def test_an_answer_without_a_box_is_wrong_and_counted():
    row = planted(0, "random", None, "none")
    assert (row["acc50"], row["boxes"], row["right"]) == (0.0, 0.0, None)


def test_mixed_tokens_are_those_of_no_place():
    row = planted(0, "avg_pool", None, "none")
    assert row["kept"] is None
    assert row["asked_kept"] is None


@pytest.mark.parametrize(("text", "right"), [("right", 1.0), (" right ", 1.0), ("right lung", 0.0), ("", 0.0)])
def test_a_question_is_right_word_for_word(text, right):
    asked = Asked("box_at", "p", "a", question=Turn("side", "which side ?", "right", ("right", "left")))
    assert question_row(Sample("c/box", asked, "c", 0), text)["right"] == right


def test_dropped_patches_are_dark_in_what_is_shown():
    kept = torch.tensor([[True, False], [False, True]])
    shown = dim(np.full((4, 4), 100, np.uint8), kept)
    assert shown[:2, :2].tolist() == [[100, 100], [100, 100]]
    assert shown[:2, 2:].tolist() == [[35, 35], [35, 35]]


@pytest.fixture
def backbone():
    base = find_pretrained("tiny/llava-576")
    return open_backbone(base.under(config()), base)


@pytest.fixture
def few_images():
    return load_split(config("data.n_test=3"))


def config_of_arm(name: str, *more: str) -> Config:
    return config("data.n_test=3", f"experiment={name}", *PAPER.arms[name].overrides, *more)


def said_under(cfg: Config, backbone, split, rows) -> list[Seen]:
    prompts = [split.samples[row % len(split.samples)].record.prompt for row in rows]
    with asking(cfg, backbone, split) as asked:
        return asked(rows, prompts, 12)


def test_a_budget_of_all_tokens_says_what_the_model_says(backbone, few_images):
    whole, all_of_it, fifth = (
        config_of_arm("unpruned"),
        config_of_arm("lesion_safe", "pruning.budget=1.0"),
        config_of_arm("lesion_safe"),
    )
    plain, full, few = (said_under(cfg, backbone, few_images, [0, 1, 2]) for cfg in (whole, all_of_it, fifth))
    assert [one.text for one in plain] == [one.text for one in full]
    assert [int(one.kept.sum()) for one in full] == [576] * 3
    assert [int(one.kept.sum()) for one in few] == [115] * 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unpruned", "lesion_safe", "finding_topk_grid", "usual_places", "hired", "avg_pool"])
def test_answers_are_those_of_a_model_that_runs_its_tower_for_every_prompt(backbone, few_images, name):
    cfg, rows = config_of_arm(name), [2, 0, 3, 3, 1]  # one past the last is the blank image
    prompts = [few_images.samples[row % 3].record.prompt for row in rows]
    with pruned(backbone, cfg.pruning, seed=cfg.run.seed, map_of=blind_map(cfg)) as handle:
        pictures = Pictures(few_images, rows, image_px=cfg.model.image_px)
        expected = backbone.answer(pictures, prompts, max_new_tokens=12)
        kept = None if handle is None else [planes[0] for planes in handle.report().kept]
    seen = said_under(cfg, backbone, few_images, rows)
    assert [one.text for one in seen] == expected
    if kept is not None:
        assert all(torch.equal(one.kept, own) for one, own in zip(seen, kept, strict=True))


@pytest.mark.slow
def test_each_image_is_encoded_once_for_all_prompts_conditions_and_policies(backbone, few_images, tmp_path):
    encoded = []
    tower = backbone.part(backbone.family.vision)
    tower.register_forward_pre_hook(
        lambda _module, args, given: encoded.append(len(args[0] if args else given["pixel_values"])), with_kwargs=True
    )
    forget()
    for name in ("unpruned", "lesion_safe", "finding_topk", "hired", "lesion_safe_5"):
        folder = tmp_path / name
        folder.mkdir()
        table = scoring.evaluate(config_of_arm(name), backbone, few_images, folder=folder)
        assert table.num_rows > 3
        assert sum(encoded) == 4, name  # the blank one too


def test_other_images_and_other_weights_are_encoded_anew(backbone, few_images):
    cfg = config_of_arm("unpruned")
    first = see(cfg, backbone, few_images)
    assert see(config_of_arm("lesion_safe"), backbone, few_images) is first
    other = load_split(config_of_arm("unpruned_marker"))
    assert not torch.equal(see(cfg, backbone, other).features[0], first.features[0])
    with torch.no_grad():
        next(backbone.part(backbone.family.projector).parameters()).mul_(2)
    assert not torch.equal(see(cfg, backbone, few_images).features[0], first.features[0])


def test_where_lesions_usually_are_is_drawn_once_a_job(backbone, few_images, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(scoring, "usual_places", lambda cfg: drawn.append(1) or torch.zeros(192, 192).numpy())
    scoring.evaluate(config_of_arm("usual_places"), backbone, few_images, folder=tmp_path)
    assert drawn == [1]


def test_rows_are_those_that_the_model_prepares_one_by_one(backbone, few_images):
    prompts = ["where ?", "locate all findings .", "where ?"]
    expected = backbone.prepare(
        Pictures(few_images, [0, 1, 2], image_px=192), prompts, max_tokens=1000, padding="left"
    ).inputs
    batch = rows_about(backbone, see(config_of_arm("unpruned"), backbone, few_images).features[:3], prompts)
    assert set(batch.inputs) == set(expected) - {"pixel_values"}
    assert all(torch.equal(rows, expected[name]) for name, rows in batch.inputs.items())


def test_boxes_of_examples_carry_no_confidence(few_images, tmp_path, monkeypatch):
    marks = []
    draw = box_examples.draw_boxes
    monkeypatch.setattr(box_examples, "draw_boxes", lambda pixels, own: marks.extend(own) or draw(pixels, own))
    text = "[0.000, 0.000, 0.250, 0.250]"
    write_examples(tmp_path, few_images, [Seen(text, None)] * 3)
    assert [mark.text for mark in marks] == ["true", ""] * 3


@pytest.mark.slow
def test_the_claims_of_the_core_run_at_smoke_and_draw_no_verdict(tmp_path):
    command = [str(Path(sys.executable).with_name("lightbox")), "reproduce", "core", "--preset", "smoke"]
    done = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    folder = tmp_path / "reproduce" / "core-smoke"
    claims = json.loads((folder / "results.json").read_text())["claims"]
    assert [claim["id"] for claim in claims] == [claim.id for claim in PAPER.claims if "smoke" in claim.presets]
    assert {claim["verdict"] for claim in claims} == {"no verdict"}
    assert (folder / "report.html").is_file()
