"""The loss of a step by hand; batches without words, and without masks."""

import math

import pytest
import torch

from medplib.objective import STAGE_WEIGHTS, LossWeights, pixel_loss
from medplib.stages import STAGES


def test_the_terms_by_hand():
    logits, targets = torch.zeros(4, 8), torch.tensor([0, 1, 2, 3])
    masks = [torch.tensor([[True, False]]), torch.tensor([[True], [True], [True]])]
    drawn = [torch.zeros(1, 2), torch.full((3, 1), 100.0)]
    loss, count, parts = pixel_loss(logits, targets, drawn, masks, items=5, weights=LossWeights(1.0, 2.0, 0.5))
    text, bce, dice = math.log(8), math.log(2) / 2, (1 - 1 / 2) / 2  # of two masks, the second one right
    assert count == 5
    assert float(parts["text"]) == pytest.approx(text, rel=1e-5)
    assert float(parts["bce"]) == pytest.approx(bce, rel=1e-5)
    assert float(parts["dice"]) == pytest.approx(dice, rel=1e-4)
    assert float(loss) == pytest.approx(5 * (text + 2 * bce + 0.5 * dice), rel=1e-4)


def test_nothing_supervised_gives_0_and_not_nan():
    logits = torch.zeros(0, 8, requires_grad=True)
    loss, count, parts = pixel_loss(logits, torch.zeros(0, dtype=torch.long), [], [], items=2, weights=LossWeights())
    loss.backward()
    assert float(loss.detach()) == 0
    assert (count, set(parts)) == (2, {"text"})


def test_every_stage_has_its_weights():
    assert set(STAGE_WEIGHTS) == set(STAGES)
