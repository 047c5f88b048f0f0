"""Stage 1 of the tiny `llava-576`: a CLIP tower that reads 192 pixels in 24 x 24 patches and knows what lies where.

It starts as the tower of the tiny `llava`, whose patches are as large and whose 8 x 8 positions are stretched over the
24 x 24. Lesions are half the usual size, so at three times the resolution one looks half as large again as there and
covers a few of 576 patches. Dense losses teach it anew: shape and density of a patch's finding, its pixels, its box.

First it sees windows of 12 x 12 patches around findings, at the positions that they have in the whole: seven of them
cost as much as one whole image, and each shows a finding. Then whole images, so that it learns to look over all.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from scipy import ndimage
from torch import Tensor, nn
from transformers import CLIPVisionModel, LlavaForConditionalGeneration

from lightbox.config import OptimConfig, RunConfig
from lightbox.phantom import Knobs
from lightbox.phantom.ontology import DENSITIES, LOCATIONS, SHAPES
from lightbox.pretrain.tower import (
    MASK_POSITIVE,
    MASK_WEIGHT,
    PATCH_PX,
    SEED,
    WIDTH,
    DenseSet,
    clip_patches,
    dense_set,
    known_rank,
    normalise,
)
from lightbox.pruning.finding_head import FindingHead
from lightbox.pruning.regions import EIGHT
from lightbox.train.batches import BatchSource
from lightbox.train.driver import fit

IMAGE_PX = 192
GRID = IMAGE_PX // PATCH_PX
LESION_PCT = 50
"""At the usual size a lesion covers up to 36 patches of 8 pixels here; at half of it 1 to 12."""
THREADS = 2
CASES, VALIDATION_CASES = 9_000, 300
SMALL_PX = 2 * PATCH_PX
"""A finding is small where neither side of its box is longer."""
WORLDS = (
    Knobs(image_px=IMAGE_PX, vocabulary="triples", lesion_scale_pct=LESION_PCT),
    Knobs(image_px=IMAGE_PX, vocabulary="triples", lesion_scale_pct=LESION_PCT, distractors=1, burned_in_text="marker"),
    Knobs(image_px=IMAGE_PX, vocabulary="triples"),
)
"""The second one has a side marker, which is no finding; the third one lesions of the usual size."""
BOX_WEIGHT, MASK_SCALE = 10.0, 5.0
"""Few patches show a finding: a mean over all is a small part of that at 64 pixels, where MASK_WEIGHT was chosen."""
WINDOW = GRID // 2
"""Patches along a side of a window."""
WINDOWS_PER_FINDING = 2
WINDOWED = OptimConfig(lr=1.5e-3, max_steps=2000, batch_size=48, warmup_frac=0.05)
WHOLE = OptimConfig(lr=1e-3, max_steps=200, batch_size=16, warmup_frac=0.05)


def stretched(tower: Any, grid: int) -> CLIPVisionModel:
    """The same CLIP tower for images of `grid` x `grid` patches: positions between its own are interpolated."""
    config = type(tower.config)(**{**tower.config.to_dict(), "image_size": grid * tower.config.patch_size})
    state = tower.state_dict()
    name = next(key for key in state if key.endswith("position_embedding.weight"))
    first, places = state[name][:1], state[name][1:]  # the class token has a position of its own
    old = round(len(places) ** 0.5)
    plane = rearrange(places, "(h w) d -> 1 d h w", h=old)
    plane = F.interpolate(plane, size=(grid, grid), mode="bicubic", align_corners=False)
    state[name] = torch.cat([first, rearrange(plane, "1 d h w -> (h w) d")])
    larger = CLIPVisionModel(config)
    larger.load_state_dict(state)
    return larger


class LocatingTower(nn.Module):
    """A tower with the heads that train it; `vision` and `finding` are shipped.

    Args:
        vision: the tower.
        width: channels of a patch.
    """

    def __init__(self, vision: nn.Module, width: int = WIDTH) -> None:
        super().__init__()
        self.vision, self.finding = vision, FindingHead(width, PATCH_PX)
        self.look = nn.Linear(width, len(SHAPES) + len(DENSITIES))
        self.box = nn.Linear(width, 4)

    def forward(self, pixel_values: Tensor, places: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits of shapes (b, p, 7) and densities (b, p, 4), of pixels (b, p, 64); boxes (b, p, 4) as fractions.

        Args:
            pixel_values: (b, 3, h, w), of whole images or of windows.
            places: of the patches of windows within the whole, (b, p); None for whole images.
        """
        seen = clip_patches(self.vision, pixel_values) if places is None else self._windowed(pixel_values, places)
        tokens = self.finding.norm(seen)
        shape, density = self.look(tokens).split([len(SHAPES), len(DENSITIES)], dim=-1)
        return shape, density, self.finding.pixels(tokens), self.box(tokens)

    def _windowed(self, pixel_values: Tensor, places: Tensor) -> Tensor:
        """Patches (b, p, d) of windows: the tower of transformers, which places patches of whole images only."""
        vision: Any = self.vision
        table = vision.embeddings.position_embedding.weight
        patches = rearrange(vision.embeddings.patch_embedding(pixel_values), "b d h w -> b (h w) d")
        first = (vision.embeddings.class_embedding + table[0]).expand(len(patches), 1, -1)
        hidden = torch.cat([first, patches + table[1:][places]], dim=1)
        return vision.encoder(inputs_embeds=vision.pre_layrnorm(hidden)).last_hidden_state[:, 1:]


