"""The loss against a float64 reference written out, and what pads do to it."""

import math

import pytest
import torch

from lightbox.backbones.t5 import label_rows
from medthink.objective import answer_weights, target_loss


@pytest.fixture
def logits():
    return torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def by_hand(logits, targets):
    """Sum of -log softmax over the real target tokens, one by one."""
    return -sum(
        logits[row, place].log_softmax(dim=-1)[token].item()
        for row, target in enumerate(targets)
        for place, token in enumerate(target)
    )


def test_loss_is_the_sum_over_target_tokens(logits):
    targets = [[3, 4, 1], [5, 1]]
    total, tokens, _ = target_loss(logits[:, :3], label_rows(targets, pad_id=0))
    assert total.item() == pytest.approx(by_hand(logits, targets), abs=1e-12)
    assert tokens.item() == 5


def test_pads_do_not_change_the_masked_loss(logits):
    narrow = label_rows([[3, 4, 1], [5, 1]], pad_id=0)
    wide = torch.cat([narrow, torch.full((2, 2), -100)], dim=1)
    assert target_loss(logits, wide)[0].item() == pytest.approx(target_loss(logits[:, :3], narrow)[0].item(), abs=1e-12)


def test_official_pads_count_as_targets(logits):
    targets = [[3, 4, 1], [5, 1]]
    padded = [[3, 4, 1, 0, 0], [5, 1, 0, 0, 0]]
    total, tokens, _ = target_loss(logits, label_rows(targets, pad_id=0, pad_to=5))
    assert total.item() == pytest.approx(by_hand(logits, padded), abs=1e-12)
    assert tokens.item() == 10


def test_easy_pads_dilute_the_mean():
    """A model that predicts pads perfectly looks better under the official loss, at equal answers."""
    targets = [[3, 1]]
    logits = torch.zeros(1, 8, 7)
    logits[:, 2:, 0] = 50.0
    masked = target_loss(logits[:, :2], label_rows(targets, pad_id=0))
    official = target_loss(logits, label_rows(targets, pad_id=0, pad_to=8))
    assert (masked[0] / masked[1]).item() == pytest.approx(math.log(7))
    assert (official[0] / official[1]).item() == pytest.approx(math.log(7) / 4)


def test_token_accuracy_counts_supervised_tokens_only(logits):
    labels = torch.full((2, 5), -100)
    labels[0, 0] = logits[0, 0].argmax()
    labels[1, 1] = (logits[1, 1].argmax() + 1) % 7
    assert target_loss(logits, labels)[2]["token_acc"].item() == 0.5


def test_nothing_supervised_gives_zero_and_no_gradient(logits):
    logits.requires_grad_()
    total, tokens, _ = target_loss(logits, torch.full((2, 5), -100))
    total.backward()
    assert (total.item(), tokens.item(), logits.grad.abs().sum().item()) == (0.0, 0, 0.0)


def test_weighed_answer_counts_as_much_as_alone(logits):
    """A target of five tokens with its end, of which two are the answer; answer-only would have three with its end."""
    labels = label_rows([[3, 4, 6, 2, 1], [5, 3, 6, 2, 1]], pad_id=0)
    total, tokens, _ = target_loss(logits, labels, answer_weights(labels, n_answer=2))
    answers = by_hand(logits, [[3, 4], [5, 3]])
    rest = by_hand(logits[:, 2:], [[6, 2, 1], [6, 2, 1]])
    assert tokens.item() == 10
    assert total.item() / 10 == pytest.approx(answers / 6 + rest / 10, rel=1e-5)


def test_weighed_answer_does_not_depend_on_the_micro_batches(logits):
    labels = label_rows([[3, 4, 6, 2, 1], [5, 1]], pad_id=0)
    whole = target_loss(logits, labels, answer_weights(labels, n_answer=1))[0]
    parts = [target_loss(logits[[i]], labels[[i]], answer_weights(labels[[i]], n_answer=1))[0] for i in (0, 1)]
    assert whole.item() == pytest.approx(sum(parts).item(), rel=1e-6)
