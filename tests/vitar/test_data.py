"""Questions: one finding each, as many of every size; splits and worlds that share no scene."""

from collections import Counter

import numpy as np
import pytest

from lightbox.paper.conditions import shown_rows
from lightbox.paper.drawn_cases import CHUNK, draw_worlds
from lightbox.paper.image_regions import view
from lightbox.paper.replies import TagReplies
from lightbox.phantom.place_questions import place_questions
from vitar.config import resolve
from vitar.data import kinds_of, load_splits, tasks_of, traces_of

SMALL = ["preset=smoke", "data.original_px=64", "data.n_train=40", "data.n_test=22"]


@pytest.fixture(scope="module")
def splits():
    return load_splits(resolve([*SMALL, "experiment=mark"]))


def test_every_kind_has_as_many_items_and_sizes_rise_with_it(splits):
    cfg = resolve(SMALL)
    train, scored = splits
    kinds = kinds_of(cfg)
    assert [Counter(s.record.kind for s in train.samples)[kind] for kind in kinds] == [10] * 4
    assert [Counter(s.record.kind for s in scored.samples)[kind] for kind in kinds] == [6, 6, 5, 5]
    mean = {kind: np.mean([s.record.diameter for s in train.samples if s.record.kind == kind]) for kind in kinds}
    assert mean["small_50"] < mean["large_50"] < mean["large_100"]
    assert mean["small_50"] < mean["small_100"] < mean["large_100"]


def test_no_image_is_on_two_sides_nor_in_two_seeds(splits):
    parts = {"train": splits[0], "test": splits[1]}
    parts["validation"] = load_splits(resolve([*SMALL, "data.eval_split=validation"]))[1]
    parts["other seed"] = load_splits(resolve([*SMALL, "run.seed=1"]))[0]
    ids = [name for split in parts.values() for name in split.case_ids]
    assert len(set(ids)) == len(ids)
    pixels = [image.tobytes() for split in parts.values() for image in split.images]
    assert len(set(pixels)) == len(pixels)


def test_a_question_asks_what_is_seen_at_a_place_that_one_finding_has_alone():
    cfg = resolve(SMALL)
    drawn = draw_worlds("train", 0, cfg.data.worlds)
    both = [next(drawn) for _ in range(2 * CHUNK)]
    assert Counter(world for world, _ in both) == {0: CHUNK, 1: CHUNK}
    assert all(finding.mask is None for _, case in both for finding in case.findings)
    asked = [(case, own) for _, case in both for own in place_questions(case, scale_pct=50)]
    assert len(asked) > CHUNK
    for case, own in asked:
        (finding,) = [finding for finding in case.findings if finding.boxes == own.boxes]
        place = finding.attributes["location"]
        assert [other.attributes["location"] for other in case.findings].count(place) == 1
        assert own.text == f"what is seen in the {place} ?"
        assert own.answer == f"{finding.attributes['density']} {finding.attributes['shape']}"
        assert own.kind == f"{finding.attributes['size']}_50"
    assert len({own.id for _, own in asked}) == len(asked)
    assert len({own.answer for _, own in asked}) > 15  # a guess is seldom right


def test_a_task_holds_the_original_under_every_condition(splits):
    cfg, (_, scored) = resolve(SMALL), splits
    shown = {name: tasks_of(cfg, scored, rows) for name, rows in shown_rows(scored, seed=0).items()}
    for place, sample in enumerate(scored.samples):
        own = np.asarray(shown["image"][place].image.convert("L"))
        assert np.array_equal(own, scored.images[sample.image])
        assert len(np.unique(np.asarray(shown["blank"][place].image))) == 1
        assert not np.array_equal(own, np.asarray(shown["shuffled"][place].image.convert("L")))
        assert {tasks[place].question for tasks in shown.values()} == {sample.record.text}
        assert {tasks[place].true_boxes for tasks in shown.values()} == {sample.record.boxes}


def test_arms_imitate_the_same_act_and_differ_in_what_is_shown_for_it(splits):
    train, codec = splits[0], TagReplies(128)
    arms = {
        arm: traces_of(resolve([*SMALL, "model.image_px=32", f"experiment={arm}"]), train, codec)
        for arm in ("one", "same", "mark", "crop")
    }
    for one, *others in zip(*arms.values(), strict=True):
        same, mark, crop = (sample.record for sample in others)
        question, answer = one.record.turns
        assert {other.turns[1].text for other in (same, mark, crop)} == {mark.turns[1].text}
        for other in (same, mark, crop):
            assert other.turns[0].text == question.text
            assert other.images[0].tobytes() == question.images[0].tobytes()
            assert other.turns[3].text == answer.text
            assert other.images[1].size == (32, 32)
        assert same.images[1].tobytes() == view(question.images[0]).tobytes()
        assert len({other.images[1].tobytes() for other in (same, mark, crop)}) == 3
