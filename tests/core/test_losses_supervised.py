"""Rows chosen before the head: what is chosen, sums and gradients as with full logits, nothing supervised."""

import pytest
import torch
from torch import nn
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from lightbox.losses.language import (
    row_cross_entropy,
    row_logps,
    rows_before,
    supervised_rows,
    token_cross_entropy,
)

LABELS = torch.tensor([[-100, 3, 1, -100], [-100, -100, 0, 4], [-100, -100, -100, -100]])


def hidden_and_head(seed=0):
    torch.manual_seed(seed)
    return torch.randn(3, 4, 6, dtype=torch.float64, requires_grad=True), nn.Linear(6, 5, bias=False).double()


def test_rows_are_those_with_a_label_in_reading_order():
    hidden = torch.arange(12.0).view(3, 4, 1)
    rows, targets = supervised_rows(hidden, LABELS)
    assert rows.flatten().tolist() == [1, 2, 6, 7]
    assert targets.tolist() == [3, 1, 0, 4]


def test_loss_and_gradients_equal_those_of_full_logits():
    hidden, head = hidden_and_head()
    full, tokens = token_cross_entropy(head(hidden), LABELS)
    wanted = torch.autograd.grad(full, [hidden, head.weight])
    rows, targets = supervised_rows(hidden, LABELS)
    total = row_cross_entropy(head(rows), targets)
    assert len(targets) == tokens == 4
    torch.testing.assert_close(total, full, rtol=1e-14, atol=0)
    for have, want in zip(torch.autograd.grad(total, [hidden, head.weight]), wanted, strict=True):
        torch.testing.assert_close(have, want, rtol=1e-12, atol=1e-14)


def test_log_probabilities_are_summed_by_sequence():
    hidden, head = hidden_and_head()
    wanted = [-token_cross_entropy(head(hidden[[row]]), LABELS[[row]])[0] for row in range(len(LABELS))]
    rows, targets = supervised_rows(hidden, LABELS)
    have = row_logps(head(rows), targets, LABELS)
    torch.testing.assert_close(have, torch.stack(wanted), rtol=1e-14, atol=0)
    assert have[2] == 0
    assert (have[:2] < 0).all()


def test_probabilities_of_all_two_token_sequences_sum_to_one():
    logits = 3 * torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    every = torch.cartesian_prod(torch.arange(4), torch.arange(4))  # 16 sequences of 2 tokens
    logps = row_logps(logits.repeat(len(every), 1), every.flatten(), every)
    assert float(logps.exp().sum()) == pytest.approx(1.0, abs=1e-12)


def test_nothing_supervised_gives_zero_loss_and_zero_gradient():
    hidden, head = hidden_and_head()
    rows, targets = supervised_rows(hidden, torch.full_like(LABELS, -100))
    total = row_cross_entropy(head(rows), targets)
    total.backward()
    assert total == 0
    assert hidden.grad is not None
    assert not hidden.grad.any()
    assert head.weight.grad is not None
    assert not head.weight.grad.any()


def test_a_head_with_capped_logits_keeps_its_cap():
    torch.manual_seed(0)
    model = Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=11,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=4,
            final_logit_softcapping=0.3,
        )
    ).eval()
    nn.init.normal_(model.lm_head.weight, std=2.0)
    ids = torch.tensor([[5, 6, 7, 8]])
    labels = torch.tensor([[-100, 7, 8, -100]])
    with rows_before(model.lm_head, labels):
        rows = model(ids).logits
    full = model(ids).logits
    assert full.shape == (1, 4, 11)
    assert full.abs().max() > 0.29
    torch.testing.assert_close(rows, full[0, 1:3], rtol=1e-6, atol=1e-7)


def test_head_reads_all_rows_again_after_an_error():
    head = nn.Linear(6, 5)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), rows_before(head, LABELS):
        head(torch.zeros(3, 4, 7))
    assert head(torch.zeros(3, 4, 6)).shape == (3, 4, 5)
