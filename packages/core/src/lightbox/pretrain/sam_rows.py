"""What the tiny `sam` is pretrained on: one object of a picture, pointed at by a box that is a little off, or a point.

A picture lies at the top left of its square, as SAM's own processor puts it, and the rest of the square is filling,
which no loss looks at.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import SamModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from lightbox.losses.masks import mask_dice
from lightbox.pretrain.modality_pictures import IMAGE_PX, trained_pictures

SEED = 0
PROMPTS = 2
"""Objects of a picture in one visit: the picture is encoded once for both."""
VISITS = 8
"""Visits of a picture in an epoch, each with objects and prompts of its own."""
POINT_SHARE = 0.25
SHIFT_FRAC = 0.1
"""An edge of a box moves by at most this share of the box's side, as SAM was trained, and by a pixel in any case."""
BCE, DICE, IOU = 1.0, 2.0, 0.1
SMOOTH = 1.0
"""Of Dice, in pixels: the smallest objects have three."""


@dataclass(frozen=True)
class MaskSet:
    """Pictures with the mask of each object.

    Args:
        pixels: uint8 (n, 64, 64, 3), 0 outside the picture.
        sizes_hw: rows and columns of each picture.
        modalities: name of each picture's.
        names: class of each object, a list a picture.
        packed: masks over the square of a picture's k objects, as bits, (k, 512).
    """

    pixels: np.ndarray
    sizes_hw: list[tuple[int, int]]
    modalities: list[str]
    names: list[list[str]]
    packed: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.sizes_hw)

    def masks(self, index: int) -> Bool[np.ndarray, "k 64 64"]:
        """Masks of a picture's objects over its square."""
        return np.unpackbits(self.packed[index], axis=1).reshape(-1, IMAGE_PX, IMAGE_PX).astype(bool)


def mask_set(split: str, n: int, *, seed: int = SEED) -> MaskSet:
    """Draw pictures of the trained modalities; one without objects is left out."""
    pixels, sizes, modalities, names, packed = [], [], [], [], []
    for modality, case in trained_pictures(split, n, seed=seed):
        if not case.findings:
            continue
        image = np.asarray(case.images[0])
        height, width = image.shape[:2]
        square = np.zeros((IMAGE_PX, IMAGE_PX, 3), dtype=np.uint8)
        square[:height, :width] = image if image.ndim == 3 else image[..., None]
        masks = np.zeros((len(case.findings), IMAGE_PX, IMAGE_PX), dtype=bool)
        for mask, finding in zip(masks, case.findings, strict=True):
            mask[:height, :width] = finding.mask
        pixels.append(square)
        sizes.append((height, width))
        modalities.append(modality)
        names.append([finding.name for finding in case.findings])
        packed.append(np.packbits(masks.reshape(len(masks), -1), axis=1))
    return MaskSet(np.stack(pixels), sizes, modalities, names, packed)


def mask_box(mask: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, " 4"]:
    """x0 y0 x1 y1 in px, half-open, of a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)


def shifted(
    box: Float[np.ndarray, " 4"], size_hw: tuple[int, int], rng: np.random.Generator
) -> Float[np.ndarray, " 4"]:
    """A box whose edges moved, inside the picture and at least a pixel wide and high."""
    reach = np.maximum(1.0, SHIFT_FRAC * np.tile(box[2:] - box[:2], 2))
    height, width = size_hw
    moved = np.clip(box + rng.uniform(-reach, reach), 0, [width, height, width, height])
    is_thin = np.tile(moved[2:] - moved[:2] < 1, 2)
    return np.where(is_thin, box, moved)


def bare_pixels(masks: Bool[np.ndarray, "k h w"], place: int) -> Bool[np.ndarray, "h w"]:
    """Pixels of an object that no smaller one covers, or all of them where none is left: a point means the smallest."""
    areas = masks.sum(axis=(1, 2))
    bare = masks[place] & ~masks[areas < areas[place]].any(axis=0)
    return bare if bare.any() else masks[place]


def a_point(mask: Bool[np.ndarray, "h w"], rng: np.random.Generator) -> Float[np.ndarray, " 2"]:
    """The middle of one of a mask's pixels, x and y in px."""
    rows, columns = mask.nonzero()
    place = rng.integers(len(rows))
    return np.array([columns[place], rows[place]]) + 0.5


def pixel_values(pixels: np.ndarray, sizes_hw: Sequence[tuple[int, int]]) -> Float[Tensor, "b 3 h w"]:
    """uint8 (b, h, w, 3) as `SamImageProcessor` gives it: normalised, and then filled with 0."""
    values = (torch.from_numpy(pixels).float() / 255 - torch.tensor(IMAGENET_DEFAULT_MEAN)) / torch.tensor(
        IMAGENET_DEFAULT_STD
    )
    for picture, (height, width) in zip(values, sizes_hw, strict=True):
        picture[height:], picture[:, width:] = 0, 0
    return values.permute(0, 3, 1, 2)


