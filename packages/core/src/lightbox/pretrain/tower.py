"""Build the tiny `tower`: a CLIP vision transformer of 0.4 M parameters with dense finding knowledge.

Losses: the id of the known triple in each patch, the finding pixels of each patch, and an image-report contrast as in
ConVIRT (arXiv 2010.00747, Eq. 2-4)
against a small report encoder that is trained along and not shipped.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from lightbox.config import OptimConfig, RunConfig
from lightbox.phantom import Knobs, draw_cases, seed_range
from lightbox.phantom.geometry import finding_rows, mask_boxes_px
from lightbox.phantom.ontology import CLASSES, DENSITIES, LOCATIONS, PLACE_LOCATION, SHAPES, TRIPLES
from lightbox.phantom.scene import draw_scene
from lightbox.phantom.splits import triple_mask
from lightbox.phantom.world import CHUNK, RENDERERS
from lightbox.pretrain.t5 import pad
from lightbox.pretrain.tokenizer import VOCAB_SIZE, fixed_tokenizer
from lightbox.train.batches import BatchSource
from lightbox.train.driver import fit
from lightbox.train.seeds import seed_everything

SEED = 0
CASES, VALIDATION_CASES = 24_000, 900
WIDTH, IMAGE_PX, PATCH_PX = 96, 64, 8
MEAN, STD = 0.4, 0.25  # of phantom pixels, roughly; CLIP's own are those of photographs
TEMPERATURE = 0.1  # as ConVIRT
# few pixels are inside a finding; unweighted, "nothing anywhere" is a good answer
MASK_WEIGHT, MASK_POSITIVE = 4.0, 4.0
OPTIM = OptimConfig(lr=1.5e-3, max_steps=5000, batch_size=64, warmup_frac=0.05)
WORLDS = (Knobs(), Knobs(vocabulary="triples"), Knobs(vocabulary="triples", distractors=1))
"""A third named classes, the rest any known triple: the tower must not only know the classes of one paper."""


@dataclass
class DenseSet:
    """Images with dense targets.

    `pixels` uint8 (n, h, w); `patch_ids` int (n, p): 0 background, else 1 + rank of the triple among the known ones;
    `patch_masks` bool (n, p, 64): finding pixels inside each patch, row by row; `patch_boxes_px` int16 (n, p, 4): the
    half-open box x0 y0 x1 y1 of that finding, 0 in the background; `reports` one text an image.
    """

    pixels: np.ndarray
    patch_ids: np.ndarray
    patch_masks: np.ndarray
    patch_boxes_px: np.ndarray
    reports: list[str]


def known_rank() -> np.ndarray:
    """For each of the 224 triples, 1 + its rank among the known ones; 0 for held-out triples."""
    known = triple_mask("known")
    return np.where(known, np.cumsum(known), 0)


def dense_set(split: str, n_cases: int, *, seed: int = 0, worlds: Sequence[Knobs] = WORLDS) -> DenseSet:
    """Draw images with dense targets from a phantom split, the worlds in turn."""
    parts = []
    share = n_cases // len(worlds)
    for k, knobs in enumerate(worlds):
        seeds = seed_range(split, seed + k, share)
        parts += [_dense_chunk(seeds[start : start + CHUNK], knobs) for start in range(0, share, CHUNK)]
    return DenseSet(
        np.concatenate([p.pixels for p in parts]),
        np.concatenate([p.patch_ids for p in parts]),
        np.concatenate([p.patch_masks for p in parts]),
        np.concatenate([p.patch_boxes_px for p in parts]),
        [report for p in parts for report in p.reports],
    )


def _dense_chunk(seeds: Sequence[int], knobs: Knobs) -> DenseSet:
    scene = draw_scene(seeds, knobs)
    pixels, masks = RENDERERS[knobs.modality](scene, knobs)
    rows, slots = finding_rows(scene)
    location = np.array(PLACE_LOCATION)[scene.place[rows, slots]]
    triple = (scene.shape[rows, slots] * len(DENSITIES) + scene.density[rows, slots]) * len(LOCATIONS) + location
    rank = known_rank()[triple]
    union = np.zeros(pixels.shape, dtype=bool)
    np.logical_or.at(union, rows, masks)
    counts = _patches(masks).sum(axis=2)  # findings, patches
    ids = np.zeros((len(seeds), (knobs.image_px // PATCH_PX) ** 2), dtype=np.int64)
    best = np.zeros_like(ids)
    boxes_px = np.zeros((*ids.shape, 4), dtype=np.int16)
    for row, count, index, box in zip(rows, counts, rank, mask_boxes_px(masks), strict=True):
        larger = count > best[row]
        ids[row][larger], best[row][larger], boxes_px[row][larger] = index, count[larger], box
    texts = [case.report.text for case in draw_cases(seeds, knobs, questions_per_case=0, with_pixels=False)]
    return DenseSet(pixels, ids, _patches(union), boxes_px, texts)


def _patches(images: np.ndarray) -> np.ndarray:
    return rearrange(images, "n (h a) (w b) -> n (h w) (a b)", a=PATCH_PX, b=PATCH_PX)


class DenseHeads(nn.Module):
    """What trains a tower and is not shipped: triple and pixel heads on its patches, and a small report encoder."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.triple = nn.Linear(width, int(known_rank().max()) + 1)
        self.pixels = nn.Linear(width, PATCH_PX**2)
        self.image_projection = nn.Linear(width, width)
        self.words = nn.EmbeddingBag(VOCAB_SIZE, width, mode="mean", padding_idx=0)
        self.text_projection = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Triple logits (b, p, n_ids), pixel logits (b, p, 64), unit image embeddings (b, d) of patches (b, p, d)."""
        tokens = self.norm(patches)
        image = F.normalize(self.image_projection(tokens.mean(dim=1)), dim=-1)
        return self.triple(tokens), self.pixels(tokens), image

    def embed_text(self, ids: Tensor) -> Tensor:
        """Unit report embeddings (b, d) from word ids (b, t), 0 where padded."""
        return F.normalize(self.text_projection(self.words(ids)), dim=-1)


class DenseTower(nn.Module):
    """A tower with the heads that train it; only `vision` is shipped.

    Args:
        vision: the tower.
        read: its patches (b, p, d), row by row, from pixels (b, 3, h, w).
        width: d.
        reads_reports: False leaves out the contrast with reports, which name classes.
    """

    def __init__(
        self,
        vision: nn.Module,
        read: Callable[[nn.Module, Tensor], Tensor],
        width: int,
        *,
        reads_reports: bool = True,
    ) -> None:
        super().__init__()
        self.vision, self.read, self.heads, self.reads_reports = vision, read, DenseHeads(width), reads_reports

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `DenseHeads`."""
        return self.heads(self.read(self.vision, pixel_values))


