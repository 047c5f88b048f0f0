"""What `greedy_select` means, in float64 and without any shortcut; for tests and walkthroughs only.

Max-min takes the minimum over all picks anew at each step. The DPP compares determinants: the next pick is the token
whose row raises det(L[picks, picks]) most, which is what the incremental Cholesky factor in `op` must amount to.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def greedy_select_reference(
    feat: Tensor, cu: Tensor, k: Tensor, rule: str = "maxmin", relevance: Tensor | None = None, eps: float = 1e-6
) -> tuple[Tensor, float]:
    """Pick in each segment, one token at a time.

    Args:
        feat: [T, D].
        cu: [S+1].
        k: [S].
        rule: "maxmin" or "dpp".
        relevance: [T], for "dpp"; None is 1 everywhere.
        eps: a DPP gain at or under it means that nothing new is left.

    Returns:
        Indices [K] int64, rising in each segment; the smallest lead of a pick over the runner-up. Under a lead of about
        1e-6 float32 may pick otherwise, and where it is 0 there was a tie.
    """
    weight = torch.ones(len(feat)) if relevance is None else relevance
    kept, lead = [], torch.inf
    for start, stop, count in zip(cu[:-1].tolist(), cu[1:].tolist(), k.tolist(), strict=True):
        unit = F.normalize(feat[start:stop].double(), dim=1)
        cosine, own_weight = unit @ unit.T, weight[start:stop].double()
        cosine.diagonal().copy_(unit.any(dim=1))  # 1 and not 1 +- 1e-16, which would decide ties
        picks: list[int] = []
        has_rank = True
        while len(picks) < count:
            if rule == "maxmin":
                gain = _distance(cosine, picks)
            else:
                gain = _determinant_gain(cosine, own_weight, picks) if has_rank else own_weight.clone()
                gain[picks] = -torch.inf
                if has_rank and gain.max() <= eps:  # from here on the picks' own determinant is 0
                    has_rank = False
                    gain = own_weight.clone()
            gain[picks] = -torch.inf
            best = gain.max()
            pick = int((gain == best).nonzero()[0])
            picks.append(pick)
            others = torch.cat([gain[:pick], gain[pick + 1 :]])
            if len(others) and others.max() > -torch.inf:
                lead = min(lead, float(best - others.max()))
        kept += sorted(start + pick for pick in picks)
    return torch.tensor(kept, dtype=torch.int64), lead


def _distance(cosine: Tensor, picks: list[int]) -> Tensor:
    """Distance of every token to its nearest pick; before the first pick, to its nearest neighbour."""
    distance = 1.0 - cosine
    if picks:
        return distance[:, picks].min(dim=1).values
    return distance.fill_diagonal_(torch.inf).min(dim=1).values


def _determinant_gain(cosine: Tensor, weight: Tensor, picks: list[int]) -> Tensor:
    """det(L[picks + i]) / det(L[picks]) for every i: the Schur complement of the picks."""
    kernel = weight[:, None] * cosine * weight
    diagonal = kernel.diagonal().clone()
    if not picks:
        return diagonal
    cross = kernel[:, picks]
    return diagonal - (cross * torch.linalg.solve(kernel[picks][:, picks], cross.T).T).sum(dim=1)
