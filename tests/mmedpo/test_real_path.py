"""Real sets: pairs from questions and released ones, a start on another set, and images that stay unseen."""

import json

import numpy as np
import pytest
from PIL import Image

from lightbox.errors import RequestError
from lightbox.paper.pretrained import find_pretrained
from lightbox.runs import folders
from mmedpo import evaluate, train
from mmedpo.cli import ENTRIES
from mmedpo.config import check, inputs, resolve
from mmedpo.curate import GIVEN, curate
from mmedpo.data import load_biased, load_splits

PLANES = ("axial", "coronal", "sagittal")
LOOKS = ("sensitivity_noised", "sensitivity_other")


@pytest.fixture(scope="module")
def rad(tmp_path_factory):
    """Twelve images of another size each, two questions an image, and a released pair about each of the first six."""
    root = tmp_path_factory.mktemp("vqa_rad")
    (root / "images").mkdir()
    rows, pairs = [], []
    for n in range(12):
        name = f"scan{n}.png"
        pixels = np.random.default_rng(n).integers(0, 256, (30 + n, 50), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / name)
        said = (("Is it a CT?", ("Yes", "No")[n % 2], "modality"), ("Which plane is it?", PLANES[n % 3], "plane"))
        for k, (question, answer, kind) in enumerate(said):
            row = {"qid": 10 * n + k, "image_name": name, "question": question, "answer": answer, "question_type": kind}
            rows.append(row | {"phrase_type": "freeform"})
        human = {"from": "human", "value": "<image>\nIs it a CT?"}
        pair = {"id": n, "image": name, "weighted_score": 0.4}
        pair |= {"conversations": [human, {"from": "gpt", "value": said[0][1]}]}
        pair |= {"rejected_conversations": [human, {"from": "gpt", "value": "It is something else."}]}
        pairs += [pair] * (n < 6)
    (root / "VQA_RAD Dataset Public.json").write_text(json.dumps(rows))
    (root / "pairs.json").write_text(json.dumps(pairs))
    return root


@pytest.fixture(scope="module")
def asked(rad, llava_folder):
    sizes = ["preset=smoke", f"model.backbone={llava_folder}", "model.image_px=64", "model.start_freezes_tower=false"]
    return [*sizes, "data.source=vqa_rad", f"data.root={rad}", "data.mask=full", "data.absurd_pct=0", "run.seed=3"]


def on_rad(asked, rad):
    return [*asked, "data.parts=3", f"data.given={rad}/pairs.json"]


def test_questions_make_a_false_answer_and_a_noised_image_each(asked):
    cfg = resolve([*asked, "experiment=mmedpo", "data.split=by_image"])
    learnt, scored = load_splits(cfg)
    made = curate(cfg, learnt)
    assert not set(learnt.case_ids) & set(scored.case_ids)
    for pair in made.pairs:
        own, other = pair.record, made.split.images[pair.record.rejected_image]
        if own.kind == "image":
            assert own.chosen == own.rejected
            assert (other != made.split.images[pair.image]).mean() > 0.5
        else:
            assert other is made.split.images[pair.image]
            assert own.rejected in ({"yes", "no"} if own.prompt == "Is it a CT?" else PLANES)
            assert own.rejected != own.chosen.lower()
    counts = [sum(pair.record.kind == kind for pair in made.pairs) for kind in ("text", "image")]
    assert counts[0] == counts[1] == len(learnt.samples)


def test_released_pairs_are_those_about_training_images_with_their_own_relevance(asked, rad):
    cfg = resolve([*on_rad(asked, rad), "experiment=mmedpo"])
    learnt, scored = load_splits(cfg)
    assert {sample.record.kind for sample in scored.samples} == {"closed", "open"}
    texts = [pair for pair in curate(cfg, learnt).pairs if pair.record.kind == "text"]
    known = {f"scan{n}" for n in range(6)}
    assert {pair.case_id for pair in texts} == known & set(learnt.case_ids)
    assert known & set(scored.case_ids)
    assert {(pair.record.grade, pair.record.relevance) for pair in texts} == {(GIVEN, 0.4)}


