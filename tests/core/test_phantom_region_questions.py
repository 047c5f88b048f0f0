"""Questions about regions and requests for masks: true, and told neither by the text nor by the image alone."""

import dataclasses
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from lightbox.errors import RequestError
from lightbox.phantom.modalities import MODALITIES, draw_modality
from lightbox.phantom.region_prompts import PROMPTS
from lightbox.phantom.region_questions import ABSENT, KINDS, PRESENT, ask_regions, request_masks
from lightbox.records import Case, check_question


@pytest.fixture(scope="module")
def cases():
    drawn = {"radiograph": 100, "ultrasound": 160, "endoscopy": 120, "ct": 120, "pet": 120, "microscopy": 160}
    return {name: draw_modality(name, "development", n=n, seed=8) for name, n in drawn.items()}


@pytest.fixture(scope="module")
def asked(cases):
    return [(case, ask) for some in cases.values() for case in some for ask in ask_regions(case, n=len(KINDS))]


def _is_at_chance(hits: list[bool], options: list[int]) -> bool:
    """True where the share of hits is that of guessing, within three standard errors."""
    chance = 1 / np.array(options)
    return abs(np.sum(hits) - chance.sum()) <= 3 * np.sqrt((chance * (1 - chance)).sum())


@pytest.mark.slow
def test_every_kind_is_asked_with_every_prompt(asked):
    assert {ask.question.kind for _, ask in asked} == {f"region_{kind}" for kind in KINDS}
    assert {ask.prompt.kind for _, ask in asked} == set(PROMPTS)
    assert min(Counter(ask.question.kind for _, ask in asked).values()) > 100


def test_answers_are_those_of_the_region(asked):
    for case, ask in asked:
        check_question(ask.question, where=case.id)
        finding, kind = case.findings[ask.finding], ask.question.kind.removeprefix("region_")
        assert ask.question.answer == (finding.name if kind == "class" else finding.attributes[kind])
        assert ask.question.options[ask.question.answer_index] == ask.question.answer
        seen = {f.name if kind == "class" else f.attributes.get(kind) for f in case.findings} - {None}
        assert set(ask.question.options) == seen
        assert len(seen) >= 2
        assert (ask.prompt.mask & finding.mask).any()


def test_questions_depend_on_their_case_alone_and_come_once_a_kind(cases):
    case = cases["ct"][3]
    few, many = ask_regions(case, n=1), ask_regions(case, n=9)
    assert [a.question for a in few] == [a.question for a in many[:1]]
    assert len({a.question.kind for a in many}) == len(many)
    for kind in KINDS:
        alone = [a.question for a in ask_regions(case, n=9, kinds=(kind,))]
        assert alone == [a.question for a in many if a.question.kind == f"region_{kind}"]
    renamed = dataclasses.replace(case, id="another")
    assert [a.finding for a in ask_regions(renamed, n=9)] != [a.finding for a in many]
    assert any([a.finding for a in ask_regions(case, n=9, draw=d)] != [a.finding for a in many] for d in "1234")
    assert ask_regions(dataclasses.replace(case, findings=case.findings[:1]), n=9) == ()


