"""The head, and what it says: one score a patch for the named finding; a box around the patches that it marks."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lightbox.phantom.ontology import CLASS_NAMES
from lightbox.records import Box

HEAD = "model/head.safetensors"
NAMES = {name: index for index, name in enumerate(CLASS_NAMES)}


class Head(nn.Module):
    """A vector a finding, compared with every patch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.names = nn.Embedding(len(NAMES) + 1, width)  # the last one stands for names that are not known
        self.bias = nn.Parameter(torch.tensor(-2.0))  # most patches show no finding

    def forward(self, vision: Float[Tensor, "b p c"], names: Int[Tensor, " b"]) -> Float[Tensor, "b p"]:
        """Logit of each patch to belong to the finding."""
        return (vision @ self.names(names)[:, :, None])[:, :, 0] + self.bias


def name_ids(names: list[str]) -> Int[Tensor, " b"]:
    """Row of each name in the head."""
    return torch.tensor([NAMES.get(name, len(NAMES)) for name in names])


def patches_of(box: Box, side: int) -> Float[Tensor, " p"]:
    """1 for each of side x side patches whose centre lies in a box, else 0, row by row."""
    centres = (torch.arange(side) + 0.5) / side
    rows = (centres >= box.y0) & (centres < box.y1)
    cols = (centres >= box.x0) & (centres < box.x1)
    return (rows[:, None] & cols[None, :]).flatten().float()


def box_of(logits: Float[Tensor, " p"]) -> Box:
    """The box around the marked patches, or around the best one where none is."""
    side = int(len(logits) ** 0.5)
    places = torch.nonzero(logits > min(0.0, float(logits.max()) - 1e-6))[:, 0]
    rows, cols = places // side, places % side
    corners = (cols.min(), rows.min(), cols.max() + 1, rows.max() + 1)
    return Box(*(float(corner) / side for corner in corners))
