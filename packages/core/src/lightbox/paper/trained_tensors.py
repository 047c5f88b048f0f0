"""Which tensors of a model train, by expressions that must all match, and proof that these and no others changed."""

import hashlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import nn

from lightbox.errors import RequestError, WorkError

SHOWN = 3
NameOf = Callable[[str], str]
"""A tensor's name in a module -> the name that expressions are about, without wrappers."""


def train_only(
    model: nn.Module, patterns: Mapping[str, str], *, name_of: NameOf = str, fixed: Collection[int] = ()
) -> dict[str, list[str]]:
    """Let tensors train whose name a pattern matches as a whole, and no others.

    Under an adapter its additions train, and the weights below them stay.

    Args:
        model: any.
        patterns: regular expressions by name of their group.
        name_of: see `NameOf`.
        fixed: ids of parameters that must not train, controls.

    Returns:
        Names of the tensors that train, by group.

    Raises:
        RequestError: no pattern, one that matches nothing that can train, or a control that would.
    """
    if not patterns:
        raise RequestError("A stage without groups", "Nothing would be trained", "Name what it trains")
    model.requires_grad_(False)
    chosen: dict[str, list[str]] = {group: [] for group in patterns}
    for name, parameter in model.named_parameters():
        own = name_of(name)
        groups = [group for group, pattern in patterns.items() if re.fullmatch(pattern, own)]
        if not groups or ".base_layer." in name or ".original_module." in name or not parameter.is_floating_point():
            continue
        if id(parameter) in fixed:
            raise RequestError(
                f"The group {groups[0]} would train {own}",
                "That one is random, a control, and must stay as it was drawn",
                f"Leave out the group {groups[0]}",
            )
        parameter.requires_grad_(True)
        for group in groups:
            chosen[group].append(own)
    if empty := [group for group, names in chosen.items() if not names]:
        raise RequestError(
            f"The group {empty[0]}, '{patterns[empty[0]]}'",
            "No tensor of the model has such a name, so a part that the stage is about would not learn",
            "Correct the expression, put the part in, or leave the group out",
        )
    return chosen


@torch.no_grad()
def fingerprints(model: nn.Module, *, name_of: NameOf = str) -> dict[str, str]:
    """sha256 of every tensor by its name, buffers included."""
    return {
        name_of(name): hashlib.sha256(
            tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        ).hexdigest()
        for name, tensor in model.state_dict().items()
    }


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> set[str]:
    """Names whose tensors differ between two fingerprints, or that only one of them has."""
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def check_changes(before: Mapping[str, str], after: Mapping[str, str], groups: Mapping[str, Sequence[str]]) -> None:
    """Hold that a training changed tensors of each of its groups, and no others.

    Args:
        before, after: fingerprints.
        groups: names of the tensors that trained, by group.

    Raises:
        WorkError: naming what changed beside them, or the group that did not.
    """
    names = changed(before, after)
    chosen = {name for own in groups.values() for name in own}
    # a tied table has two names, which agree before and after
    tied = {(before[name], after.get(name)) for name in chosen}
    others = sorted(name for name in names - chosen if (before.get(name), after.get(name)) not in tied)
    idle = [group for group, own in groups.items() if not names.intersection(own)]
    if others or idle:
        raise WorkError(
            f"The stage changed {', '.join(others[:SHOWN])}" if others else f"Nothing of the group {idle[0]} changed",
            f"It trains {', '.join(groups)}, and what comes after it needs the rest as it was",
            "Look at what the step and the optimiser touch" if others else "Raise optim.lr or optim.max_steps",
        )
