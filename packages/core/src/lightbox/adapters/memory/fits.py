"""What fits on which card: the largest batches of a step, settings that make it fit, a table of published models."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightbox.adapters.memory.advice import reductions
from lightbox.adapters.memory.cards import CARDS_GB, recorded, said_of, usable_bytes
from lightbox.adapters.memory.named import NAMED, describe
from lightbox.adapters.memory.prediction import GIB, MemoryReport, Request, largest_batches, predict
from lightbox.backbones.families import family_of
from lightbox.config import AdapterConfig

TABLE_TOKENS = {
    "llava-next-7b": 3072,
    "florence-2-base": 640,
    "florence-2-large": 640,
    "unifiedqa-t5-base": 512,
    "unifiedqa-t5-large": 512,
}
"""Rows of the table have 1,024 tokens, but where five tiles need more or the model reads fewer."""
TABLE_ADAPTERS = {
    "QLoRA r16": AdapterConfig(kind="lora", quant="nf4"),
    "LoRA r16": AdapterConfig(kind="lora"),
}


@dataclass(frozen=True)
class Fit:
    """A predicted step.

    Args:
        report: its parts.
        batches: the largest batch for each card, in GB; 0 where not even one row fits.
        status: whether this very step was measured, by whom and how far off the prediction was.
    """

    report: MemoryReport
    batches: dict[int, int]
    status: str


def fit(name: str, request: Request, rows: Path) -> Fit:
    """Predict a step and what fits.

    Args:
        name: of the model, by which a recorded measurement is found.
        request: the step; its device decides whether CUDA's context counts.
        rows: table of recorded benchmarks; it need not exist.
    """
    batches = largest_batches(request, [usable_bytes(card) for card in CARDS_GB])
    status = said_of(recorded(rows, describe(name, request)))
    return Fit(predict(request), dict(zip(CARDS_GB, batches, strict=True)), status)


def settings_for(request: Request, card_gb: float) -> str:
    """The first settings with which `request` fits a card, as key=value; "" where none do."""
    usable = usable_bytes(card_gb)
    return next((settings for settings, there in reductions(request) if predict(there).total <= usable), "")


def table(rows: Path) -> Iterator[tuple[str, ...]]:
    """Rows of the table of published models: model, what trains, tokens, GiB with one row, largest batches, status."""
    for name, config in NAMED.items():
        for kind, adapter in TABLE_ADAPTERS.items():
            family = family_of(config, name=name)
            request = Request(config, family, adapter, tokens=TABLE_TOKENS.get(name, 1024))
            found = fit(name, request, rows)
            batches = (str(batch) if batch else "none" for batch in found.batches.values())
            yield name, kind, str(request.tokens), f"{found.report.total / GIB:.1f}", *batches, found.status


def context_tokens(config: Mapping[str, Any]) -> int | None:
    """Longest row that a model has positions for; None where its config.json does not say, as with T5."""
    return config.get("text_config", config).get("max_position_embeddings")


def with_batch(request: Request, batch: int) -> Request:
    """The same step with another number of rows."""
    return replace(request, batch=batch)
