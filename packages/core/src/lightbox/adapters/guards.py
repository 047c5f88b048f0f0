"""Checks that stop a fine-tuning run that would train the wrong thing, or nothing."""

import hashlib
import re
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightbox.adapters import plain
from lightbox.adapters.plain import LORA_PARTS, plain_name
from lightbox.backbones.families import Family
from lightbox.backbones.quantisation import part_of, quantised_as
from lightbox.config import AdapterConfig
from lightbox.errors import WorkError

BULK = 1_000_000  # norms, biases and scales lie below, token tables and projections above
STEPS_TO_REACH = 2
SHOWN = 5


class TrainableGroup(NamedTuple):
    """Trainable parameters of one kind, with the names of their tensors and the count of numbers in all of them.

    A `group` is "lora language", "lora projector", "projector", "new tokens", "module <path>" or "other <part>".
    """

    group: str
    names: tuple[str, ...]
    count: int


def trainable_report(model: nn.Module, family: Family) -> list[TrainableGroup]:
    """What will train, by kind, in order of first appearance."""
    groups: dict[str, dict[str, int]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(_group_of(name, family), {})[name] = parameter.numel()
    return [TrainableGroup(group, tuple(counts), sum(counts.values())) for group, counts in groups.items()]


def trainable_lines(model: nn.Module, family: Family) -> list[str]:
    """The report as text: one line a kind with tensors, numbers and an example, then the share of the whole model."""
    report = trainable_report(model, family)
    lines = [f"{g.group}: {g.count:,} numbers in {len(g.names)} tensors, such as {g.names[0]}" for g in report]
    # numel of a packed matrix counts bytes, of two weights each
    packed: list[Any] = [module for module in model.modules() if quantised_as(module) == "nf4"]
    frozen = sum(layer.in_features * layer.out_features - layer.weight.numel() for layer in packed)
    frozen += sum(p.numel() for p in model.parameters() if not p.requires_grad)
    trained = sum(g.count for g in report)
    return [*lines, f"{trained:,} of {trained + frozen:,} numbers train ({trained / (trained + frozen):.2%})"]


def check_trainable(
    model: nn.Module, family: Family, adapter: AdapterConfig, *, has_new_tokens: bool = False
) -> list[TrainableGroup]:
    """Compare what will train with what the settings ask for, and return the report.

    Raises:
        WorkError: naming tensors that train and should not, or a kind that should train and does not.
    """
    report = trainable_report(model, family)
    asked_groups = {"lora language"}
    if adapter.projector != "frozen":  # asked of the settings and not of the model: the model is what is in doubt
        asked_groups.add({"lora": "lora projector", "full": "projector"}[adapter.projector])
    if has_new_tokens:
        asked_groups.add("new tokens")
    trained_groups = {group.group: group for group in report}
    for pattern in adapter.modules:
        paths = {group for group in trained_groups if re.fullmatch(f"module (?:{pattern})", group)}
        asked_groups |= paths or {f"module {pattern}"}
    if trained_groups.keys() == asked_groups:
        return report
    surplus = [name for group in report if group.group not in asked_groups for name in group.names]
    missing = sorted(asked_groups - trained_groups.keys())
    raise WorkError(
        f"Trainable beyond the settings: {_some(surplus)}; of what should train, missing: {', '.join(missing) or '-'}",
        "The settings say what is learned, and a run that learns something else gives numbers under a wrong name",
        "Add adapters to a freshly loaded model, and freeze or unfreeze nothing between",
    )


def check_no_bulk_fp32(model: nn.Module, dtype: torch.dtype) -> None:
    """Refuse a frozen float32 tensor of more than a million numbers in a 16-bit model.

    Trained tensors are exempt: their float32 is the copy that small updates are added to.

    Raises:
        WorkError: naming the tensors; nothing is checked in a 32-bit model.
    """
    if dtype not in (torch.bfloat16, torch.float16):
        return
    tensors = [*model.named_parameters(), *model.named_buffers()]
    large = [name for name, t in tensors if t.dtype == torch.float32 and t.numel() > BULK and not t.requires_grad]
    if large:
        raise WorkError(
            f"{len(large)} frozen tensors of a {str(dtype).removeprefix('torch.')} model are float32: {_some(large)}",
            f"Each holds over {BULK:,} numbers, and twice their bytes are spent for nothing",
            "Load the model with one dtype, and call no helper that widens what is frozen",
        )


def quantised_digest(model: nn.Module) -> str:
    """SHA-256 over the stored state of every quantised layer; "" where there is none.

    Packed weights, scales, and the second level of scales count, under the names of the base, so adapters do not
    change it. Training must not change it either.
    """
    layers = [(plain_name(name), module) for name, module in model.named_modules() if quantised_as(module) != "none"]
    digest = hashlib.sha256()
    for name, layer in layers:
        for part, tensor in _stored_state(layer):
            digest.update(f"{name}.{part} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy())
    return digest.hexdigest() if layers else ""


def refuse_packed(model: nn.Module) -> None:
    """Raise `WorkError` where an evaluation has repacked 4-bit weights, which cannot be undone without loss."""
    layers = {plain_name(name): m for name, m in model.named_modules() if quantised_as(m) == "nf4"}
    if layers:  # a job without adapters calls nothing that its key does not cover
        plain.refuse_packed(layers)


class GradientReach:
    """Sees to it that a gradient reaches every trainable tensor within the first two steps of a run.

    Two, because a LoRA pair starts with B = 0: at the first step the gradient of A is B^T times something, so zero.
    Rows of new tokens count as reached when they are part of the graph, since a batch may hold none of those tokens.

    Args:
        model: with its trainable parameters chosen.
    """

    def __init__(self, model: nn.Module) -> None:
        self.waiting = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def observe(self, step: int) -> None:
        """Look at the gradients of one optimiser step; call it after the backward pass, before they are dropped.

        Args:
            step: 1 for the first step since the run was started or continued.

        Raises:
            WorkError: at the second step, naming tensors that no gradient has reached.
        """
        if step > STEPS_TO_REACH:
            return
        self.waiting = {name: p for name, p in self.waiting.items() if not _is_reached(name, p)}
        if self.waiting and step == STEPS_TO_REACH:
            raise WorkError(
                f"No gradient reached {len(self.waiting)} trainable tensors in {step} steps: {_some(self.waiting)}",
                "They would keep their start values while the run looks healthy",
                "Check that every batch uses them (images for a projector), or set adapter.targets to layers that "
                "the output depends on",
            )


def _is_reached(name: str, parameter: nn.Parameter) -> bool:
    if parameter.grad is None:
        return False
    # a zero gradient is none: what never moves is what this looks for
    return "trainable_tokens" in name or bool(parameter.grad.count_nonzero())


def _group_of(name: str, family: Family) -> str:
    if "trainable_tokens_delta" in name:
        return "new tokens"
    part = part_of(plain_name(name), family)
    if any(f".{kind}." in name for kind in LORA_PARTS):
        return f"lora {part}"
    path, _, inside = name.partition(".modules_to_save.")
    if inside:
        return "projector" if part == "projector" else f"module {plain_name(path)}"
    return f"other {part}"


def _stored_state(module: Any) -> list[tuple[str, Tensor]]:
    if quantised_as(module) == "int8":
        return [("weight", module.weight.data), ("scales", plain.row_scales(module))]
    state = module.weight.quant_state
    tensors = [("weight", module.weight.data), ("scales", state.absmax)]
    if state.nested:
        tensors += [("second", state.state2.absmax), ("offset", state.offset)]
    return tensors


def _some(names: Any) -> str:
    names = list(names)
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (", ".join(names[:SHOWN]) or "-") + rest
