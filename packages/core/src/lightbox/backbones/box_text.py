"""Labelled boxes in an answer: as a model is trained to write them, and what one wrote, with its confidence. No torch.

Where a box stands in a text, and what its numbers say, is the codec's business; here are the labels around boxes. A
text that says nothing readable gives no boxes and is not parsed, so that it counts as wrong and its share is shown.
"""

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lightbox.backbones.codecs import BoxSpan, CoordinateCodec, Pixels
from lightbox.eval.boxes import LabelledBox

if TYPE_CHECKING:
    from lightbox.backbones.backbone import Backbone
    from lightbox.backbones.generation import Generated

NUMBER = re.compile(r"-?\d+(?:\.\d*)?")
LABEL = re.compile(r'"label"\s*:\s*("(?:[^"\\]|\\.)*")')
FRAME = r"</?s>|<pad>|</?answer>"
NOTHING = ("", "[]", "none")
"""Answers that say that there is no box; compared in lower case, without frame tokens and a full stop."""


def thousandths(width_px: int, height_px: int) -> tuple[int, int]:
    """The grid of Qwen2-VL's JSON as K2Sight writes it: 0 to 1000 each way, whatever the image's size."""
    return 1000, 1000


@dataclass(frozen=True, slots=True)
class BoxReading:
    """What a text says: its boxes in order; whether it could be parsed; how many boxes it began and got wrong.

    A text is parsed where it gives a box or says that there is none. `n_broken` counts boxes that are no box (ends in
    the wrong order, cut off, not enough numbers), also beside readable ones.
    """

    boxes: tuple[LabelledBox, ...]
    is_parsed: bool
    n_broken: int


@dataclass(frozen=True)
class BoxForm(ABC):
    """How an answer names its boxes.

    Args:
        codec: of the coordinates.
    """

    codec: CoordinateCodec

    @abstractmethod
    def write(self, boxes: Sequence[LabelledBox], width_px: int, height_px: int) -> str:
        """Write boxes in the order given; scores are not written.

        Raises:
            RequestError: a box outside the image, empty or inverted.
        """

    @abstractmethod
    def label_of(self, text: str, span: BoxSpan, begin: int, end: int) -> str:
        """Label of the box at `span`, in `text` between the box before it and the one after; "" for none."""

    @abstractmethod
    def n_begun(self, text: str) -> int:
        """How many boxes a text begins to write, whole or not."""

    def read(
        self,
        text: str,
        width_px: int,
        height_px: int,
        *,
        token_spans: Sequence[tuple[int, int]] = (),
        logps: Sequence[float] = (),
    ) -> BoxReading:
        """Read the boxes of a text; a box without a label has that of the box before it.

        Args:
            text: what a model wrote, with its location tokens.
            width_px, height_px: of the image as the user has it.
            token_spans: first and one past the last character of each token, see `Backbone.token_spans`; empty gives
                every box the score 1.
            logps: log-probability of each of those tokens, in nats.

        Returns:
            Boxes with scores in [0, 1]: exp of the mean log-probability of the tokens that write coordinates.
        """
        spans = self.codec.spans(text, width_px, height_px)
        begins = [0, *(span.end for span in spans)]
        ends = [*(span.begin for span in spans), len(text)]
        boxes: list[LabelledBox] = []
        for place, span in enumerate(spans):
            begin, end = begins[place], ends[place + 1]
            label = self.label_of(text, span, begin, end) or (boxes[-1].label if boxes else "")
            boxes.append(LabelledBox(label, span.box, _confidence(text, span, token_spans, logps)))
        said = re.sub(FRAME, "", text).strip().rstrip(".").lower()
        return BoxReading(tuple(boxes), bool(boxes) or said in NOTHING, max(0, self.n_begun(text) - len(boxes)))


