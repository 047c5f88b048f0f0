"""Boxes as location tokens that name the first and the last bin touched, exact where a box lies on the grid. No torch.

`FlorenceBins` reads both ends at the middle of their bins, which moves a box on the grid by half a bin: one of 3 x 3
bins comes back with IoU 0.53, one of 12 x 12 with 0.85. Where small boxes are scored by size, that would be an effect.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lightbox.backbones.codecs import BoxSpan, CoordinateCodec
from lightbox.records import Box, check_box

SLACK = 1e-6  # k / bins * bins may be a little more or less than k


@dataclass(frozen=True)
class EdgeBins(CoordinateCodec):
    """The image is cut into bins each way; a beginning is the first bin that the box touches, an end the last one.

    A box comes back as the bins that it touches, so it never shrinks, and writing it again gives the same tokens.

    Args:
        bins: how many each way, >= 1.

    Example:
        >>> text = EdgeBins(8).encode((0.0, 0.25, 0.5, 1.0), 64, 64)
        >>> text, EdgeBins(8).decode(text, 64, 64)
        ('<loc_0><loc_2><loc_3><loc_7>', [Box(x0=0.0, y0=0.25, x1=0.5, y1=1.0)])
    """

    bins: int = 64
    control_tokens: ClassVar[str] = r"<loc_\d+>"

    def encode(self, box: Sequence[float], width_px: int, height_px: int) -> str:
        """See `CoordinateCodec`."""
        checked = check_box(Box(*box), where="a box for location tokens")
        first = [min(math.floor(value * self.bins + SLACK), self.bins - 1) for value in checked[:2]]
        last = [math.ceil(value * self.bins - SLACK) - 1 for value in checked[2:]]
        last = [max(end, begin) for begin, end in zip(first, last, strict=True)]
        return "".join(f"<loc_{place}>" for place in (*first, *last))

    def spans(self, text: str, width_px: int, height_px: int) -> list[BoxSpan]:
        """See `CoordinateCodec`; four location tokens in a row are a box, bins beyond the last one are the last."""
        found = []
        for match in re.finditer(r"<loc_(\d+)>" * 4, text):
            x0, y0, x1, y1 = (min(int(value), self.bins - 1) for value in match.groups())
            if x0 <= x1 and y0 <= y1:
                box = Box(x0 / self.bins, y0 / self.bins, (x1 + 1) / self.bins, (y1 + 1) / self.bins)
                found.append(BoxSpan(*match.span(), box))
        return found

    def step(self, width_px: int, height_px: int) -> tuple[float, float]:
        """One bin."""
        return 1 / self.bins, 1 / self.bins
