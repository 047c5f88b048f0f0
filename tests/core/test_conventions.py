"""Rival scoring rules: where two must differ, what the table says of them, and files with malformed lines."""

import json
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightbox.errors import RequestError
from lightbox.eval import scoring_rules as rules
from lightbox.eval.conventions import CONVENTIONS, Prediction, table
from lightbox.eval.predictions import read_predictions
from lightbox.records import Question

YES = Question("y", "Is there a nodule?", "yes", ("yes", "no"), 0)
NO = Question("n", "Is there a nodule?", "no", ("yes", "no"), 1)
LEFT = Question("l", "Which side is larger?", "left", ("left", "right"), 0)
RIGHT = Question("r", "Which side is larger?", "Right", ("Left", "Right"), 1)
ORGAN = Question("o", "Which organ?", "left lung")
FOUR = Question("f", "Which modality?", "CT", ("MRI", "X-ray", "CT", "PET"), 2)


def score(name, text, question):
    return CONVENTIONS[name].rule(text, question)


@pytest.mark.parametrize(
    ("text", "question", "expected"),
    [
        # a sentence that ours cannot parse: wrong, not counted, B
        ("I cannot tell.", NO, {"ours": 0, "parsed-only": None, "else-b": 1}),
        ("I cannot tell.", YES, {"ours": 0, "parsed-only": None, "else-b": 0}),
        ("the answer is ( a ) .", YES, {"ours": 1, "parsed-only": 1, "else-b": 0}),
        ("The answer is (A).", NO, {"ours": 0, "parsed-only": 0, "else-b": 0}),
        ("The answer is (A). The answer is (B).", YES, {"ours": 0, "parsed-only": None, "else-b": 1}),
        ("(A)", YES, {"ours": 0, "else-b": 0}),  # else-b wants the whole sentence, signs and case
        # the first character
        ("A", YES, {"ours": 0, "first-character": 1}),
        ("The answer is (A).", YES, {"ours": 1, "first-character": 0}),
        ("An effusion.", YES, {"first-character": 1}),
        ("both", NO, {"first-character": 1}),
        ("", YES, {"first-character": 0}),
        # substrings: "no" is in "abnormal"; naming both is right; a wrong yes is not counted by the first rule
        ("Abnormal.", NO, {"llava-med-first": 1, "llava-med-closed": 1, "llava-med-substring": 1}),
        ("Yes and no.", NO, {"llava-med-closed": 1, "medevalkit-closed": 0, "vlmevalkit-yes-no": 0}),
        ("Yes.", NO, {"llava-med-first": None, "llava-med-closed": 0, "llava-med-substring": 0}),
        ("Unclear", NO, {"llava-med-first": 0, "llava-med-closed": 0, "llava-med-substring": 0}),
        ("the left side", LEFT, {"llava-med-first": 0, "llava-med-closed": 0, "llava-med-substring": 1}),
        # words: the n and o of "nodule" are no word, but they are letters
        ("Yes, with a nodule", YES, {"medevalkit-closed": 0, "vlmevalkit-yes-no": 1, "llava-med-closed": 1}),
        ("Yes.", YES, {"ours": 0, "medevalkit-closed": 1, "vlmevalkit-yes-no": 1, "lmms-eval-slake": 1}),
        ("Yes, it is.", YES, {"medevalkit-closed": 1, "vlmevalkit-yes-no": 1, "lmms-eval-slake": 0}),
        ("True (likely)", YES, {"lmms-eval-slake": 1, "vlmevalkit-yes-no": 0}),
        ("Left.", LEFT, {"medevalkit-closed": 1, "lmms-eval-slake": 1, "llava-med-closed": 0}),
        ("The answer is left", LEFT, {"medevalkit-closed": 0, "llava-med-substring": 1, "lmms-eval-slake": 0}),
        ("right", RIGHT, {"medevalkit-closed": 1, "llava-med-substring": 1, "vlmevalkit-yes-no": 0}),
        # letters, else the likeliest option, the first one in a tie
        ("C", FOUR, {"medevalkit-choice": 1, "first-character": 1, "ours": 0}),
        ("B. X-ray", FOUR, {"medevalkit-choice": 0, "llava-med-substring": 0}),
        ("c\n\nBecause of the bones.", FOUR, {"medevalkit-choice": 1, "first-character": 1}),
        ("Thinking.\n\nC. CT", FOUR, {"medevalkit-choice": 1, "first-character": 0}),
        ("Not B. X-ray.\n\nC.", FOUR, {"medevalkit-choice": 1}),  # a bare letter in the last block
        ("\\boxed{C}", FOUR, {"medevalkit-choice": 1, "first-character": 0}),
        ("<think>B</think><answer>C</answer>", FOUR, {"medevalkit-choice": 1}),
        ("computed tomography, CT", FOUR, {"medevalkit-choice": 1}),
        ("", YES, {"medevalkit-choice": 1, "ours": 0}),
        ("", NO, {"medevalkit-choice": 0, "ours": 0, "else-b": 1}),
        # open questions
        ("The answer is left lung.", ORGAN, {"ours": 1, "ours-recall": 1, "medevalkit-exact": 0}),
        ("left lung", ORGAN, {"ours": 0, "ours-recall": 0, "medevalkit-exact": 1, "lmms-eval-slake": 1}),
        ("Left lung.", ORGAN, {"medevalkit-exact": 0, "lmms-eval-slake": 1, "llava-med-recall": 1}),
        ("The answer is left.", ORGAN, {"ours": 0, "ours-recall": 0.5, "llava-med-recall": 0.5}),
        (
            "left left left",
            ORGAN,
            {"llava-med-exact": 1 / 3, "llava-med-recall": 0.75, "medevalkit-recall": 1, "medevalkit-bleu1": 1 / 3},
        ),
        ("left", ORGAN, {"llava-med-exact": 1, "llava-med-recall": 0.5, "medevalkit-exact": 0}),
        ("a left lung.", ORGAN, {"llava-med-exact": 1, "medevalkit-exact": 0}),
        ("the left lower lung zone", ORGAN, {"llava-med-exact": 0.5, "llava-med-recall": 1, "medevalkit-recall": 0.4}),
        (
            "",
            ORGAN,
            {
                "llava-med-exact": 0,
                "llava-med-recall": 0,
                "medevalkit-recall": 0,
                "medevalkit-bleu1": 0,
                "parsed-only": None,
            },
        ),
    ],
)
def test_rules_differ_where_they_must(text, question, expected):
    assert {name: score(name, text, question) for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),  # by nltk 3.9's sentence_bleu, weights (1,), words as MedEvalKit cuts them
    [
        ("left lung", 1.0),
        ("left", 0.36787944117144233),
        ("The answer is left lung.", 0.5),
        ("the left lower lung zone", 0.4),
        ("left left left", 0.3333333333333333),
    ],
)
def test_bleu_1_is_that_of_nltk(text, expected):
    assert rules.medevalkit_bleu1(text, ORGAN) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "gold", "recall"),
    [
        ("There are two lesions.", "2", 1.0),  # number words are digits
        ("none", "0", 1.0),
        ("1,000 cells", "1000", 1.0),  # a comma inside a number takes every sign away
        ("T2-weighted", "t2 weighted", 1.0),  # between letters a sign parts words
        ("about 0.5 cm.", "0.5 cm", 1.0),
        ("the lung", "a lung", 1.0),  # articles go
    ],
)
def test_llava_med_normalises_numbers_signs_and_articles(text, gold, recall):
    assert rules.llava_med_recall(text, Question("q", "?", gold)) == recall