@dataclass(frozen=True)
class Phrases(BoxForm):
    """Florence-2: each box behind its name, in the codec's own writing; no box is an empty text.

    Example:
        >>> from lightbox.backbones.codecs import FlorenceBins
        >>> from lightbox.records import Box
        >>> Phrases(FlorenceBins()).write([LabelledBox("nodule", Box(0.1, 0.2, 0.5, 1.0))], 64, 64)
        'nodule<loc_100><loc_200><loc_500><loc_999>'
    """

    def write(self, boxes: Sequence[LabelledBox], width_px: int, height_px: int) -> str:
        """See `BoxForm`."""
        return "".join(box.label + self.codec.encode(box.box, width_px, height_px) for box in boxes)

    def label_of(self, text: str, span: BoxSpan, begin: int, end: int) -> str:
        """The last words between the box before and this one that are no special tokens."""
        special = "|".join(part for part in (FRAME, self.codec.control_tokens) if part)
        pieces = (piece.strip(" \n\t,;.") for piece in re.split(special, text[begin : span.begin]))
        return next((piece for piece in reversed(list(pieces)) if piece), "")

    def n_begun(self, text: str) -> int:
        """A quarter of the location tokens, rounded up; of codecs that write in signs, the readable boxes alone."""
        tokens = re.findall(r"<loc_\d+>", text)
        return math.ceil(len(tokens) / 4)


@dataclass(frozen=True)
class JsonList(BoxForm):
    """Qwen: a JSON list of objects with "bbox_2d" and "label"; no box is an empty list. The list may be unfinished.

    Args:
        codec: pixels of the image as the model sees it, or of a grid: 0 to 1000 as in K2Sight's Qwen2-VL.

    Example:
        >>> from lightbox.records import Box
        >>> JsonList().write([LabelledBox("nodule", Box(0.1, 0.2, 0.5, 1.0))], 64, 64)
        '[{"bbox_2d": [100, 200, 500, 1000], "label": "nodule"}]'
    """

    codec: CoordinateCodec = Pixels(thousandths)

    def write(self, boxes: Sequence[LabelledBox], width_px: int, height_px: int) -> str:
        """See `BoxForm`."""
        rows = [json.loads(self.codec.encode(box.box, width_px, height_px)) | {"label": box.label} for box in boxes]
        return json.dumps(rows, ensure_ascii=False)

    def label_of(self, text: str, span: BoxSpan, begin: int, end: int) -> str:
        """The label in the same object, behind the box or before it."""
        before, behind = text[begin : span.begin], text[span.end : end]
        labels = [(label, behind[: label.start()]) for label in LABEL.finditer(behind)][:1]
        labels += [(label, before[label.end() :]) for label in LABEL.finditer(before)][-1:]
        for label, between in labels:
            if not {"{", "}"} & set(between):  # a brace: the label is another object's
                return _unescaped(label.group(1)).strip()
        return ""

    def n_begun(self, text: str) -> int:
        """How often a box is named."""
        return text.count('"bbox_2d"')


def read_generated(
    backbone: "Backbone", generated: "Generated", form: BoxForm, sizes_px: Sequence[tuple[int, int]]
) -> list[BoxReading]:
    """Read the boxes of answers with their confidences.

    Places of tokens are found by decoding ever longer beginnings, so the time of an answer grows with the square of its
    length: fine for boxes, slow for thousands of tokens.

    Args:
        backbone: that wrote them.
        generated: n answers.
        form: of its answers.
        sizes_px: width and height of each answer's image, n.
    """
    readings = []
    for row, (width_px, height_px) in enumerate(sizes_px):
        text, own = generated.texts[row], generated.is_token[row]
        scores = {}
        if NUMBER.search(text):  # no box is written without, and nothing else has a score
            scores = {"token_spans": backbone.token_spans(generated.ids[row][own])}
            scores["logps"] = generated.logps[row][own].tolist()
        readings.append(form.read(text, width_px, height_px, **scores))
    return readings


def unparsable_share(readings: Sequence[BoxReading]) -> float | None:
    """Share of texts, in [0, 1], that give no box and do not say that there is none; None without texts."""
    return sum(not reading.is_parsed for reading in readings) / len(readings) if readings else None


def _unescaped(quoted: str) -> str:
    """A JSON string as text; with its backslashes where a model made up an escape."""
    try:
        return str(json.loads(quoted, strict=False))
    except ValueError:
        return quoted[1:-1]


def _confidence(text: str, span: BoxSpan, token_spans: Sequence[tuple[int, int]], logps: Sequence[float]) -> float:
    """See `BoxForm.read`. Tokens that write the same in every box, as brackets and keys, would only hide doubt."""
    numbers = [match.span() for match in NUMBER.finditer(text, span.begin, span.end)][-4:]
    own = [
        logp
        for (begin, end), logp in zip(token_spans, logps, strict=True)
        if any(begin < last and end > first for first, last in numbers) and begin < end
    ]
    return math.exp(sum(own) / len(own)) if own else 1.0
