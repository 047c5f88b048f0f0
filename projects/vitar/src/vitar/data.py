"""Who is asked what: the look of a phantom finding, or the class of an object of a real set. No torch.

A kind is a size of findings as they are drawn, and every kind has as many items; of a real set every class has.
"""

import zlib
from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from lightbox.backbones.conversation import Conversation
from lightbox.paper.box_questions import class_splits
from lightbox.paper.conditions import Pictures
from lightbox.paper.drawn_cases import even_split
from lightbox.paper.image_tools import Task
from lightbox.paper.replies import ReplyCodec
from lightbox.paper.samples import Sample, Split
from lightbox.phantom.ontology import SIZES
from lightbox.phantom.place_questions import BoxedQuestion as Asked
from lightbox.phantom.place_questions import place_questions
from lightbox.records import Case
from vitar.config import Config
from vitar.traces import make_trace


def load_splits(cfg: Config, *, with_images: bool = True) -> tuple[Split[Asked], Split[Asked]]:
    """Questions to learn from and those to be scored, with the original images that they are about.

    Args:
        cfg: `data.*` and `run.seed` decide.
        with_images: False leaves `images` empty; boxes of the phantom need pixels, so drawing takes as long.

    Raises:
        RequestError: what the phantom does not draw, and as `class_splits`.
    """
    data, seed = cfg.data, cfg.run.seed

    def ask(world: int, case: Case) -> list[Asked]:
        return place_questions(case, scale_pct=data.scales_pct[world])[: data.questions_per_case]

    if data.is_phantom:
        sizes = {"train": data.n_train, data.eval_split: data.n_test}
        splits = [even_split(name, seed, data.worlds, ask, kinds=kinds_of(cfg), n=n) for name, n in sizes.items()]
    else:
        splits = class_splits(data, seed=seed, parts=data.parts, write_point=data.write_point)
    train, scored = (own if with_images else replace(own, images=[]) for own in splits)
    return train, scored


def kinds_of(cfg: Config) -> list[str]:
    """Sizes of findings, by percent and then small and large."""
    return [f"{size}_{scale}" for scale in cfg.data.scales_pct for size in SIZES]


def tasks_of(cfg: Config, split: Split[Asked], rows: Sequence[int]) -> list[Task]:
    """What episodes about a split's questions are about, each under the image of a row; see `conditions.shown_rows`."""
    shown = list(dict.fromkeys(rows))  # one object an image, so that it is encoded once
    pictures = dict(zip(shown, Pictures(split, shown, image_px=cfg.data.original_px), strict=True))
    return [task_of(sample.record, pictures[row]) for sample, row in zip(split.samples, rows, strict=True)]


def task_of(asked: Asked, image: Image.Image) -> Task:
    """One question as a task under an image."""
    return Task(image, asked.text, asked.answer, asked.boxes)


def traces_of(cfg: Config, split: Split[Asked], codec: ReplyCodec) -> list[Sample[Conversation]]:
    """What is imitated: the episode that a good policy would have about each question, under the arm's feedback."""
    overlap = cfg.data.iou_low, cfg.data.iou_high
    tool = "mark" if cfg.most_turns > 1 else ""
    traces = []
    for sample, task in zip(split.samples, tasks_of(cfg, split, [s.image for s in split.samples]), strict=True):
        seed = seed_of(cfg.run.seed, sample.id)
        trace = make_trace(task, codec, cfg.feedback, seed=seed, tool=tool, overlap=overlap)
        traces.append(Sample(sample.id, trace, sample.case_id, sample.image))
    return traces


def seed_of(seed: int, item: str) -> int:
    """A seed that follows from an item's name, so that its draws are the same beside whatever else is drawn."""
    return zlib.crc32(f"{seed}/{item}".encode())
