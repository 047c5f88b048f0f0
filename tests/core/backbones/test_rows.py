"""Token rows: padding on either side, labels, what a decoder reads, lengths that are refused."""

import pytest
import torch

from lightbox.backbones import rows
from lightbox.errors import RequestError

PROMPTS = [
    {"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "token_type_ids": [0, 1, 0]},
    {"input_ids": [5], "attention_mask": [1], "token_type_ids": [0]},
]
TARGETS = [[8, 2], [9, 9, 2]]


@pytest.mark.parametrize(
    ("side", "ids", "mask", "types", "labels"),
    [
        (
            "right",
            [[5, 6, 7, 8, 2], [5, 9, 9, 2, 0]],
            [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]],
            [[0, 1, 0, 0, 0], [0, 0, 0, 0, 0]],
            [[-100, -100, -100, 8, 2], [-100, 9, 9, 2, -100]],
        ),
        (
            "left",
            [[5, 6, 7, 8, 2], [0, 5, 9, 9, 2]],
            [[1, 1, 1, 1, 1], [0, 1, 1, 1, 1]],
            [[0, 1, 0, 0, 0], [0, 0, 0, 0, 0]],
            [[-100, -100, -100, 8, 2], [-100, -100, 9, 9, 2]],
        ),
    ],
)
def test_causal_rows_hold_prompt_and_target(side, ids, mask, types, labels):
    joined = [rows.extended(row, target) for row, target in zip(PROMPTS, TARGETS, strict=True)]
    batch = rows.padded(joined, 0, side=side)
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": types,
    }
    assert rows.labelled(joined, TARGETS, side=side).tolist() == labels


def test_unpadding_takes_padding_off_on_either_side():
    for side in ("left", "right"):
        assert rows.unpadded(rows.padded(PROMPTS, 0, side=side)) == PROMPTS


def test_labels_stand_where_they_are_predicted():
    labels = torch.tensor([[-100, 4, 2], [3, 2, -100]])
    assert rows.aligned(labels, is_encoder_decoder=True).tolist() == labels.tolist()
    assert rows.aligned(labels, is_encoder_decoder=False).tolist() == [[4, 2, -100], [2, -100, -100]]


def test_decoder_reads_the_start_token_and_then_what_came_before():
    labels = torch.tensor([[8, 2, -100], [9, 9, 2]])
    assert rows.shifted_right(labels, start_id=1, pad_id=0).tolist() == [[1, 8, 2], [1, 9, 9]]


@pytest.mark.parametrize(
    ("settings", "is_refused"),
    [
        ({"max_tokens": 5, "context_tokens": None, "is_joined": True}, False),
        ({"max_tokens": 4, "context_tokens": None, "is_joined": True}, True),
        ({"max_tokens": 9, "context_tokens": 4, "is_joined": True}, True),
        ({"max_tokens": 3, "context_tokens": None, "is_joined": False}, False),
        ({"max_tokens": 2, "context_tokens": None, "is_joined": False}, True),
    ],
)
def test_rows_beyond_the_limit_are_refused_with_their_lengths(settings, is_refused):
    if not is_refused:
        rows.check_lengths(PROMPTS, TARGETS, **settings)
        return
    with pytest.raises(RequestError, match="Item 0 has 3 tokens in the prompt, image included, and 2 in the target"):
        rows.check_lengths(PROMPTS, TARGETS, **settings)


def test_unequal_counts_are_refused():
    with pytest.raises(RequestError, match="2 prompts, 1 images"):
        rows.check_counts(["image"], ["a", "b"], None)
    with pytest.raises(RequestError, match="0 prompts"):
        rows.check_counts(None, [], [])


def test_batch_moves_with_its_labels():
    batch = rows.VlmBatch({"input_ids": torch.zeros(1, 2)}, torch.zeros(1, 2)).to("meta")
    assert batch.labels is not None
    assert {batch.inputs["input_ids"].device.type, batch.labels.device.type} == {"meta"}
    assert rows.VlmBatch({}).to("meta").labels is None
