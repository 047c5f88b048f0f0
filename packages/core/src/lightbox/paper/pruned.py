"""A paper's model under the policy that its config group `pruning` names."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor

from lightbox.backbones.backbone import Backbone
from lightbox.errors import RequestError
from lightbox.paper.pretrained import Pretrained
from lightbox.paper.pruning_config import UNPRUNED, PruningConfig
from lightbox.pruning.finding_head import finding_map
from lightbox.pruning.layouts import LAYOUTS
from lightbox.pruning.pipeline import prune
from lightbox.pruning.types import ImageInputs

READ_A_MAP = ("finding_topk", "lesion_safe")
"""Methods that read the finding map of the model's own tower."""


def pruned(
    backbone: Backbone,
    policy: PruningConfig,
    *,
    seed: int,
    lengths: str = "pruned",
    map_of: Callable[[ImageInputs], Sequence[Tensor]] | None = None,
) -> AbstractContextManager[Any]:
    """The block in which a model is pruned, in evaluation and in training; gives None where nothing is.

    Args:
        backbone: the model.
        policy: of the configuration.
        seed: of the run, for what is drawn at random.
        lengths: "original" where labels are read by place, as in training; see `prune`.
        map_of: makes the finding map of each image, for a method that reads one; None is the model's own tower, whose
            weights must have a finding head beside them.

    Raises:
        RequestError: what `prune` and `finding_map` refuse.
    """
    if policy.method == UNPRUNED:
        return nullcontext()
    settings: dict[str, Any] = {"lengths": lengths}
    if policy.floor_uniform is not None:
        settings["floor_uniform"] = policy.floor_uniform
    if policy.method in READ_A_MAP:
        settings["finding_map"] = map_of or finding_map(backbone, backbone.name)
    if policy.method == "random":
        settings["seed"] = seed
    return prune(backbone, method=policy.method, budget=policy.budget, positions=policy.positions, **settings)


def check_family(policy: PruningConfig, base: Pretrained, backbone: str) -> None:
    """Refuse a policy for weights of a family that `prune` does not know, before data is read.

    Args:
        policy: of the configuration.
        base: what `model.backbone` names.
        backbone: `model.backbone` as it was given.

    Raises:
        RequestError: a method, and a family whose tokens are not known.
    """
    if policy.method == UNPRUNED or base.family is None or base.family.name in LAYOUTS:
        return
    raise RequestError(
        f"pruning.method is {policy.method} and model.backbone is '{backbone}', of family {base.family.name}",
        "Where its image tokens lie in a prompt is not known, or it reads no such tokens",
        f"Name a model of family {', '.join(LAYOUTS)}, or set pruning.method={UNPRUNED}",
    )


def tokens_read(pruning: Any, policy: PruningConfig) -> dict[str, str]:
    """For an answer: how many tokens of the last image were read; empty where nothing was pruned.

    Args:
        pruning: what the block of `pruned` gave.
        policy: of the configuration.
    """
    if pruning is None or pruning.last is None:
        return {}
    kept = pruning.report().kept[0][0]
    return {"tokens read": f"{int(kept.sum())} of {kept.numel()}, chosen by {policy.method}"}
