"""Per-item scores, the table on disk, and the baselines, worked out by hand."""

import pyarrow as pa
import pytest

from lightbox.eval.answers import stated_answer
from lightbox.paper import baselines
from lightbox.phantom.facts import parse
from lightbox.runs import folders
from medthink import evaluate, scores
from medthink.config import resolve
from medthink.data import load_splits
from medthink.evaluate import rationale_in


def score(item, text, rationale=None):
    return scores.score_text(item, "image", text=text, rationale=rationale, parse_facts=parse)


def test_right_answer_with_right_facts(make_item):
    item = make_item()
    row = score(item, f"the answer is ( a ) . solution : {item.record.rationale}", item.record.rationale)
    assert (row["correct"], row["parsed"], row["fact_f1"], row["rationale_right"]) == (1.0, 1.0, 1.0, 1.0)
    assert row["bleu4"] == pytest.approx(100)
    assert (row["correct_when_right"], row["correct_when_wrong"], row["token_recall"]) == (1.0, None, None)


def test_wrong_side_is_a_wrong_fact(make_item):
    item = make_item()
    row = score(item, "the answer is ( a ) .", item.record.rationale.replace("left", "right"))
    assert row["rationale_right"] == 0.0
    assert row["fact_f1"] == pytest.approx(3 / 5)  # 5 facts on either side, two of them name the side
    assert (row["correct_when_right"], row["correct_when_wrong"]) == (None, 1.0)


def test_unparsable_answer_is_wrong_and_counted(make_item):
    row = score(make_item(), "the answer is ( a ) . the answer is ( b ) .")
    assert (row["correct"], row["parsed"]) == (0.0, 0.0)


def test_stage_one_has_no_answer_to_score(make_item):
    row = score(make_item(), None, "the lungs are clear .")
    assert row["correct"] is None
    assert row["fact_f1"] == 0.0
    assert row["correct_when_wrong"] is None


def test_open_answer_has_token_recall(make_item):
    item = make_item(options=(), answer="left upper zone")
    row = score(item, "the answer is left lower zone .")
    assert (row["correct"], row["token_recall"]) == (0.0, pytest.approx(2 / 3))


def test_losses_split_the_difference_to_answer_only(make_item):
    right, wrong = make_item("a"), make_item("b")
    rows = [
        score(right, "the answer is ( b ) .", right.record.rationale),  # right facts, wrong answer
        score(wrong, "the answer is ( b ) .", "the lungs are clear ."),  # wrong facts, wrong answer
    ]
    answer_only = pa.table({"item": ["a", "b"], "condition": ["image"] * 2, "correct": [1.0, 0.0]})
    scores.add_losses(rows, answer_only)
    assert [row["loss_at_right_facts"] for row in rows] == [1.0, 0.0]
    assert [row["loss_at_wrong_facts"] for row in rows] == [0.0, 0.0]


def test_table_is_sorted_typed_and_byte_identical(items, tmp_path):
    rows = [
        scores.score_text(i, c, text="x", rationale=None, parse_facts=None) for c in ("z", "a") for i in items[::-1]
    ]
    table = folders.write_scores(tmp_path, rows, scores.METRICS)
    first = (tmp_path / folders.SCORES).read_bytes()
    assert table["condition"].to_pylist() == ["a"] * 6 + ["z"] * 6
    assert table["item"].to_pylist() == list("abcdef") * 2
    assert {str(field.type) for field in table.schema if field.name in scores.METRICS} == {"double"}
    assert table.column_names == [*folders.KEY_COLUMNS, *scores.METRICS]
    folders.write_scores(tmp_path, rows[::-1], scores.METRICS)
    assert (tmp_path / folders.SCORES).read_bytes() == first
    means = folders.mean_scores(table)
    assert means["a/correct"] == 0.0
    assert "a/bleu4" not in means


@pytest.mark.parametrize(
    ("method", "text", "rationale"),
    [
        ("explanation", "the answer is ( a ) . solution : it is . so", "it is . so"),
        ("explanation", "the answer is ( a ) .", ""),
        ("reasoning", "it is . answer : the answer is ( a ) .", "it is ."),
        ("reasoning", "it is .", "it is ."),
        ("first_stage", "it is .", "it is ."),
        ("none", "the answer is ( a ) .", None),
        ("second_stage", "the answer is ( a ) .", None),
    ],
)
def test_rationale_is_cut_out_of_the_text(method, text, rationale):
    assert rationale_in(text, method) == rationale


def test_stated_answer_is_the_text_of_the_option(make_item):
    assert stated_answer("the answer is ( b ) .", make_item().record) == "no"
    assert stated_answer("the answer is ( c ) .", make_item().record) == ""
    assert stated_answer("the answer is left .", make_item(options=(), answer="x").record) == "left"


def test_baselines_by_hand(make_item):
    train = [
        make_item("a", answer="no", text="q1"),
        make_item("b", answer="no", text="q1"),
        make_item("c", answer="yes", text="q2"),
        make_item("d", answer="right", options=("right", "left"), text="q3", kind="side"),
    ]
    asked = [
        make_item("e", text="q1"),  # majority of presence is no
        make_item("f", text="q2"),  # the look-up knows yes
        make_item("g", text="new", kind="side", answer="left", options=("right", "left")),
        make_item("h", text="new", kind="never met"),
    ]
    assert baselines.majority(train, asked) == ["no", "no", "right", "no"]
    assert baselines.question_only(train, asked) == ["no", "yes", "right", "no"]
    guesses = baselines.question_only(train, asked)
    rows = [scores.score_guess(sample, guess) for sample, guess in zip(asked, guesses, strict=True)]
    assert [row["correct"] for row in rows] == [0.0, 1.0, 0.0, 0.0]


@pytest.mark.slow
def test_question_only_reaches_what_the_text_prior_gives():
    """The phantom says that with rho the best question-only accuracy is 0.5 + rho / 2."""
    for rho, low, high in ((0.0, 0.44, 0.58), (0.6, 0.74, 0.86)):
        cfg = resolve(["preset=smoke", "data.n_train=3000", "data.n_test=600", f"data.rho={rho}"])
        train, test = load_splits(cfg, with_images=False)
        assert low < evaluate.guess_accuracy(train, test, "question_only") < high
