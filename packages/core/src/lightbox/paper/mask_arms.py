"""Arms that draw masks and say nothing, beside a mask model: a specialist trained on its requests, and its segmenter.

The specialist learns from the same requests as the model, and knows of a class no more than its number. The segmenter
is given the box of what it shall cut out, which a language model would have to find: it is no rival but shows how far
the segmenter carries in pictures that it has never seen.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from scipy import ndimage

from lightbox.backbones.segmenter import Segmenter, load_segmenter
from lightbox.errors import RequestError
from lightbox.paper.drawn_regions import Asked
from lightbox.paper.mask_items import MaskItem, mask_requests
from lightbox.paper.mask_scores import SURE
from lightbox.paper.mask_specialist import SpecialistConfig, train_specialist
from lightbox.paper.samples import Split
from lightbox.paper.schema import PaperConfig
from lightbox.runs import folders
from lightbox.train.card import describe
from lightbox.train.seeds import seed_everything

SPECIALIST, BOXED = METHODS = ("specialist", "boxed")
"""What `objective.method` calls them."""
Draw = Callable[[Sequence[MaskItem]], Sequence[Float[np.ndarray, "_ _"]]]
"""Logits of each item's mask, at the pixels of its image."""
AT_ONCE = 32
_CPU = torch.device("cpu")
_TOUCHING = np.ones((3, 3), dtype=int)
"""Pixels that meet at a corner are of one object too."""


def drawer(cfg: PaperConfig, train: Split[Asked], folder: Path, *, segmenter: tuple[str, str]) -> Draw:
    """Make ready what draws in an arm, and write the files of its run but the scores.

    Args:
        cfg: its method is one of `METHODS`.
        train: questions, of which the specialist learns from the requests for masks.
        folder: of the run.
        segmenter: its name and revision, see `load_segmenter`.

    Raises:
        RequestError: a specialist that shall not be trained.
        RequestError, WorkError: as `mask_specialist.train_specialist` and `load_segmenter`.
    """
    if cfg.objective.method == SPECIALIST and not cfg.objective.is_trained:
        raise RequestError(
            "objective.method is specialist and objective.is_trained is false",
            "A specialist keeps no weights that could be scored again",
            "Train it: experiment=specialist, and read the scores of that run",
        )
    seed_everything(cfg.run.seed, cfg.run.threads)
    folders.write_examples(folder, [])
    if cfg.objective.method == SPECIALIST:
        return _specialist([item for _, item in mask_requests(train)], cfg, folder)
    shipped = load_segmenter(*segmenter)
    note = "the segmenter as loaded, given the box of each object"
    folders.write_card(folder, describe(shipped.model, _CPU, cfg.run, notes=[note]) | {"wall_s": 0.0})
    folders.write_history(folder, {})
    return partial(boxed_logits, shipped)


def _specialist(items: Sequence[MaskItem], cfg: PaperConfig, folder: Path) -> Draw:
    """Train the specialist on the CPU, in the steps and batches of the models beside it; card and history."""
    optim, run = cfg.optim, cfg.run
    started = time.monotonic()
    trained = train_specialist(items, SpecialistConfig(optim.steps, optim.batch_size, optim.lr, run.seed))
    facts = describe(trained.net, _CPU, run, notes=[f"MONAI's U-Net, told one of {len(trained.names)} classes"])
    folders.write_card(folder, facts | {"wall_s": round(time.monotonic() - started, 1), "steps": optim.steps})
    curve = [[step, loss] for step, loss in enumerate(trained.losses, 1)]
    kept = [point for point in curve if point[0] % run.log_every_steps == 0 or point[0] == optim.steps]
    folders.write_history(folder, {"train/loss": kept})
    return trained.logits


def boxed_logits(segmenter: Segmenter, items: Sequence[MaskItem]) -> list[Float[np.ndarray, "_ _"]]:
    """What a segmenter draws for the true boxes, one for each object of the class; nothing where it is absent."""
    return [mask for k in range(0, len(items), AT_ONCE) for mask in _boxed(segmenter, items[k : k + AT_ONCE])]


def object_boxes(mask: Bool[np.ndarray, "h w"]) -> list[tuple[float, float, float, float]]:
    """x0 y0 x1 y1 of each object of a mask as fractions of the image, half-open; an object hangs together.

    Example:
        >>> object_boxes(np.array([[True, False, False, True], [True, False, False, True]]))
        [(0.0, 0.0, 0.25, 1.0), (0.75, 0.0, 1.0, 1.0)]
    """
    objects = np.zeros(mask.shape, dtype=np.int32)
    ndimage.label(mask, structure=_TOUCHING, output=objects)
    height, width = mask.shape
    return [
        (columns.start / width, rows.start / height, columns.stop / width, rows.stop / height)
        for rows, columns in ndimage.find_objects(objects)
    ]


@torch.no_grad()
def _boxed(segmenter: Segmenter, items: Sequence[MaskItem]) -> list[np.ndarray]:
    drawn = [np.full(item.mask.shape, -SURE, dtype=np.float32) for item in items]
    pairs = [(place, box) for place, item in enumerate(items) for box in object_boxes(item.mask)]
    if not pairs:
        return drawn
    embeddings = segmenter.embed([Image.fromarray(item.image) for item in items])
    image_of = [place for place, _ in pairs]
    boxes = torch.tensor([box for _, box in pairs])
    sparse, dense = segmenter.encode_prompts(embeddings, boxes=boxes, image_of=image_of)
    for place, logits in zip(
        image_of, segmenter.decode(embeddings, sparse, dense, image_of=image_of).logits, strict=True
    ):
        drawn[place] = np.maximum(drawn[place], logits[0].numpy())
    return drawn
