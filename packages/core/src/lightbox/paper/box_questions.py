"""Questions about boxed objects, so that any detection set can train what answers: which class lies here? No torch.

A question names a point in an object's box, as questions of ViTAR-16K may name a coordinate near their target, and the
classes of the set as options. The point says where to look, and neither how large the object is nor where it ends.
"""

import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from lightbox.errors import RequestError
from lightbox.paper.held_images import TRAIN, rotated
from lightbox.paper.samples import Sample, Split, read_cases
from lightbox.paper.schema import DataConfig
from lightbox.phantom.place_questions import BoxedQuestion
from lightbox.readers.images import letterbox_box
from lightbox.readers.stores import image_size_wh
from lightbox.records import Box, Case

KIND = "class"
"""Of every question here: a kind that told the class would answer it."""
INNER = 0.5
"""Part of a box each way, around its middle, in which the point lies."""
DRAWS = 32
Point = tuple[float, float]
"""x and y, as fractions of the image."""


def point_in_tokens(bins: int) -> Callable[[Point], str]:
    """A point as location tokens, for models that were pretrained on boxes in them.

    Example:
        >>> point_in_tokens(128)((0.5, 0.99))
        '<loc_64><loc_126>'
    """
    return lambda point: "".join(f"<loc_{min(int(value * bins), bins - 1)}>" for value in point)


def point_in_fractions(point: Point) -> str:
    """A point in words that any model reads.

    Example:
        >>> point_in_fractions((0.5, 0.994))
        '(0.50, 0.99)'
    """
    return f"({point[0]:.2f}, {point[1]:.2f})"


def class_questions(case: Case, options: Sequence[str], write_point: Callable[[Point], str]) -> list[BoxedQuestion]:
    """A question for each object that a point can tell from all others.

    Args:
        case: with boxes as fractions of the image that will be shown; see `in_square`.
        options: the classes of the set; findings of other names are not asked for.
        write_point: how a point stands in the question.

    Returns:
        Questions in the order of the case's boxes; a box without a point that lies in no other one has none. What is
        drawn follows from the case's id and the box's number.
    """
    objects = [(finding.name, box) for finding in case.findings if finding.present for box in finding.boxes]
    asked = []
    for number, (name, box) in enumerate(objects):
        item = f"{case.id}/{number}"
        others = [own for place, (_, own) in enumerate(objects) if place != number]
        point = _own_point(box, others, np.random.default_rng(zlib.crc32(item.encode())))
        if name in options and point is not None:
            text = f"What is seen at {write_point(point)}? {', '.join(options)}?"
            index = list(options).index(name)
            asked.append(BoxedQuestion(item, text, name, tuple(options), index, kind=KIND, boxes=(box,)))
    return asked


def class_splits(
    data: DataConfig, *, seed: int, parts: int, write_point: Callable[[Point], str]
) -> tuple[Split[BoxedQuestion], Split[BoxedQuestion]]:
    """Training questions and those to be scored about a real set, as many of each class as of its rarest one.

    Args:
        data: names the set; `n_train` and `n_test` are upper bounds.
        seed: of the run; another one divides and draws anew where `parts` is not 0.
        parts: of the images, of which a seed holds out another one, see `held_images.rotated`; 0 divides as
            `data.split` says.
        write_point: see `class_questions`.

    Raises:
        RequestError: an unreadable set, or a split in which one of the classes cannot be asked for.
    """
    cases = read_cases(data)
    if parts:
        cases = rotated(cases, parts=parts, seed=seed, held=data.eval_split)
    options = sorted({own.name for case in cases for own in case.findings if own.boxes})
    names = {TRAIN: data.n_train, data.eval_split: data.n_test}
    train, scored = (
        _split_of(name, [in_square(case) for case in cases if case.split == name], options, write_point, n)
        for name, n in names.items()
    )
    for split in (train, scored):
        if not split.samples:
            raise RequestError(
                f"data.source is {data.source}, its split '{split.name}'",
                f"Not every class of {', '.join(options) or 'none'} has an object there that a point tells from others",
                "Choose another data.source or data.eval_split, or divide by data.parts or data.split=by_image",
            )
    return train, scored


def in_square(case: Case) -> Case:
    """A case whose boxes are fractions of the square around its image, in which a model is shown it."""
    image = case.images[0]
    width, height = image_size_wh(image) if isinstance(image, Path) else image.shape[1::-1]

    def moved(box: Box) -> Box:
        return letterbox_box(box, image_hw=(height, width), image_px=max(height, width))

    findings = (replace(own, boxes=tuple(map(moved, own.boxes))) for own in case.findings)
    return replace(case, findings=tuple(findings))


def evenly(asked: Iterable[BoxedQuestion], n: int) -> list[BoxedQuestion]:
    """At most `n` questions, as many of each answer as of the rarest one, from as many cases as there are.

    Of each case comes one of an answer before any second one; which one, a draw by name decides: files often list
    objects from a corner on, and the place would then tell the class.
    """
    of_case: Counter[tuple[str, str]] = Counter()
    by_answer: dict[str, list[tuple[int, BoxedQuestion]]] = defaultdict(list)
    for own in sorted(asked, key=lambda one: zlib.crc32(f"order of {one.id}".encode())):
        key = own.id.rpartition("/")[0], own.answer
        by_answer[own.answer].append((of_case[key], own))
        of_case[key] += 1
    each = min((n // len(by_answer), *map(len, by_answer.values()))) if by_answer else 0
    return [own for its in by_answer.values() for _, own in sorted(its, key=lambda one: one[0])[:each]]


def _split_of(
    name: str, cases: Sequence[Case], options: Sequence[str], write_point: Callable[[Point], str], n: int
) -> Split[BoxedQuestion]:
    of_case = {case.id: class_questions(case, options, write_point) for case in cases}
    every = [own for its in of_case.values() for own in its]
    is_whole = {own.answer for own in every} == set(options)
    chosen = {own.id for own in evenly(every, n)} if is_whole else set()
    samples: list[Sample[BoxedQuestion]] = []
    shown: list[Case] = []
    for case in cases:
        its = [own for own in of_case[case.id] if own.id in chosen]
        samples += [Sample(own.id, own, case.id, len(shown)) for own in its]
        shown += [case] if its else []
    return Split(name, samples, [case.images[0] for case in shown], [case.id for case in shown])


def _own_point(box: Box, others: Sequence[Box], rng: np.random.Generator) -> Point | None:
    """A point around the middle of a box that lies in no other one; None where none of `DRAWS` does."""
    middle = np.array([(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2])
    reach = np.array([box.x1 - box.x0, box.y1 - box.y0]) * INNER / 2
    for x, y in (middle + rng.uniform(-1, 1, (DRAWS, 2)) * reach).tolist():
        if not any(own.x0 <= x < own.x1 and own.y0 <= y < own.y1 for own in others):
            return x, y
    return None
