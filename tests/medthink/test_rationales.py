"""The arms' rationales are what they say, exactly and repeatably."""

import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from lightbox import phantom
from lightbox.errors import RequestError
from lightbox.phantom.facts import parse, sentence_kind
from lightbox.phantom.questions import CLOSED_KINDS
from medthink import rationales
from medthink.config import resolve
from medthink.data import load_splits


@pytest.fixture(scope="module")
def drawn():
    cfg = resolve(["preset=smoke", "run.seed=3", "data.n_train=1200", "data.n_test=4"])
    return load_splits(cfg, with_images=False)[0].samples


@pytest.mark.slow
def test_same_answer_comes_from_another_case_with_the_same_kind_and_answer(drawn):
    changed = rationales.with_same_answer(drawn, seed=0)
    givers = {}
    for item in drawn:
        question = item.record
        givers.setdefault((question.kind, question.answer, question.rationale), set()).add(item.case_id)
    for before, after in zip(drawn, changed, strict=True):
        assert (after.id, after.record.answer, after.record.text) == (
            before.id,
            before.record.answer,
            before.record.text,
        )
        owners = givers[
            before.record.kind, before.record.answer, after.record.rationale
        ]  # raises KeyError where kind or answer differ
        assert owners != {before.case_id}
    assert sorted(i.record.rationale for i in changed) == sorted(i.record.rationale for i in drawn)  # each is used once
    assert sum(a != b for a, b in zip(drawn, changed, strict=True)) > 0.8 * len(drawn)


def test_answer_that_nobody_shares_is_left_without_rationale(items):
    changed = rationales.with_same_answer(items, seed=0)
    assert changed[-1].record.rationale == ""  # the only item with "left upper zone"
    assert changed[3].record.rationale == ""  # "yes" is shared, but this is the only threshold question


def test_items_of_one_case_swap_only_where_no_other_case_shares_their_answer(make_item):
    one_case = [make_item(name, case_id="same", rationale=f"{name} .") for name in "ab"]
    assert [item.record.rationale for item in rationales.with_same_answer(one_case, seed=0)] == ["b .", "a ."]


def test_filler_has_the_length_of_the_rationale_and_none_of_its_facts(items):
    def count(text):
        return len(text.split())

    changed = rationales.altered(items, "filler", seed=0, corruption_pct=0, count_tokens=count)
    assert [count(i.record.rationale) for i in changed] == [count(i.record.rationale) for i in items]
    assert all(parse(c.record.rationale).isdisjoint(i.record.facts) for c, i in zip(changed, items, strict=True))
    assert set(" ".join(i.record.rationale for i in changed).split()) <= set(rationales.FILLER_WORDS)


@pytest.mark.parametrize("pct", [0, 10, 25, 50])
def test_corruption_rate_is_exact_and_every_corrupted_fact_is_wrong(drawn, pct):
    changed = rationales.with_corruption(drawn, pct, seed=1)
    different = [(a, b) for a, b in zip(drawn, changed, strict=True) if a != b]
    assert len(different) == round(len(drawn) * pct / 100)
    for before, after in different:
        assert parse(after.record.rationale) != frozenset(before.record.facts)
        assert after.record.answer == before.record.answer


def test_corruption_swaps_words_of_one_kind_consistently():
    text = "a disc lies in the left upper zone . the larger one lies on the left ."
    for seed in range(20):
        words = rationales.corrupt(text, np.random.default_rng(seed)).split()
        changes = {(a, b) for a, b in zip(text.split(), words, strict=True) if a != b}
        assert len(changes) == 1  # one word became one other word, everywhere
        old, new = changes.pop()
        assert any(old in kind and new in kind for kind in rationales.SWAPS.values())


def test_too_high_corruption_is_refused(make_item):
    clear = [make_item(str(k), rationale="the lungs are clear .") for k in range(4)]
    with pytest.raises(RequestError, match="Only 0 of them state a side"):
        rationales.with_corruption(clear, 50, seed=0)


@pytest.mark.parametrize("kind", ["true", "same_answer", "filler", "corrupted"])
def test_every_alteration_repeats_itself(drawn, kind):
    def draw():
        return rationales.altered(drawn, kind, seed=5, corruption_pct=25, count_tokens=len)

    assert draw() == draw()


def test_masking_hides_options_and_polarity_and_leaves_facts(make_item):
    side = make_item(answer="left", options=("right", "left"))
    assert rationales.masked(side.record, "the left lung shows a disc , not the right .") == (
        f"the {rationales.MASK} lung shows a disc , {rationales.MASK} the {rationales.MASK} ."
    )
    yes = make_item(rationale="no disc is seen .")
    assert rationales.masked(yes.record, yes.record.rationale) == f"{rationales.MASK} disc is seen ."


def test_corruption_words_are_those_of_the_phantom():
    said = " ".join(
        question.rationale
        for case in phantom.draw_cases(phantom.seed_range("train", 1, 200), closed=True, with_pixels=False)
        for question in case.questions
    )
    for words in rationales.SWAPS.values():
        assert all(re.search(rf"\b{word}\b", said) for word in words), words


def test_evidence_lacks_the_conclusion_and_keeps_what_it_rests_on(make_item):
    seen = "the left hilum holds a small dense disc ."
    told = {
        "count_comparison": f"{seen} that makes none on the right , one on the left .",
        "composition": f"{seen} the largest is in the middle part .",
        "comparison": f"{seen} the left lung holds the larger one .",
    }
    for kind, text in told.items():
        assert rationales.evidence(make_item(kind=kind, rationale=text).record) == seen
    for kind, text in (
        ("threshold", "the heart is large ."),
        ("presence", f"{seen} the small dense disc is a nodule ."),
    ):
        assert rationales.evidence(make_item(kind=kind, rationale=text).record) == ""
    other = "Opacity in the left lung, as in pneumonia. It is bright."
    assert rationales.evidence(make_item(kind="presence", rationale=other).record) == other


def test_form_of_the_evidence_does_not_tell_the_answer(drawn):
    """Whoever knows which kinds of sentence stand there, and nothing else, must be near chance on every kind."""
    answers = defaultdict(Counter)
    for item in drawn:
        question = item.record
        told = tuple(sentence_kind(part.strip()) for part in rationales.evidence(question).split(".") if part.strip())
        place = question.answer_index if question.kind in ("side", "comparison") else question.answer
        answers[question.kind, told][place] += 1
    assert {kind for kind, _ in answers} == set(CLOSED_KINDS)
    for kind in CLOSED_KINDS:
        counts = [count for (own, _), count in answers.items() if own == kind]
        right, total = (sum(map(part, counts)) for part in (lambda c: max(c.values()), Counter.total))
        assert right / total < 0.65, kind  # with presence as the phantom tells it: above 0.8
