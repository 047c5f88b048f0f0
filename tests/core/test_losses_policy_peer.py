"""The policy loss against trl's `GRPOTrainer` on the same log-probabilities, masks and advantages."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from lightbox.losses.policy import Clips, policy_loss

ROWS, TOKENS = 6, 9


def drawn(seed):
    """Log-probabilities now, before and of a reference, advantages, and masks of two kinds as trl keeps them."""
    generator = torch.Generator().manual_seed(seed)
    own = -2 * torch.rand(ROWS, TOKENS, generator=generator)
    old, reference = (own + 0.8 * torch.randn(ROWS, TOKENS, generator=generator) for _ in range(2))
    lengths = torch.randint(1, TOKENS + 1, (ROWS,), generator=generator)
    is_token = torch.arange(TOKENS) < lengths[:, None]
    is_told = torch.rand(ROWS, TOKENS, generator=generator) < 0.3  # what a tool said
    is_told[:, 0] = False
    return own, old, reference, 1.5 * torch.randn(ROWS, generator=generator), is_token, is_told


def loss_of_trl(own, old, reference, advantages, is_token, is_told, *, loss_type, beta, delta):
    """trl's own method with its log-probabilities given, in place of a model that computes them."""
    from trl.trainer.grpo_trainer import GRPOTrainer  # noqa: PLC0415

    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (own, torch.zeros_like(own), None),
        accelerator=SimpleNamespace(gather=lambda value: value, reduce=lambda value, reduction: value),
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(delta=delta, use_bias_correction_kl=False),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        use_vllm=False,
        _entropy_bonus_enabled=False,
        current_gradient_accumulation_steps=1,
        beta=beta,
        loss_type=loss_type,
        epsilon_low=0.2,
        epsilon_high=0.3,
        _metrics={"train": defaultdict(list)},
    )
    inputs = {
        "prompt_ids": torch.zeros(ROWS, 1, dtype=torch.long),
        "prompt_mask": torch.ones(ROWS, 1, dtype=torch.long),
        "completion_ids": torch.zeros(ROWS, TOKENS, dtype=torch.long),
        "completion_mask": is_token.long(),
        "tool_mask": (~is_told).long(),
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": reference,
    }
    return GRPOTrainer._compute_loss(trainer, None, inputs), trainer._metrics["train"]


@pytest.mark.parametrize("delta", [None, 1.6])
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize(("loss_type", "is_token_mean"), [("bnpo", True), ("grpo", False)])
def test_the_loss_and_its_gradient_are_those_of_the_usual_trainer(loss_type, is_token_mean, beta, delta):
    for seed in range(3):
        own, old, reference, advantages, is_token, is_told = drawn(seed)
        theirs, ours = (own.clone().requires_grad_() for _ in range(2))
        wanted, metrics = loss_of_trl(
            theirs, old, reference, advantages, is_token, is_told, loss_type=loss_type, beta=beta, delta=delta
        )
        wanted.backward()
        clips = Clips(low=0.2, high=0.3, dual=delta, kl=beta, is_token_mean=is_token_mean)
        total, count, shares = policy_loss(
            ours, advantages, is_token & ~is_told, old_logps=old, reference_logps=reference, clips=clips
        )
        (total / count).backward()
        assert (total / count).item() == pytest.approx(wanted.item(), rel=1e-6, abs=1e-6)
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-7)
        assert float(shares["clipped"]) == pytest.approx(metrics["clip_ratio/region_mean"][0], abs=1e-6)
        assert 0 < float(shares["clipped"]) < 1
        if delta is not None:
            assert float(shares["dual_clipped"]) > 0
        if beta:
            assert float(shares["kl"]) == pytest.approx(metrics["kl"][0], rel=1e-5)
