"""One schema for every source: `Case`, `Finding`, `Question`, `Preference`, `Report`, and box geometry.

The phantom and every reader yield these, so each pipeline runs on either without change. They are light frozen
dataclasses; `check_case` is the boundary, where pydantic validates what a file claimed.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from lightbox.errors import RequestError


class Box(NamedTuple):
    """An axis-aligned box: `xyxy`, fractions of the image in [0, 1], half-open (x1 and y1 are outside)."""

    x0: float
    y0: float
    x1: float
    y1: float

    @property
    def area(self) -> float:
        """Fraction of the image area, in [0, 1]."""
        return max(0.0, self.x1 - self.x0) * max(0.0, self.y1 - self.y0)


@with_config(ConfigDict(arbitrary_types_allowed=True))
@dataclass(frozen=True, slots=True)
class Finding:
    """One finding, present or explicitly absent.

    `attributes` maps shape, density, location, side, size, margin to their values where known. `mask` is boolean,
    h x w at the image's resolution; True is inside the finding.
    """

    name: str
    present: bool = True
    attributes: dict[str, str] = field(default_factory=dict)
    boxes: tuple[Box, ...] = ()
    mask: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """One question about a case.

    `options` is empty for an open question. For a closed one `answer_index` points into it and `answer` is its text.
    `rationale` is the medical decision-making rationale where the source has one. `facts` are the ids or sentences of
    the facts the answer rests on. `kind` is the source's question type (presence, side, count, modality, ...).
    """

    id: str
    text: str
    answer: str
    options: tuple[str, ...] = ()
    answer_index: int | None = None
    rationale: str | None = None
    facts: tuple[str, ...] = ()
    kind: str = ""
    language: str = "en"

    @property
    def is_closed(self) -> bool:
        """True where the answer is one of `options`."""
        return bool(self.options)


@dataclass(frozen=True, slots=True)
class Preference:
    """A preference pair. `kind` is "text" (another answer) or "image" (same answer, lesion destroyed)."""

    id: str
    prompt: str
    chosen: str
    rejected: str
    kind: str = "text"
    relevance: float = 1.0


@dataclass(frozen=True, slots=True)
class Report:
    """A radiology report as sentences; `findings` names what they state, present and absent."""

    sentences: tuple[str, ...]
    findings: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The sentences joined by spaces."""
        return " ".join(self.sentences)


@with_config(ConfigDict(arbitrary_types_allowed=True))
@dataclass(frozen=True, slots=True)
class Case:
    """One imaging case.

    `images` holds file paths (readers) or uint8 arrays (phantom): one 2D image, or a stack of slices or frames.
    `split` is the source's own split ("train", "validation", "test") or "". `patient_id` is None where unknown;
    our own splits then go by image.
    """

    id: str
    images: tuple[Path | np.ndarray, ...]
    patient_id: str | None = None
    modality: str = ""
    body_part: str = ""
    findings: tuple[Finding, ...] = ()
    questions: tuple[Question, ...] = ()
    preferences: tuple[Preference, ...] = ()
    report: Report | None = None
    licence: str = ""
    split: str = ""


_CASE = TypeAdapter(Case)


def check_case(case: Case, *, where: str) -> Case:
    """Validate one case at the boundary: types, box order and range, answer index inside the options.

    Args:
        case: what a reader built.
        where: file and row, for the message.

    Raises:
        RequestError: naming `where`, the field and the reason.
    """
    try:
        _CASE.validate_python({f: getattr(case, f) for f in Case.__slots__})
    except ValidationError as err:
        first = err.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RequestError(
            f"{where}: field '{place}' is {first['input']!r:.80}", first["msg"], "Correct the row or drop it"
        ) from err
    for finding in case.findings:
        for box in finding.boxes:
            check_box(box, where=where)
    for question in case.questions:
        check_question(question, where=where)
    return case


def check_question(question: Question, *, where: str) -> Question:
    """Raise `RequestError` where text is empty or the answer index lies outside the options."""
    if not question.text.strip():
        raise RequestError(f"{where}: field 'question' is empty", "A question needs text", "Correct the row or drop it")
    if question.options:
        index = question.answer_index
        if index is None or not 0 <= index < len(question.options):
            raise RequestError(
                f"{where}: field 'answer' is index {index} with {len(question.options)} choices",
                "The index must point into the choices, counted from 0",
                "Correct the row or drop it",
            )
    return question


def check_box(box: Box, *, where: str) -> Box:
    """Raise `RequestError` unless 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1 (NaN fails)."""
    if not (0 <= box.x0 < box.x1 <= 1 and 0 <= box.y0 < box.y1 <= 1):
        raise RequestError(
            f"{where}: field 'box' is {tuple(box)}",
            "A box is x0, y0, x1, y1 as fractions of the image, with x0 < x1 and y0 < y1",
            "Correct the row or drop it",
        )
    return box


def box_from_mask(mask: np.ndarray) -> Box | None:
    """Tight half-open box around True pixels of an h x w mask; None where the mask is empty."""
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return None
    h, w = mask.shape
    return Box(cols[0] / w, rows[0] / h, (cols[-1] + 1) / w, (rows[-1] + 1) / h)


def box_from_xywh_px(x: float, y: float, width: float, height: float, *, image_wh: tuple[int, int]) -> Box:
    """Convert a pixel box (left, top, width, height) to fractions of an image of `image_wh` pixels."""
    image_w, image_h = image_wh
    return Box(x / image_w, y / image_h, (x + width) / image_w, (y + height) / image_h)


def box_iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, in [0, 1]; 0 where both are empty."""
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    inter = max(0.0, width) * max(0.0, height)
    union = a.area + b.area - inter
    return inter / union if union > 0 else 0.0


def questions_of(cases: Iterable[Case]) -> list[tuple[Case, Question]]:
    """Flatten cases to (case, question) rows, in order."""
    return [(case, question) for case in cases for question in case.questions]
