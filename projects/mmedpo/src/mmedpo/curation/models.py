"""The target model, whose answers are sampled, and the localiser's map of an image of any size."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from lightbox.adapters import artifact
from lightbox.backbones.generation import Sampling
from lightbox.backbones.loading import load
from lightbox.backbones.rows import UNLIMITED
from lightbox.errors import RequestError, WorkError
from lightbox.paper.conditions import picture
from lightbox.paper.pretrained import Pretrained
from lightbox.pruning.finding_head import finding_map
from lightbox.readers.images import letterbox, letterbox_box, load_image
from lightbox.records import Box
from mmedpo.config import LOCALISER

Answer = Callable[[Path, str, int], list[str]]
"""Image file, question, seed -> sampled answers."""


def open_target(
    base: Pretrained, *, dtype: str, device: str, image_px: int, samples: int, temperature: float, max_new_tokens: int
) -> Answer:
    """Load the target model; the result samples its answers.

    Args:
        base: a vision-language model, or an adapter on one.
        dtype: fp32, bf16 or fp16.
        device: cpu, cuda or cuda:N.
        image_px: longest side of an image that it is shown.
        samples: answers a question.
        temperature: > 0.
        max_new_tokens: longest answer.

    Raises:
        RequestError: what `loading.load` refuses.
    """
    if base.adapter is not None:
        backbone = artifact.load(base.adapter, artifact.load_base(base.adapter, dtype=dtype, device=device))
    else:
        backbone = load(base.name, base.revision, dtype=dtype, device=device)
    backbone.model.eval()

    def answers(image: Path, question: str, seed: int) -> list[str]:
        try:
            backbone.check_texts([question])
            batch = backbone.prepare([picture(image, image_px)], [question], max_tokens=UNLIMITED, padding="left")
            sampling = Sampling([seed], temperature=temperature, samples=samples)
            texts = backbone.generate(batch, max_new_tokens=max_new_tokens, sampling=sampling).texts
        except RequestError as err:  # a question that is too long, or holds a control token, is no fault of the others
            raise WorkError(err.given, err.why, err.do) from err
        return [" ".join(text.split()) for text in texts]

    return answers


def open_map() -> Callable[[np.ndarray], np.ndarray]:
    """Load the localiser; the result says how sure it is of a finding at each pixel.

    It maps uint8 h w or h w 3 to float32 h w in [0, 1]. The tower sees the image in a black square, in grey.
    """
    backbone = load(LOCALISER)
    maps_of = finding_map(backbone, LOCALISER)

    def found(pixels: np.ndarray) -> np.ndarray:
        grey = load_image(pixels)
        square = letterbox(grey, max(grey.shape))
        seen = maps_of(backbone.read_images([Image.fromarray(square)]))[0]
        inner = letterbox_box(Box(0, 0, 1, 1), image_hw=grey.shape, image_px=max(grey.shape))
        whole = interpolate(seen[None, None].float(), size=square.shape, mode="bilinear", align_corners=False)[0, 0]
        left, top = round(inner.x0 * len(square)), round(inner.y0 * len(square))
        return whole[top : top + grey.shape[0], left : left + grey.shape[1]].cpu().numpy()

    return torch.inference_mode()(found)
