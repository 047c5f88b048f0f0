"""One arm end to end on random weights: files of a run, `open_frozen` and its features, a prediction."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from k2sight import evaluate
from k2sight.cli import ENTRIES
from k2sight.config import resolve
from k2sight.data import load_splits
from k2sight.model import Grounder, open_grounder
from lightbox import phantom
from lightbox.backbones.box_text import BoxReading
from lightbox.errors import RequestError
from lightbox.eval.boxes import LabelledBox
from lightbox.paper import frozen_tower
from lightbox.paper.pretrained import find_pretrained
from lightbox.records import Box
from lightbox.runs import folders


@pytest.fixture(scope="module")
def sizes(florence2_folder):
    return ["preset=smoke", f"model.backbone={florence2_folder}", "eval.answer_tokens=8"]


@pytest.fixture(scope="module")
def run(sizes, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return ENTRIES.run_once([*sizes, f"run.out={out}"], "train")


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "chest.png"
    seeds = phantom.seed_range("development", 0, 1)
    Image.fromarray(phantom.draw_cases(seeds)[0].images[0]).save(path)
    return path


def test_a_run_scores_every_part_condition_and_prompt(run):
    table = folders.read_scores(run).to_pylist()
    assert {row["kind"] for row in table} == {"known", "unseen_composition", "set known", "set unseen_composition"}
    conditions = {"image", "blank", "shuffled", "swapped", "nearest", "only_location", "other"}
    assert {row["condition"] for row in table} == conditions
    items = [row["item"] for row in table if row["condition"] == "image"]
    assert len(items) == len(set(items)) == 2 * 12 + 2
    assert {"location_prior", "blob"} == folders.read_card(run)["baselines"].keys()
    examples = json.loads((run / folders.EXAMPLES).read_text())
    assert examples
    assert all((run / picture["path"]).is_file() for row in examples for picture in row["pictures"])


def test_training_moves_all_but_the_tower(run, florence2_folder):
    before, after = (load_file(folder / "model.safetensors") for folder in (florence2_folder, run / folders.MODEL))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert not [name for name in moved if "vision_tower" in name]
    assert [name for name in moved if "projector" in name or "multi_modal" in name]


@pytest.mark.slow
def test_a_saved_model_scores_the_same_again(run, sizes, tmp_path):
    again = ENTRIES.run_once([*sizes, f"run.out={tmp_path}", f"model.backbone={run / folders.MODEL}"], "eval")
    assert folders.read_scores(again).equals(folders.read_scores(run))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "named"),
    [("experiment=name", r"data\.prompt"), ("experiment=scrambled", r"data\.definition"), ("run.seed=1", r"run\.seed")],
)
def test_a_model_is_not_asked_in_words_that_it_was_not_taught(run, sizes, tmp_path, asked, named):
    with pytest.raises(RequestError, match=named):
        ENTRIES.run_once([*sizes, f"run.out={tmp_path}", asked, f"model.backbone={run / folders.MODEL}"], "eval")


@pytest.mark.slow
def test_the_contrast_of_regions_is_learnt_beside_the_boxes(sizes, run, tmp_path):
    with_contrast = ENTRIES.run_once([*sizes, f"run.out={tmp_path}", "experiment=defined_region"], "train")
    curve = folders.read_history(with_contrast)["train/region"]
    assert all(value > 0 for _, value in curve)
    assert "train/region" not in folders.read_history(run)
    states = [load_file(folder / folders.MODEL / "model.safetensors") for folder in (run, with_contrast)]
    assert any(not torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.slow
def test_training_sees_the_views_and_evaluation_does_not(sizes, run, tmp_path):
    with_views = ENTRIES.run_once([*sizes, f"run.out={tmp_path}", "data.views=2"], "train")
    states = [load_file(folder / folders.MODEL / "model.safetensors") for folder in (run, with_views)]
    assert any(not torch.equal(states[0][name], states[1][name]) for name in states[0])
    items = [folders.read_scores(folder)["item"].to_pylist() for folder in (run, with_views)]
    assert items[0] == items[1]


@pytest.mark.slow
def test_a_run_that_selects_words_scores_and_predicts(sizes, tmp_path, image):
    run = ENTRIES.run_once([*sizes, f"run.out={tmp_path}", "experiment=defined_bank"], "train")
    assert folders.read_scores(run).num_rows
    assert ENTRIES.predict(image=image, question="vorpal means coin, white, dextral top", run=run)["definition"]
    with pytest.raises(RequestError, match=r"model\.bank_words"):  # nor does it answer a prompt with all of them
        ENTRIES.run_once([*sizes, f"run.out={tmp_path}", f"model.backbone={run / folders.MODEL}"], "eval")


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        (["model.bank_words=5", "data.prompt=definition"], r"model\.bank_words is 5"),
        (["model.bank_words=5", "model.keeps_features=false"], r"model\.bank_words is 5"),
        (["model.bank_words=-1"], r"model\.bank_words"),
        (["objective.region_weight=-1"], r"objective\.region_weight"),
    ],
)
def test_options_that_do_not_fit_are_refused(sizes, tmp_path, asked, named):
    with pytest.raises(RequestError, match=named):
        ENTRIES.run_once([*sizes, f"run.out={tmp_path}", "experiment=defined", *asked], "train")


def test_a_box_in_the_margin_is_no_place_in_the_image(run, tmp_path, monkeypatch):
    Image.new("L", (96, 48)).save(tmp_path / "wide.png")
    margin = BoxReading((LabelledBox("", Box(0.2, 0.0, 0.6, 0.2)),), is_parsed=True, n_broken=0)
    monkeypatch.setattr(Grounder, "ask", lambda *_: [margin])
    answer = ENTRIES.predict(image=tmp_path / "wide.png", question="it means coin, white, root", run=run)
    assert (answer["boxes"], answer["scores"], answer["says"]) == ([], [], "that there is none")


@pytest.mark.slow
def test_features_of_the_same_images_are_computed_once(sizes, tmp_path, monkeypatch):
    monkeypatch.setattr(frozen_tower, "_kept", {})
    cfg = resolve([*sizes, "run.seed=5"])
    splits = load_splits(cfg)
    counts = []
    encode = frozen_tower.Florence2OnFeatures.encode_images
    monkeypatch.setattr(
        frozen_tower.Florence2OnFeatures,
        "encode_images",
        lambda self, images: counts.append(len(images)) or encode(self, images),
    )
    for _ in range(2):
        grounder = open_grounder(cfg, find_pretrained(cfg.model.backbone), splits, cache=tmp_path)
    assert sum(counts) == sum(len(split.images) + 1 for split in splits)
    seen = grounder.learner.see(splits[0], [0, len(splits[0].images)])
    assert seen.shape == (2, 64, 96)
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.slow
def test_a_finding_is_predicted_by_name_and_in_words(run, image, tmp_path):
    known = load_splits(resolve(["preset=smoke"]))[0].samples[0].record
    by_name = ENTRIES.predict(image=image, question=known.name, run=run, out=tmp_path / "drawn.png")
    assert by_name["definition"] == known.definition
    in_words = ENTRIES.predict(image=image, question=f"{known.name} means {known.definition}", run=run)
    assert in_words == by_name
    assert (tmp_path / "drawn.png").is_file()
    with pytest.raises(RequestError, match="knows 224 classes"):
        ENTRIES.predict(image=image, question="nodule", run=run)


def test_baselines_draw_a_box_for_each_item_and_the_oracle_the_true_ones():
    means = {}
    for arm in ("location_prior", "blob", "oracle"):
        cfg = resolve(["preset=smoke", f"experiment={arm}", "data.n_test=40"])
        train, scored = load_splits(cfg)
        rows = evaluate.guess_rows(scored, evaluate.guesses(train, scored, arm))
        drawn = [len(s.record.boxes) if arm == "oracle" else 1 for s in scored.samples]
        assert [row["boxes"] for row in rows] == drawn
        overlaps = [row["paired_iou"] for row in rows if row["paired_iou"] is not None]
        means[arm] = sum(overlaps) / len(overlaps)
    assert means["oracle"] == pytest.approx(1.0)
    assert 0 < means["location_prior"] < 0.5
    assert 0 < means["blob"] < 0.5
