"""What each token of a row attends to in a causal model, and which of them are whose: its turns and its images.

Only `eager` attention keeps the score matrix, so it is switched to for the one forward. It gives the same numbers up to
rounding.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightbox.backbones.backbone import Backbone
from lightbox.backbones.rows import IGNORED, VlmBatch
from lightbox.errors import RequestError
from lightbox.records import Box


@dataclass(frozen=True)
class AttendedRow:
    """One row.

    Args:
        attention: of each layer and head, rows sum to 1.
        turns: for each answer with loss, in order, True at the positions that predict its tokens.
        images: for each image, in order, the places of its tokens.
    """

    attention: Float[Tensor, "l h t t"]
    turns: list[Bool[Tensor, " t"]]
    images: list[Int[Tensor, " m"]]


@torch.no_grad()
def attended(backbone: Backbone, batch: VlmBatch) -> AttendedRow:
    """Read one row in evaluation mode.

    Args:
        backbone: a causal family.
        batch: of one row without padding, with labels on what the model said; on the model's device.

    Raises:
        RequestError: several rows, or a row without labels.
    """
    if batch.labels is None or len(batch.labels) != 1:
        raise RequestError(
            f"A batch of {len(batch.inputs['input_ids'])} rows",
            "The score matrix of one row is kept, with the places of what was said in it",
            "Read rows one by one, with labels",
        )
    core, before = backbone.core, backbone.attention.implementation
    backbone.model.eval()
    core.set_attn_implementation("eager")
    try:
        layers = core(**backbone.inputs_of(batch), use_cache=False, output_attentions=True).attentions
    finally:
        core.set_attn_implementation(before)
    ids, is_said = batch.inputs["input_ids"][0], batch.labels[0] != IGNORED
    predicts = torch.cat([is_said[1:], is_said.new_zeros(1)])
    return AttendedRow(
        torch.cat([own.float() for own in layers]),
        [_mask(run, len(ids)) for run in _runs(predicts)],
        list(_runs(ids == backbone.image_token_id)),
    )


def box_coverage(box: Box, rows: int, columns: int) -> Float[Tensor, " m"]:
    """The fraction of each token of an image that lies inside a box, row by row.

    Args:
        box: fractions of the image.
        rows, columns: of the image's tokens.

    Example:
        >>> box_coverage(Box(0.0, 0.0, 0.75, 0.5), 2, 2).tolist()
        [1.0, 0.5, 0.0, 0.0]
    """

    def inside(low: float, high: float, n: int) -> Tensor:
        edges = torch.arange(n + 1) / n
        return (edges[1:].clamp(max=high) - edges[:-1].clamp(min=low)).clamp(min=0) * n

    return torch.outer(inside(box.y0, box.y1, rows), inside(box.x0, box.x1, columns)).flatten()


def _runs(mask: Bool[Tensor, " t"]) -> list[Int[Tensor, " m"]]:
    """Places of each stretch of True."""
    places = mask.nonzero()[:, 0]
    if not len(places):
        return []
    breaks = (places.diff() > 1).nonzero()[:, 0] + 1
    return list(places.tensor_split(breaks.cpu()))


def _mask(places: Int[Tensor, " m"], length: int) -> Bool[Tensor, " t"]:
    return torch.zeros(length, dtype=torch.bool, device=places.device).index_fill(0, places, value=True)
