"""`lightbox memory`: will a training step fit, by part, and how many rows fit on a card. Imports no torch."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from lightbox.adapters.memory.prediction import GIB, SPREAD, MemoryReport, predict
from lightbox.adapters.memory.request import ITEMS, Request
from lightbox.backbones.families import family_of
from lightbox.backbones.named import config_of
from lightbox.backbones.sizes import Images, context_of, sizes_of
from lightbox.config import OPTIMIZERS, AdapterConfig, check_at_least, check_choice
from lightbox.errors import RequestError
from lightbox.paper.forecast import advice
from lightbox.paths import repo_root
from lightbox.report import gpus

KINDS = {
    "none": AdapterConfig(),
    "lora": AdapterConfig(kind="lora"),
    "lora-int8": AdapterConfig(kind="lora", quant="int8"),
    "qlora": AdapterConfig(kind="lora", quant="nf4"),
}
DEVICES = ("cuda", "cpu")
FORMULAS = {
    "quantised weights": "0.5159 bytes a weight in NF4 with double quantisation, 1 in int8",
    "language weights": "w bytes a weight that is not quantised, norms too",
    "table and head": "w·V·D, twice where the head is not the table",
    "vision weights": "w bytes a weight of tower and projector",
    "adapters": "4 bytes a number; r·(in + out) numbers for each adapted linear layer",
    "gradients": "4 bytes a number of adapters, or w a weight in full training",
    "optimiser": "8 bytes a number with AdamW, about 2 with 8 bits",
    "inputs and masks": "the batch, attention masks, tables of positions",
    "kept layer inputs": "w·M·D·L with checkpointing: the input of each layer",
    "layers": "about w·M·(12·D + 4·F) for one layer with checkpointing, of every layer without",
    "adapter copies": "4·M·(6·D + F) where adapters in float32 are not fused; w·r·(in + out) where they are",
    "dequantised weights": "w·in·out of the largest quantised matrix",
    "logits": "n·V·(w + 8), n supervised tokens, backward n·V·12",
    "vision": "features of the tower, and its largest layer while it runs",
    "context": "CUDA's own 0.6 GiB, and 5 % of values for gaps between them; nothing on a CPU",
}
"""Part of a prediction -> its formula, see `lightbox.adapters.memory.prediction`."""
BUDGET = (
    f"Error budget: closed form ± {SPREAD:.0%} of tensors at published widths, where --exact traces the real model; "
    "context 0.6 GiB and gaps 5 % of values are allowances for a GPU's own use and are not measured here"
)
SMALLER = "Take a smaller --batch, --adapter qlora, fewer --tokens, or --keep 0.25 where visual tokens are pruned"


def memory(
    model: Annotated[str, typer.Option(help="Name of a published model, tiny/NAME, or a folder with a config.json.")],
    adapter: Annotated[str, typer.Option(help="none (full training), lora, lora-int8 or qlora.")] = "qlora",
    batch: Annotated[int, typer.Option(help="Rows of a forward pass (optim.micro_batch_size).")] = 1,
    tokens: Annotated[int, typer.Option(help="Tokens a row, image tokens included.")] = 1024,
    supervised: Annotated[int, typer.Option(help="Target tokens a row.")] = 64,
    r: Annotated[int, typer.Option("--r", help="Rank of adapters.")] = 16,
    optimizer: Annotated[str, typer.Option(help="adamw, adamw_8bit or paged_adamw_8bit.")] = "adamw",
    dtype: Annotated[str, typer.Option(help="bf16, fp16 or fp32 of what is not quantised.")] = "bf16",
    checkpoint: Annotated[bool, typer.Option(help="Compute layers again in the backward pass.")] = True,
    keep: Annotated[float, typer.Option(help="Share of visual tokens that pruning keeps, in (0, 1].")] = 1.0,
    images: Annotated[int, typer.Option(help="Images a row; 0 for text only.")] = 1,
    visual_tokens: Annotated[int, typer.Option(help="Image tokens a row; 0 means the family's usual.")] = 0,
    card: Annotated[float, typer.Option(help="Ask about one card of so many GB; exit code 2 if it does not fit.")] = 0,
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    exact: Annotated[
        bool, typer.Option(help="Also run the real model's step on tensors without memory; needs torch.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Predict the peak memory of a training step by part, and the largest batch for cards of 12, 16 and 24 GB."""
    _check_numbers(batch=batch, tokens=tokens, supervised=supervised, r=r, keep=keep, images=images, card=card)
    check_choice("--adapter", adapter, tuple(KINDS))
    check_choice("--optimizer", optimizer, OPTIMIZERS)
    check_choice("--dtype", dtype, tuple(ITEMS))
    check_choice("--device", device, DEVICES)
    config = config_of(model)
    request = Request(
        config,
        family_of(config, name=model, key="--model"),
        replace(KINDS[adapter], r=r),
        batch=batch,
        tokens=tokens,
        supervised=supervised,
        dtype=dtype,
        optimizer=optimizer,
        checkpoint_layers=checkpoint,
        device=device,
        images=Images(count=images, visual_tokens=visual_tokens or None),
        keep=keep,
    )
    _check_fit(model, request)
    report = predict(request)
    traced = _traced(request) if exact else None
    sizes = (card,) if card else gpus.GPUS_GB
    largest = dict(zip(sizes, gpus.largest_batches(request, [gpus.usable_bytes(size) for size in sizes]), strict=True))
    total = report.total if traced is None else report.total - report.tensors + traced
    if card and total > gpus.usable_bytes(card):
        raise _too_small(card, total, report, request, largest[card])
    name = gpus.describe(model, request)
    status = gpus.said_of(gpus.recorded(repo_root() / "benchmarks" / "results.csv", name))
    show = _print_json if as_json else _print_table
    show(name, report, traced, largest, status)


