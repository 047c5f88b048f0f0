"""The template table, by golden strings; labels, by golden matrices."""

import pytest
import torch
from transformers import AutoTokenizer

from lightbox.losses.language import IGNORED
from medthink.data import TEMPLATES, decoded, encode_items, fitted, label_rows, make_collate, texts_of

ASKED, CHOICES, R = "Question: is there a nodule ?", "Options: (A) yes (B) no", "it is small ."
Q = f"{ASKED} {CHOICES}"
W = "Question: where is the nodule ?"


@pytest.fixture(scope="module")
def tokenizer(t5_folder):
    return AutoTokenizer.from_pretrained(t5_folder)


@pytest.mark.parametrize(
    ("method", "source", "target"),
    [
        ("none", f"{Q} Answer:", "The answer is (B)."),
        ("explanation", f"{Q} Answer:", f"The answer is (B). Solution: {R}"),
        ("reasoning", f"{Q} Solution:", f"{R} Answer: The answer is (B)."),
        ("first_stage", f"{Q} Solution:", R),
        ("second_stage", f"{Q} Solution: {R} Answer:", "The answer is (B)."),
        ("reader", f"{Q} Solution: {R} Answer:", "The answer is (B)."),
    ],
)
def test_closed_template(make_item, method, source, target):
    assert texts_of(make_item(answer="no", rationale=R), method) == (source, target)


@pytest.mark.parametrize(
    ("method", "source", "target"),
    [
        ("none", f"{W} Answer:", "The answer is left upper zone."),
        ("explanation", f"{W} Answer:", f"The answer is left upper zone. Solution: {R}"),
        ("reasoning", f"{W} Solution:", f"{R} Answer: The answer is left upper zone."),
        ("first_stage", f"{W} Solution:", R),
        ("second_stage", f"{W} Solution: {R} Answer:", "The answer is left upper zone."),
        ("reader", f"{W} Solution: {R} Answer:", "The answer is left upper zone."),
    ],
)
def test_open_template(make_item, method, source, target):
    item = make_item(question="where is the nodule ?", options=(), answer="left upper zone", rationale=R)
    assert texts_of(item, method) == (source, target)


def test_table_covers_every_strategy():
    assert set(TEMPLATES) == {"none", "explanation", "reasoning", "first_stage", "second_stage", "reader"}


def test_explanation_without_a_rationale_is_answer_only(make_item):
    item = make_item(rationale="")
    assert texts_of(item, "explanation") == texts_of(item, "none")


def test_rows_are_the_tokens_of_the_joined_text(items, tokenizer):
    for method in TEMPLATES:
        rows = encode_items(items, method, tokenizer, source_tokens=200, target_tokens=200)
        for item, row in zip(items, rows, strict=True):
            source, target = texts_of(item, method)
            assert row.source == [*tokenizer(source, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            assert row.target == [*tokenizer(target, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


@pytest.mark.parametrize("method", ["none", "explanation", "reasoning"])
def test_answer_span_is_the_answer_sentence(items, tokenizer, method):
    row = encode_items(items[:1], method, tokenizer, source_tokens=200, target_tokens=200)[0]
    span = tokenizer.decode(row.target[slice(*row.answer)])
    assert span.replace(" ", "").removeprefix("answer:") == "theansweris(a)."


def test_long_rows_lose_rationale_and_never_the_answer(items, tokenizer):
    row = encode_items(items[:1], "reasoning", tokenizer, source_tokens=16, target_tokens=14)[0]
    assert len(row.target) == 14
    assert tokenizer.decode(row.target, skip_special_tokens=True).endswith("answer : the answer is ( a ) .")
    assert len(row.source) == 16
    assert tokenizer.decode(row.source, skip_special_tokens=True).endswith("solution :")


def test_fields_are_cut_rationale_first():
    parts = [("question", [1, 2, 3]), ("given_rationale", [4, 5]), ("ask_answer", [6])]
    assert fitted(parts, 5) == [("question", [1, 2, 3]), ("given_rationale", [4]), ("ask_answer", [6])]
    assert fitted(parts, 3) == [("question", [1, 2]), ("given_rationale", []), ("ask_answer", [6])]


def test_masked_labels_golden():
    labels = label_rows([[7, 8, 1], [9, 1]], pad_id=0, pads="masked", width=5)
    assert labels.tolist() == [
        [7, 8, 1],  # the longest row
        [9, 1, IGNORED],  # its pad carries no loss
    ]


def test_official_labels_golden():
    labels = label_rows([[7, 8, 1], [9, 1]], pad_id=0, pads="official", width=5)
    assert labels.tolist() == [
        [7, 8, 1, 0, 0],  # padded to the fixed width, and every pad counts
        [9, 1, 0, 0, 0],
    ]


def test_batch_golden(make_item, tokenizer):
    """One example of the real collate: what is read, what carries loss, which image."""
    pair = [make_item("a", image=1), make_item("b", answer="no", question="is the heart small ?", image=0)]
    rows = encode_items(pair, "none", tokenizer, source_tokens=64, target_tokens=64)
    vision = torch.arange(12.0).view(3, 2, 2)
    collate = make_collate(rows, [item.image for item in pair], vision, pad_id=tokenizer.pad_token_id)
    batch = collate([0, 1])
    shown = decoded(batch, tokenizer, index=1)
    assert shown[0] == ("source", "question : is the heart small ? options : ( a ) yes ( b ) no answer :")
    assert [token for token, _ in shown[1:]] == ["the", "answer", "is", "(", "b", ")", ".", "</s>"]
    assert {mark for _, mark in shown[1:]} == {"loss"}
    assert batch.attention_mask.sum(dim=1).tolist() == [len(row.source) for row in rows]
    assert torch.equal(batch.vision, vision[[1, 0]])


def test_text_only_batch_has_no_vision(items, tokenizer):
    rows = encode_items(items, "reader", tokenizer, source_tokens=64, target_tokens=64)
    assert make_collate(rows, [0] * len(rows), None, pad_id=tokenizer.pad_token_id)([0, 1]).vision is None
