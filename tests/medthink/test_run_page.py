"""The page of a run beside its data set: a hand-made VQA-Med 2019 worked out by hand; a phantom; a baseline."""

import json

import numpy as np
import pytest
from PIL import Image

from lightbox import files
from lightbox.cli.reproduce import report_folder
from lightbox.runs import folders
from lightbox.testing.web_page import Page
from medthink import cli, scores
from medthink.config import resolve
from medthink.data import load_splits
from medthink.evaluate import beside_score

PLANE, ORGAN = "what plane ?", "what organ ?"
PAIRS = {  # question-only answers axial and, of lung and heart, lung, which it met first
    "train": [("t1", PLANE, "axial"), ("t1", ORGAN, "lung"), ("t2", PLANE, "axial"), ("t2", ORGAN, "heart")],
    "val": [("v1", PLANE, "axial"), ("v1", ORGAN, "lung"), ("v2", PLANE, "coronal"), ("v2", ORGAN, "heart")],
}
RIGHT = {"image": (1, 1, 1, 0), "blank": (1, 0, 0, 0), "shuffled": (0, 0, 0, 1)}  # of the four of val, in order


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "vqa_med_2019"
    for split, pairs in PAIRS.items():
        (folder / split / "images").mkdir(parents=True)
        (folder / split / "QAPairsByCategory").mkdir()
        lines = ["|".join(pair) + "\n" for pair in pairs]
        (folder / split / f"All_QA_Pairs_{split}.txt").write_text("".join(lines))
        for kind, text in (("C1_Plane", PLANE), ("C2_Organ", ORGAN)):
            own = "".join(line for line in lines if text in line)
            (folder / split / "QAPairsByCategory" / f"{kind}_{split}.txt").write_text(own)
        for name, _, _ in pairs:
            pixels = np.full((20, 30, 3), (200, 30, 30), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / split / "images" / f"{name}.jpg")
    return folder


