"""Solutions of the exercises on visual-token pruning. Try first: each takes less than twenty lines."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def keep_far(x: torch.Tensor, count: int) -> list[int]:
    """Exercise 1. Cosines are compared and not distances: 1 - c rounds small differences away."""
    unit = F.normalize(x.float(), dim=1)
    cosine = unit @ unit.T
    others = cosine.clone().fill_diagonal_(-2.0)  # no one is its own neighbour; a cosine is at least -1
    kept = [int(others.amax(dim=1).argmin())]
    while len(kept) < count:
        nearest = cosine[:, kept].amax(dim=1)
        nearest[kept] = 2.0
        kept.append(int(nearest.argmin()))
    return sorted(kept)


def keep_findings(finding: torch.Tensor, regions: Sequence[Sequence[int]], count: int) -> list[int]:
    """Exercise 2. A promise is a score that no value of the map reaches."""
    scores = finding.clone()
    peaks = list(dict.fromkeys(region[0] for region in regions))
    scores[peaks[:count]] = 2.0
    return sorted(torch.sort(scores, descending=True, stable=True).indices[:count].tolist())


def positions_after(positions: torch.Tensor, stays: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Exercise 3. The next token stands behind the largest position of the whole prompt, not of what stayed."""
    behind = int(positions.max()) + 1
    return positions[:, stays], behind - int(stays.sum())


def usual_places(masks: Sequence[torch.Tensor], count: int) -> list[int]:
    """Exercise 4. Lesions of the phantom lie at few places, so other images tell where.

    A blind line of this kind must stand beside the share, and what the model still says must be asked.
    """
    touched = torch.stack([mask.reshape(24, 8, 24, 8).any(dim=3).any(dim=1).flatten() for mask in masks])
    often = touched.float().mean(dim=0)
    return sorted(torch.sort(often, descending=True, stable=True).indices[:count].tolist())
