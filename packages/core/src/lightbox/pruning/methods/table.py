"""Every method by name, with what it needs and where it acts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lightbox.pruning.methods import (
    avg_pool,
    cdpruner,
    cls_topk,
    dart,
    divprune,
    finding_topk,
    hired,
    lesion_safe,
    random,
    temporal,
    uniform_grid,
    visionzip,
    vscan,
)
from lightbox.pruning.types import Selection, VisualBatch

BEFORE, INSIDE = "before_llm", "inside_llm"
"""Where a method acts: on features that the language model will read, or on its states behind a layer."""


@dataclass(frozen=True)
class Method:
    """One method.

    Args:
        select: of methods before the language model; None for those inside.
        where: BEFORE or INSIDE.
        needs: what of `VisualBatch` is computed for it: attention, early_attention, metric, finding,
            relevance.
        has_floor: whether an even grid can be mixed in (`floor_uniform`), which takes one score a token.
        floor: its share unless the caller says otherwise.
    """

    select: Callable[[VisualBatch, Sequence[int], Any], Selection] | None
    where: str = BEFORE
    needs: frozenset[str] = frozenset()
    has_floor: bool = False
    floor: float = 0.0


_LOOKS = frozenset({"attention"})
METHODS = {
    "random": Method(random.select, has_floor=True),
    "uniform_grid": Method(uniform_grid.select),
    "avg_pool": Method(avg_pool.select),
    "cls_topk": Method(cls_topk.select, needs=_LOOKS, has_floor=True),
    "hired": Method(hired.select, needs=_LOOKS | {"early_attention"}, has_floor=True),
    "visionzip": Method(visionzip.select, needs=_LOOKS | {"metric"}),
    "divprune": Method(divprune.select),
    "cdpruner": Method(cdpruner.select, needs=frozenset({"relevance"})),
    "dart": Method(dart.select),
    "vscan": Method(vscan.select, needs=_LOOKS | {"early_attention"}),
    "temporal": Method(temporal.select),
    "finding_topk": Method(finding_topk.select, needs=frozenset({"finding"}), has_floor=True),
    "lesion_safe": Method(lesion_safe.select, needs=frozenset({"finding"}), has_floor=True, floor=0.25),
    "fastv": Method(None, where=INSIDE),
    "pyramid_drop": Method(None, where=INSIDE),
}
"""Name, as `prune(method=...)` takes it -> method."""
