"""What a request for pruning may say, checked before a model is touched."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from lightbox.errors import RequestError
from lightbox.pruning.budgets import Budget
from lightbox.pruning.methods.table import BEFORE, INSIDE, METHODS, Method
from lightbox.pruning.positions import MODES
from lightbox.pruning.types import ImageInputs

COMPATS = ("", "reference_code")


@dataclass(frozen=True)
class Options:
    """Settings of methods; each names the methods that read it.

    Args:
        seed: random; 0 or more.
        floor_uniform: share of each image's budget that an even grid gets first, in [0, 1]; methods with one score a
            token. None is the method's own: 0.25 for lesion_safe, else 0.
        compat: "reference_code" repeats what the authors' code does where it departs from the paper (hired).
        alpha: hired: share of the budget for the whole image, the tiles get the rest (paper: 0.5).
        contextual: visionzip: share of the budget for merged tokens (paper: 10 of 64).
        pivots: dart: tokens that start the choice, at least 1 (paper: 4 of the image, 4 of the text).
        windows: vscan: side of a window in tokens (paper: 6 for CLIP).
        query_stride: reads every so many queries for the mean look of patches; an estimate at that share of the time.
        min_tokens: temporal: tokens that every slice keeps at least.
        threshold: lesion_safe, finding_topk: a region is where the finding map is at least this, in (0, 1].
        finding_map: lesion_safe, finding_topk: called with the arguments of `get_image_features`, gives one map an
            image, h w in [0, 1], laid over the pixels that the tower sees; any resolution.
        relevance: cdpruner: called likewise, gives one value a token of each image, in [0, 1]. None is 1 everywhere.
        layer: fastv: the layer behind which tokens go, from 1 (paper: 2).
        layers: pyramid_drop: layers behind which tokens go. None is behind a quarter, half and three quarters of them.
    """

    seed: int = 0
    floor_uniform: float | None = None
    compat: str = ""
    alpha: float = 0.5
    contextual: float = 10 / 64
    pivots: int = 4
    windows: int = 6
    query_stride: int = 1
    min_tokens: int = 1
    threshold: float = 0.5
    finding_map: Callable[[ImageInputs], Sequence[Tensor]] | None = None
    relevance: Callable[[ImageInputs], Sequence[Tensor]] | None = None
    layer: int = 2
    layers: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Request:
    """A checked request: see `pipeline.prune`."""

    name: str
    method: Method
    budget: Budget
    positions: str
    options: Options
    lengths: str


def checked(
    method: str, budget: float, positions: str, where: str, lengths: str, settings: Mapping[str, Any]
) -> Request:
    """Check a request.

    Raises:
        RequestError: an unknown method, mode or setting, a budget that no image can meet, a method elsewhere than
            where it acts.
    """
    _choice("method", method, METHODS)
    _choice("positions", positions, MODES)
    _choice("where", where, (BEFORE, INSIDE))
    _choice("lengths", lengths, ("pruned", "original"))
    names = tuple(field.name for field in fields(Options))
    for name in settings:
        _choice("A setting of prune()", name, names)
    entry = METHODS[method]
    if where != entry.where:
        raise RequestError(
            f"method='{method}' with where='{where}'",
            "It chooses by states inside the language model, through hooks and for one row at a time"
            if entry.where == INSIDE
            else "It chooses before the language model reads anything",
            f"Set where='{entry.where}'",
        )
    options = Options(**settings)
    _check_options(method, entry, options)
    if options.floor_uniform is None:
        options = Options(**(dict(settings) | {"floor_uniform": entry.floor}))
    return Request(method, entry, Budget(budget), positions, options, lengths)


def random_like(request: Request, seed: int) -> Request:
    """The same request for tokens drawn at random."""
    return checked("random", request.budget.value, request.positions, BEFORE, request.lengths, {"seed": seed})


def _check_options(method: str, entry: Method, options: Options) -> None:
    for name, (low, high) in RANGES.items():
        value = getattr(options, name)
        if value is not None and not low <= value <= high:
            bound = f"between {low} and {high}" if high < UNBOUNDED else f"at least {low}"
            raise RequestError(f"{name} is {value}", f"It must be {bound}", f"Set {name} {bound}")
    _choice("compat", options.compat, COMPATS)
    if options.floor_uniform and not entry.has_floor:
        raise RequestError(
            f"floor_uniform is {options.floor_uniform} with method='{method}'",
            "An even grid is mixed into methods that give every token a score, and this one has none",
            f"Leave it out, or choose one of {', '.join(name for name, other in METHODS.items() if other.has_floor)}",
        )
    if "finding" in entry.needs and options.finding_map is None:
        raise RequestError(
            f"method='{method}' without a finding map",
            "It keeps what the map marks, and no model of language and vision makes one",
            "Give finding_map=, a function of the image inputs that returns one map an image",
        )


UNBOUNDED = 2**31
RANGES = {
    "seed": (0, UNBOUNDED),
    "floor_uniform": (0.0, 1.0),
    "alpha": (0.0, 1.0),
    "contextual": (0.0, 1.0),
    "pivots": (1, UNBOUNDED),
    "windows": (1, UNBOUNDED),
    "query_stride": (1, UNBOUNDED),
    "min_tokens": (0, UNBOUNDED),
    "threshold": (1e-9, 1.0),
    "layer": (1, UNBOUNDED),
}
"""Setting -> lowest and highest value."""


def _choice(key: str, value: Any, choices: Sequence[str] | Mapping[str, Any]) -> None:
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"Did you mean '{near[0]}'?" if near else "Use one of them"
        raise RequestError(f"{key} is {value!r}", f"The choices are {', '.join(choices)}", hint)
