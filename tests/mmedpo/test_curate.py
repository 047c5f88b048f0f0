"""Pairs: their other answers are false, as long as the true one, and of the grade that they say."""

from collections import Counter

import numpy as np
import pytest

from lightbox.errors import RequestError
from lightbox.paper.samples import Split
from lightbox.phantom.ontology import CLASS_NAMES
from lightbox.phantom.report_facts import is_true, report_facts
from mmedpo.config import resolve
from mmedpo.curate import RELEVANCE, curate, rests_on_findings, rivals
from mmedpo.data import REPORT, Asked, lesion, load_biased, load_splits

ASKED = ["preset=smoke", "experiment=mmedpo", "run.seed=3", "data.n_train=600", "data.n_test=10"]


@pytest.fixture(scope="module")
def train():
    return load_splits(resolve(ASKED))[0]


@pytest.fixture(scope="module")
def made(train):
    return curate(resolve(ASKED), train)


def test_other_answers_are_false_and_as_long_as_the_true_ones(made):
    texts = [pair.record for pair in made.pairs if pair.record.kind == "text"]
    assert len(texts) > 300
    assert [pair for pair in texts if pair.chosen == pair.rejected] == []
    assert [pair for pair in texts if len(pair.chosen.split()) != len(pair.rejected.split())] == []


def test_both_kinds_have_as_many_pairs_of_the_same_questions(made):
    ids = [
        {pair.id.rpartition("/")[0] for pair in made.pairs if pair.record.kind == kind} for kind in ("text", "image")
    ]
    assert ids[0] == ids[1]
    assert len(made.pairs) == 2 * len(ids[0])


def test_a_pair_depends_on_its_question_and_the_seed_alone(made, train):
    half = Split(train.name, train.samples[:300], train.images, train.case_ids)
    alone = {pair.id: pair.record for pair in curate(resolve([*ASKED, "data.pairs=text"]), half).pairs}
    assert len(alone) > 100
    assert {pair.id: pair.record for pair in made.pairs if pair.id in alone} == alone
    other = {pair.id: pair.record.rejected for pair in curate(resolve([*ASKED, "run.seed=4"]), train).pairs}
    assert any(other[name] != record.rejected for name, record in alone.items())


def test_grades_come_in_the_shares_asked_for(train):
    for pct in (0, 100):
        cfg = resolve([*ASKED, f"data.absurd_pct={pct}", "data.pairs=text"])
        grades = Counter(pair.record.grade for pair in curate(cfg, train).pairs)
        assert grades["absurd"] / grades.total() == pct / 100
        assert all(pair.record.relevance == RELEVANCE[pair.record.grade] for pair in curate(cfg, train).pairs)


def test_the_other_image_differs_from_its_own_inside_the_findings_only(made, train):
    lesions = {sample.image: lesion(sample.record) for sample in train.samples}
    pairs = {pair.image: pair.record.rejected_image for pair in made.pairs if pair.record.kind == "image"}
    for own, other in list(pairs.items())[:50]:
        differs = made.split.images[own] != made.split.images[other]
        assert differs.any()
        assert not differs[~lesions[own]].any()
    assert set(pairs.values()) == set(range(len(train.images), len(made.split.images)))


@pytest.mark.parametrize(
    ("answer", "kind", "near", "far"),
    [
        ("left upper zone", "zone", {"left middle zone", "right upper zone"}, {"right middle zone"}),
        ("left hilum", "zone", {"right hilum"}, set()),
        ("two", "count", {"one", "three"}, {"none", "four"}),
        ("nodule", "naming", {"mass", "bulla"}, {"fibrosis"}),
    ],
)
def test_a_near_miss_is_false_in_one_way_and_a_far_one_in_more(answer, kind, near, far):
    choices = rivals(Asked("a", "what ?", answer, kind=kind))
    assert near <= set(choices["near"])
    assert far <= set(choices["far"])
    assert not set(choices["near"]) & (set(choices["far"]) | {answer})
    assert all(len(text.split()) == len(answer.split()) for texts in choices.values() for text in texts)


def test_closed_questions_have_the_other_option_as_their_near_miss(train):
    closed = [sample.record for sample in train.samples if sample.record.is_closed]
    for asked in closed:
        choices = rivals(asked)
        assert choices["near"] == [option for option in asked.options if option != asked.answer]
        assert set(choices["far"]) <= set(CLASS_NAMES) - set(asked.options)
        assert not set(choices["absurd"]) & {*asked.options, *CLASS_NAMES}


def test_false_reports_state_something_false(train):
    reports = [sample.record.answer for sample in train.samples if sample.record.kind == REPORT]
    grades = Counter()
    for report in reports:
        truth = report_facts(report)
        assert all(is_true(fact, truth) for fact in truth)
        for grade, texts in rivals(Asked("r", "?", report, kind=REPORT)).items():
            grades[grade] += len(texts)
            for text in texts:
                assert not all(is_true(fact, truth) for fact in report_facts(text)), (report, text)
    assert min(grades["near"], grades["far"], grades["absurd"]) > 0.5 * len(reports)


def test_a_report_states_the_findings_of_its_image(train):
    for sample in train.samples:
        if sample.record.kind == REPORT:
            found = {f"{own.name} in {own.attributes['location']}" for own in sample.record.findings}
            assert {fact for fact in report_facts(sample.record.answer) if " in " in fact} == found


@pytest.mark.parametrize(
    ("kind", "answer", "rests"),
    [("presence", "yes", True), ("presence", "no", False), ("threshold", "yes", False), ("composition", "no", False)],
)
def test_an_answer_rests_on_findings_where_it_would_change_without_them(kind, answer, rests):
    asked = Asked("a", "?", answer, options=("yes", "no"), answer_index=("yes", "no").index(answer), kind=kind)
    assert rests_on_findings(asked) is rests
    assert rests_on_findings(Asked("b", "?", "two", kind="count"))


def test_the_start_learns_what_the_text_suggests_and_pairs_do_not(train):
    cfg = resolve(ASKED)
    biased = load_biased(cfg)
    assert len(biased.samples) == cfg.data.n_train

    def predictable(samples):
        """Share of closed questions with the commoner answer of their text, where it is asked five times or more."""
        counts = {}
        for sample in samples:
            if sample.record.is_closed:
                counts.setdefault(sample.record.text, Counter())[sample.record.answer] += 1
        often = [count for count in counts.values() if count.total() >= 5]
        return sum(max(count.values()) for count in often) / sum(count.total() for count in often)

    elsewhere = [sample for sample in biased.samples if biased.case_ids[sample.image] != sample.case_id]
    assert 0.42 < len(elsewhere) / len(biased.samples) < 0.58
    alone = load_biased(resolve([*ASKED, "data.start_mismatch_pct=0"]))
    assert all(alone.case_ids[sample.image] == sample.case_id for sample in alone.samples)
    assert predictable(biased.samples) > 0.88
    assert predictable(train.samples) < 0.75


def test_no_image_with_a_finding_is_refused(train):
    bare = [sample.with_record(findings=()) for sample in train.samples]
    with pytest.raises(RequestError, match="nothing to prefer"):
        curate(resolve(ASKED), Split(train.name, bare, train.images, train.case_ids))


def test_curation_is_a_pure_function(made, train):
    again = curate(resolve(ASKED), train)
    assert [pair.record for pair in again.pairs] == [pair.record for pair in made.pairs]
    assert all(np.array_equal(a, b) for a, b in zip(again.split.images, made.split.images, strict=True))
