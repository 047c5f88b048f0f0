"""Trace and closed form against measured training steps: tiny and small models on a CPU, 7B models in NF4 on a card.

A case is a whole step of our own path: forward with supervised rows only, backward, optimiser. Models have random
weights. On a CPU the peak is that of live tensor bytes, on a card that of its allocator, both without CUDA's context.
Overheads that the closed form leaves out decide a tiny model's peak, so on a CPU the trace is what should agree.
"""

import gc
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightbox.adapters.attach import attach
from lightbox.adapters.memory.prediction import predict
from lightbox.adapters.memory.request import Request
from lightbox.adapters.optimizers import make_optimizer
from lightbox.backbones.families import family_of
from lightbox.backbones.named import NAMED
from lightbox.backbones.published import merged, shrunk_values
from lightbox.backbones.sizes import Images
from lightbox.bench.live_bytes import held_by, peak_bytes
from lightbox.bench.memory_trace import trace
from lightbox.bench.random_models import build, make_batch
from lightbox.config import AdapterConfig
from lightbox.errors import RequestError
from lightbox.report.gpus import PEER, describe

MIB = 1024**2
TRACED, CLOSED = "traced peak of tensors", PEER
SIZES = ("tiny", "width 256")
CARD_MODELS = ("llava-1.5-7b", "qwen2.5-vl-7b")
KINDS = {
    "full fp32": (AdapterConfig(), "fp32"),
    "lora fp32": (AdapterConfig(kind="lora", r=8), "fp32"),
    "lora bf16": (AdapterConfig(kind="lora", r=8), "bf16"),
    "qlora nf4": (AdapterConfig(kind="lora", quant="nf4", r=8), "bf16"),
}
_TEXT = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 8}
_TEXT |= {"vocab_size": 4000}
_CLIP = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
_QWEN = {"hidden_size": 128, "out_hidden_size": 256, "intermediate_size": 300, "num_heads": 4, "depth": 3}
_ROPE = {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [4, 6, 6]}
_BART = {"d_model": 256, "encoder_layers": 3, "decoder_layers": 3, "encoder_ffn_dim": 1024, "decoder_ffn_dim": 1024}
_T5 = {"d_model": 256, "d_kv": 64, "d_ff": 1024, "num_layers": 4, "num_decoder_layers": 4, "vocab_size": 4000}
WIDER: dict[str, Mapping[str, Any]] = {
    "llava-1.5-7b": {"text_config": _TEXT, "vision_config": _CLIP},
    "qwen2.5-vl-7b": {"text_config": _TEXT | {"rope_parameters": _ROPE}, "vision_config": _QWEN},
    "florence-2-base": {
        "text_config": _BART | {"vocab_size": 4000},
        "vision_config": {"embed_dim": [32, 64, 128, 256], "projection_dim": 256},
    },
    "unifiedqa-t5-base": _T5,
}
"""Model -> what makes its tiny form 256 wide."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Case:
    """One step to measure: its name in tables and what it is."""

    name: str
    request: Request


def run(*, device: str = "cpu", models: Sequence[str] = (), sizes: Sequence[str] = SIZES) -> list[dict]:
    """Measure the cases of a device and compare each with its trace and its closed form.

    Args:
        device: cpu or cuda.
        models: only these; empty means all of the device.
        sizes: on a CPU, which sizes.

    Returns:
        Rows with case, peer, value (measured MiB), unit, ratio (of the peer to measured) and notes: one for the trace
        and one for the closed form of each case; on a CPU of each model, size and kind, by the largest error.

    Raises:
        RequestError: for cuda where torch finds no card.
    """
    check_device(device)
    torch.set_num_threads(1)
    if device == "cuda":
        wanted = [case for case in card_cases() if _is_wanted(case, models)]
        return [row for case in wanted for row in _rows(case.name, [(case, *compared(case.request))])]
    rows = []
    for model in models or tuple(WIDER):
        for size in sizes:
            for kind in KINDS:
                cases = [(case, *compared(case.request)) for case in cpu_cases(model, size, kind)]
                rows += _rows(f"{model}, {size}, {kind}", cases)
                _log.info("%s: %s", rows[-2]["case"], rows[-2]["notes"])
    return rows


def check_device(device: str) -> None:
    """Refuse cuda where torch finds no card."""
    if device == "cuda" and not torch.cuda.is_available():
        raise RequestError("The device is cuda", "torch finds no CUDA device on this machine", "Use --device cpu")


def compared(request: Request) -> tuple[int, int, int]:
    """Bytes of tensors: measured, in the trace, in the closed form."""
    return measure(request), trace(request), predict(request).tensors


def measure(request: Request) -> int:
    """Peak bytes of tensors in the second training step of a random model."""
    step, held = _step_of(request)
    step()
    peak = peak_bytes(step, held=held(), device=request.device)
    del step, held
    gc.collect()
    if request.device == "cuda":
        torch.cuda.empty_cache()
    return peak


def _step_of(request: Request) -> tuple[Callable[[], None], Callable[[], list[Tensor]]]:
    """A training step, and what is in memory before and after it."""
    backbone = build(request.config, quant=request.adapter.quant, dtype=request.dtype, device=request.device)
    backbone = attach(backbone, request.adapter, checkpoint_layers=request.checkpoint_layers)
    model = backbone.model.train()
    batch = make_batch(backbone, request)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(request.optimizer, [{"params": trained}], lr=1e-4, weight_decay=0.0)

    def step() -> None:
        total, tokens, _ = backbone.loss(batch)
        (total / tokens).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, lambda: held_by(model, optimizer, {**batch.inputs, "labels": batch.labels})


def cpu_cases(model: str, size: str, kind: str) -> Iterator[Case]:
    """Two batches, two lengths, with and without checkpointing, of a tiny or a wider form of a published model."""
    config = shrunk_values(model)
    config = merged(config, WIDER[model]) if size != "tiny" else config
    adapter, dtype = KINDS[kind]
    request = Request(
        config,
        family_of(config, name=model),
        adapter,
        supervised=8,
        dtype=dtype,
        device="cpu",
        images=Images(visual_tokens={"qwen2.5-vl-7b": 16, "florence-2-base": 17}.get(model)),
    )
    for batch in (1, 4):
        for tokens in (48, 128):
            for is_checkpointed in (False, True):
                name = f"batch {batch}, {tokens} tokens{', checkpointed' if is_checkpointed else ''}"
                yield Case(name, replace(request, batch=batch, tokens=tokens, checkpoint_layers=is_checkpointed))


def card_cases() -> Iterator[Case]:
    """LLaVA-1.5-7B and Qwen2.5-VL-7B in NF4, batch 1 and 4, 1,024 tokens."""
    for model in CARD_MODELS:
        config = NAMED[model]
        adapter = AdapterConfig(kind="lora", quant="nf4")
        request = Request(config, family_of(config, name=model), adapter, device="cuda")
        for batch in (1, 4):
            there = replace(request, batch=batch)
            yield Case(describe(model, there), there)


def _is_wanted(case: Case, models: Sequence[str]) -> bool:
    return not models or case.name.startswith(tuple(models))


def _rows(name: str, cases: list[tuple[Any, ...]]) -> Iterator[dict]:
    """For trace and closed form: the case that is furthest off, and how far the others are."""
    for place, (peer, verb) in enumerate(((TRACED, "traced"), (CLOSED, "predicted")), start=2):
        worst_case = max(cases, key=lambda one: abs(one[place] / one[1] - 1))
        case, measured, other = worst_case[0], worst_case[1], worst_case[place]
        errors = sorted(100 * (one[place] / one[1] - 1) for one in cases)
        notes = f"{verb} {other / MIB:.2f} MiB; errors {errors[0]:+.1f} to {errors[-1]:+.1f} % in {len(cases)} cases"
        worst = "" if case.name == name else f", worst: {case.name}"
        yield compared_row(name, peer, measured, other, notes + worst)


def compared_row(case: str, peer: str, measured: int, other: int, notes: str) -> dict:
    """A row of measured bytes, as MiB, and how the peer's relate to them."""
    shown = {"value": round(measured / MIB, 3), "unit": "MiB", "ratio": round(other / measured, 4)}
    return {"case": case, "peer": peer} | shown | {"notes": notes}
