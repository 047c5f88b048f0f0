"""What `temporal_keep` means, one token at a time; for tests and walkthroughs only."""

import math

import torch
from torch import Tensor


def temporal_keep_reference(
    x: Tensor,
    *,
    metric: str = "cos",
    tau: float | None = None,
    k_total: int | None = None,
    force_first: bool = True,
    min_tokens: int = 1,
) -> tuple[Tensor, Tensor]:
    """Score every token by its change and keep by threshold or by number.

    Args:
        x: [F, Nf, D].
        metric: "cos" or "l1".
        tau: threshold, or None.
        k_total: number kept in all, or None.
        force_first: whether the first frame stays whole.
        min_tokens: that each frame keeps at least.

    Returns:
        mask [F, Nf] bool, score [F, Nf] float64.
    """
    score = change_reference(x, metric, force_first=force_first)
    return kept_reference(score, tau=tau, k_total=k_total, force_first=force_first, min_tokens=min_tokens), score


def change_reference(x: Tensor, metric: str, *, force_first: bool) -> Tensor:
    """1 - cosine, or mean absolute difference, to the same place of the frame before: [F, Nf] float64."""
    score = torch.full(x.shape[:2], math.inf if force_first else 0.0, dtype=torch.float64)
    for frame in range(1, len(x)):
        for token, (now, before) in enumerate(zip(x[frame].double(), x[frame - 1].double(), strict=True)):
            if metric == "l1":
                score[frame, token] = (now - before).abs().mean()
            else:
                norms = now.norm().clamp(min=1e-8) * before.norm().clamp(min=1e-8)
                score[frame, token] = 1 - now @ before / norms
    return score


def kept_reference(
    score: Tensor, *, tau: float | None, k_total: int | None, force_first: bool, min_tokens: int
) -> Tensor:
    """Which tokens of given scores stay: the promised ones, and what is above `tau` or best of the rest.

    Scores fall, NaN is last, and the lower place is first among equals.
    """
    values = score.double().tolist()
    n_tokens = score.shape[1]

    def rank(frame: int, token: int) -> tuple[bool, float, int, int]:
        value = values[frame][token]
        return (True, 0.0, frame, token) if math.isnan(value) else (False, -value, frame, token)

    kept: set[tuple[int, int]] = set()
    for frame in range(len(values)):
        order = sorted((rank(frame, token), (frame, token)) for token in range(n_tokens))
        promised = n_tokens if force_first and frame == 0 else min_tokens
        kept |= {place for _, place in order[:promised]}
    everything = [(frame, token) for frame in range(len(values)) for token in range(n_tokens)]
    if tau is not None:
        kept |= {(frame, token) for frame, token in everything if values[frame][token] > tau}
    else:
        rest = sorted((place for place in everything if place not in kept), key=lambda place: rank(*place))
        kept |= set(rest[: (k_total or 0) - len(kept)])
    mask = torch.zeros(score.shape, dtype=torch.bool)
    for frame, token in kept:
        mask[frame, token] = True
    return mask
