"""A segmenter's embeddings of pictures, remembered: its encoder never learns, and a picture is met in many steps."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lightbox.backbones.segmenter import ImageEmbeddings, Segmenter

MOST_BYTES = 2**29
"""Some 8,000 pictures of the tiny SAM, 128 of SAM-B."""


@dataclass(frozen=True)
class _Embedded:
    features: Float[Tensor, "1 d h w"]
    image_hw: list[int]
    frame_hw: list[int]


class PictureMemory:
    """Embeds pictures, each once as long as there is room.

    A picture is encoded alone and not in its batch, so that its embedding has the same bits wherever it is met, also in
    a run that was interrupted.

    Args:
        segmenter: whose encoder stays as it is.
        most_bytes: of features that are remembered; beyond it what was met first is forgotten.
    """

    def __init__(self, segmenter: Segmenter, most_bytes: int = MOST_BYTES) -> None:
        self.segmenter, self.most_bytes, self.n_bytes = segmenter, most_bytes, 0
        self.embedded: OrderedDict[bytes, _Embedded] = OrderedDict()

    def embed(self, pictures: Sequence[Image.Image]) -> ImageEmbeddings:
        """What `Segmenter.embed` gives, without gradients.

        Raises:
            RequestError: as there.
        """
        if not pictures:
            return self.segmenter.embed(pictures)  # which refuses
        own = [self._embedded(picture) for picture in pictures]
        features = torch.cat([one.features for one in own]).to(self.segmenter.model.device)
        return ImageEmbeddings(features, [one.image_hw for one in own], [one.frame_hw for one in own])

    def _embedded(self, picture: Image.Image) -> _Embedded:
        key = blake2b(f"{picture.mode} {picture.size} ".encode() + picture.tobytes()).digest()
        if key in self.embedded:
            return self.embedded[key]
        seen = self.segmenter.embed([picture])
        own = _Embedded(seen.features, seen.image_hw[0], seen.frame_hw[0])
        self.embedded[key] = own
        self.n_bytes += own.features.nbytes
        while self.n_bytes > self.most_bytes and len(self.embedded) > 1:
            _, oldest = self.embedded.popitem(last=False)
            self.n_bytes -= oldest.features.nbytes
        return own
