import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightbox.losses.language import IGNORED, token_cross_entropy
from lightbox.testing.close import assert_close


def draw(seed, *, b=3, t=5, v=7, dtype=torch.float32, masked=0.4):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(b, t, v, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, v, (b, t), generator=generator)
    labels[torch.rand(b, t, generator=generator) < masked] = IGNORED
    return logits.to(dtype), labels


def written_out(logits, labels):
    """Sum of log of the sum of exponentials minus the chosen logit, one position at a time, in float64."""
    total = 0.0
    for row, row_labels in zip(logits.double().tolist(), labels.tolist(), strict=True):
        for scores, label in zip(row, row_labels, strict=True):
            if label != IGNORED:
                total += math.log(sum(math.exp(score) for score in scores)) - scores[label]
    return total


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_token_cross_entropy_is_the_sum_written_out(seed):
    logits, labels = draw(seed, dtype=torch.float64)
    total, tokens = token_cross_entropy(logits, labels)
    assert_close(total, written_out(logits, labels))
    assert int(tokens) == int((labels != IGNORED).sum())


def test_uniform_logits_cost_log_of_the_vocabulary_each():
    total, tokens = token_cross_entropy(torch.full((2, 3, 11), 4.2), torch.zeros(2, 3, dtype=torch.long))
    assert int(tokens) == 6
    assert float(total) == pytest.approx(6 * math.log(11), rel=1e-6)


def test_loss_falls_as_the_logit_of_the_label_rises():
    logits, labels = torch.zeros(1, 1, 5), torch.tensor([[2]])
    losses = []
    for height in (0.0, 1.0, 2.0, 8.0):
        logits[0, 0, 2] = height
        losses.append(float(token_cross_entropy(logits, labels)[0]))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.01


def test_nothing_supervised_gives_zero_and_a_zero_gradient_not_nan():
    logits = torch.randn(2, 3, 4, requires_grad=True)
    total, tokens = token_cross_entropy(logits, torch.full((2, 3), IGNORED))
    total.backward()
    assert (total.item(), int(tokens)) == (0.0, 0)
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_more_padding_changes_nothing():
    logits, labels = draw(2)
    wider = torch.cat([logits, torch.randn(3, 4, 7)], dim=1)
    padded = torch.cat([labels, torch.full((3, 4), IGNORED)], dim=1)
    assert_close(token_cross_entropy(wider, padded)[0], token_cross_entropy(logits, labels)[0])


def test_gradient_is_probability_minus_one_at_the_label_and_zero_where_ignored():
    logits, labels = draw(4, dtype=torch.float64)
    logits.requires_grad_(True)
    token_cross_entropy(logits, labels)[0].backward()
    expected = torch.softmax(logits.detach(), dim=-1)
    for b, t in (labels != IGNORED).nonzero().tolist():
        expected[b, t, labels[b, t]] -= 1
    expected[labels == IGNORED] = 0
    assert_close(logits.grad, expected)


def test_adding_a_constant_to_all_logits_changes_nothing():
    logits, labels = draw(5, dtype=torch.float64)
    assert_close(token_cross_entropy(logits + 50, labels)[0], token_cross_entropy(logits, labels)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_summed_in_float32(dtype):
    logits, labels = draw(6, b=8, t=64, dtype=dtype, masked=0.0)
    total, _ = token_cross_entropy(logits, labels)
    assert total.dtype == torch.float32
    assert_close(total, written_out(logits, labels))


def test_padding_counts_where_its_labels_are_plain_ids():
    logits, labels = draw(7, masked=0.0)
    labels[:, 3:] = 0  # the padding id, left in the mean on purpose
    ignored = labels.masked_fill(labels == 0, IGNORED)
    assert int(token_cross_entropy(logits, labels)[1]) == 15
    assert int(token_cross_entropy(logits, ignored)[1]) <= 9


def test_a_label_outside_the_vocabulary_raises():
    with pytest.raises(IndexError, match="out of bounds"):
        token_cross_entropy(torch.zeros(1, 1, 3), torch.tensor([[3]]))
