"""A paper's model under the policy that its config group `pruning` names."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from lightbox.backbones.backbone import Backbone
from lightbox.paper.pruning_config import UNPRUNED, PruningConfig
from lightbox.pruning.finding_head import finding_map
from lightbox.pruning.pipeline import prune

READ_A_MAP = ("finding_topk", "lesion_safe")
"""Methods that read the finding map of the model's own tower."""


def pruned(backbone: Backbone, policy: PruningConfig, *, seed: int) -> AbstractContextManager[Any]:
    """The block in which a model is pruned, in evaluation and in training; gives None where nothing is.

    Args:
        backbone: the model; for a method that reads a finding map, one whose weights have a finding head beside them.
        policy: of the configuration.
        seed: of the run, for what is drawn at random.

    Raises:
        RequestError: what `prune` and `finding_map` refuse.
    """
    if policy.method == UNPRUNED:
        return nullcontext()
    settings: dict[str, Any] = {}
    if policy.floor_uniform is not None:
        settings["floor_uniform"] = policy.floor_uniform
    if policy.method in READ_A_MAP:
        settings["finding_map"] = finding_map(backbone, backbone.name)
    if policy.method == "random":
        settings["seed"] = seed
    return prune(backbone, method=policy.method, budget=policy.budget, positions=policy.positions, **settings)
