"""Boxes as text, in the convention that each family was trained with. No torch.

A codec writes a box, given as fractions of the image, for an image of a size, and reads all boxes of a text back. What
cannot be read as a box is not one: text from a model gives fewer boxes, never an error.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from lightbox.records import Box, check_box

# a model writes halves and places outside the image too; they are read, and moved to the edge
NUMBER = r"\s*(-?\d+(?:\.\d*)?)\s*"


class BoxSpan(NamedTuple):
    """A box in a text: its first and one past its last character, and what it says."""

    begin: int
    end: int
    box: Box


class CoordinateCodec(ABC):
    """Boxes as text and back; `width_px` and `height_px` are those of the image as the user has it.

    A coordinate comes back within half a step of the codec. A box thinner than a step comes back one step wide, and
    then each end within one step; ends in the wrong order are no box; ends outside the image are moved to its edge.
    """

    control_tokens: ClassVar[str] = ""
    """Expression of special tokens that boxes are written with, so that a text may hold them."""

    @abstractmethod
    def encode(self, box: Sequence[float], width_px: int, height_px: int) -> str:
        """Write a box: x0, y0, x1, y1 as fractions with x0 < x1 and y0 < y1; RequestError for another."""

    @abstractmethod
    def spans(self, text: str, width_px: int, height_px: int) -> list[BoxSpan]:
        """Read every box of a text with its place, in order."""

    @abstractmethod
    def step(self, width_px: int, height_px: int) -> tuple[float, float]:
        """The smallest difference that the codec tells apart, across and down, as fractions."""

    def decode(self, text: str, width_px: int, height_px: int) -> list[Box]:
        """Read every box of a text, in order."""
        return [span.box for span in self.spans(text, width_px, height_px)]


@dataclass(frozen=True)
class FlorenceBins(CoordinateCodec):
    """Florence-2: the image is cut into bins each way, and each coordinate is the token of its bin.

    A coordinate x is written as floor(x * bins), at most bins - 1, and read at the middle of that bin.

    Args:
        bins: how many each way; 1,000 in the published models.

    Example:
        >>> FlorenceBins().encode((0.1, 0.2, 0.5, 1.0), 64, 64)
        '<loc_100><loc_200><loc_500><loc_999>'
    """

    bins: int = 1000
    control_tokens: ClassVar[str] = r"<loc_\d+>"

    def encode(self, box: Sequence[float], width_px: int, height_px: int) -> str:
        """See `CoordinateCodec`."""
        checked = check_box(Box(*box), where="a box for Florence bins")
        # the far edge, 1.0, would be a bin of its own
        return "".join(f"<loc_{min(int(value * self.bins), self.bins - 1)}>" for value in checked)

    def spans(self, text: str, width_px: int, height_px: int) -> list[BoxSpan]:
        """See `CoordinateCodec`; four location tokens in a row are a box."""
        last = self.bins - 1
        return _boxes(r"<loc_(\d+)>" * 4, text, (self.bins, self.bins), lambda value: min(value, last) + 0.5)

    def step(self, width_px: int, height_px: int) -> tuple[float, float]:
        """One bin."""
        return 1 / self.bins, 1 / self.bins


@dataclass(frozen=True)
class PerMille(CoordinateCodec):
    """Qwen2-VL: whole thousandths of width and height, 0 to 1000, between box tokens.

    Reading does not need the box tokens, as they are special and may be left out of a decoded text.

    Example:
        >>> PerMille().encode((0.1, 0.2, 0.5, 1.0), 64, 64)
        '<|box_start|>(100,200),(500,1000)<|box_end|>'
    """

    control_tokens: ClassVar[str] = r"<\|(?:box|object_ref)_(?:start|end)\|>"

    def encode(self, box: Sequence[float], width_px: int, height_px: int) -> str:
        """See `CoordinateCodec`."""
        checked = check_box(Box(*box), where="a box in thousandths")
        x0, y0, x1, y1 = (round(value * 1000) for value in checked)
        return f"<|box_start|>({x0},{y0}),({x1},{y1})<|box_end|>"

    def spans(self, text: str, width_px: int, height_px: int) -> list[BoxSpan]:
        """See `CoordinateCodec`."""
        point = rf"\({NUMBER},{NUMBER}\)"  # without the box tokens, which decoding may leave out
        return _boxes(rf"{point}\s*,\s*{point}", text, (1000, 1000))

    def step(self, width_px: int, height_px: int) -> tuple[float, float]:
        """A thousandth."""
        return 0.001, 0.001


def as_given(width_px: int, height_px: int) -> tuple[int, int]:
    """The size itself."""
    return width_px, height_px


@dataclass(frozen=True)
class Pixels(CoordinateCodec):
    """Qwen2.5-VL: whole pixels of the image as the model sees it, which is not the image as it is given.

    Args:
        resize: width and height of an image -> those that the model sees; a backbone gives that of its processor.

    Example:
        >>> Pixels().encode((0.1, 0.2, 0.5, 1.0), 280, 280)
        '{"bbox_2d": [28, 56, 140, 280]}'
    """

    resize: Callable[[int, int], tuple[int, int]] = as_given

    def encode(self, box: Sequence[float], width_px: int, height_px: int) -> str:
        """See `CoordinateCodec`."""
        x0, y0, x1, y1 = check_box(Box(*box), where="a box in pixels")
        width, height = self.resize(width_px, height_px)
        ends = [round(x0 * width), round(y0 * height), round(x1 * width), round(y1 * height)]
        return f'{{"bbox_2d": {ends}}}'

    def spans(self, text: str, width_px: int, height_px: int) -> list[BoxSpan]:
        """See `CoordinateCodec`; the JSON around a box may be unfinished."""
        width, height = self.resize(width_px, height_px)
        return _boxes(rf'"bbox_2d"\s*:\s*\[{NUMBER},{NUMBER},{NUMBER},{NUMBER}\]', text, (width, height))

    def step(self, width_px: int, height_px: int) -> tuple[float, float]:
        """A pixel that the model sees."""
        width, height = self.resize(width_px, height_px)
        return 1 / width, 1 / height


@dataclass(frozen=True)
class Fraction(CoordinateCodec):
    """LLaVA, and families without a convention of their own: fractions with three decimals in square brackets.

    Example:
        >>> Fraction().encode((0.1, 0.2, 0.5, 1.0), 64, 64)
        '[0.100, 0.200, 0.500, 1.000]'
    """

    def encode(self, box: Sequence[float], width_px: int, height_px: int) -> str:
        """See `CoordinateCodec`."""
        checked = check_box(Box(*box), where="a box in fractions")
        return f"[{', '.join(f'{value:.3f}' for value in checked)}]"

    def spans(self, text: str, width_px: int, height_px: int) -> list[BoxSpan]:
        """See `CoordinateCodec`."""
        return _boxes(rf"\[{NUMBER},{NUMBER},{NUMBER},{NUMBER}\]", text, (1000, 1000), lambda value: value * 1000)

    def step(self, width_px: int, height_px: int) -> tuple[float, float]:
        """A thousandth."""
        return 0.001, 0.001


CODECS: dict[str, CoordinateCodec] = {
    "florence_bins": FlorenceBins(),
    "per_mille": PerMille(),
    "pixels": Pixels(),
    "fraction": Fraction(),
}


def _boxes(
    pattern: str, text: str, steps: tuple[int, int], in_steps: Callable[[float], float] = lambda value: value
) -> list[BoxSpan]:
    """Matches of x0, y0, x1, y1 as boxes, `steps` across and down; those with ends in the wrong order are left out."""
    spans = []
    for match in re.finditer(pattern, text):
        x0, y0, x1, y1 = (in_steps(float(value)) for value in match.groups())
        across, down = _span(x0, x1, steps[0]), _span(y0, y1, steps[1])
        if across and down:
            spans.append(BoxSpan(*match.span(), Box(across[0], down[0], across[1], down[1])))
    return spans


def _span(low: float, high: float, steps: int) -> tuple[float, float] | None:
    """Two ends in steps as fractions inside [0, 1], at least one step apart; None where they are swapped."""
    if low > high:
        return None
    low, high = (min(max(end, 0), steps) for end in (low, high))
    if high == low:
        # thinner than a step: an empty box would be no box to any metric
        low, high = max(low - 0.5, 0), min(high + 0.5, steps)
    return low / steps, high / steps
