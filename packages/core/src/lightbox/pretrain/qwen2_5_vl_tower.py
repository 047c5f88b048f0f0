"""Stage 1 of the tiny `qwen2_5_vl`: its tower and merger learn what lies in each token, and where the token is.

A Qwen2.5-VL's tower has no table of positions: patches know each other's distance only, and most layers see windows.
The language model is to write boxes from what it reads in a token, so each token is asked for its own place too; it
can tell from the chest around it.
"""

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightbox.config import OptimConfig, RunConfig
from lightbox.phantom.ontology import DENSITIES, SHAPES
from lightbox.pretrain.qwen2_5_vl_rows import SEEN_PX, SIDE, TOKENS, WholeSet, merged, read_patches, tower_inputs
from lightbox.pretrain.tower import MASK_POSITIVE, MASK_WEIGHT
from lightbox.train.batches import BatchSource
from lightbox.train.driver import fit

SEED, THREADS = 0, 2
BOX_WEIGHT, PLACE_WEIGHT = 10.0, 4.0
OPTIM = OptimConfig(lr=1.5e-3, max_steps=2000, batch_size=32, warmup_frac=0.05)
TARGETS = ("shape", "density", "masks", "boxes")
"""Fields of `DenseTargets` that a batch has beside its images."""


class SeeingTower(nn.Module):
    """A Qwen2.5-VL's tower with the heads that train it; only `vision`, with its merger, is shipped.

    Args:
        vision: of transformers.
        width: channels of a merged token.
    """

    def __init__(self, vision: nn.Module, width: int) -> None:
        super().__init__()
        self.vision, self.norm = vision, nn.LayerNorm(width)
        self.look = nn.Linear(width, len(SHAPES) + len(DENSITIES))
        self.pixels = nn.Linear(width, SEEN_PX**2 // TOKENS)
        self.box, self.place = nn.Linear(width, 4), nn.Linear(width, 2)

    def forward(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Logits of shapes (b, p, 7) and densities (b, p, 4), of pixels (b, p, 36); boxes (b, p, 4), places (b, p, 2).

        Boxes and places (x and y of a token's middle) are fractions of the image.

        Args:
            inputs: see `tower_inputs`.
        """
        tokens = self.norm(merged(self.vision, read_patches(self.vision, inputs)))
        shape, density = self.look(tokens).split([len(SHAPES), len(DENSITIES)], dim=-1)
        return shape, density, self.pixels(tokens), self.box(tokens), self.place(tokens)


def dense_batch(data: WholeSet, indices: list[int]) -> dict[str, Tensor]:
    """Images with their targets: fields of `tower_inputs` and of `DenseTargets`."""
    targets = {name: torch.from_numpy(getattr(data.dense, name)[indices]) for name in TARGETS}
    return tower_inputs(data.pixels(indices)) | targets


def middles() -> Tensor:
    """Middle of each token as fractions of the image, x then y, (p, 2), tokens row by row."""
    steps = torch.arange(TOKENS)
    return torch.stack([steps % SIDE, steps // SIDE], dim=1).add(0.5) / SIDE


def seeing_loss(model: SeeingTower, batch: dict[str, Tensor]) -> tuple[Tensor, int, dict[str, Tensor]]:
    """Sum over images of the losses; looks and boxes are asked on the tokens of findings only."""
    shape, density, pixels, boxes, places = model(batch)
    at, n = batch["shape"] >= 0, len(boxes)
    n_at = at.sum().clamp(min=1)
    look = F.cross_entropy(shape[at], batch["shape"][at], reduction="sum") / n_at
    look = look + F.cross_entropy(density[at], batch["density"][at], reduction="sum") / n_at
    # half a pixel is where these turn linear
    box = F.smooth_l1_loss(boxes[at], batch["boxes"][at], reduction="sum", beta=0.5 / SEEN_PX) / n_at
    place = F.smooth_l1_loss(places, middles().expand_as(places), beta=0.5 / SEEN_PX)
    weight = torch.tensor(MASK_POSITIVE)
    mask = F.binary_cross_entropy_with_logits(pixels, batch["masks"].float(), pos_weight=weight)
    total = look + BOX_WEIGHT * box + PLACE_WEIGHT * place + MASK_WEIGHT * mask
    parts = {"look": look, "box": box, "place": place, "mask": mask}
    return total * n, n, {name: part.detach() for name, part in parts.items()}


def train_tower(model: SeeingTower, train: WholeSet, work: Path, *, max_steps: int | None) -> None:
    """Train a tower in place.

    Args:
        model: its vision part is shipped.
        train: images with dense targets.
        work: receives checkpoints and history.
        max_steps: fewer steps, for tests.
    """
    optim = replace(OPTIM, max_steps=max_steps or OPTIM.max_steps)
    source = BatchSource(
        n_items=len(train.cases),
        collate=lambda indices: dense_batch(train, indices),
        batch_size=optim.batch_size,
        seed=SEED,
    )
    run = RunConfig(seed=SEED, threads=THREADS, save_every_steps=250, log_every_steps=25)
    fit(model, seeing_loss, source, optim=optim, run=run, out=work)


@torch.inference_mode()
def score_tower(model: SeeingTower, held_back: WholeSet, *, batch: int = 50) -> dict[str, float]:
    """How well a tower sees images it never saw.

    Args:
        model: in evaluation mode.
        held_back: images with dense targets.
        batch: images at once.

    Returns:
        `tower_shape`, `tower_density` and `tower_look` (both), shares of finding tokens that are right;
        `tower_box_iou`, the mean overlap of such a token's box; `tower_pixel_iou`, of finding pixels over all images;
        and `tower_place_error`, how far tokens are from where they take themselves to be, along an axis, as a fraction
        of the image.
    """
    right: dict[str, list[Tensor]] = {name: [] for name in ("shape", "density", "look", "box_iou")}
    inter = union = 0
    away: list[Tensor] = []
    for start in range(0, len(held_back.cases), batch):
        indices = list(range(start, min(start + batch, len(held_back.cases))))
        data = dense_batch(held_back, indices)
        shape, density, pixels, boxes, places = model(data)
        at = data["shape"] >= 0
        hits = (shape.argmax(dim=-1) == data["shape"])[at], (density.argmax(dim=-1) == data["density"])[at]
        overlaps = box_overlaps(boxes[at], data["boxes"][at])
        for name, value in zip(right, (*hits, hits[0] & hits[1], overlaps), strict=True):
            right[name].append(value.float())
        is_marked = pixels > 0
        inter, union = inter + (is_marked & data["masks"]).sum(), union + (is_marked | data["masks"]).sum()
        away.append((places - middles()).abs().mean(dim=(1, 2)))
    scores = {f"tower_{name}": float(torch.cat(values).mean()) for name, values in right.items()}
    scores |= {
        "tower_pixel_iou": float(inter / max(1, int(union))),
        "tower_place_error": float(torch.cat(away).mean()),
    }
    return {name: round(value, 4) for name, value in scores.items()}


def box_overlaps(drawn: Tensor, true: Tensor) -> Tensor:
    """IoU of boxes (n, 4), each with its own, (n,) in [0, 1]."""
    low, high = torch.maximum(drawn[:, :2], true[:, :2]), torch.minimum(drawn[:, 2:], true[:, 2:])
    inter = (high - low).clamp(min=0).prod(dim=1)
    areas = [(box[:, 2:] - box[:, :2]).clamp(min=0).prod(dim=1) for box in (drawn, true)]
    return inter / (areas[0] + areas[1] - inter).clamp(min=1e-9)
