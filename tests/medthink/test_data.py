"""The template table, by golden strings; labels, by golden matrices."""

import pytest
import torch
from transformers import AutoTokenizer

from lightbox.backbones.t5 import label_rows
from lightbox.losses.language import IGNORED
from lightbox.paper.learner import decoded, tokens_of
from lightbox.paper.pretrained import find_pretrained
from lightbox.paper.prompts import fitted, fitted_texts
from lightbox.paper.samples import Split
from medthink import train
from medthink.config import resolve
from medthink.data import CUT_FIRST, TEMPLATES, fields_of, texts_of, written_fields

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
    assert texts_of(make_item(answer="no", rationale=R).record, method) == (source, target)


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
    item = make_item(text="where is the nodule ?", options=(), answer="left upper zone", rationale=R)
    assert texts_of(item.record, method) == (source, target)


def test_table_covers_every_strategy():
    assert set(TEMPLATES) == {"none", "explanation", "reasoning", "first_stage", "second_stage", "reader"}


def test_explanation_without_a_rationale_is_answer_only(make_item):
    item = make_item(rationale="")
    assert texts_of(item.record, "explanation") == texts_of(item.record, "none")


def fitted_pair(item, method, tokenizer, **limits):
    return fitted_texts(written_fields([item.record], method), tokenizer, cut_first=CUT_FIRST, **limits)[0]


def test_short_questions_keep_their_texts(items, tokenizer):
    for method in TEMPLATES:
        for item in items:
            limits = {"source_tokens": 200, "target_tokens": 200}
            assert fitted_pair(item, method, tokenizer, **limits) == texts_of(item.record, method)


@pytest.mark.parametrize("method", ["none", "explanation", "reasoning"])
def test_answer_span_is_the_answer_sentence(items, tokenizer, method):
    _, target = texts_of(items[0].record, method)
    sentence = next(text for name, text in fields_of(items[0].record, TEMPLATES[method].target) if "answer" in name)
    begin, end = tokens_of(tokenizer, target, sentence)
    span = tokenizer.decode(tokenizer(target, add_special_tokens=False)["input_ids"][begin:end])
    assert span.replace(" ", "").removeprefix("answer:") == "theansweris(a)."


def test_long_rows_lose_rationale_and_never_the_answer(items, tokenizer):
    source, target = fitted_pair(items[0], "reasoning", tokenizer, source_tokens=16, target_tokens=14)
    source_ids, target_ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (source, target))
    assert (len(source_ids), len(target_ids)) == (15, 13)  # and one end token each
    assert tokenizer.decode(target_ids).endswith("answer : the answer is ( a ) .")
    assert tokenizer.decode(source_ids).endswith("solution :")


def test_fields_are_cut_rationale_first():
    parts = [("question", [1, 2, 3]), ("given_rationale", [4, 5]), ("ask_answer", [6])]
    assert fitted(parts, 5, cut_first=CUT_FIRST) == [
        ("question", [1, 2, 3]),
        ("given_rationale", [4]),
        ("ask_answer", [6]),
    ]
    assert fitted(parts, 3, cut_first=CUT_FIRST) == [("question", [1, 2]), ("given_rationale", []), ("ask_answer", [6])]


def test_masked_labels_golden():
    labels = label_rows([[7, 8, 1], [9, 1]], pad_id=0)
    assert labels.tolist() == [
        [7, 8, 1],  # the longest row
        [9, 1, IGNORED],  # its pad carries no loss
    ]


def test_official_labels_golden():
    labels = label_rows([[7, 8, 1], [9, 1]], pad_id=0, pad_to=5)
    assert labels.tolist() == [
        [7, 8, 1, 0, 0],  # padded to the fixed width, and every pad counts
        [9, 1, 0, 0, 0],
    ]


@pytest.fixture
def learner(tiny, tmp_path):
    """A function that opens the paper's model for an arm, with made-up features."""

    def build(arm):
        cfg = resolve([*tiny, f"experiment={arm}"])
        own = train.open_learner(cfg, find_pretrained(cfg.model.backbone), (), cache=tmp_path)
        own._vision["train"] = torch.arange(12.0).view(3, 2, 2)
        return own

    return build


def test_batch_golden(make_item, learner):
    """One example of the real collate: what is read, what carries loss, which image."""
    pair = [make_item("a", image=1), make_item("b", answer="no", text="is the heart small ?", image=0)]
    own = learner("none")
    batch = own.collate(pair, Split("train", pair, [], []))([0, 1])
    shown = decoded(batch, own.tokenizer, index=1)
    assert shown[0] == ("source", "question : is the heart small ? options : ( a ) yes ( b ) no answer :")
    assert [token for token, _ in shown[1:]] == ["the", "answer", "is", "(", "b", ")", ".", "</s>"]
    assert {mark for _, mark in shown[1:]} == {"loss"}
    texts = [texts_of(sample.record, "none")[0] for sample in pair]
    assert batch.inputs["attention_mask"].sum(dim=1).tolist() == [
        len(own.tokenizer(text, add_special_tokens=False)["input_ids"]) + 1 for text in texts
    ]
    assert torch.equal(batch.inputs["vision"], own._vision["train"][[1, 0]])


def test_text_only_batch_has_no_vision(items, learner):
    batch = learner("reader").collate(items, Split("train", items, [], []))([0, 1])
    assert "vision" not in batch.inputs