def windows_of(data: DenseSet, rng: np.random.Generator) -> np.ndarray:
    """Windows around findings, (m, 3): image, and the first row and column of patches; one where there is none.

    Args:
        data: whole images.
        rng: draws which patch of a finding lies where in its window.
    """
    windows = []
    for image, boxes_px in enumerate(data.patch_boxes_px):
        found = [np.flatnonzero((boxes_px == box).all(axis=1)) for box in np.unique(boxes_px, axis=0) if box.any()]
        for patches in [*found * WINDOWS_PER_FINDING, *([] if found else [np.arange(GRID**2)])]:
            at = np.array(divmod(int(rng.choice(patches)), GRID)) - rng.integers(WINDOW, size=2)
            windows.append((image, *np.clip(at, 0, GRID - WINDOW)))
    return np.array(windows)


def cut(data: DenseSet, windows: np.ndarray) -> tuple[DenseSet, Tensor]:
    """Windows as images of their own, and the places of their patches in the whole, (m, p).

    Args:
        data: whole images.
        windows: (m, 3), see `windows_of`.
    """
    image, row, column = windows.T
    steps = np.arange(WINDOW)
    places = (row[:, None, None] + steps[:, None]) * GRID + column[:, None, None] + steps
    places = rearrange(places, "m h w -> m (h w)")
    pixels = rearrange(data.pixels[image], "m (h y) (w x) -> m (h w) y x", y=PATCH_PX, x=PATCH_PX)
    each = np.arange(len(image))[:, None]
    pixels = rearrange(pixels[each, places], "m (h w) y x -> m (h y) (w x)", h=WINDOW)
    own = image[:, None], places
    images = DenseSet(pixels, data.patch_ids[own], data.patch_masks[own], data.patch_boxes_px[own], [])
    return images, torch.from_numpy(places)


