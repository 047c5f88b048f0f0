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
    ("side", "ids", "types", "labels"),
    [
        ("right", [[5, 6, 7, 8, 2], [4, 9, 9, 2, 1]], [[0, 1, 0, 0, 0], [0, 0, 0, 0, 0]], [[5, 6], [7, -100]]),
        ("left", [[5, 6, 7, 8, 2], [1, 4, 9, 9, 2]], [[0, 1, 0, 0, 0], [0, 0, 0, 0, 0]], [[5, 6], [-100, 7]]),
    ],
)
def test_rows_are_padded_on_the_side_that_is_asked_for(side, ids, types, labels):
    unequal = [
        {"input_ids": [5, 6, 7, 8, 2], "token_type_ids": [0, 1, 0, 0, 0]},
        {"input_ids": [4, 9, 9, 2], "token_type_ids": [0, 0, 0, 0]},
    ]
    batch = rows.padded(unequal, 1, side=side)
    assert {name: value.tolist() for name, value in batch.items()} == {"input_ids": ids, "token_type_ids": types}
    assert rows.stacked([[5, 6], [7]], rows.IGNORED, side=side).tolist() == labels


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
        ({"limit": 5, "context": None, "is_joined": True}, False),
        ({"limit": 4, "context": None, "is_joined": True}, True),
        ({"limit": 9, "context": 4, "is_joined": True}, True),
        ({"limit": 3, "context": None, "is_joined": False}, False),
        ({"limit": 2, "context": None, "is_joined": False}, True),
    ],
)
def test_rows_beyond_the_limit_are_refused_with_their_lengths(settings, is_refused):
    if not is_refused:
        rows.check_lengths([(3, 2), (1, 3)], **settings)
        return
    with pytest.raises(RequestError, match="Item 0 has 3 tokens in the prompt, image included, and 2 in the target"):
        rows.check_lengths([(3, 2), (1, 3)], **settings)


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
