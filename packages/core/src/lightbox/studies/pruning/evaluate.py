"""Score one policy: which lesions keep a token, where the model says that one is, and what it answers, per item."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool
from torch import Tensor

from lightbox.backbones.backbone import Backbone
from lightbox.errors import RequestError
from lightbox.eval.boxes import LabelledBox, score_boxes
from lightbox.paper import box_examples
from lightbox.paper.conditions import IMAGE, shown_rows
from lightbox.paper.pruned import READ_A_MAP, pruned
from lightbox.paper.samples import Sample, Split
from lightbox.pretrain.llava_576_scores import read_boxes
from lightbox.pruning.pipeline import Pruning
from lightbox.pruning.preview import tokens_on
from lightbox.pruning.types import ImageInputs
from lightbox.records import Case
from lightbox.runs import folders
from lightbox.studies.pruning.config import Config
from lightbox.studies.pruning.data import Asked, usual_places
from lightbox.studies.pruning.views import Views, rows_about, see, show, with_one_map, with_own_maps

METRICS = (
    "kept",  # share of the image's lesions that keep a token; null where tokens are mixed, and on questions
    "asked_kept",  # 1 where the lesion that is asked for keeps one; likewise
    "acc50",  # 1 where a drawn box overlaps that lesion's by at least half; null on questions
    "best_iou",  # the best overlap of a drawn box with it, 0 to 1; likewise
    "boxes",  # how many were drawn; likewise
    "right",  # 1 where the answer to the question is the right one, word for word; null on boxes
)
MIXES = ("avg_pool",)
"""Methods whose tokens are means over an area, so that none is that of a place."""
DIMMED = 0.35
_log = logging.getLogger(__name__)
Row = dict[str, str | float | None]
Keep = Bool[Tensor, "h w"]


@dataclass(frozen=True)
class Seen:
    """What a model said of an image under a budget; `kept` is a picture of its tokens, None where none went."""

    text: str
    kept: Keep | None


Ask = Callable[[Sequence[int], Sequence[str], int], list[Seen]]
"""Rows of a split, one past the last being blank, a prompt about each and the most tokens of an answer -> answers."""


def evaluate(cfg: Config, backbone: Backbone, split: Split[Asked], *, folder: Path) -> pa.Table:
    """Ask about each image under the arm's budget and score what comes; write scores.parquet and examples.

    Args:
        cfg: policy and lengths.
        backbone: the model, in evaluation.
        split: images with what is asked.
        folder: where the files go.

    Returns:
        The table of scores, sorted.

    Raises:
        RequestError: what `prune` refuses.
    """
    rows: list[Row] = []
    prompts = [sample.record.prompt for sample in split.samples]
    with asking(cfg, backbone, split) as ask:
        for condition, images in shown_rows(split, seed=cfg.run.seed).items():
            if condition != IMAGE and not cfg.eval.has_other_images:
                continue
            seen = ask(images, prompts, cfg.eval.box_tokens)
            rows += [box_row(cfg, sample, condition, one) for sample, one in zip(split.samples, seen, strict=True)]
            if condition == IMAGE:
                write_examples(folder, split, seen)
                rows += question_rows(cfg, ask, split)
            _log.info("%s: %d images under condition %s", cfg.experiment, len(seen), condition)
    return folders.write_scores(folder, rows, METRICS)


def question_rows(cfg: Config, ask: Ask, split: Split[Asked]) -> list[Row]:
    """A row for each image that has a question, with its own image."""
    asked = [sample for sample in split.samples if sample.record.question is not None]
    images, prompts = [s.image for s in asked], [s.record.question.prompt for s in asked]
    seen = ask(images, prompts, cfg.eval.answer_tokens)
    return [question_row(sample, one.text) for sample, one in zip(asked, seen, strict=True)]


@contextmanager
def asking(cfg: Config, backbone: Backbone, split: Split[Asked]) -> Iterator[Ask]:
    """The block in which the arm's policy holds, and what answers prompts about the images of a split in it.

    Raises:
        RequestError: what `pruned` refuses.
    """
    backbone.model.eval()
    views, blind = see(cfg, backbone, split), blind_map(cfg)
    with pruned(backbone, cfg.pruning, seed=cfg.run.seed, map_of=blind) as handle:
        if cfg.pruning.method in READ_A_MAP:
            views = with_own_maps(views, backbone) if blind is None else with_one_map(views, blind)
        if handle is not None:
            show(handle, views)
        yield partial(say, cfg, backbone, views, handle)


def say(
    cfg: Config,
    backbone: Backbone,
    views: Views,
    handle: Pruning | None,
    images: Sequence[int],
    prompts: Sequence[str],
    longest: int,
) -> list[Seen]:
    """See `Ask`; `handle` is the block that prunes, None where nothing does. The same is not asked twice."""
    asked = list(zip(images, prompts, strict=True))
    distinct = list(dict.fromkeys(asked))
    seen: dict[tuple[int, str], Seen] = {}
    for start in range(0, len(distinct), cfg.eval.batch_size):
        here = distinct[start : start + cfg.eval.batch_size]
        batch = rows_about(backbone, [views.features[row] for row, _ in here], [prompt for _, prompt in here])
        texts = backbone.generate(batch, max_new_tokens=longest).texts
        # the report is of the last call, and this was one
        kept = [None] * len(texts) if handle is None else [planes[0] for planes in handle.report().kept]
        seen |= {one: Seen(text.strip(), keep) for one, text, keep in zip(here, texts, kept, strict=True)}
    return [seen[one] for one in asked]


def blind_map(cfg: Config) -> Callable[[ImageInputs], list[Tensor]] | None:
    """A finding map that is the same for every image, where the arm reads one; else None."""
    if cfg.eval.map != "usual":
        return None
    places = torch.from_numpy(usual_places(cfg))
    return lambda inputs: [places] * len(inputs["pixel_values"])


def box_row(cfg: Config, sample: Sample[Asked], condition: str, seen: Seen) -> Row:
    """Scores of one prompt for a box."""
    asked, drawn = sample.record, read_boxes(seen.text)
    score = score_boxes(drawn, asked.boxes)
    row = _blank(sample.id, condition, asked.size)
    row |= {"acc50": float(score.acc50 or 0), "best_iou": score.best_iou or 0.0, "boxes": float(len(drawn))}
    if cfg.pruning.method not in MIXES:
        kept = lesions_kept(asked.case, seen.kept)
        mine = [keeps for keeps, lesion in zip(kept, asked.case.findings, strict=True) if lesion.boxes == asked.boxes]
        row |= {"kept": sum(kept) / len(kept), "asked_kept": float(any(mine))}
    return row


def question_row(sample: Sample[Asked], text: str) -> Row:
    """The score of one closed question."""
    row = _blank(f"{sample.case_id}/question", IMAGE, "question")
    return row | {"right": float(text.split() == sample.record.question.answer.split())}


def lesions_kept(case: Case, kept: Keep | None) -> list[bool]:
    """For each lesion of a case whether a token that shows some of it stays.

    Args:
        case: with a mask a lesion, h w pixels.
        kept: rows and columns of tokens, a whole number of pixels each; None keeps all.
    """
    if kept is None:
        return [True] * len(case.findings)
    return [tokens_on(kept, torch.from_numpy(np.asarray(lesion.mask))) > 0 for lesion in case.findings]


def write_examples(folder: Path, split: Split[Asked], seen: Sequence[Seen]) -> None:
    """Write the first images with what was dropped dimmed, true boxes and drawn ones."""
    some = list(zip(split.samples, seen, strict=True))[: box_examples.N_EXAMPLES]  # one an image
    dimmed = [dim(split.images[sample.image], one.kept) for sample, one in some]
    shown = []
    for sample, one in some:
        boxes = read_boxes(one.text)
        score = score_boxes(boxes, sample.record.boxes)
        told = {"asked": sample.record.prompt, "said": one.text}
        drawn = [LabelledBox("", box, score=None) for box in boxes]  # the model says a box, and not how sure it is
        shown.append(box_examples.Shown(sample, told, drawn, score.best_iou, is_right=bool(score.acc50)))
    box_examples.write_examples(folder, shown, Split(split.name, split.samples, dimmed, split.case_ids))


def dim(pixels: np.ndarray, kept: Keep | None) -> np.ndarray:
    """An image whose dropped patches are dark, uint8 h w."""
    if kept is None:
        return pixels
    height, width = (side // n for side, n in zip(pixels.shape, kept.shape, strict=True))
    light = np.where(kept.numpy(), 1.0, DIMMED).repeat(height, axis=0).repeat(width, axis=1)
    return (pixels * light).astype(np.uint8)


def run_baseline(cfg: Config, folder: Path) -> NoReturn:
    """There is no baseline without a model here.

    Raises:
        RequestError: always.
    """
    raise RequestError(
        f"objective.method is {cfg.objective.method}", "The study asks a model, and has no baseline", "Leave it out"
    )


def _blank(item: str, condition: str, kind: str) -> Row:
    return {"item": item, "condition": condition, "kind": kind, **dict.fromkeys(METRICS)}
