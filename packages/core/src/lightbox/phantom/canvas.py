"""What every drawer of a modality is given and gives back: knobs, the draws of one case, a frame, and a sketch.

A drawer works in world units: the longer side of its frame has 1024, and a pixel is square. So a scene is the same at
every size, and every mask is a predicate on pixel centres.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TypeVar

import numpy as np

from lightbox.errors import RequestError
from lightbox.phantom.draws import Draws
from lightbox.phantom.scene import WORLD
from lightbox.records import Finding, box_from_mask

_N_WORDS = 2048
T = TypeVar("T")


@dataclass(frozen=True)
class PictureKnobs:
    """What kind of picture a modality draws.

    Args:
        image_px: longer side in pixels, a multiple of 8 in 32..512. Cost grows with its square.
        finding_scale_pct: size of findings (not of anatomy) in percent of the default, 50..200.
        noise_pct: strength of the noise in percent, 0..200.
    """

    image_px: int = 64
    finding_scale_pct: int = 100
    noise_pct: int = 100

    def __post_init__(self) -> None:
        for name, (low, high) in {
            "image_px": (32, 512),
            "finding_scale_pct": (50, 200),
            "noise_pct": (0, 200),
        }.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise RequestError(f"{name}={value}", f"It must lie in {low}..{high}", f"Choose {name} in that range")
        if self.image_px % 8:
            raise RequestError(
                f"image_px={self.image_px}", "The sides of a frame are eighths of it", "Use a multiple of 8"
            )


class Stream:
    """The draws of one case, handed out in order as plain integers.

    Args:
        case_seed: from `seed_range`.
        number: which sub-stream of the seed, 1 or more; 0 is the stream of `chest` and `abdomen`.
        n_noise: bytes of `noise`, which come after all other draws and so do not depend on the image's size.
    """

    def __init__(self, case_seed: int, number: int, *, n_noise: int = 0) -> None:
        # a Philox key has 128 bits: the seed fills the lower half, the number of the sub-stream the upper one
        self.case_seed = case_seed
        draws = Draws([case_seed | number << 64], _N_WORDS, n_noise)
        self.noise = draws.noise[0].astype(np.int32)
        self._words = draws.words[0].tolist()
        self._cursor = 0

    def below(self, high: int) -> int:
        """A uniform integer in [0, high)."""
        assert self._cursor < _N_WORDS, "reserve more words for a case"
        self._cursor += 1
        return self._words[self._cursor - 1] % high

    def between(self, low: int, high: int) -> int:
        """A uniform integer in [low, high], both included."""
        return low + self.below(high - low + 1)

    def chance(self, percent: int) -> bool:
        """True in that percentage of draws."""
        return self.below(100) < percent

    def pick(self, items: Sequence[T]) -> T:
        """One of the items, uniformly."""
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in a drawn order."""
        keys = [self.below(1 << 30) for _ in items]
        return [items[k] for k in sorted(range(len(items)), key=keys.__getitem__)]

    def lattice(self, rows: int, cols: int, reach: int) -> np.ndarray:
        """Uniform integers in [-reach, reach], int64 (rows, cols): the nodes of a texture."""
        return np.array([self.between(-reach, reach) for _ in range(rows * cols)], dtype=np.int64).reshape(rows, cols)


