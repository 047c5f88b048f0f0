"""What pruning kept and what it cost or saved."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightbox.pruning.options import Request, random_like
from lightbox.pruning.selecting import Choice


@dataclass(frozen=True)
class Timing:
    """Time to the first token with its tower, in seconds, and peak memory in bytes (None where it is not counted)."""

    first_token_s: float
    peak_bytes: int | None


@dataclass(frozen=True)
class Drift:
    """How far the next token's probabilities move when tokens go, beside as many tokens chosen at random.

    Args:
        own: of the method: Kullback-Leibler divergence of the pruned model from the unpruned one, in nats, mean over
            the rows.
        random: the same of each random choice.
    """

    own: float
    random: list[float]

    @property
    def is_below_random(self) -> bool:
        """Whether the method moves them less than the middle one of the random choices."""
        return self.own < median(self.random)


@dataclass(frozen=True)
class Report:
    """What was kept of the images of the last call.

    Args:
        method, budget, positions: as asked.
        tokens_before, tokens_after: visual tokens of each image.
        kept: of each image, one picture of rows and columns for each plane: True where the token stayed.
        pruned, unpruned: what `measure` took; None before it ran.
        drift: likewise; None also where nothing was drawn at random.
        warnings: in plain words.
    """

    method: str
    budget: float
    positions: str
    tokens_before: list[int]
    tokens_after: list[int]
    kept: list[list[Bool[Tensor, "h w"]]]
    pruned: Timing | None
    unpruned: Timing | None
    drift: Drift | None
    warnings: list[str]

    @property
    def speedup(self) -> float | None:
        """Time to the first token unpruned over pruned."""
        if self.pruned is None or self.unpruned is None:
            return None
        return self.unpruned.first_token_s / self.pruned.first_token_s

    def __str__(self) -> str:
        lines = [
            f"{self.method}, budget {self.budget}, positions {self.positions}: "
            f"{sum(self.tokens_before)} visual tokens -> {sum(self.tokens_after)} in {len(self.kept)} image(s)"
        ]
        for name, timing in (("pruned", self.pruned), ("unpruned", self.unpruned)):
            if timing is not None:
                peak = "not counted here" if timing.peak_bytes is None else f"{timing.peak_bytes / 2**20:.0f} MiB"
                lines.append(f"{name}: first token after {timing.first_token_s * 1e3:.1f} ms, peak memory {peak}")
        if self.speedup is not None:
            lines.append(f"{self.speedup:.2f} times as fast to the first token, tower and selection included")
        if self.drift is not None:
            drawn = f"{min(self.drift.random):.3g} to {max(self.drift.random):.3g}"
            lines.append(f"next token: {self.drift.own:.3g} nats from the unpruned model, random choices {drawn}")
        return "\n".join([*lines, *(f"Warning: {text}" for text in self.warnings)])


def report(request: Request, choice: Choice, timings: Mapping[str, Timing], drift: Drift | None = None) -> Report:
    """Put a report together."""
    kept = []
    masks = choice.is_kept.cpu().split([len(grid) for grid in choice.grids])
    for grid, mask in zip(choice.grids, masks, strict=True):
        pictures = []
        for plane, (rows, columns) in enumerate(grid.planes):
            here = mask & (grid.plane == plane)
            picture = torch.zeros(rows, columns, dtype=torch.bool)
            picture[grid.row[here], grid.column[here]] = True
            pictures.append(picture)
        kept.append(pictures)
    made = Report(
        method=request.name,
        budget=request.budget.value,
        positions=request.positions,
        tokens_before=[len(grid) for grid in choice.grids],
        tokens_after=list(choice.kept_counts),
        kept=kept,
        pruned=timings.get("pruned"),
        unpruned=timings.get("unpruned"),
        drift=drift,
        warnings=[],
    )
    if made.speedup is not None and made.speedup <= 1:
        made.warnings.append(
            f"{request.name} at budget {request.budget.value} is no faster here: first token after "
            f"{made.pruned.first_token_s * 1e3:.1f} ms, and {made.unpruned.first_token_s * 1e3:.1f} ms unpruned"
        )
    if drift is not None and made.tokens_after != made.tokens_before and not drift.is_below_random:
        made.warnings.append(
            f"{request.name} at budget {request.budget.value} is no better than random here: the next token's "
            f"probabilities move by {drift.own:.3g} nats, and by {median(drift.random):.3g} with tokens drawn at random"
        )
    return made


def next_token(core: Any, inputs: Mapping[str, Any]) -> Float[Tensor, "b v"]:
    """Logits of the token behind a prompt, with a cache as `generate` fills one."""
    return core(**inputs, use_cache=True, logits_to_keep=1).logits[:, -1]


@torch.no_grad()
def drift_beside_random(pruning: Any, inputs: Mapping[str, Any], draws: int) -> Drift:
    """Compare a method before the language model with random choices of as many tokens, on the same prompts."""
    request = pruning.request

    def divergence(of: Request) -> float:
        pruning.request = of
        log_p = next_token(pruning.core, inputs).float().log_softmax(dim=-1)
        return float((whole.exp() * (whole - log_p)).sum(dim=-1).mean().clamp(min=0))

    try:
        pruning.is_paused = True
        whole = next_token(pruning.core, inputs).float().log_softmax(dim=-1)
        pruning.is_paused = False
        drawn = [divergence(random_like(request, seed)) for seed in range(draws)]
        return Drift(divergence(request), drawn)
    finally:
        pruning.is_paused, pruning.request = False, request


@torch.no_grad()
def time_to_first_token(pruning: Any, inputs: Mapping[str, Any], repeats: int) -> dict[str, Timing]:
    """Time a prompt's forward with the tower, pruned and unpruned by turns, so that a busy machine slows both."""
    times: dict[str, list[float]] = {"pruned": [], "unpruned": []}
    peaks: dict[str, int | None] = {"pruned": None, "unpruned": None}
    device = next(pruning.core.parameters()).device
    is_cuda = device.type == "cuda"
    for _ in range(repeats + 1):
        for name in times:
            pruning.is_paused = name == "unpruned"
            try:
                if is_cuda:
                    torch.cuda.reset_peak_memory_stats(device)
                    torch.cuda.synchronize(device)
                start = time.perf_counter()
                next_token(pruning.core, inputs).argmax(dim=-1).cpu()  # a token is there when the host has it
                times[name].append(time.perf_counter() - start)
                if is_cuda:
                    peaks[name] = torch.cuda.max_memory_allocated(device)
            finally:
                pruning.is_paused = False
    return {name: Timing(median(own[1:]), peaks[name]) for name, own in times.items()}
