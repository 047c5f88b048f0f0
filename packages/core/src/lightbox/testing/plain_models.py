"""Plain models of transformers in miniature, as a user loads them; Lightbox only wrote the folders."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from lightbox.backbones.seq2seq import quiet_loading

PRUNABLE = ("llava-1.5-7b", "llava-next", "qwen2-vl-7b", "qwen2.5-vl-7b", "medgemma-4b")
"""Published models of the families that can be pruned."""
IMAGE_TEXT = {"qwen2": "<|vision_start|><|image_pad|><|vision_end|>", "medge": "<start_of_image>", "llava": "<image>"}
TEXTS = ["Is there an {}effusion?", "{}Side?", "Where {}is the nodule in the left zone of the lung?", "{}{}Same?"]
SIZES = [(70, 90), (64, 150), (130, 60), (112, 112), (60, 100)]


def noise(seed: int, height: int, width: int) -> Image.Image:
    """A picture of noise, the same each time."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


PICTURES = [noise(seed, *size) for seed, size in enumerate(SIZES)]
SHOWN = [[0], [1], [2], [3, 4]]
"""Pictures of each prompt; the last has two."""


class PlainModel:
    """A model and its processor, with prompts of unequal images and lengths."""

    def __init__(self, name: str, folder: Path, attention: str = "sdpa") -> None:
        with quiet_loading():
            self.model: Any = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation=attention).eval()
            self.processor: Any = AutoProcessor.from_pretrained(folder)
        self.name = name
        _sharpen(self.model)

    def inputs(self, rows: Sequence[int] = (0, 1, 2, 3), *, side: str = "left") -> dict[str, Tensor]:
        """Tensors of a batch of prompts, by their numbers."""
        texts = [TEXTS[row].format(*[IMAGE_TEXT[self.name[:5]]] * len(SHOWN[row])) for row in rows]
        images = [[PICTURES[own] for own in SHOWN[row]] for row in rows]
        self.processor.tokenizer.padding_side = side
        flat = [image for own in images for image in own]
        given = images if self.name.startswith("medgemma") else flat
        return dict(self.processor(images=given, text=texts, return_tensors="pt", padding=True, padding_side=side))

    @property
    def image_token(self) -> int:
        """Id that stands in for visual tokens."""
        return self.model.config.image_token_id


def _sharpen(model: nn.Module) -> None:
    """Make attention depend on positions and content: at the usual spread it is all but even, and hides faults."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and any(part in name for part in ("q_proj", "k_proj", "qkv", "projector", "merger")):
                parameter.mul_(8)


def noise_maps(inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """Finding maps that follow from the pixels: the same for an image wherever it stands."""
    if "image_grid_thw" in inputs:
        images = inputs["pixel_values"].split(inputs["image_grid_thw"].prod(-1).tolist())
    else:
        images = list(inputs["pixel_values"])
    found = []
    for pixels in images:
        flat = pixels.flatten()[:400].view(20, 20)
        found.append((flat > flat.quantile(0.9)).float())
    return found


PRUNING_SETTINGS: dict[str, dict[str, Any]] = {
    "lesion_safe": {"finding_map": noise_maps},
    "finding_topk": {"finding_map": noise_maps},
}
"""What a method cannot do without."""
