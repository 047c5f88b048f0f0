"""A segmenter's embeddings of pictures, remembered: its encoder never learns, and a picture is met in many steps."""

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

import torch
from PIL import Image

from lightbox.backbones.segmenter import ImageEmbeddings, Segmenter

MOST_BYTES = 2**29
"""Some 8,000 pictures of the tiny SAM, 128 of SAM-B, 32 of a SAM 2, whose fine features are most of it."""


class PictureMemory:
    """Embeds pictures, each once as long as there is room.

    A picture is encoded alone and not in its batch, so that its embedding has the same bits wherever it is met, also in
    a run that was interrupted.

    Args:
        segmenter: whose encoder stays as it is, and the decoder's convolutions of fine features with it, in SAM 2.
        most_bytes: of features that are remembered; beyond it what was met first is forgotten.
    """

    def __init__(self, segmenter: Segmenter, most_bytes: int = MOST_BYTES) -> None:
        self.segmenter, self.most_bytes, self.n_bytes = segmenter, most_bytes, 0
        self.embedded: OrderedDict[bytes, ImageEmbeddings] = OrderedDict()

    def embed(self, pictures: Sequence[Image.Image]) -> ImageEmbeddings:
        """What `Segmenter.embed` gives, without gradients.

        Raises:
            RequestError: as there.
        """
        if not pictures:
            return self.segmenter.embed(pictures)  # which refuses
        own = [self._embedded(picture) for picture in pictures]
        maps = zip(*((one.features, *one.finer) for one in own), strict=True)
        features, *finer = (torch.cat(of_all).to(self.segmenter.model.device) for of_all in maps)
        sizes = [one.image_hw[0] for one in own], [one.frame_hw[0] for one in own]
        return ImageEmbeddings(features, *sizes, tuple(finer))

    def _embedded(self, picture: Image.Image) -> ImageEmbeddings:
        key = blake2b(f"{picture.mode} {picture.size} ".encode() + picture.tobytes()).digest()
        if key in self.embedded:
            return self.embedded[key]
        own = self.embedded[key] = self.segmenter.embed([picture])
        self.n_bytes += own.nbytes
        while self.n_bytes > self.most_bytes and len(self.embedded) > 1:
            _, oldest = self.embedded.popitem(last=False)
            self.n_bytes -= oldest.nbytes
        return own