def _traced(request: Request) -> int:
    """Peak bytes of tensors of the real model's step; the only place that imports torch."""
    from lightbox.bench.memory_trace import trace

    return trace(request)


def _check_numbers(*, keep: float, images: int, card: float, **counts: int) -> None:
    for name, count in counts.items():
        check_at_least(f"--{name}", count, 1)
    check_at_least("--images", images, 0)
    check_at_least("--card", card, 0)
    if not 0 < keep <= 1:
        raise RequestError(f"--keep is {keep}", "It is the share of visual tokens that is kept", "Set --keep in (0, 1]")


def _check_fit(model: str, request: Request) -> None:
    """Refuse rows that the model has no positions for, or that cannot hold their own images and targets."""
    family, context = request.family, context_of(request.config)
    visual = sizes_of(request.config, family, request.images).visual
    given = f"--tokens is {request.tokens} and --model is '{model}'"
    longest = max(request.tokens, request.supervised) if family.is_encoder_decoder else request.tokens
    if context is not None and longest > context:
        raise RequestError(given, f"The model has {context} positions", f"Set --tokens to {context} or fewer")
    if not visual and (request.keep < 1 or request.images.visual_tokens):
        why = "A row has no image" if family.has_vision else "That model reads text only"
        raise RequestError("--keep or --visual-tokens is set", f"{why}, so there are no visual tokens", "Leave it out")
    least = visual + (0 if family.is_encoder_decoder else request.supervised)
    if request.tokens < least:
        raise RequestError(
            f"{given}; its image takes {visual} tokens, the target {request.supervised}",
            "A row must hold both",
            f"Set --tokens to {least} or more, fewer --visual-tokens, or --images 0 for text only",
        )


def _too_small(card: float, total: int, report: MemoryReport, request: Request, largest: int) -> RequestError:
    usable = gpus.usable_bytes(card)
    do = f"A batch of {largest} fits: set --batch {largest}" if largest else SMALLER
    return RequestError(
        f"--card is {card:g} GB, of which {usable / GIB:.1f} GiB can be used, and the step takes {total / GIB:.1f} GiB",
        advice(report, request, usable),
        do,
    )


def _rows(report: MemoryReport) -> Iterator[tuple[str, float, str]]:
    for part, size in report.parts.items():
        yield part, size / GIB, FORMULAS[part]


def _print_table(name: str, report: MemoryReport, traced: int | None, largest: dict[float, int], status: str) -> None:
    console = Console()
    console.print(name)
    table = Table("part", "GiB", "formula", box=None, pad_edge=False)
    for part, size, formula in _rows(report):
        table.add_row(part, f"{size:.3f}", formula)
    table.add_row("[bold]peak", f"[bold]{report.total / GIB:.3f}", status)
    console.print(table)
    if traced is not None:
        error = 100 * (report.tensors / traced - 1)
        console.print(f"{traced / GIB:.3f} GiB of tensors in a trace of the real model, closed form {error:+.1f} %")
    console.print(BUDGET if "context" in report.parts else BUDGET.partition(";")[0])
    total = sum(report.counts.values())
    console.print(f"{total / 1e6:,.1f} M numbers in the model, {report.trained / 1e6:,.1f} M learn")
    for card, batch in largest.items():
        said = f"at most {batch} rows at once" if batch else f"not one row; {SMALLER[0].lower()}{SMALLER[1:]}"
        console.print(f"{card:g} GB card ({card - gpus.RESERVED_GIB:g} GiB usable): {said}")


def _print_json(name: str, report: MemoryReport, traced: int | None, largest: dict[float, int], status: str) -> None:
    facts: dict[str, Any] = {"case": name, "total_bytes": report.total, "parts": report.parts, "counts": report.counts}
    facts |= {"trained": report.trained, "status": status, "reserved_gib": gpus.RESERVED_GIB}
    facts |= {"spread": SPREAD, "budget": BUDGET} | ({} if traced is None else {"traced_tensor_bytes": traced})
    facts["largest_batch"] = {f"{card:g}": batch for card, batch in largest.items()}
    typer.echo(json.dumps(facts, indent=2))
