"""The config group `pruning` of papers whose model reads visual tokens. No torch."""

from dataclasses import dataclass

from lightbox.config import check_choice
from lightbox.errors import RequestError

UNPRUNED = "none"
POSITIONS = ("keep", "keep_rank", "compact")


@dataclass(kw_only=True)
class PruningConfig:
    """Which visual tokens the language model reads; see `lightbox.pruning.pipeline.prune`."""

    method: str = UNPRUNED
    """none, or a method of `lightbox.pruning` that acts before the language model; fewer tokens save time."""
    budget: float = 1.0
    """Share of each image's tokens that stays, in (0, 1]; time of the language model falls with it."""
    positions: str = "keep"
    """keep (tokens stay where they were), keep_rank or compact (they are renumbered); no cost."""
    floor_uniform: float | None = None
    """Share of the budget that an even grid gets first, in [0, 1]; none is the method's own; no cost."""

    def __post_init__(self) -> None:
        check_choice("pruning.positions", self.positions, POSITIONS)
        if not 0 < self.budget <= 1:
            raise RequestError(
                f"pruning.budget is {self.budget}", "It is a share of the tokens", "Set pruning.budget in (0, 1]"
            )
        if self.method == UNPRUNED and self.budget < 1:
            raise RequestError(
                f"pruning.budget is {self.budget} and pruning.method is {UNPRUNED}",
                "Without a method every token stays, and the budget would not be met",
                "Name a method, such as pruning.method=divprune, or leave pruning.budget out",
            )
