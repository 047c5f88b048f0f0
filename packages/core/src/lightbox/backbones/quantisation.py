"""Quantised storage of frozen weights: what bitsandbytes is asked for, and whether that is what was loaded.

Only linear layers inside the language model are quantised. Tower, projector and head stay in 16 or 32 bit: they are
small, and a quantised tower or head costs accuracy that its bytes do not pay for. Every loaded layer is looked at,
because a skip list that matches nothing is accepted without a word.
"""

import logging
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from lightbox.backbones.families import Family
from lightbox.errors import RequestError, WorkError

BACKEND = "bitsandbytes"
PARTS = ("language", "vision", "projector", "head")
# by name, so that a model without quantised layers never imports the backend
_CLASSES = {"Linear4bit": "nf4", "Linear8bitLt": "int8"}

# One suggests a package that would fetch kernels at import, the other repeats the casts of int8 at every call.
for _name in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
    logging.getLogger(_name).setLevel(logging.ERROR)


class Count(NamedTuple):
    """Linear layers of one part of a model: all of them, and those stored in 4 or 8 bit."""

    linear: int
    quantised: int


def settings_for(quant: str, family: Family, *, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Arguments of `from_pretrained`: `quantization_config` and, with it, `device_map`; empty for none.

    NF4 stores 4 bit a weight in blocks of 64; the blocks' scales are quantised a second time, 4.127 bit a weight in
    all. The device is always named: left open, transformers moves quantised weights to a GPU where it finds one.

    Args:
        quant: none, nf4 or int8.
        family: names what stays as it is.
        dtype: of computation and of weights that are not quantised.
        device: cpu, cuda or cuda:N.
    """
    if quant == "none":
        return {}
    config = BitsAndBytesConfig(
        load_in_4bit=quant == "nf4",
        load_in_8bit=quant == "int8",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(family.kept_in_16_bit),  # the key says int8 and serves 4 bit too
    )
    return {"quantization_config": config, "device_map": {"": device}}


def settle(model: PreTrainedModel, family: Family, quant: str) -> None:
    """Compare a freshly loaded model with what was asked, layer by layer, and make it safe to evaluate.

    Call it once, before the first forward. Layers that the class keeps in 32 bit (T5's `wo`) are left alone by
    transformers.

    Raises:
        RequestError: where the files themselves are quantised and `quant` says another thing.
        WorkError: where a layer is quantised that should not be, or the other way round, or holds other weights than
            its class says.
    """
    linears: dict[str, Any] = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    quantised = [quantised_as(layer) for layer in linears.values() if quantised_as(layer) != "none"]
    if quant == "none" and quantised:
        raise RequestError(
            f"The weights are stored as {quantised[0]} ({len(quantised)} layers), and adapter.quant is none",
            "Files that are quantised already cannot be read in 16 or 32 bit without loss",
            "Use the weights that they were made from, and choose the storage with adapter.quant",
        )
    in_fp32 = set(model._keep_in_fp32_modules or ())  # transformers widens these and leaves them out of quantisation
    ways = dict.fromkeys(linears, "none") | {
        name: quant
        for name in linears
        if part_of(name, family) == "language" and name.rpartition(".")[2] not in in_fp32
    }
    wrong = sorted(name for name, layer in linears.items() if not _is_stored_as(layer, ways[name]))
    if wrong:
        counts = count_by_part(model, family).items()
        raise WorkError(
            f"{len(wrong)} layers are not stored as adapter.quant={quant} asks, the first is {wrong[0]} "
            f"({quantised_as(linears[wrong[0]])}); quantised are: "
            + ", ".join(f"{part} {count.quantised} of {count.linear}" for part, count in counts),
            "Only linear layers of the language model are to be quantised, and the names of this model's parts differ "
            "from those of its family",
            "Use the version of transformers in the lock file, or set adapter.quant=none",
        )
    keep_unpacked(model)


def keep_unpacked(model: nn.Module) -> None:
    """Stop 4-bit layers from repacking their weights in place.

    On CPUs with AVX512-BF16 a 4-bit layer in evaluation mode rewrites its weights at the first forward for a bf16
    kernel and rounds the blocks' scales to bf16; changing back does not bring the lost bits back. Each layer asks a
    flag of its own first, which is lowered here, so evaluation mode computes what training mode computes.
    """
    for module in model.modules():
        if quantised_as(module) == "nf4":
            module.support_avx512bf16_for_cpu = False


def quantised_as(module: nn.Module) -> str:
    """The way in which one layer is stored: nf4, int8 or none. Peft's wrappers, which share class names, are none."""
    kind = type(module)
    return _CLASSES.get(kind.__name__, "none") if kind.__module__.startswith(BACKEND) else "none"


def count_by_part(model: nn.Module, family: Family) -> dict[str, Count]:
    """Count linear layers, and quantised ones among them, in each part of a model without adapters."""
    counts = {part: [0, 0] for part in PARTS}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            counts[part_of(name, family)][0] += 1
            counts[part_of(name, family)][1] += quantised_as(module) != "none"
    return {part: Count(*numbers) for part, numbers in counts.items()}


def part_of(name: str, family: Family) -> str:
    """Which of `PARTS` a module belongs to, by its path; a projector may lie inside the tower and is its own part."""
    for part in ("projector", "vision", "head"):
        path = getattr(family, part)
        if path and (name == path or name.startswith(path + ".")):
            return part
    return "language"


def _is_stored_as(module: Any, quant: str) -> bool:
    """True where a layer holds quantised weights, and not 16-bit ones in a quantised layer's clothes."""
    if quantised_as(module) != quant or quant == "none":
        return quantised_as(module) == quant
    weight, numbers = module.weight, module.in_features * module.out_features
    if quant == "int8":
        return weight.dtype == torch.int8 and weight.numel() == numbers
    size = weight.element_size() * weight.numel()
    return getattr(weight, "quant_state", None) is not None and size == (numbers + 1) // 2  # two weights a byte
