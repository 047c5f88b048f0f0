"""Will a training step fit the card? The memory model, asked with a paper's rows, and what to change. No torch.

It changes no number of a run, so nothing that trains imports it: `entries` asks it and hands its advice in. A fusion
beside a text model and the features of its tower are left out: they are small.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from lightbox import machine
from lightbox.adapters.memory.prediction import GIB, MemoryReport, predict
from lightbox.adapters.memory.request import Request
from lightbox.backbones import weights
from lightbox.backbones.sizes import Images, sizes_of
from lightbox.errors import RequestError
from lightbox.paper.pretrained import Pretrained
from lightbox.paper.schema import PaperConfig

FEWEST_TOKENS = 512
SHORTEST_TOKENS, SHORTEST_TARGET = 64, 8
"""A prompt and a target that no item falls below by much."""


def check_fits(cfg: PaperConfig, base: Pretrained) -> None:
    """Refuse a training of which not even one short item fits the largest card here.

    Nothing is refused on a CPU, for a hub id (its sizes are not here), and where only longer rows may not fit.

    Raises:
        RequestError: naming the largest part of the prediction, and the settings that would fit.
    """
    gpus = [] if cfg.run.device == "cpu" else gpu_bytes()
    if not gpus or not base.is_here or not cfg.objective.is_trained:
        return
    request = step_of(cfg, base, batch=1, prompt_tokens=SHORTEST_TOKENS, target_tokens=SHORTEST_TARGET)
    report, usable = predict(request), max(gpus)
    if report.total <= usable:
        return
    fits = next((f"Set {keys}" for keys, smaller in reductions(request) if predict(smaller).total <= usable), "")
    raise RequestError(
        f"model.backbone is '{cfg.model.backbone}' with adapter.kind={cfg.adapter.kind} and adapter.quant="
        f"{cfg.adapter.quant}, and the largest card here has {usable / GIB:.0f} GiB",
        f"One short item is predicted to take {report.total / GIB:.1f} GiB, most of it {largest(report)} "
        f"({report.parts[largest(report)] / GIB:.1f} GiB)",
        fits or "Use a smaller model or a larger card; 'lightbox memory' says what fits where",
    )


def memory_advice(cfg: PaperConfig, base: Pretrained) -> Callable[[int], str] | None:
    """What to say where memory runs out, by items of a forward pass; None where the sizes are not known."""
    if not base.is_here:
        return None
    gpus = [] if cfg.run.device == "cpu" else gpu_bytes()
    request = step_of(cfg, base, batch=1, prompt_tokens=cfg.data.source_tokens, target_tokens=cfg.target_tokens)
    return adviser(request, max(gpus, default=machine.memory_gib() * GIB))


def step_of(cfg: PaperConfig, base: Pretrained, *, batch: int, prompt_tokens: int, target_tokens: int) -> Request:
    """A training step of this configuration for the memory model.

    Args:
        cfg: how the model is stored and trained.
        base: a local model.
        batch: items of a forward pass.
        prompt_tokens: text of a prompt; image tokens are added.
        target_tokens: of a target.
    """
    config, family = weights.read_config(base.name, revision=base.revision), base.family
    images = Images(count=int(family.has_vision and cfg.has_vision))
    if images.count and family.name.startswith("qwen"):
        vision = config["vision_config"]
        side = cfg.model.image_px // (vision.get("patch_size", 14) * vision.get("spatial_merge_size", 2))
        images = Images(visual_tokens=max(1, side) ** 2)
    prompt = sizes_of(config, family, images).visual + prompt_tokens
    return Request(
        config,
        family,
        cfg.adapter,
        batch=batch,
        tokens=prompt if family.is_encoder_decoder else prompt + target_tokens,
        supervised=target_tokens,
        dtype=cfg.model.dtype,
        optimizer=cfg.optim.optimizer,
        checkpoint_layers=cfg.train.checkpoint_layers,
        device="cpu" if cfg.run.device == "cpu" or not gpu_bytes() else "cuda",
        images=images,
        accumulates=0 < cfg.optim.micro_batch_size < cfg.optim.batch_size,
    )


def gpu_bytes() -> list[int]:
    """Memory of each NVIDIA card here."""
    sizes = (re.search(r"(\d+) MiB", name) for name in machine.gpu_names())
    return [int(match[1]) << 20 for match in sizes if match]


def advice(report: MemoryReport, request: Request, usable_bytes: float) -> str:
    """One sentence: what takes most, and the first setting that fits, or the smallest that there is.

    Args:
        report: the prediction for `request`.
        request: what does not fit.
        usable_bytes: what there is.
    """
    said = f"Of {_gib(report.total)} predicted most are {largest(report)} ({_gib(report.parts[largest(report)])})"
    best: tuple[int, str] | None = None
    for settings, smaller in reductions(request):
        total = predict(smaller).total
        if total <= usable_bytes:
            return f"{said}; {settings} would take {_gib(total)}"
        best = (total, settings) if best is None or total < best[0] else best
    if best is None:
        return f"{said}; no setting makes it smaller"
    return f"{said}; nothing fits {_gib(usable_bytes)}, the smallest is {best[1]} with {_gib(best[0])}"


def largest(report: MemoryReport) -> str:
    """The part that takes most."""
    return max(report.parts, key=lambda part: report.parts[part])


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
