"""What to say where memory runs out, or would: the largest part, and the setting that makes the step fit."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from lightbox.adapters.memory.prediction import GIB, MemoryReport, predict
from lightbox.adapters.memory.request import Request

FEWEST_TOKENS = 512


def advice(report: MemoryReport, request: Request, usable_bytes: float) -> str:
    """One sentence: what takes most, and the first setting that fits, or the smallest that there is.

    Args:
        report: the prediction for `request`.
        request: what does not fit.
        usable_bytes: what there is.
    """
    said = f"Of {_gib(report.total)} predicted most are {report.largest} ({_gib(report.parts[report.largest])})"
    best: tuple[int, str] | None = None
    for settings, smaller in reductions(request):
        total = predict(smaller).total
        if total <= usable_bytes:
            return f"{said}; {settings} would take {_gib(total)}"
        best = (total, settings) if best is None or total < best[0] else best
    if best is None:
        return f"{said}; no setting makes it smaller"
    return f"{said}; nothing fits {_gib(usable_bytes)}, the smallest is {best[1]} with {_gib(best[0])}"


def adviser(request: Request, usable_bytes: float) -> Callable[[int], str]:
    """`advice` as a step driver asks for it: by the items that its forward pass had when memory ran out."""

    def say(items: int) -> str:
        there = replace(request, batch=items)
        return advice(predict(there), there, usable_bytes)

    return say


def reductions(request: Request) -> Iterator[tuple[str, Request]]:
    """Settings that take less memory, those that do not change the result first, each on top of those before it."""
    chosen: dict[str, str] = {}

    def smaller(key: str, value: str, **changes: Any) -> tuple[str, Request]:
        nonlocal request
        chosen[key], request = value, replace(request, **changes)
        return " and ".join(f"{key}={value}" for key, value in chosen.items()), request

    if not request.checkpoint_layers:
        yield smaller("train.checkpoint_layers", "true", checkpoint_layers=True)
    while request.batch > 1:
        yield smaller("optim.micro_batch_size", str(request.batch // 2), batch=request.batch // 2, accumulates=True)
    if request.adapter.kind == "none":
        yield smaller("adapter.kind", "lora", adapter=replace(request.adapter, kind="lora"))
    if request.adapter.quant != "nf4":
        yield smaller("adapter.quant", "nf4", adapter=replace(request.adapter, quant="nf4"))
    if request.optimizer == "adamw":
        yield smaller("optim.optimizer", "adamw_8bit", optimizer="adamw_8bit")
    while request.tokens >= 2 * FEWEST_TOKENS:
        yield smaller("tokens a row", str(request.tokens // 2), tokens=request.tokens // 2)


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"