def test_every_rule_says_whose_it_is_what_it_counts_and_where_it_misleads_in_one_line():
    assert len(CONVENTIONS) == 18
    for name, convention in CONVENTIONS.items():
        lines = [convention.line(label) for label in ("Source", "Counted", "Misleads")]
        assert all(lines), name
        assert lines[2].endswith("."), name  # a line that ran on would be cut
        is_ours = lines[0].startswith("lightbox.eval.answers")
        assert is_ours or "seen" in lines[0], name
        assert convention.rule.__name__.replace("_", "-") == name


def test_the_page_lists_every_convention_with_its_line():
    page = (Path(__file__).parents[2] / "docs" / "conventions.md").read_text(encoding="utf-8")
    for name, convention in CONVENTIONS.items():
        assert f"| `{name}` |" in page
        assert convention.line("Misleads").rstrip(".") in page, name


TEXTS = st.sampled_from(
    ["The answer is (A).", "the answer is ( b ) .", "The answer is left lung.", "yes", "no", "", "(A) or (B)"]
) | st.text(alphabet=string.printable, max_size=30)
PREDICTIONS = st.lists(st.builds(Prediction, st.sampled_from([YES, NO, LEFT, RIGHT, ORGAN, FOUR]), TEXTS), min_size=1)


@given(PREDICTIONS)
def test_ours_is_never_above_no_parse_not_counted(predictions):
    ours, parsed = table(predictions, ["ours", "parsed-only"])
    assert ours.n_counted == len(predictions) >= parsed.n_counted
    assert ours.score == 0 if parsed.score is None else ours.score <= parsed.score


@pytest.mark.slow
@given(PREDICTIONS)
def test_every_convention_scores_from_0_to_1_or_says_why_not(predictions):
    for row in table(predictions):
        assert (row.score is None) == bool(row.cannot_score) == (row.n_counted == 0)
        assert row.score is None or 0 <= row.score <= 1
        assert row.n_differs <= row.n_items


def test_always_yes_scores_everything_under_the_first_rule_of_llava_med():
    always = [Prediction(question, "Yes.") for question in (YES, NO, NO, NO)]
    first, repaired = table(always, ["llava-med-first", "llava-med-closed"])
    assert (first.score, first.n_counted, first.n_differs) == (1.0, 1, 4)
    assert (repaired.score, repaired.n_counted, repaired.n_differs) == (0.25, 4, 1)


