"""Losses of masks by hand, against MONAI, and where there is nothing to lose."""

import math

import pytest
import torch
from monai.losses import DiceLoss

from lightbox.errors import RequestError
from lightbox.losses.masks import mask_bce, mask_dice, mask_loss

TWO = torch.tensor([[0.0, math.log(3)], [-math.log(3), 0.0]])  # probabilities 1/2 3/4, 1/4 1/2
TRUE = torch.tensor([[True, True], [False, False]])


def test_two_by_two_by_hand():
    bce = -(math.log(1 / 2) + math.log(3 / 4) + math.log(3 / 4) + math.log(1 / 2)) / 4
    dice = 1 - 2 * (1 / 2 + 3 / 4) / (2 + 2)
    assert mask_bce([TWO], [TRUE]).tolist() == pytest.approx([bce])
    assert mask_dice([TWO], [TRUE]).tolist() == pytest.approx([dice], abs=1e-6)
    total, count, parts = mask_loss([TWO, TWO], [TRUE, TRUE], bce=2.0, dice=0.5)
    assert float(total) == pytest.approx(2 * (2 * bce + 0.5 * dice), abs=1e-6)
    assert int(count) == 2
    assert float(parts["bce"]) == pytest.approx(2 * bce)


def test_masks_of_different_sizes_count_alike():
    small, large = torch.zeros(2, 3), torch.zeros(50, 7)
    inside = [torch.ones(2, 3), torch.ones(50, 7)]
    assert mask_bce([small, large], inside).tolist() == pytest.approx([math.log(2)] * 2)
    assert mask_dice([small, large], inside).tolist() == pytest.approx([1 / 3] * 2, abs=1e-6)


@pytest.mark.parametrize("smooth", [1e-6, 1.0])
def test_dice_is_monais(smooth):
    """With its both smoothing terms alike; it divides by sums of p and t too, not of their squares."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(5, 31, 17, generator=generator)
    targets = torch.rand(5, 31, 17, generator=generator) < torch.tensor([0.5, 0.1, 0.9, 0.0, 1.0])[:, None, None]
    peer = DiceLoss(sigmoid=True, smooth_nr=smooth, smooth_dr=smooth, reduction="none")
    wanted = peer(logits[:, None], targets[:, None].float())[:, 0, 0, 0]
    torch.testing.assert_close(mask_dice(list(logits), list(targets), smooth=smooth), wanted, rtol=0, atol=1e-6)


def test_no_mask_is_no_loss_and_not_nan():
    total, count, parts = mask_loss([], [], bce=1.0, dice=1.0)
    assert (float(total), int(count)) == (0.0, 0)
    assert float(parts["dice"]) == 0.0
    language = torch.tensor(1.5, requires_grad=True)
    (language + total / count.clamp(min=1)).backward()
    assert float(language.grad) == 1.0


def test_an_empty_target_teaches_and_stays_finite():
    logits = torch.full((4, 4), -40.0, requires_grad=True)
    empty = torch.zeros(4, 4)
    total, _, parts = mask_loss([logits], [empty], bce=1.0, dice=1.0)
    assert float(parts["dice"]) == pytest.approx(0.0, abs=1e-4)  # nothing drawn where nothing is
    total.backward()
    assert logits.grad.isfinite().all()
    drawn = torch.full((4, 4), 2.0, requires_grad=True)
    mask_loss([drawn], [empty], bce=1.0, dice=1.0)[0].backward()
    assert (drawn.grad > 0).all()


def test_gradient_points_towards_the_target():
    logits = TWO.clone().requires_grad_()
    mask_loss([logits], [TRUE], bce=1.0, dice=1.0)[0].backward()
    assert (logits.grad[TRUE] < 0).all()
    assert (logits.grad[~TRUE] > 0).all()


def test_sums_are_made_in_32_bits():
    logits = torch.zeros(256, 256, dtype=torch.bfloat16)
    loss = mask_dice([logits], [torch.ones(256, 256, dtype=torch.bool)])
    assert loss.dtype == torch.float32
    assert loss.tolist() == pytest.approx([1 / 3], abs=1e-5)


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        ([TWO], [torch.zeros(2, 3)], r"Mask 0 is \(2, 2\), its target \(2, 3\)"),
        ([TWO, TWO], [TRUE], "2 masks and 1 targets"),
        ([torch.zeros(0, 4)], [torch.zeros(0, 4)], r"Mask 0 is \(0, 4\)"),
    ],
)
def test_masks_without_their_target_are_refused(logits, targets, message):
    with pytest.raises(RequestError, match=message):
        mask_loss(logits, targets, bce=1.0, dice=1.0)
