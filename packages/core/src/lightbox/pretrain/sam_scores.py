"""How well a segmenter finds an object that it is pointed at, by modality and class, beside what the box alone says."""

from collections import defaultdict

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image

from lightbox.backbones.segmenter import Segmenter
from lightbox.pretrain.modality_pictures import IMAGE_PX
from lightbox.pretrain.sam_rows import MaskSet, a_point, bare_pixels, mask_box, shifted

KINDS = ("box", "shifted", "point", "filled", "ellipse")
"""Prompts: the true box, one with moved edges, a point inside; and masks without a model: the box, its ellipse."""
BATCH = 16


def ellipse_in(box: np.ndarray, size_hw: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Pixels whose middle lies in the ellipse that a box holds."""
    x0, y0, x1, y1 = box
    x, y = np.arange(size_hw[1]) + 0.5, np.arange(size_hw[0])[:, None] + 0.5
    return ((2 * x - x0 - x1) / (x1 - x0)) ** 2 + ((2 * y - y0 - y1) / (y1 - y0)) ** 2 <= 1


def dice_of(drawn: Bool[np.ndarray, "h w"], true: Bool[np.ndarray, "h w"]) -> float:
    """2 |A and B| / (|A| + |B|) of masks of which the true one is not empty."""
    return float(2 * (drawn & true).sum() / (drawn.sum() + true.sum()))


@torch.inference_mode()
def score_sam(segmenter: Segmenter, held_back: MaskSet) -> dict[str, float]:
    """Dice of held-back objects.

    Returns:
        `<kind>_<modality>_<class>`, the mean over objects; `<kind>_<modality>`, the mean over its classes; and
        `<kind>`, the mean over modalities, for each of `KINDS`.
    """
    values: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    rng = np.random.default_rng(0)
    for start in range(0, len(held_back), BATCH):
        pictures = range(start, min(start + BATCH, len(held_back)))
        objects = [
            (row, held_back.names[picture][k], mask)
            for row, picture in enumerate(pictures)
            for k, mask in enumerate(held_back.masks(picture))
        ]
        sizes = [held_back.sizes_hw[picture] for picture in pictures]
        images = [
            Image.fromarray(held_back.pixels[picture][: size[0], : size[1]])
            for picture, size in zip(pictures, sizes, strict=True)
        ]
        embeddings = segmenter.embed(images)
        rows = [row for row, _, _ in objects]
        wh = np.array([sizes[row][::-1] for row in rows])
        boxes = np.stack([mask_box(mask) for _, _, mask in objects])
        moved = np.stack([shifted(box, sizes[row], rng) for box, row in zip(boxes, rows, strict=True)])
        bare = [bare_pixels(masks, k) for masks in map(held_back.masks, pictures) for k in range(len(masks))]
        points = np.stack([a_point(pixels, rng) for pixels in bare])
        prompts = {
            "box": {"boxes": torch.from_numpy(boxes / np.tile(wh, 2)).float()},
            "shifted": {"boxes": torch.from_numpy(moved / np.tile(wh, 2)).float()},
            "point": {
                "points": torch.from_numpy(points / wh)[:, None].float(),
                "labels": torch.ones(len(rows), 1, dtype=torch.long),
            },
        }
        for kind, prompt in prompts.items():
            encoded = segmenter.encode_prompts(embeddings, **prompt, image_of=rows)
            logits = segmenter.decode(embeddings, *encoded, image_of=rows).logits
            for mask, (row, name, true) in zip(logits, objects, strict=True):
                height, width = sizes[row]
                modality = held_back.modalities[pictures[row]]
                values[kind, modality, name].append(dice_of(mask[0].numpy() > 0, true[:height, :width]))
        for box, (row, name, true) in zip(boxes, objects, strict=True):
            key = held_back.modalities[pictures[row]], name
            whole = (IMAGE_PX, IMAGE_PX)
            x0, y0, x1, y1 = box.astype(int)
            filled = np.zeros(whole, dtype=bool)
            filled[y0:y1, x0:x1] = True
            values[("filled", *key)].append(dice_of(filled, true))
            values[("ellipse", *key)].append(dice_of(ellipse_in(box, whole), true))
    return _means(values)


def _means(values: dict[tuple[str, str, str], list[float]]) -> dict[str, float]:
    """Means over objects, then classes, then modalities, so that no common object hides a rare one."""
    scores: dict[str, float] = {}
    for kind in KINDS:
        modalities: dict[str, list[float]] = defaultdict(list)
        for (own, modality, name), dices in sorted(values.items()):
            if own == kind:
                mean = float(np.mean(dices))
                scores[f"{kind}_{modality}_{name.replace(' ', '_')}"] = mean
                modalities[modality].append(mean)
        means = {f"{kind}_{modality}": float(np.mean(own)) for modality, own in modalities.items()}
        scores |= means | {kind: float(np.mean(list(means.values())))}
    return {name: round(value, 4) for name, value in scores.items()}
