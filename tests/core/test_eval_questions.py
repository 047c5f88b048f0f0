"""Types of answers and repeated question texts, by hand."""

import pytest

from lightbox.eval.questions import ANSWER_TYPES, answer_type, repetition
from lightbox.records import Question


def question(text, answer, options=()):
    index = options.index(answer) if options else None
    return Question(f"{text}/{answer}", text, answer, options, index)


@pytest.mark.parametrize(
    ("answer", "options", "named"),
    [
        ("Yes.", (), "yes or no"),
        ("no", ("yes", "no"), "yes or no"),
        ("left", ("left", "right"), "another option"),
        ("3", ("2", "3"), "another option"),
        ("3", (), "number"),
        (" 2,5 ", (), "number"),
        ("-0.5", (), "number"),
        ("Seven", (), "number"),
        ("5 cm", (), "one to three words"),
        ("left lower lobe", (), "one to three words"),
        ("in the left lung", (), "longer"),
        ("", (), "one to three words"),
    ],
)
def test_an_answer_has_the_type_that_the_docstring_says(answer, options, named):
    assert named in ANSWER_TYPES
    assert answer_type(question("?", answer, options)) == named


def test_repeated_texts_are_counted_with_their_answers():
    found = repetition(
        [
            question("What plane?", "axial"),
            question("what  PLANE?", "Axial"),
            question("What plane?", "coronal"),
            question("Is it new?", "yes"),
        ]
    )
    assert (found.n_items, found.n_texts, found.n_repeated, found.n_commonest) == (4, 2, 3, 2)
    first, second = found.texts
    assert (first.text, first.count, first.answers) == ("What plane?", 3, (("axial", 2), ("coronal", 1)))
    assert first.commonest_share == pytest.approx(2 / 3)
    assert second.count == 1


def test_no_questions_repeat_nothing():
    assert repetition([]).n_items == 0
