"""Build the tiny `modality_tower`: the CLIP of the tiny `tower`, taught which classes lie in each patch, in every look.

A CLIP with random weights does not learn presence within a paper's budget, and the tiny `tower` has seen grey chests
only. This one goes on from there, in colour, with one question a patch and class: is any pixel of this patch of it?
Organs hold lesions, so a patch may be of several classes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from scipy.stats import rankdata
from torch import Tensor, nn
from transformers import CLIPVisionModel

from lightbox.backbones.weights import digest_of
from lightbox.config import OptimConfig, RunConfig
from lightbox.paths import shared_data
from lightbox.phantom.modalities import MODALITIES, TRAINED
from lightbox.pretrain.modality_pictures import CLASSES, IMAGE_PX, MUST_NOT_SEE, PICTURES_VERSION, SAW, trained_pictures
from lightbox.pretrain.tower import MEAN, PATCH_PX, STD, WIDTH, clip_patches
from lightbox.readers.images import letterbox
from lightbox.train.batches import BatchSource
from lightbox.train.driver import fit
from lightbox.train.seeds import seed_everything

SEED, THREADS = 0, 2
START = "tower"
CASES, VALIDATION_CASES = 15_000, 900
PATCHES = (IMAGE_PX // PATCH_PX) ** 2
OPTIM = OptimConfig(lr=1e-3, max_steps=2500, batch_size=64, warmup_frac=0.05)
ABSENT_WEIGHT = 4.0
"""Most entries are of classes that another modality shows, and are soon answered: the others must still count."""


@dataclass(frozen=True)
class ClassSet:
    """Pictures in the middle of a black square, and what lies in each patch.

    Args:
        pixels: uint8 (n, 64, 64, 3).
        classes: bool (n, p, 29), True where any pixel of a patch is of a class of `CLASSES`; patches row by row.
        modalities: index in `TRAINED`, (n,).
    """

    pixels: np.ndarray
    classes: np.ndarray
    modalities: np.ndarray


def class_set(split: str, n: int, *, seed: int = SEED) -> ClassSet:
    """Draw pictures of the trained modalities with their dense targets."""
    pixels, classes, modalities = [], [], []
    for modality, case in trained_pictures(split, n, seed=seed):
        pixels.append(in_square(np.asarray(case.images[0])))
        target = np.zeros((PATCHES, len(CLASSES)), dtype=bool)
        for finding in case.findings:
            mask = letterbox(finding.mask.astype(np.uint8), IMAGE_PX)  # as many pixels, moved to the middle
            patches = rearrange(mask, "(h a) (w b) -> (h w) (a b)", a=PATCH_PX, b=PATCH_PX)
            target[:, CLASSES.index(finding.name)] |= patches.any(axis=1)
        classes.append(target)
        modalities.append(TRAINED.index(modality))
    return ClassSet(np.stack(pixels), np.stack(classes), np.array(modalities))


def in_square(image: np.ndarray) -> np.ndarray:
    """uint8 (h, w) or (h, w, 3) as colour (64, 64, 3), letterboxed as MedPLIB shows a picture to its CLIP."""
    return letterbox(image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2), IMAGE_PX)


def colour_values(pixels: np.ndarray) -> Float[Tensor, "b 3 h w"]:
    """uint8 (b, h, w, 3) as the preprocessor gives it: grey comes out as it does for the tiny `tower`."""
    return rearrange((torch.from_numpy(pixels).float() / 255 - MEAN) / STD, "b h w c -> b c h w")


class ClassTower(nn.Module):
    """A tower with the head that trains it; only `vision` is shipped."""

    def __init__(self, vision: CLIPVisionModel) -> None:
        super().__init__()
        self.vision, self.norm, self.classes = vision, nn.LayerNorm(WIDTH), nn.Linear(WIDTH, len(CLASSES))

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b p c"]:
        """Logit of each class in each patch."""
        return self.classes(self.norm(clip_patches(self.vision, pixels)))


def class_loss(model: ClassTower, batch: dict[str, Tensor]) -> tuple[Tensor, int, dict[str, Tensor]]:
    """Cross-entropy of patches, in which each class that a batch shows counts alike, and its presence as its absence.

    A lung fills twenty patches and a nodule one or two, so a plain mean would teach lungs.
    """
    logits, is_there = model(batch["pixel_values"]), batch["classes"]
    per_entry = F.binary_cross_entropy_with_logits(logits, is_there.float(), reduction="none")
    n_there = is_there.sum(dim=(0, 1))
    shown = n_there > 0
    present = ((per_entry * is_there).sum(dim=(0, 1)) / n_there.clamp(min=1))[shown].mean()
    absent = (per_entry * ~is_there).sum() / (~is_there).sum()
    n = len(logits)
    return (present + ABSENT_WEIGHT * absent) * n, n, {"present": present.detach(), "absent": absent.detach()}


def build_modality_tower(folder: Path, work: Path, *, max_steps: int | None = None) -> dict:
    """Train and write the tower and its preprocessor.

    Args:
        folder: receives config.json, model.safetensors, preprocessor_config.json.
        work: receives checkpoints and history; a killed build continues from there.
        max_steps: fewer steps, for tests.

    Returns:
        Facts for the model card.
    """
    n_train, n_held_back = (CASES, VALIDATION_CASES) if max_steps is None else (90, 90)
    train, held_back = class_set("pretrain", n_train), class_set("pretrain_validation", n_held_back)
    seed_everything(SEED, THREADS)
    vision = CLIPVisionModel.from_pretrained(shared_data() / "weights" / START)
    vision.config.name_or_path = ""  # a path of this machine is nothing to ship
    model = ClassTower(vision)
    vision.post_layernorm.requires_grad_(False)  # only pooled outputs pass through it
    optim = replace(OPTIM, max_steps=max_steps or OPTIM.max_steps)

    def collate(indices: list[int]) -> dict[str, Tensor]:
        classes = torch.from_numpy(train.classes[indices])
        return {"pixel_values": colour_values(train.pixels[indices]), "classes": classes}

    source = BatchSource(n_items=len(train.pixels), collate=collate, batch_size=optim.batch_size, seed=SEED)
    run = RunConfig(seed=SEED, threads=THREADS, save_every_steps=250, log_every_steps=25)
    fit(model, class_loss, source, optim=optim, run=run, out=work)
    vision.eval().save_pretrained(folder)
    _write_preprocessor(folder)
    return {
        "recipe": {
            "steps": optim.max_steps,
            "batch_size": optim.batch_size,
            "lr": optim.lr,
            "cases": CASES,
            "seed": SEED,
        },
        "starts_from": {f"tiny/{START}": digest_of(f"tiny/{START}")},
        "pictures": PICTURES_VERSION,
        "parameters": sum(p.numel() for p in vision.parameters()),
        "scores": score_class_tower(model.eval(), held_back),
        "saw": f"{SAW}: the classes in each patch; it began as tiny/{START}, which saw chests with their reports",
        "must_not_see": f"{MUST_NOT_SEE}, masks of single objects",
    }


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
def score_class_tower(model: ClassTower, held_back: ClassSet, *, batch: int = 150) -> dict[str, float]:
    """How often a patch or a picture that shows a class is told from one of its modality that does not.

    Returns:
        Areas under the curve, 0.5 for a guess: `patch_<modality>_<class>` over the patches of the modality's pictures,
        `presence_<modality>_<class>` over its pictures, by the patch that says most, where some show the class and some
        do not; `patch` and `presence`, means over classes and then modalities.
    """
    starts = range(0, len(held_back.pixels), batch)
    logits = np.concatenate([model(colour_values(held_back.pixels[at : at + batch])).numpy() for at in starts])
    scores: dict[str, float] = {}
    means: dict[str, list[float]] = {"patch": [], "presence": []}
    for number, modality in enumerate(TRAINED):
        own = held_back.modalities == number
        areas: dict[str, list[float]] = {"patch": [], "presence": []}
        for word in MODALITIES[modality].classes:
            column = CLASSES.index(word)
            said, true = logits[own, :, column], held_back.classes[own, :, column]
            for kind, values, labels in (
                ("patch", said.ravel(), true.ravel()),
                ("presence", said.max(axis=1), true.any(axis=1)),
            ):
                if labels.any() and not labels.all():
                    area = area_under_curve(values, labels)
                    scores[f"{kind}_{modality}_{word.replace(' ', '_')}"] = area
                    areas[kind].append(area)
        for kind, of_modality in areas.items():
            means[kind].append(float(np.mean(of_modality)))
    scores |= {kind: float(np.mean(values)) for kind, values in means.items()}
    return {name: round(value, 4) for name, value in scores.items()}


def area_under_curve(values: Sequence[float] | np.ndarray, is_positive: Bool[np.ndarray, " n"]) -> float:
    """Chance that a positive has the larger value than a negative, ties counted half; both kinds must be there.

    Example:
        >>> area_under_curve([0.1, 0.4, 0.4, 0.9], np.array([False, True, False, True]))
        0.875
    """
    n_positive = int(is_positive.sum())
    n_negative = len(is_positive) - n_positive
    ranks = rankdata(values)[is_positive].sum()
    return float((ranks - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))
