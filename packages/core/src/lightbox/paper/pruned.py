"""A paper's model under the policy that its config group `pruning` names."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor

from lightbox.backbones.backbone import Backbone
from lightbox.paper.pruning_config import UNPRUNED, PruningConfig
from lightbox.pruning.finding_head import finding_map
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