def make_clip() -> CLIPVisionModel:
    """The tower that is shipped, with random weights."""
    return CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=3 * WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=IMAGE_PX,
            patch_size=PATCH_PX,
            projection_dim=WIDTH,
            hidden_act="gelu",  # torch's own; CLIP's quick_gelu is an approximation of it that gains nothing here
        )
    )


def clip_patches(vision: nn.Module, pixel_values: Tensor) -> Tensor:
    """Its last layer without the class token."""
    return vision(pixel_values=pixel_values).last_hidden_state[:, 1:]


def normalise(pixels: np.ndarray) -> Tensor:
    """uint8 (b, h, w) to float32 (b, 3, h, w) as the preprocessor does: grey on every colour."""
    grey = (torch.from_numpy(pixels).float() / 255 - MEAN) / STD
    return grey[:, None].expand(-1, 3, -1, -1)


def dense_loss(model: DenseTower, batch: dict[str, Tensor]):
    """Sum over images of the losses; finding and background patches weigh the same."""
    triple, pixels, image = model(batch["pixel_values"])
    ids = batch["patch_ids"].flatten()
    per_patch = F.cross_entropy(triple.flatten(0, 1), ids, reduction="none")
    is_finding = ids > 0
    # means of either kind: most patches are background
    id_loss = per_patch[is_finding].sum() / is_finding.sum().clamp(min=1) + per_patch[~is_finding].mean()
    weight = torch.tensor(MASK_POSITIVE)
    mask_loss = F.binary_cross_entropy_with_logits(pixels, batch["patch_masks"].float(), pos_weight=weight)
    n = len(pixels)
    parts = {"id": id_loss.detach(), "mask": mask_loss.detach()}
    total = id_loss + MASK_WEIGHT * mask_loss
    if model.reads_reports:
        contrast = _contrast(image, model.heads.embed_text(batch["report_ids"]))
        total, parts["contrast"] = total + contrast, contrast.detach()
    return total * n, n, parts


