"""GPUs of consumers: what of them a training may take, what was measured, and how many rows of published models fit."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from lightbox.adapters.memory.prediction import GIB, SPREAD, predict
from lightbox.adapters.memory.request import Request
from lightbox.backbones.families import family_of
from lightbox.backbones.named import NAMED
from lightbox.config import AdapterConfig

GPUS_GB = (12, 16, 24)
RESERVED_GIB = 1.0
"""What desktop, driver and other programs hold of a GPU; CUDA's own context is part of a prediction."""
BENCHMARK, PEER = "memory", "predicted peak of tensors"
PREDICTED = f"predicted ± {SPREAD:.0%}, not measured"

TITLES = ("model", "what trains", "tokens", "GiB, 1 row", *(f"{gpu_gb} GB" for gpu_gb in GPUS_GB), "status")
TOKENS = {
    "llava-next-7b": 3072,
    "florence-2-base": 640,
    "florence-2-large": 640,
    "unifiedqa-t5-base": 512,
    "unifiedqa-t5-large": 512,
}
"""Rows have 1,024 tokens, but where five tiles need more or the model reads fewer."""
ADAPTERS = {
    "QLoRA r16": AdapterConfig(kind="lora", quant="nf4"),
    "LoRA r16": AdapterConfig(kind="lora"),
}


def table(rows: Path) -> Iterator[tuple[str, ...]]:
    """Cells of one line for each model and adapter, as `TITLES` names them.

    Args:
        rows: table of recorded benchmarks, by which a step counts as measured; it need not exist.
    """
    usable = [usable_bytes(gpu_gb) for gpu_gb in GPUS_GB]
    for name, config in NAMED.items():
        family = family_of(config, name=name)
        for kind, adapter in ADAPTERS.items():
            request = Request(config, family, adapter, tokens=TOKENS.get(name, 1024))
            batches = (str(batch) if batch else "none" for batch in largest_batches(request, usable))
            status = said_of(recorded(rows, describe(name, request)))
            yield name, kind, str(request.tokens), f"{predict(request).total / GIB:.1f}", *batches, status


def usable_bytes(gpu_gb: float) -> float:
    """Bytes of a GPU that a training may take: what is printed on its box, less the reserve."""
    return (gpu_gb - RESERVED_GIB) * GIB


def recorded(table: Path, case: str) -> dict[str, str] | None:
    """The newest measurement of a step by its name (see `request.describe`), None where there is none.

    Args:
        table: `benchmarks/results.csv` of a checkout.
        case: the name.
    """
    if not table.is_file():
        return None
    with table.open(encoding="utf-8", newline="") as file:
        wanted = {"benchmark": BENCHMARK, "peer": PEER, "case": case}.items()
        rows = [row for row in csv.DictReader(file) if wanted <= row.items()]
    return rows[-1] if rows else None


def said_of(row: dict[str, str] | None) -> str:
    """How a prediction's status is shown: what was measured, where and when, or that nothing was."""
    if row is None:
        return PREDICTED
    measured, error = float(row["value"]) / 1024, 100 * (float(row["ratio"]) - 1)
    return f"measured {measured:.2f} GiB of tensors, prediction {error:+.1f} % ({row['machine']}; {row['date']})"


def describe(name: str, request: Request) -> str:
    """One line that names a step: what a recorded measurement is found by."""
    adapter = request.adapter
    kind = "full" if adapter.kind == "none" else f"{'lora' if adapter.quant == 'none' else adapter.quant} r{adapter.r}"
    layers = ", checkpointed" if request.checkpoint_layers else ""
    pruning = f", {request.keep:g} of the visual tokens" if request.keep < 1 else ""
    return (
        f"{name}, {kind}, {request.dtype}, batch {request.batch}, {request.tokens} tokens{pruning}, "
        f"{request.supervised} supervised, {request.optimizer}{layers}, {request.device}"
    )


def largest_batches(request: Request, usable_bytes: Sequence[float], *, at_most: int = 4096) -> list[int]:
    """For each card the largest batch that is predicted to fit; 0 where not even one row does.

    Beyond a few rows the peak grows evenly, so few steps are tried.
    """

    @cache
    def total(batch: int) -> int:
        return predict(replace(request, batch=batch)).total

    def largest(usable: float) -> int:
        if total(1) > usable:
            return 0
        batch = 2 + int(2 * (usable - total(2)) / max(1, total(4) - total(2)))
        batch = max(1, min(batch, at_most))
        while batch > 1 and total(batch) > usable:
            batch -= 1
        while batch < at_most and total(batch + 1) <= usable:
            batch += 1
        return batch

    return [largest(usable) for usable in usable_bytes]
