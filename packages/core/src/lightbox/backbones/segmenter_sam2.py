"""The calls of SAM 2's class, its image part; a folder of the video model is read too, but for its memory.

Beside SAM: an image is stretched to the square, its features come in three resolutions, the finer two of which the
decoder adds while it draws, every prompt of points or boxes ends with an empty point, and the decoder also says whether
there is an object at all. In a file of its own, as none of these is shared with SAM.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from transformers import Sam2Model

Pixels = tuple[Float[Tensor, "b 3 h w"], list[list[int]], list[list[int]]]
"""Images as an encoder takes them, rows and columns of each, and those that each has in its square."""


@dataclass(frozen=True)
class Sam2Layout:
    """SAM 2 as `segmenter.Segmenter` calls it.

    Args:
        model: of images, whatever the folder was of.
        processor: of images.
    """

    model_class: ClassVar = Sam2Model
    n_finer: ClassVar = 2
    """Resolutions beside the one that prompts attend to."""
    model: Sam2Model
    processor: Any

    @property
    def square_hw(self) -> tuple[int, int]:
        """Rows and columns of what the processor makes of an image."""
        return self.processor.size.height, self.processor.size.width

    def pixels(self, images: Sequence[Image.Image]) -> Pixels:
        """Colour images, each stretched to the square, so that all of it is image."""
        seen = self.processor(list(images), return_tensors="pt")
        height, width = seen.pixel_values.shape[-2:]
        return seen.pixel_values, seen.original_sizes.tolist(), [[height, width]] * len(images)

    def encode(self, pixel_values: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _ _ _"]]:
        """Features from the coarse to the fine; the decoder's own convolutions of the fine ones are in them."""
        fine, middle, coarse = self.model.vision_encoder(pixel_values).fpn_hidden_states
        decoder = self.model.mask_decoder
        # a single image is the first frame of a video, which remembers nothing
        coarse = coarse + self.model.no_memory_embedding.view(1, -1, 1, 1)
        return [coarse, decoder.conv_s1(middle), decoder.conv_s0(fine)]

    def embed_prompts(
        self,
        points: Float[Tensor, "n 1 p 2"] | None,
        labels: Int[Tensor, "n 1 p"] | None,
        boxes: Float[Tensor, "n 1 4"] | None,
        masks: Float[Tensor, "n 1 h w"] | None,
    ) -> tuple[Float[Tensor, "n 1 s d"] | None, Float[Tensor, "n d h w"]]:
        """Sparse and dense embeddings; places in pixels of the square."""
        if points is None and boxes is None and masks is not None:
            # as transformers does for a mask alone: a point that is none
            points = masks.new_zeros(len(masks), 1, 1, 2)
            labels = torch.full(points.shape[:3], -1, device=masks.device)
        return self.model.prompt_encoder(points, labels, boxes, masks)

    def decode(
        self,
        maps: Sequence[Float[Tensor, "n _ _ _"]],
        sparse: Float[Tensor, "n 1 s d"] | None,
        dense: Float[Tensor, "_ d _ _"],
        *,
        several: bool,
        fallback: bool,
    ) -> tuple[Float[Tensor, "n 1 c h w"], Float[Tensor, "n 1 c"], Float[Tensor, "n 1 1"] | None]:
        """Logits of the square, estimates of their overlap, and the logit that there is an object."""
        coarse, middle, fine = maps
        n, width = coarse.shape[:2]
        with _stability(self.model.mask_decoder, fallback):
            low_res, iou, _, object_logit = self.model.mask_decoder(
                image_embeddings=coarse,
                image_positional_embeddings=self.model.get_image_wide_positional_embeddings().expand(n, -1, -1, -1),
                sparse_prompt_embeddings=coarse.new_zeros(n, 1, 0, width) if sparse is None else sparse,
                dense_prompt_embeddings=dense,
                multimask_output=several,
                high_resolution_features=[fine, middle],
            )
        return low_res, iou, object_logit

    def to_images(
        self, low_res: Float[Tensor, "n 1 c h w"], image_hw: list[list[int]], frame_hw: list[list[int]]
    ) -> list[Float[Tensor, "1 c _ _"]]:
        """Logits at the size of each image, which fills its square."""
        del frame_hw
        return self.processor.post_process_masks(low_res, image_hw, binarize=False)


@contextmanager
def _stability(decoder: Any, fallback: bool) -> Iterator[None]:
    """Within this context an unstable mask of the first head gives way to another's only if asked."""
    published = decoder.dynamic_multimask_via_stability  # read in each pass; no argument of it says the same
    decoder.dynamic_multimask_via_stability = published and fallback
    try:
        yield
    finally:
        decoder.dynamic_multimask_via_stability = published
