"""Turned, moved, scaled and brightened copies of training images, with boxes that move along.

Copies are made before training, a pure function of seed, image and number: so features can be kept, a batch is made
without a draw, and a resumed run sees what it would have seen. Images are never mirrored: a side is part of a finding.
"""

import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from lightbox.paper.conditions import picture
from lightbox.paper.samples import Split
from lightbox.records import Box

LEAST_SIDE_PX = 1.0
"""A box that is cut to less by the edge of the image is gone."""
TURNED_DEG, MOVED, SCALED, BRIGHTER = 10.0, 0.05, (0.9, 1.1), 0.2


def with_views(split: Split[Any], n: int, *, seed: int, image_px: int) -> Split[Any]:
    """A split in which samples are followed by `n` copies of each on other views of its image.

    Args:
        split: samples whose records have `boxes`, as fractions of the square that the image is shown in.
        n: copies of each sample, >= 0.
        seed: of the run.
        image_px: side of the square, in pixels; a copy takes its square in bytes, three times that in colour.

    Returns:
        Samples and images of `split` as they are, then the copies. Where all boxes of a finding leave the image, or one
        of several does, the copy has those that are left; a present finding that has lost all has no copy.
    """
    samples, images, case_ids = list(split.samples), list(split.images), list(split.case_ids)
    of_image: dict[int, list[Any]] = {}
    for sample in split.samples:
        of_image.setdefault(sample.image, []).append(sample)
    for row, its in of_image.items() if n else ():
        boxes = [list(sample.record.boxes) for sample in its]
        square = np.asarray(picture(split.images[row], image_px))  # decoded once for all its views
        for number in range(1, n + 1):
            draw = zlib.crc32(f"{seed}/{split.name}/{split.case_ids[row]}/{number}".encode())
            image, moved = view(square, [box for own in boxes for box in own], seed=draw)
            left = iter(moved)
            for sample, own in zip(its, boxes, strict=True):
                there = tuple(box for box in (next(left) for _ in own) if box is not None)
                if there or not own:
                    copy = sample.with_record(boxes=there)
                    samples.append(replace(copy, id=f"{sample.id}/view {number}", image=len(images)))
            images.append(image)
            case_ids.append(f"{split.case_ids[row]}/view {number}")
    return Split(split.name, samples, images, case_ids)


def view(square: np.ndarray, boxes: Sequence[Box], *, seed: int) -> tuple[np.ndarray, list[Box | None]]:
    """One view of an image and where its boxes are in it.

    Args:
        square: uint8, h h or h h 3.
        boxes: as fractions of it.
        seed: of what is drawn: up to 10 degrees, a twentieth of the side each way, a tenth of the size, a fifth of
            brightness and contrast. What comes into sight is black.

    Returns:
        The image, and for each box the upright box around it, cut at the edges; None where less than a pixel is left.
    """
    side = square.shape[0]
    pixels = torch.from_numpy(square.copy())
    pixels = pixels.permute(2, 0, 1) if square.ndim == 3 else pixels[None]
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4) * side
    kind: Any = tv_tensors.BoundingBoxes  # its constructor is declared for other tensors
    framed = kind(corners, format="XYXY", canvas_size=(side, side))
    turn = v2.Compose(
        [
            v2.ColorJitter(brightness=BRIGHTER, contrast=BRIGHTER),
            v2.RandomAffine(TURNED_DEG, (MOVED, MOVED), SCALED, interpolation=v2.InterpolationMode.BILINEAR),
        ]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        image, framed = turn(tv_tensors.Image(pixels), framed)
    moved: list[Box | None] = []
    for x0, y0, x1, y1 in framed.clamp(0, side).tolist():
        is_there = min(x1 - x0, y1 - y0) >= LEAST_SIDE_PX
        moved.append(Box(x0 / side, y0 / side, x1 / side, y1 / side) if is_there else None)
    return (image.permute(1, 2, 0) if square.ndim == 3 else image[0]).numpy(), moved
