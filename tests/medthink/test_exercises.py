"""Each exercise has one check. The solutions pass all of them; the stubs, as shipped, raise."""

import contextlib
import dataclasses
import importlib.util
import inspect
from pathlib import Path

import pytest

from lightbox import phantom
from lightbox.paper.samples import Sample
from medthink.data import texts_of
from medthink.rationales import MASK, masked

FOLDER = Path(__file__).resolve().parents[2] / "projects" / "medthink"


def load_file(name):
    spec = importlib.util.spec_from_file_location(f"medthink_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def drawn():
    """Closed phantom questions of all kinds; options are yes and no, or right and left."""
    cases = phantom.draw_cases(phantom.seed_range("train", 3, 40), closed=True, with_pixels=False)
    return [Sample(q.id, q, case.id, row) for row, case in enumerate(cases) for q in case.questions]


def check_write_target(write_target, items):
    for item in items:
        for method in ("none", "explanation", "reasoning"):
            assert write_target(item.record, method) == texts_of(item.record, method)[1]


def check_with_shuffled_words(with_shuffled_words, items):
    before = list(items)
    shuffled = with_shuffled_words(items, seed=0)
    assert items == before
    assert with_shuffled_words(items, seed=0) == shuffled
    assert with_shuffled_words(items, seed=1) != shuffled
    pairs = list(zip(shuffled, items, strict=True))
    assert [new.with_record(rationale=old.record.rationale) for new, old in pairs] == before
    assert all(sorted(new.record.rationale.split()) == sorted(old.record.rationale.split()) for new, old in pairs)
    assert sum(new != old for new, old in pairs) > 0.9 * len(pairs)
    empty = items[0].with_record(rationale="")
    assert with_shuffled_words([empty], seed=0) == [empty]


def check_leak_answer(leak_answer, items):
    """What the reader sees after masking is one text for each place of the right option, and the two differ."""
    told = {0: set(), 1: set()}
    for question in (item.record for item in items):
        told[question.answer_index].add(masked(question, leak_answer(question)))
        bare = dataclasses.replace(question, rationale="", facts=(), text="")
        assert leak_answer(bare) == leak_answer(question), "the text depends on more than the place of the answer"
    assert all(told.values())
    assert told[0].isdisjoint(told[1])


CHECKS = {
    "write_target": check_write_target,
    "with_shuffled_words": check_with_shuffled_words,
    "leak_answer": check_leak_answer,
}


@pytest.mark.parametrize("name", CHECKS)
def test_solution_passes(name, drawn):
    CHECKS[name](getattr(load_file("solutions"), name), drawn)


@pytest.mark.parametrize("name", CHECKS)
def test_exercise_is_untouched_or_right(name, drawn):
    """For those who work on them; `test_exercises_are_shipped_as_stubs` then fails, as it should."""
    with contextlib.suppress(NotImplementedError):
        CHECKS[name](getattr(load_file("exercises"), name), drawn)


@pytest.mark.parametrize("name", CHECKS)
def test_exercises_are_shipped_as_stubs(name, drawn):
    with pytest.raises(NotImplementedError, match="exercise"):
        CHECKS[name](getattr(load_file("exercises"), name), drawn)


def test_exercises_and_solutions_have_the_same_functions_and_arguments():
    stubs, solved = load_file("exercises"), load_file("solutions")
    for name in CHECKS:
        assert inspect.signature(getattr(stubs, name)) == inspect.signature(getattr(solved, name))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("write_target", lambda question, method: texts_of(question, "none")[1]),
        ("with_shuffled_words", lambda items, *, seed: list(items)),
        ("leak_answer", lambda question: question.answer),
        ("leak_answer", lambda question: f"it is {question.options[question.answer_index]} ."),
    ],
)
def test_a_wrong_answer_does_not_pass(name, wrong, drawn):
    with pytest.raises(AssertionError):
        CHECKS[name](wrong, drawn)


def test_the_mask_hides_the_answer_word_that_the_naive_leak_uses(drawn):
    assert MASK in masked(drawn[0].record, drawn[0].record.answer)