def _contrast(image: Tensor, text: Tensor) -> Tensor:
    """ConVIRT Eq. 4 with lambda 1/2 over unit embeddings (b, d) of images and their reports."""
    scores = image @ text.T / TEMPERATURE  # b b
    target = torch.arange(len(scores))
    return (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2


def build_tower(folder: Path, work: Path, *, max_steps: int | None = None) -> dict:
    """Train and write the tower and its preprocessor.

    Args:
        folder: receives config.json, model.safetensors, preprocessor_config.json.
        work: receives checkpoints and history; a killed build continues from there.
        max_steps: fewer steps, for tests.

    Returns:
        Facts for the model card.
    """
    seed_everything(SEED)
    vision = make_clip()
    scores = train_dense(DenseTower(vision, clip_patches, WIDTH), OPTIM, work, max_steps=max_steps)
    vision.eval().save_pretrained(folder)
    _write_preprocessor(folder)
    return {
        "recipe": dense_recipe(OPTIM, max_steps),
        "parameters": sum(p.numel() for p in vision.parameters()),
        "scores": scores,
        "saw": "images and reports of known triples: dense triple ids, finding pixels, image-report contrast",
    }


def dense_recipe(optim: OptimConfig, max_steps: int | None) -> dict:
    """What a card says of a dense training."""
    steps = max_steps or optim.max_steps
    return {"steps": steps, "batch_size": optim.batch_size, "lr": optim.lr, "seed": SEED, "cases": CASES}


def train_dense(
    model: DenseTower,
    optim: OptimConfig,
    work: Path,
    *,
    worlds: Sequence[Knobs] = WORLDS,
    max_steps: int | None,
    threads: int = 1,
) -> dict[str, float]:
    """Train a tower on the dense targets of phantom images; its scores on held-back ones."""
    train = dense_set("pretrain", CASES if max_steps is None else 384, seed=SEED, worlds=worlds)
    held_back = dense_set("pretrain_validation", VALIDATION_CASES, worlds=worlds)
    reports = fixed_tokenizer()(train.reports)["input_ids"] if model.reads_reports else None

    def collate(indices: list[int]) -> dict[str, Tensor]:
        batch = {
            "pixel_values": normalise(train.pixels[indices]),
            "patch_ids": torch.from_numpy(train.patch_ids[indices]),
            "patch_masks": torch.from_numpy(train.patch_masks[indices]),
        }
        return batch if reports is None else batch | {"report_ids": pad([reports[i] for i in indices], 0)}

    optim = replace(optim, max_steps=max_steps or optim.max_steps)
    source = BatchSource(n_items=len(train.reports), collate=collate, batch_size=optim.batch_size, seed=SEED)
    run = RunConfig(seed=SEED, threads=threads, save_every_steps=500, log_every_steps=50)
    fit(model, dense_loss, source, optim=optim, run=run, out=work)
    return score_tower(model.eval(), held_back)


def _write_preprocessor(folder: Path) -> None:
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": IMAGE_PX},
        "crop_size": {"height": IMAGE_PX, "width": IMAGE_PX},
        "image_mean": [MEAN] * 3,
        "image_std": [STD] * 3,
        "rescale_factor": 1 / 255,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=1) + "\n")


@torch.inference_mode()
def score_tower(model: DenseTower, held_back: DenseSet) -> dict:
    """Pixel IoU of each named look, patch accuracy on finding patches, retrieval R@1 and R@5 of 100."""
    ids, pixels, images = [], [], []
    for start in range(0, len(held_back.pixels), 150):
        triple, pixel, image = model(normalise(held_back.pixels[start : start + 150]))
        ids.append(triple.argmax(dim=-1).numpy())
        pixels.append((pixel > 0).numpy())
        images.append(image)
    ids, pixels = np.concatenate(ids), np.concatenate(pixels)
    look = _look_of_rank()
    is_finding = held_back.patch_ids > 0
    scores = {
        "triple_accuracy": float((ids == held_back.patch_ids)[is_finding].mean()),
        "look_accuracy": float((look[ids] == look[held_back.patch_ids])[is_finding].mean()),
    }
    names: dict[int, list[str]] = {}
    for c in CLASSES:
        names.setdefault(SHAPES.index(c.shape) * len(DENSITIES) + DENSITIES.index(c.density), []).append(c.name)
    for look_index, classes in names.items():  # a nodule and a mass differ in size only and share one look
        predicted = pixels & (look[ids] == look_index)[..., None]
        truth = held_back.patch_masks & (look[held_back.patch_ids] == look_index)[..., None]
        scores[f"iou_{'_or_'.join(classes)}"] = float((predicted & truth).sum() / max(1, (predicted | truth).sum()))
    if model.reads_reports:
        reports = pad(fixed_tokenizer()(held_back.reports)["input_ids"], 0)
        scores |= _retrieval(torch.cat(images), model.heads.embed_text(reports))
    return {name: round(value, 4) for name, value in scores.items()}


def _look_of_rank() -> np.ndarray:
    rank = known_rank()
    look = np.full(rank.max() + 1, -1)
    for k, (shape, density, _) in enumerate(TRIPLES):
        if rank[k]:
            look[rank[k]] = SHAPES.index(shape) * len(DENSITIES) + DENSITIES.index(density)
    return look


def _retrieval(image: Tensor, text: Tensor, *, of: int = 100) -> dict[str, float]:
    ranks = []
    for start in range(0, len(image) - of + 1, of):
        scores = image[start : start + of] @ text[start : start + of].T
        ranks.append((scores > scores.diagonal()[:, None]).sum(dim=1))
    ranks = torch.cat(ranks)
    return {
        "retrieval_r1_of_100": float((ranks < 1).float().mean()),
        "retrieval_r5_of_100": float((ranks < 5).float().mean()),
    }