def test_what_cannot_be_scored_is_listed_with_its_reason():
    only_open = table([Prediction(ORGAN, "left lung")])
    assert [row.convention for row in only_open] == list(CONVENTIONS)
    reasons = {row.convention: row.cannot_score for row in only_open}
    assert reasons["else-b"] == "it is for closed questions with two options, and none of the 1 items is one"
    assert reasons["parsed-only"] == "it leaves out each of the 1 items that it is for"
    assert reasons["ours"] == reasons["llava-med-recall"] == ""
    assert table([Prediction(FOUR, "(A)")], ["else-b"])[0].cannot_score
    assert table([Prediction(LEFT, "Yes")], ["vlmevalkit-yes-no"])[0].cannot_score


def test_names_keep_their_order_once_each_and_an_unknown_one_lists_the_known():
    rows = table([Prediction(YES, "yes")], ["else-b", "ours", "else-b"])
    assert [row.convention for row in rows] == ["else-b", "ours"]
    with pytest.raises(RequestError) as caught:
        table([], ["llava-med-close"])
    assert "'llava-med-close'" in caught.value.given
    assert all(name in caught.value.why for name in CONVENTIONS)
    assert caught.value.do == "Did you mean llava-med-closed?"


GOOD = {"id": "1", "question": "Is it?", "options": ["yes", "no"], "answer": "yes", "answer_index": 0, "prediction": ""}


def write_lines(path, *rows):
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows))
    return path


def test_a_line_becomes_a_question_and_a_text_and_extra_fields_stay_out(tmp_path):
    row = GOOD | {"prediction": " Yes.\n", "patient_name": "X", "rationale": "because", "kind": "presence"}
    opened = {"id": 2, "question": "Where?", "answer": 3, "options": [], "answer_index": None, "prediction": "3"}
    predictions, problems, others = read_predictions(write_lines(tmp_path / "p.jsonl", row, b"", opened))
    assert (problems, others) == ([], {})
    assert predictions == [
        Prediction(Question("1", "Is it?", "yes", ("yes", "no"), 0), " Yes.\n"),  # as it was written
        Prediction(Question("2", "Where?", "3"), "3"),
    ]


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        (b"{", "row", "is not JSON"),
        (b'{"id": "\xff"}', "row", "is not UTF-8"),
        (b"[1]", "row", "is a list, not an object"),
        (b'{"id": "2", "id": "3"}', "id", "stands twice in one object"),
        ({key: value for key, value in GOOD.items() if key != "prediction"}, "prediction", "is missing"),
        (GOOD | {"prediction": None}, "prediction", "is None, not text"),
        (GOOD | {"id": ""}, "id", "is empty"),
        (GOOD | {"question": 3.5, "id": ["x"]}, "id", "not text"),
        (GOOD | {"answer": None}, "answer", "is None, not text"),
        (GOOD | {"options": "yes,no"}, "options", "not a list of texts"),
        (GOOD | {"options": ""}, "options", "not a list of texts"),
        (GOOD | {"options": ["yes"]}, "options", "is ['yes'], but"),
        (GOOD | {"answer_index": 2}, "answer_index", "is index 2 with 2 choices"),
        (GOOD | {"answer_index": True}, "answer_index", "is True, not an index"),
        (GOOD | {"answer_index": 1}, "answer", "is 'yes', but answer_index 1 is 'no'"),
        (GOOD | {"options": []}, "answer_index", "but there are no options"),
        (GOOD, "id", "'1' stands on line 1 already"),
    ],
)
def test_a_malformed_line_is_named_and_the_rest_is_read(tmp_path, row, field, reason):
    path = write_lines(tmp_path / "p.jsonl", GOOD, row, GOOD | {"id": "9"})
    predictions, problems, _ = read_predictions(path)
    assert [prediction.question.id for prediction in predictions] == ["1", "9"]
    assert [(problem.file, problem.row, problem.field) for problem in problems] == [(str(path), "2", field)]
    assert reason in problems[0].reason


def test_lines_that_name_a_condition_are_read_one_condition_at_a_time(tmp_path):
    rows = [GOOD | {"condition": name, "prediction": name} for name in ("image", "blank", "shuffled")]
    path = write_lines(tmp_path / "p.jsonl", *rows, GOOD | {"id": "9", "condition": None})  # the last names none
    for condition in ("image", "blank"):
        predictions, problems, others = read_predictions(path, condition)
        assert [(p.question.id, p.text) for p in predictions] == [("1", condition), ("9", GOOD["prediction"])]
        assert (problems, others.total()) == ([], 2)
    other = write_lines(tmp_path / "other.jsonl", *rows)
    with pytest.raises(RequestError, match="no line of condition 'reference'.*of 'image', 'blank', 'shuffled'"):
        read_predictions(other, "reference")


def test_a_file_without_a_readable_line_is_refused_with_its_first_problem(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", b"{", {})
    with pytest.raises(RequestError, match="no readable line.*row 1, field 'row': is not JSON"):
        read_predictions(path)
    with pytest.raises(RequestError, match="no such file"):
        read_predictions(tmp_path / "none.jsonl")