class PromptRows:
    """Visits of pictures and their collation; a visit's objects and prompts follow from its index alone."""

    def __init__(self, data: MaskSet) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data) * VISITS

    def collate(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """A batch of visits.

        Returns:
            pixel_values (b, 3, 64, 64); boxes (b, n, 4) and points (b, n, 1, 2), x and y in px of the square; is_point
            (b, n), True where the point is the prompt and not the box; masks bool (b, n, 64, 64); sizes (b, 2).
        """
        pictures = [index % len(self.data) for index in indices]
        visits = [self._visit(index, picture) for index, picture in zip(indices, pictures, strict=True)]
        boxes, points, is_point, masks = (torch.from_numpy(np.stack(column)) for column in zip(*visits, strict=True))
        sizes = [self.data.sizes_hw[picture] for picture in pictures]
        return {
            "pixel_values": pixel_values(self.data.pixels[pictures], sizes),
            "boxes": boxes.float(),
            "points": points[:, :, None].float(),
            "is_point": is_point,
            "masks": masks,
            "sizes": torch.tensor(sizes),
        }

    def _visit(self, index: int, picture: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        rng = np.random.default_rng([SEED, index])
        names, masks = np.array(self.data.names[picture]), self.data.masks(picture)
        # classes first: a smear has a dozen red cells and one parasite
        classes = rng.permutation(sorted(set(names.tolist())))
        chosen = [rng.choice(np.flatnonzero(names == classes[k % len(classes)])) for k in range(PROMPTS)]
        size = self.data.sizes_hw[picture]
        return (
            np.stack([shifted(mask_box(masks[k]), size, rng) for k in chosen]),
            np.stack([a_point(bare_pixels(masks, k), rng) for k in chosen]),
            rng.random(PROMPTS) < POINT_SHARE,
            masks[chosen],
        )


def prompted_masks(
    model: SamModel, batch: dict[str, Tensor]
) -> tuple[Float[Tensor, "b n 64 64"], Float[Tensor, "b n"]]:
    """Logits of the mask of each prompt over the square, and the decoder's own estimate of its IoU, with gradient.

    The n prompts of a picture stand on SAM's axis of point batches, each blind to the others.
    """
    features = model.vision_encoder(batch["pixel_values"]).last_hidden_state
    boxes, dense = model.prompt_encoder(None, None, batch["boxes"], None)
    labels = torch.ones(batch["points"].shape[:3], dtype=torch.long)
    points, _ = model.prompt_encoder(batch["points"], labels, None, None)  # a point and "no point": two, as of a box
    masks, iou = model.mask_decoder(
        image_embeddings=features,
        image_positional_embeddings=model.get_image_wide_positional_embeddings().expand(len(features), -1, -1, -1),
        sparse_prompt_embeddings=torch.where(batch["is_point"][..., None, None], points, boxes),
        dense_prompt_embeddings=dense,
        multimask_output=False,
    )
    return masks[:, :, 0], iou[:, :, 0]


def balanced_bce(logits: Float[Tensor, "h w"], mask: Bool[Tensor, "h w"]) -> Float[Tensor, ""]:
    """Cross-entropy of a mask, the mean of that inside and that outside.

    A plain mean over the picture is nearly that of an empty mask, and a small decoder stays with an empty mask: after
    60 steps on twelve masks it had an IoU of 0.00, and with this one of 0.83.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, mask.float(), reduction="none")
    return (entropy[mask].mean() + entropy[~mask].mean()) / 2


def prompt_loss(model: SamModel, batch: dict[str, Tensor]) -> tuple[Tensor, int, dict[str, Tensor]]:
    """Sum over masks of balanced cross-entropy and Dice inside the picture, and of the error of the estimated IoU."""
    logits, iou = prompted_masks(model, batch)
    sizes = batch["sizes"].tolist()
    own, true = (
        [mask[:height, :width] for masks, (height, width) in zip(both, sizes, strict=True) for mask in masks]
        for both in (logits, batch["masks"])
    )
    entropy = torch.stack([balanced_bce(logit, mask) for logit, mask in zip(own, true, strict=True)]).sum()
    dice = mask_dice(own, true, smooth=SMOOTH).sum()
    with torch.no_grad():
        drawn = [mask > 0 for mask in own]
        overlap = torch.stack([(d & t).sum() / (d | t).sum() for d, t in zip(drawn, true, strict=True)])
    error = (iou.flatten() - overlap).square().sum()
    parts = {"bce": entropy.detach() / len(own), "dice": dice.detach() / len(own), "iou": overlap.mean()}
    return BCE * entropy + DICE * dice + IOU * error, len(own), parts
