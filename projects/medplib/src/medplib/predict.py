"""One image, one question, maybe regions: the answer and its masks. Research and teaching, not clinical use."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lightbox.errors import RequestError
from lightbox.paper.asked_images import AskedImage
from lightbox.paper.entries import PICTURES, VOLUMES
from lightbox.paper.learner import asked_again
from lightbox.paper.mask_outlines import Outline, draw_outlines
from lightbox.paper.pixel_items import HERE, PixelItem, check_item
from lightbox.paper.pixel_prompts import Prompt, mask_of
from lightbox.paper.pixel_vlm import PixelVLM
from lightbox.paper.pretrained import find_pretrained
from lightbox.paper.pruned import pruned
from lightbox.paper.schema import from_plain
from lightbox.records import box_from_mask
from lightbox.runs import folders
from medplib.config import Config
from medplib.model import open_arm

SHOWN_PX = 256


def predict(
    image: AskedImage,
    question: str,
    *,
    folder: Path,
    options: Sequence[str] = (),
    regions: Sequence[Prompt] = (),
    opened: Any = None,
) -> dict[str, object]:
    """Answer one question, about regions where some are given, and draw the masks that the answer speaks of.

    Args:
        image: the model is shown all of it.
        question: words that the model knows; `<region></region>` stands where a region is meant, and behind as many
            "the region" where it is left out.
        folder: of a finished run of `medplib train` that kept its model.
        options: not used; answers are written.
        regions: in the order of the question; training shows at most one, and a point as a disc.
        opened: what `load_run` gave for the folder, where several questions follow one another; None loads it.

    Returns:
        answer; boxes around its masks as `xyxy` fractions, and the words that each mask stands for; how many
        tokens of the picture were read, where `pruning.method` takes some away; the image with the
        outlines of regions and masks as a picture, and each mask as a picture, or as a volume for a slice of one.

    Raises:
        RequestError: a run that is not finished or kept no model, a region without a place in the question, or a place
            without a region.
    """
    item = PixelItem(image.pixels, placed(question, len(regions)), tuple(regions))
    check_item(item)  # said before a model is loaded
    cfg, model = opened or load_run(folder)
    tokens_read: dict[str, object] = {}
    with pruned(model.backbone, cfg.pruning, seed=cfg.run.seed, lengths="original") as pruning:
        answer = model.answer([item], max_new_tokens=cfg.eval.answer_tokens)[0]
        if pruning is not None:
            kept = pruning.report().kept[0][0]
            tokens_read["tokens read"] = f"{int(kept.sum())} of {kept.numel()}, chosen by {cfg.pruning.method}"
    masks = [(one.phrase or f"mask {place}", one.logits > 0) for place, one in enumerate(answer.masks, start=1)]
    boxes = [box_from_mask(mask) for _, mask in masks]
    return {
        "answer": " ".join(answer.text.split()),
        "labels": [phrase for (phrase, _), own in zip(masks, boxes, strict=True) if own],
        "boxes": [tuple(round(float(side), 4) for side in own) for own in boxes if own],
        "empty masks": sum(own is None for own in boxes),
        **tokens_read,
        "note": "research and teaching only, not for clinical use",
        **shown_masks(image, [Outline(phrase, mask) for phrase, mask in masks], regions),
    }


def load_run(folder: Path) -> tuple[Config, PixelVLM]:
    """What `medplib train` left in a run folder.

    Raises:
        RequestError: a run that is not finished or kept no model.
    """
    cfg = from_plain(Config, folders.finished_run(folder).config)
    asked = asked_again(cfg, folder)
    return cfg, open_arm(asked, find_pretrained(asked.model.backbone), {}).eval()


def shown_masks(
    image: AskedImage, masks: Sequence[Outline], regions: Sequence[Prompt] = ()
) -> dict[str, dict[str, object]]:
    """What is written: outlines of regions and masks on the image, and each mask in the form of the image's file."""
    image_hw = image.pixels.shape[:2]
    asked = [Outline(f"region {place}", mask_of(region, image_hw)) for place, region in enumerate(regions, start=1)]
    if not asked and not masks:
        return {}
    scale = max(1, SHOWN_PX // max(image_hw))
    pictures: dict[str, object] = {"outlines": draw_outlines(image.pixels, [*asked, *masks], scale=scale)}
    named = {f"mask {place}": one.mask for place, one in enumerate(masks, start=1)}
    if image.cut is not None:
        return {PICTURES: pictures, VOLUMES: {name: image.cut.volume(mask) for name, mask in named.items()}}
    return {PICTURES: pictures | {name: Image.fromarray(mask.astype(np.uint8) * 255) for name, mask in named.items()}}


def placed(question: str, n_regions: int) -> str:
    """A question with the places of its regions.

    Raises:
        RequestError: where it has another number of them.

    Example:
        >>> placed("what is the region ?", 1)
        'what is the region <region></region> ?'
    """
    text = question if HERE in question else question.replace("the region", f"the region {HERE}", n_regions)
    if text.count(HERE) != n_regions:
        raise RequestError(
            f"The question '{question}' has {text.count(HERE)} places for {n_regions} regions",
            "A region has its place in the question, and each place its region",
            f'Write {HERE} where a region is meant, as in "what is the region {HERE} ?", and name each with an option',
        )
    return text