def test_other_prompts_mean_the_same_region(cases):
    for case in cases["ultrasound"][:20]:
        by_prompt = [ask_regions(case, n=9, prompts=(name,)) for name in PROMPTS]
        assert all([a.finding for a in asks] == [a.finding for a in by_prompt[0]] for asks in by_prompt)
        assert all([a.question for a in asks] == [a.question for a in by_prompt[0]] for asks in by_prompt)
        assert all({a.prompt.kind for a in asks} <= {name} for name, asks in zip(PROMPTS, by_prompt, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_neither_text_nor_image_tells_the_answer_without_the_region(kind, asked):
    rows = [(case, ask) for case, ask in asked if ask.question.kind == f"region_{kind}"]
    options = [len(ask.question.options) for _, ask in rows]

    def value(finding):
        return finding.name if kind == "class" else finding.attributes.get(kind)

    def commonest(case):  # what most regions of the image are
        return Counter(filter(None, map(value, case.findings))).most_common(1)[0][0]

    def largest(case):
        return max((f for f in case.findings if value(f)), key=lambda f: f.mask.sum())

    by_text = defaultdict(Counter)
    for _, ask in rows[::2]:
        by_text[ask.question.text][ask.question.answer] += 1
    guesses = {
        "commonest region": [commonest(case) for case, _ in rows],
        "largest region": [value(largest(case)) for case, _ in rows],
        "first option": [ask.question.options[0] for _, ask in rows],
    }
    for name, guess in guesses.items():
        hits = [g == ask.question.answer for g, (_, ask) in zip(guess, rows, strict=True)]
        assert _is_at_chance(hits, options), name
    held = rows[1::2]
    hits = [by_text[ask.question.text].most_common(1)[0][0] == ask.question.answer for _, ask in held]
    chance = 1 / np.array([len(ask.question.options) for _, ask in held])
    assert np.sum(hits) <= chance.sum() + 3 * np.sqrt((chance * (1 - chance)).sum())


def test_the_measure_of_chance_sees_an_unbalanced_draw(cases):
    """Regions drawn uniformly, as they lie in the image, would be guessed by what most of them are."""
    hits, options = [], []
    for k, case in enumerate(cases["microscopy"]):
        names = [finding.name for finding in case.findings]
        if len(set(names)) > 1:
            hits.append(Counter(names).most_common(1)[0][0] == names[k * 7919 % len(names)])
            options.append(len(set(names)))
    assert not _is_at_chance(hits, options)


@pytest.mark.parametrize("absent_pct", [25, 50])
def test_the_word_of_a_request_does_not_tell_whether_it_is_there(absent_pct, cases):
    for name, some in cases.items():
        requests = request_masks(some, classes=MODALITIES[name].classes, absent_pct=absent_pct)
        by_word = defaultdict(list)
        for request in requests:
            by_word[request.name].append(request.is_present)
            assert request.name in request.question.text
        for word, present in by_word.items():
            absent = len(present) - sum(present)
            assert absent == len(present) * absent_pct // 100, word
        # one guess for each word gains nothing over one guess for all
        word_only = sum(max(sum(present), len(present) - sum(present)) for present in by_word.values())
        all_alike = max(sum(map(sum, by_word.values())), sum(len(p) - sum(p) for p in by_word.values()))
        assert word_only - all_alike <= len(by_word)
        expected = set(MODALITIES[name].classes) - ({"lung", "heart"} if name == "radiograph" else set())
        assert set(by_word) == expected  # lung and heart are always there: their words would tell


def test_a_requested_mask_is_all_of_its_class_or_empty(cases):
    some = cases["microscopy"]
    requests = request_masks(some, classes=MODALITIES["microscopy"].classes)
    assert len({(request.case, request.name) for request in requests}) == len(requests)
    for request in requests:
        masks = [f.mask for f in some[request.case].findings if f.name == request.name]
        assert request.is_present == bool(masks)
        assert request.question.answer == (PRESENT if masks else ABSENT)
        assert request.mask.shape == some[request.case].images[0].shape[:2]
        assert request.mask.sum() == (np.logical_or.reduce(masks).sum() if masks else 0)


def test_requests_are_drawn_anew_by_another_name_and_bounded(cases):
    def ask(**options):
        return request_masks(cases["ct"], classes=MODALITIES["ct"].classes, **options)

    assert [r.question.id for r in ask()] == [r.question.id for r in ask()]
    assert [r.question.id for r in ask()] != [r.question.id for r in ask(draw="1")]
    assert set(Counter(r.name for r in ask(max_per_class=20)).values()) == {20}
    assert all(r.is_present for r in ask(absent_pct=0))
    assert request_masks([], classes=MODALITIES["ct"].classes) == ()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda cases: ask_regions(cases["ct"][0], kinds=("colour",)), "kinds="),
        (lambda cases: ask_regions(cases["ct"][3], prompts=("lasso",)), "kind='lasso'"),
        (lambda cases: request_masks(cases["ct"], classes=("liver",), absent_pct=95), "absent_pct=95"),
        (lambda cases: request_masks([cases["ct"][0], cases["pet"][0]], classes=("liver",)), "phantom ct"),
        (lambda cases: request_masks([Case("a", (Path("a.png"),))], classes=("liver",)), "a file for its image"),
    ],
)
def test_what_cannot_be_asked_is_refused(call, message, cases):
    with pytest.raises(RequestError, match=message):
        call(cases)