def looks(patch_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shape and density of each patch's finding, from ids as `DenseSet` has them; 0 in the background."""
    rank = known_rank()
    triple_of = np.zeros(rank.max() + 1, dtype=np.int64)
    triple_of[rank[rank > 0]] = np.flatnonzero(rank)
    look = triple_of[patch_ids] // len(LOCATIONS)
    return look // len(DENSITIES), look % len(DENSITIES)


def dense_batch(data: DenseSet, indices: Sequence[int]) -> dict[str, Tensor]:
    """Images with targets: `is_finding` (b, p), `shape`, `density` (b, p), `masks` (b, p, 64), `boxes` (b, p, 4)."""
    ids = data.patch_ids[indices]
    shape, density = looks(ids)
    return {
        "pixel_values": normalise(data.pixels[indices]),
        "is_finding": torch.from_numpy(ids > 0),
        "shape": torch.from_numpy(shape),
        "density": torch.from_numpy(density),
        "masks": torch.from_numpy(data.patch_masks[indices]).float(),
        "boxes": torch.from_numpy(data.patch_boxes_px[indices]).float() / IMAGE_PX,
    }


def locating_loss(model: LocatingTower, batch: dict[str, Tensor]) -> tuple[Tensor, int, dict[str, Tensor]]:
    """Sum over images of the losses; looks and boxes are asked on the patches of findings only."""
    shape, density, pixels, boxes = model(batch["pixel_values"], batch.get("places"))
    at, n = batch["is_finding"], len(boxes)
    n_at = at.sum().clamp(min=1)
    look = F.cross_entropy(shape[at], batch["shape"][at], reduction="sum") / n_at
    look = look + F.cross_entropy(density[at], batch["density"][at], reduction="sum") / n_at
    # half a pixel of a hundred and ninety-two is where the loss turns linear
    box = F.smooth_l1_loss(boxes[at], batch["boxes"][at], reduction="sum", beta=0.5 / IMAGE_PX) / n_at
    weight = torch.tensor(MASK_POSITIVE)
    mask = F.binary_cross_entropy_with_logits(pixels, batch["masks"], pos_weight=weight)
    total = look + BOX_WEIGHT * box + MASK_SCALE * MASK_WEIGHT * mask
    return total * n, n, {"look": look.detach(), "box": box.detach(), "mask": mask.detach()}


def build_locating(
    start: LlavaForConditionalGeneration, work: Path, *, max_steps: int | None
) -> tuple[LocatingTower, dict[str, float]]:
    """Train the tower.

    Args:
        start: the tiny `llava`, whose tower is stretched.
        work: receives checkpoints and history.
        max_steps: fewer steps on fewer images, for tests.

    Returns:
        The tower in evaluation mode, and its scores on held-back images.
    """
    model = LocatingTower(stretched(start.model.vision_tower, GRID))
    model.vision.post_layernorm.requires_grad_(False)  # only pooled outputs pass through it
    is_test = max_steps is not None
    train = dense_set("pretrain", 48 if is_test else CASES, seed=SEED, worlds=WORLDS)
    windows = windows_of(train, np.random.default_rng(SEED))

    def windowed(indices: list[int]) -> dict[str, Tensor]:
        data, places = cut(train, windows[indices])
        return dense_batch(data, range(len(indices))) | {"places": places}

    def whole(indices: list[int]) -> dict[str, Tensor]:
        return dense_batch(train, indices)

    run = RunConfig(seed=SEED, threads=THREADS, save_every_steps=200, log_every_steps=25)
    for name, settings, n_items, collate in (
        ("windowed", WINDOWED, len(windows), windowed),
        ("whole", WHOLE, len(train.pixels), whole),
    ):
        optim = replace(settings, max_steps=max_steps or settings.max_steps)
        source = BatchSource(n_items=n_items, collate=collate, batch_size=optim.batch_size, seed=SEED)
        fit(model, locating_loss, source, optim=optim, run=run, out=work / name)
    held_back = dense_set("pretrain_validation", 30 if is_test else VALIDATION_CASES, worlds=WORLDS)
    return model.eval(), score_locating(model, held_back)


@torch.inference_mode()
def score_locating(model: LocatingTower, held_back: DenseSet, *, batch: int = 50) -> dict[str, float]:
    """How well the tower sees findings it never saw.

    Args:
        model: in evaluation mode.
        held_back: images with dense targets.
        batch: images at once.

    Returns:
        Shares in [0, 1]: of finding patches whose shape, density and both are right; overlap of finding pixels over all
        images; mean overlap of a finding patch's box; findings, and small ones, of which the map marks a pixel; and
        `false_regions`, connected regions of the map on no finding, an image.
    """
    right: dict[str, list[np.ndarray]] = {name: [] for name in ("shape", "density", "look", "box_iou")}
    marked: list[tuple[bool, bool]] = []
    inter = union = n_false = 0
    for start in range(0, len(held_back.pixels), batch):
        indices = list(range(start, min(start + batch, len(held_back.pixels))))
        data = dense_batch(held_back, indices)
        shape, density, pixels, boxes = model(data["pixel_values"])
        at = data["is_finding"]
        shape_hit = (shape.argmax(dim=-1) == data["shape"])[at]
        density_hit = (density.argmax(dim=-1) == data["density"])[at]
        ious = _overlaps(boxes[at], data["boxes"][at])
        for name, value in zip(right, (shape_hit, density_hit, shape_hit & density_hit, ious), strict=True):
            right[name].append(value.float().numpy())
        is_marked, is_true = (pixels > 0).numpy(), data["masks"].numpy() > 0
        inter, union = inter + (is_marked & is_true).sum(), union + (is_marked | is_true).sum()
        for k, index in enumerate(indices):
            marked += _marked(held_back.patch_boxes_px[index], is_marked[k] & is_true[k])
            n_false += _false_regions(is_marked[k], is_true[k])
    means = {name: float(np.concatenate(values).mean()) for name, values in right.items()}
    small = [hit for hit, is_small in marked if is_small]
    scores = {f"tower_{name}": value for name, value in means.items()} | {
        "tower_pixel_iou": float(inter / max(1, union)),
        "map_recall": sum(hit for hit, _ in marked) / max(1, len(marked)),
        "map_recall_small": sum(small) / max(1, len(small)),
        "map_false_regions": n_false / len(held_back.pixels),
    }
    return {name: round(value, 4) for name, value in scores.items()}


def _overlaps(drawn: Tensor, true: Tensor) -> Tensor:
    """IoU of boxes (n, 4), each with its own."""
    low, high = torch.maximum(drawn[:, :2], true[:, :2]), torch.minimum(drawn[:, 2:], true[:, 2:])
    inter = (high - low).clamp(min=0).prod(dim=1)
    area = sum((box[:, 2:] - box[:, :2]).clamp(min=0).prod(dim=1) for box in (drawn, true))
    return inter / (area - inter).clamp(min=1e-9)


def _marked(boxes_px: np.ndarray, hits: np.ndarray) -> list[tuple[bool, bool]]:
    """For each finding of an image, known by its box (p, 4): whether the map hits it, and whether it is small."""
    found = []
    for box in np.unique(boxes_px[boxes_px.any(axis=1)], axis=0):
        own = (boxes_px == box).all(axis=1)
        found.append((bool(hits[own].any()), max(box[2] - box[0], box[3] - box[1]) <= SMALL_PX))
    return found


def _false_regions(is_marked: np.ndarray, is_true: np.ndarray) -> int:
    """Connected regions of marked pixels (p, 64) that touch no true one."""
    whole = [rearrange(own, "(h w) (y x) -> (h y) (w x)", h=GRID, y=PATCH_PX) for own in (is_marked, is_true)]
    labels, n_regions = ndimage.label(whole[0], structure=EIGHT)  # type: ignore[reportGeneralTypeIssues]
    return int(n_regions - len(np.unique(labels[whole[1] & whole[0]])))
