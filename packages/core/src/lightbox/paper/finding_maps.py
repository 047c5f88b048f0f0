"""Where a model with a finding head, such as the tiny `llava-576`, sees findings in the images of a split.

That one was pretrained on radiographs of the phantom alone, at 192 pixels, so images are enlarged for it.
"""

from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image

from lightbox.backbones.loading import load
from lightbox.paper.samples import Split
from lightbox.pruning.finding_head import finding_map

AT_ONCE = 32


def finding_maps(split: Split[Any], localiser: str) -> Float[np.ndarray, "n h w"]:
    """How sure a localiser is of a finding at each pixel of each image, in [0, 1].

    Args:
        split: square images of one size, which divides that of the localiser.
        localiser: name of a tiny model with a finding head.
    """
    backbone = load(localiser)
    maps_of = finding_map(backbone, localiser)
    parts = []
    for start in range(0, len(split.images), AT_ONCE):
        pictures = [Image.fromarray(np.asarray(image)) for image in split.images[start : start + AT_ONCE]]
        parts += maps_of(backbone.read_images(pictures))
    side = np.asarray(split.images[0]).shape[0]
    return rearrange(torch.stack(parts), "n (h a) (w b) -> n h w a b", h=side, w=side).mean(dim=(-1, -2)).numpy()
