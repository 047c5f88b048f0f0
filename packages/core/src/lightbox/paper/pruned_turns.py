"""A paper's model under the policy of its config group `pruning`, where later turns show images too."""

from contextlib import AbstractContextManager
from typing import Any

from lightbox.backbones.backbone import Backbone
from lightbox.paper.pruned import pruned
from lightbox.paper.pruning_config import UNPRUNED, PruningConfig
from lightbox.pruning.turns import over_turns


def pruned_turns(backbone: Backbone, policy: PruningConfig, *, seed: int) -> AbstractContextManager[Any]:
    """The block in which every turn of conversations is pruned, in training and after it; gives None where nothing is.

    Args:
        backbone: the model, of a causal family.
        policy: of the configuration.
        seed: of the run, for what is drawn at random.

    Raises:
        RequestError: what `pruned` and `over_turns` refuse.
    """
    block = pruned(backbone, policy, seed=seed, lengths="original")
    return block if policy.method == UNPRUNED else over_turns(block)
