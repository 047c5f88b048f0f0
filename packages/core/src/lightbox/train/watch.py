"""What must hold of a model while it trains: gradients reach what trains, and the frozen quantised base stays."""

import math
from collections.abc import Mapping, Sequence

from torch import nn

from lightbox.adapters.guards import STEPS_TO_REACH, GradientReach, quantised_digest, refuse_packed
from lightbox.backbones.quantisation import quantised_as
from lightbox.errors import WorkError
from lightbox.train.accumulation import Micro

SHOWN = 5


class Watch:
    """Looks at a model at the start, in its first steps and at the end of a training.

    Whether gradients arrive is asked only of a model that is partly frozen: there the settings say what trains. One
    that trains as a whole may hold parts that a paper's arm does not use.

    Args:
        model: as it begins to train, in shards where it will be.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._base = _digests(model)
        is_partly_frozen = not all(parameter.requires_grad for parameter in model.parameters())
        self._reach = GradientReach(model) if is_partly_frozen else None
        self._seen = 0

    def see_gradients(self, micros: Sequence[Micro], means: Mapping[str, float]) -> None:
        """Look at a step's gradients, for the first two steps that have tokens to learn from and change weights.

        Raises:
            WorkError: naming trainable tensors that no gradient has reached.
        """
        is_update = math.isfinite(means["train/grad_norm"]) and any(micro.tokens for micro in micros)
        if self._reach is None or self._seen >= STEPS_TO_REACH or not is_update:
            return
        self._seen += 1
        self._reach.observe(self._seen)

    def check_base(self) -> None:
        """Compare the quantised layers with what they were at the start.

        Raises:
            WorkError: naming layers whose stored state differs, or which an evaluation repacked.
        """
        refuse_packed(self._model)
        now = _digests(self._model)
        changed = sorted(name for name in self._base.keys() | now.keys() if self._base.get(name) != now.get(name))
        if changed:
            rest = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
            raise WorkError(
                f"The stored weights of {len(changed)} quantised layers changed in training: "
                f"{', '.join(changed[:SHOWN])}{rest}",
                "They are frozen, and the adapter belongs to the base as it was",
                "Load the base again, and change no weight of it in the step or the evaluation",
            )


def _digests(model: nn.Module) -> dict[str, str]:
    """Digest of each quantised layer by name."""
    return {name: quantised_digest(m) for name, m in model.named_modules() if quantised_as(m) != "none"}