def test_images_of_released_pairs_are_left_out_of_the_training_and_not_of_the_scores(asked, rad):
    left = [*asked, "experiment=start", "data.split=by_image", f"data.leaves_out={rad}/pairs.json"]
    learnt, scored = load_splits(resolve(left))
    whole, also = load_splits(resolve([*asked, "experiment=start", "data.split=by_image"]))
    assert set(learnt.case_ids) == set(whole.case_ids) - {f"scan{n}" for n in range(6)}
    assert scored.ids == also.ids
    biased = load_biased(resolve([*left, "data.start_mismatch_pct=100"]))
    assert all(biased.case_ids[sample.image] != sample.case_id for sample in biased.samples)
    assert len(biased.images) == len(learnt.images)


@pytest.mark.slow
def test_arms_run_on_real_images_from_a_start_that_moved_the_tower(asked, rad, tmp_path):
    out = [f"run.out={tmp_path}", "data.split=by_image"]
    start = ENTRIES.run_once([*asked, *out, "experiment=start"], "train")
    given = [*on_rad(asked, rad), *out, f"needs=[{start}]"]
    as_it_is = ENTRIES.run_once([*given, "experiment=start", "objective.is_trained=false"], "train")
    tuned = ENTRIES.run_once([*given, "experiment=mmedpo"], "train")
    for folder in (as_it_is, tuned):
        shown = [row for row in folders.read_scores(folder).to_pylist() if row["condition"] == "image"]
        assert len(shown) == 8
        assert all(row[name] is not None for row in shown for name in LOOKS)
        assert all(row["sensitivity_in"] is None for row in shown)
    before = ENTRIES.run_once([*on_rad(asked, rad), *out, "experiment=untouched"], "train")
    values = [[row["sensitivity_noised"] for row in folders.read_scores(own).to_pylist()] for own in (before, as_it_is)]
    assert values[0] != values[1]  # what the start learnt is scored, and not the shipped weights
    card = folders.read_card(tuned)
    assert card["pairs"]["text"] == card["pairs"]["image"] > 0
    assert "leaks" in card


def test_sensitivity_is_zero_where_every_image_is_alike(asked, rad, llava_folder, monkeypatch):
    cfg = resolve([*on_rad(asked, rad), "experiment=untouched"])
    _, scored = load_splits(cfg)
    learner = train.open_arm(cfg, find_pretrained(str(llava_folder)))
    usual = evaluate.sensitivity(cfg, learner, scored)
    assert all(row[name] != 0 for row in usual for name in LOOKS)
    scored.images[:] = [scored.images[0]] * len(scored.images)
    monkeypatch.setattr(evaluate.noise, "noised", lambda images, *_: images)
    for row in evaluate.sensitivity(cfg, learner, scored):
        assert all(abs(row[name]) < 1e-4 for name in LOOKS)


@pytest.mark.parametrize("mask", ["oracle", "degraded", "random"])
def test_masks_of_findings_are_refused_where_no_finding_is_known(asked, mask):
    cfg = resolve([*asked, f"data.mask={mask}"])
    with pytest.raises(RequestError, match=r"data\.mask.*only a phantom tells.*data\.source=phantom"):
        check(cfg, find_pretrained("tiny/llava"))


@pytest.mark.parametrize("setting", ["data.given=pairs.json", "data.leaves_out=pairs.json", "data.parts=5"])
def test_settings_of_real_sets_are_refused_for_a_phantom(setting):
    with pytest.raises(RequestError, match=r"data\.given.*phantom"):
        resolve(["preset=smoke", "run.seed=0", setting])


def test_released_pairs_are_among_what_a_run_reads(asked, rad, tmp_path):
    file = tmp_path / "pairs.json"
    file.write_text((rad / "pairs.json").read_text())
    cfg = resolve([*asked, "experiment=majority", f"data.given={file}"])
    before = inputs(cfg)["given"]
    file.write_text(file.read_text() + "\n")
    assert inputs(cfg)["given"] != before