@dataclass(frozen=True)
class Frame:
    """A pixel grid, or a part of one: world coordinates of pixel centres, `x` (1, w) and `y` (h, 1).

    `rows` and `cols` say which part of the whole frame it is; `shape` is that of the whole.
    """

    shape: tuple[int, int]
    x: np.ndarray
    y: np.ndarray
    rows: slice
    cols: slice

    @property
    def is_whole(self) -> bool:
        """True where this is no part of a frame but the frame."""
        return (self.y.shape[0], self.x.shape[1]) == self.shape

    @property
    def middle(self) -> tuple[int, int]:
        """World coordinates of the whole frame's middle, x and y."""
        longer = max(self.shape)
        return WORLD * self.shape[1] // (2 * longer), WORLD * self.shape[0] // (2 * longer)

    def near(self, cx: int, cy: int, reach: int) -> "Frame":
        """The part within `reach` world units of a point along both axes; possibly without pixels."""
        assert self.is_whole, "take a part of the whole frame"
        longer = max(self.shape)  # a small object is drawn on its own pixels alone, for speed
        spans = []
        for centre, side in ((cy, self.shape[0]), (cx, self.shape[1])):
            first = min(max((centre - reach) * longer // WORLD, 0), side)
            spans.append(slice(first, min(max((centre + reach) * longer // WORLD + 1, first), side)))
        return Frame(self.shape, self.x[:, spans[1]], self.y[spans[0]], *spans)

    def whole(self, mask: np.ndarray) -> np.ndarray:
        """A mask of this part as a mask of the whole frame."""
        out = np.zeros(self.shape, dtype=bool)
        out[self.rows, self.cols] = mask
        return out


@cache
def frame_of(image_px: int, eighths: tuple[int, int]) -> Frame:
    """The frame whose longer side has `image_px` pixels; `eighths` are height and width in eighths of it."""
    height, width = (image_px * part // 8 for part in eighths)
    centres = [((2 * np.arange(n, dtype=np.int64) + 1) * WORLD // (2 * image_px)) for n in (height, width)]
    return Frame((height, width), centres[1][None, :], centres[0][:, None], slice(0, height), slice(0, width))


@dataclass
class Sketch:
    """A picture in the making: `image` int64 (h, w) or (h, w, 3), what lies in it, and where the instrument sees."""

    frame: Frame
    image: np.ndarray
    view: np.ndarray | None = None
    findings: list[Finding] = field(default_factory=list)
    _taken: list[tuple[int, int, int]] = field(default_factory=list)

    def add(self, name: str, mask: np.ndarray, **attributes: str) -> None:
        """Record what was drawn, anatomy or finding, as far as the view shows it; nothing where it shows none of it.

        What the whole outline tells, `size` and `margin`, is left out where frame or view cut the object. The attribute
        `half` ("left", "right") is that of the image, and missing for what lies across the middle.
        """
        seen = mask if self.view is None else mask & self.view
        box = box_from_mask(seen)
        if box is None:
            return
        touches_rim = seen[0].any() or seen[-1].any() or seen[:, 0].any() or seen[:, -1].any()
        if touches_rim or (seen != mask).any():
            attributes = {key: value for key, value in attributes.items() if key not in ("size", "margin")}
        columns, width = seen.sum(axis=0), seen.shape[1]
        # in eighths of a pixel, from the middle
        aside = int(columns @ (2 * np.arange(width) + 1 - width)) * 4 // int(columns.sum())
        if abs(aside) > width // 2:
            attributes["half"] = "left" if aside < 0 else "right"
        self.findings.append(Finding(name, True, attributes, (box,), seen))

    def place(
        self, stream: Stream, inside: tuple[int, int, int, int], radius: int, *, gap: int = 14, attempts: int = 12
    ) -> tuple[int, int] | None:
        """A drawn centre for a disc of `radius` in an upright ellipse (cx, cy, rx, ry), clear of those placed before.

        None where no attempt succeeds: a crowded picture has fewer findings.
        """
        cx, cy, rx, ry = inside
        rx, ry = max(1, rx - radius), max(1, ry - radius)
        for _ in range(attempts):
            dx, dy = stream.between(-rx, rx), stream.between(-ry, ry)
            x, y = cx + dx, cy + dy
            if (dx * ry) ** 2 + (dy * rx) ** 2 <= (rx * ry) ** 2 and all(
                (x - u) ** 2 + (y - v) ** 2 >= (radius + r + gap) ** 2 for u, v, r in self._taken
            ):
                self._taken.append((x, y, radius))
                return x, y
        return None

    def keep_clear(self, x: int, y: int, radius: int) -> None:
        """Let nothing be placed on this disc from now on."""
        self._taken.append((x, y, radius))
