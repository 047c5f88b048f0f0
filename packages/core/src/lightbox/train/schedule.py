"""Learning-rate schedules: the share of the peak rate as a pure function of the step, so nothing needs restoring."""

import math

from lightbox.errors import RequestError


def lr_factor(step: int, *, max_steps: int, warmup_frac: float = 0.0, schedule: str = "linear") -> float:
    """Share of the peak learning rate that the update after `step` finished steps uses.

    Warm-up rises linearly and reaches 1 with its last step; the first update already learns. The decays end above 0
    at the last update and would reach 0 at the one after it.

    Args:
        step: optimiser steps done so far, in [0, max_steps).
        max_steps: optimiser steps in all, >= 1.
        warmup_frac: share of `max_steps` with rising rate, in [0, 1).
        schedule: "linear", "cosine" or "constant", after warm-up.

    Returns:
        A factor in (0, 1] within the range of `step`.

    Raises:
        RequestError: where the schedule is unknown.

    Example:
        >>> [lr_factor(step, max_steps=4) for step in range(4)]
        [1.0, 0.75, 0.5, 0.25]
        >>> [lr_factor(step, max_steps=4, warmup_frac=0.5, schedule="constant") for step in range(4)]
        [0.5, 1.0, 1.0, 1.0]
    """
    warmup_steps = round(warmup_frac * max_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
    if schedule == "linear":
        return 1.0 - done
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * done))
    if schedule == "constant":
        return 1.0
    raise RequestError(
        f"optim.schedule is '{schedule}'", "The choices are linear, cosine, constant", "Set optim.schedule to one"
    )
