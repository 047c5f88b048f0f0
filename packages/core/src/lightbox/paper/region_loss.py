"""The loss of a model that writes boxes, with a contrast of regions beside it, see `losses.regions`.

The encoded words of a phrase shall lie nearer to the encoded patches of its own boxes than to those of other places.
Boxes are read back from the labels, so a learner's batches need nothing more, and are as coarse as the location tokens.
"""

from typing import Any

import torch
from torch import Tensor

from lightbox.backbones.backbone import Backbone
from lightbox.backbones.rows import IGNORED, VlmBatch
from lightbox.losses.regions import other_regions, patches_in, region_phrase_contrast


def loss_with_regions(
    backbone: Backbone, batch: VlmBatch, *, weight: float, task: str
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """See `Backbone.loss`; the mean contrast of rows with a box, times `weight`, is added to the mean over tokens.

    Tokens of `task`, which every prompt begins with, and of its frame are no part of a phrase.
    """
    kept: list[Tensor] = []
    hook = backbone.core.get_encoder().register_forward_hook(lambda *call: kept.append(call[-1].last_hidden_state))
    try:
        total, tokens, means = backbone.loss(batch)
    finally:
        hook.remove()
    regions, rows = regions_of(backbone, batch)
    if not rows:
        return total, tokens, means | {"region": total.new_zeros(())}
    states, ids = kept[0][rows], batch.inputs["input_ids"][rows]
    is_image = ids == backbone.image_token_id
    # the mean of all patches stands before them
    patches = is_image.nonzero()[:, 1].reshape(len(rows), -1)[:, 1:]
    alike = ids.new_tensor(backbone.text_ids(task, is_first=True))
    words = batch.inputs["attention_mask"][rows].bool() & ~is_image & ~torch.isin(ids, alike)
    contrast = region_phrase_contrast(states, patches, words, regions, other_regions(regions)) / len(rows)
    return total + weight * contrast * tokens, tokens, means | {"region": contrast.detach()}


def regions_of(backbone: Any, batch: VlmBatch) -> tuple[Tensor, list[int]]:
    """Patches in any box of a row's label, r p, and the rows r that have one."""
    side = round(((batch.inputs["input_ids"][0] == backbone.image_token_id).sum().item() - 1) ** 0.5)
    codec, regions = backbone.codec, {}
    for row, label in enumerate(batch.labels):
        if boxes := codec.decode(backbone.read_ids(label[label != IGNORED]), 1, 1):
            regions[row] = patches_in(torch.tensor(boxes, device=label.device), side).any(dim=0)
    return torch.stack(list(regions.values())) if regions else torch.empty(0), list(regions)