@pytest.fixture
def run(tmp_path, root):
    """Folder of a run on it, written as `medthink.evaluate` writes one."""
    own = ["experiment=none", "preset=smoke", "run.seed=0", "data.form=open", "data.eval_split=validation"]
    cfg = resolve([*own, "data.source=vqa_med_2019", f"data.root={root}"])
    train, scored = load_splits(cfg)
    folder = tmp_path / "runs" / "none-1"
    folder.mkdir(parents=True)
    rows, lines = [], []
    for condition, flags in RIGHT.items():
        for sample, is_right in zip(scored.samples, flags, strict=True):
            text = f"The answer is {sample.record.answer}." if is_right else "The answer is brain."
            rows.append(scores.score_text(sample, condition, text=text, rationale=None, parse_facts=None))
            line = {"id": sample.id, "condition": condition, "question": sample.record.text, "options": []}
            lines.append(line | {"answer": sample.record.answer, "answer_index": None, "prediction": text})
    folders.write_scores(folder, rows, scores.METRICS)
    (folder / folders.PREDICTIONS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    folders.write_card(folder, beside_score(cfg, train, scored))
    record = {"paper": "medthink", "arm": "none", "seed": 0, "preset": "smoke"}
    folders.mark_finished(folder, record | {"config": files.to_plain(cfg)})
    return folder


def page_of(folder):
    [path] = report_folder(folder)
    return Page(path.read_text(encoding="utf-8"))


def test_figures_of_a_run_beside_its_data_are_those_worked_out_by_hand(run):
    page = page_of(run)
    assert "Not on this page" not in page.text
    # images v1 (2 of 2) and v2 (1 of 2): two draws give 100, 75 or 50 %
    assert "image the item's own image 75.0 [50.0, 100.0]" in page.text
    assert "from 2 images of 4 items drawn again" in page.text
    # question-only is right on both of v1 and none of v2, so image leads by 0 there and by 1 of 2 here
    conclusion = "The score does not show that the image was used: +25.0 points against question-only"
    assert f"{conclusion}, the best of what needs no image (95 % interval [0.0, 50.0])." in page.text
    assert "question-only best without image +25.0 [0.0, 50.0] the interval holds 0" in page.text
    assert "organ 2 50.0" in page.text
    assert "4 scored items ask 2 different question texts; 100 % of the items" in page.text
    assert "100 % have a text that stands in the training questions. The commonest answer" in page.text
    assert "is right on 50 % of those items" in page.text
    assert "one to three words 4 100 % 75.0 [50.0, 100.0]" in page.text
    assert "0 of 2 validation images (0 of 4 items)" in page.text
    assert "ours 75.0 25.0 4 of 4 0" in page.text


def test_cards_hold_the_images_in_colour_and_what_each_way_answered(run):
    page = page_of(run)
    pictures = [attrs["src"] for attrs in page.all("img")]
    assert len(pictures) == 3
    assert all(source.startswith("data:image/png;base64,") for source in pictures)
    best, worst = page.html.split("<h3>Best")[1].split("<h3>Worst")
    assert best.count("<article") == 2
    assert "<b>question-only</b> axial" in best
    assert "The answer is brain." in worst
    assert "Images here are real" in page.text


def test_a_data_set_that_is_gone_leaves_a_page_without_images(run, root):
    root.rename(root.with_name("moved"))
    page = page_of(run)
    assert "Images and the data set, which cannot be read here: Root" in page.text
    assert page.all("img") == []
    assert "image not here" in page.text
    assert "what plane ?" in page.text
    assert "question-only commonest training answer of the same question text 50.0 none: only the mean" in page.text
    assert "image the item's own image 75.0" in page.text


def test_a_data_set_that_has_changed_is_not_shown_beside_the_scores(run, root):
    file = root / "val" / "All_QA_Pairs_val.txt"
    file.write_text(file.read_text().replace("v2|what organ ?|heart", "v2|what organ ?|liver"))
    page = page_of(run)
    assert "1 of 4 items are not in what is read today, or ask something else there" in page.text
    assert page.all("img") == []


def test_an_image_that_is_gone_takes_no_card_away(run, root):
    (root / "val" / "images" / "v2.jpg").unlink()
    page = page_of(run)
    assert len(page.all("img")) == 1
    assert page.html.count("<article") == 3


@pytest.mark.parametrize("arm", ["majority", "question_only"])
def test_a_baseline_arm_has_a_page_that_makes_no_claim_about_images(tmp_path, root, arm):
    own = ["preset=smoke", "run.seed=0", "data.form=open", "data.eval_split=validation", f"run.out={tmp_path}"]
    folder = cli.ENTRIES.run_once(
        [f"experiment={arm}", *own, "data.source=vqa_med_2019", f"data.root={root}"], "train", is_indexed=False
    )
    page = page_of(folder)
    assert "This arm counts training answers." in page.text
    assert "Image minus" not in page.text
    assert "0 of 2 validation images" in page.text
    assert "A baseline writes no text that a rule could read." in page.text
    assert "axial" in page.html.split("<h3>Best")[1]


@pytest.mark.slow
def test_a_phantom_run_says_that_its_images_are_synthetic(tmp_path, tiny):
    folder = cli.ENTRIES.run_once([*tiny, "experiment=explanation", f"run.out={tmp_path}"], "train", is_indexed=False)
    page = page_of(folder)
    assert "Images here are synthetic" in page.text
    assert "Nothing: every phantom is drawn from a number of its own" in page.text
    assert "Not on this page" not in page.text
    n_images = len(load_splits(resolve([*tiny, "experiment=explanation"]), with_images=False)[1].case_ids)
    assert f"scored on test: 12 items on {n_images} images" in page.text
    assert page.all("img")
    assert page.is_balanced


def test_a_phantom_of_another_version_draws_no_images(tmp_path, tiny):
    folder = cli.ENTRIES.run_once([*tiny, "experiment=none", f"run.out={tmp_path}"], "train", is_indexed=False)
    record = folders.read_record(folder)
    record["inputs"]["data"] = "an earlier one"
    (folder / folders.RECORD).write_text(json.dumps(record))
    page = page_of(folder)
    assert "the phantom has changed since the run" in page.text
    assert page.all("img") == []
