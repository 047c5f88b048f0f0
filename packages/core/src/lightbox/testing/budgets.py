"""For tests: the loss of a learner under budgets of `pruning`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightbox.paper.learner import Learner
from lightbox.paper.pruned import pruned
from lightbox.paper.pruning_config import PruningConfig
from lightbox.paper.samples import Split

ROWS = 4


def losses_under_budgets(learner: Learner, split: Split, budgets: Sequence[float | None]) -> list[Tensor]:
    """The loss of the split's first rows under DivPrune at each budget; None is without pruning."""
    batch = learner.collate(split.samples, split)(list(range(ROWS)))
    losses = []
    for budget in budgets:
        policy = PruningConfig() if budget is None else PruningConfig(method="divprune", budget=budget)
        with torch.no_grad(), pruned(learner.backbone, policy, seed=0, lengths="original"):
            losses.append(learner.backbone.loss(batch)[0])
    return losses
