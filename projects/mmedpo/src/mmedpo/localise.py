"""Where a tower sees findings: the maps that masks of the kinds tower and mean_std are cut from.

The paper takes MedKLIP's attention for the word "disease". Here it is the finding head of the tiny `llava-576`, another
model than the one that is tuned; it was pretrained on the phantom at 192 pixels, so images are enlarged for it.
"""

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image

from lightbox.backbones.loading import load
from lightbox.paper.samples import Split
from lightbox.pruning.finding_head import finding_map
from mmedpo.config import LOCALISER
from mmedpo.data import Asked

AT_ONCE = 32


def finding_maps(split: Split[Asked]) -> Float[np.ndarray, "n h w"]:
    """How sure the localiser is of a finding at each pixel of each image, in [0, 1].

    Args:
        split: square images of one size, which divides that of the localiser.
    """
    backbone = load(LOCALISER)
    maps_of = finding_map(backbone, LOCALISER)
    parts = []
    for start in range(0, len(split.images), AT_ONCE):
        pictures = [Image.fromarray(np.asarray(image)) for image in split.images[start : start + AT_ONCE]]
        parts += maps_of(backbone.read_images(pictures))
    side = np.asarray(split.images[0]).shape[0]
    return rearrange(torch.stack(parts), "n (h a) (w b) -> n h w a b", h=side, w=side).mean(dim=(-1, -2)).numpy()
