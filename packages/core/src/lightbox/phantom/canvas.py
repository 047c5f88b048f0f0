"""What the drawers of the modalities share: a frame, the draws of one case, regions, textures; integers throughout.

A drawer works in world units: the longer side of its frame has 1024, and a pixel is square. So a scene is the same at
every size, and every mask is a predicate on pixel centres.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from math import isqrt
from typing import TypeVar

import numpy as np

from lightbox.errors import RequestError
from lightbox.phantom.draws import Draws
from lightbox.phantom.scene import WORLD
from lightbox.records import Finding, box_from_mask

EDGE = 4096
"""Value of `radial` on the outline of an ellipse; 0 is its centre."""
FULL = 256
"""Opacity of what hides everything under it."""
_N_WORDS = 1536
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
        longer = max(self.shape)  # a small object is drawn on its own pixels alone: most of the speed comes from here
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


def sine(turn: int) -> int:
    """1024 times the sine of an angle of `turn` / 1024 of a full turn, to within 3, without floating point.

    Bhaskara's fraction 16 a (h - a) / (5 h**2 - 4 a (h - a)) on a half turn h.

    Example:
        >>> sine(0), sine(256), sine(768)
        (0, 1024, -1024)
    """
    turn %= 1024
    sign, a = (1, turn) if turn < 512 else (-1, turn - 512)
    rise = a * (512 - a)
    return sign * (16384 * rise // (5 * 512 * 512 - 4 * rise))


def cosine(turn: int) -> int:
    """As `sine`, a quarter turn ahead."""
    return sine(turn + 256)


def radial(frame: Frame, cx: int, cy: int, rx: int, ry: int, turn: int = 0) -> np.ndarray:
    """Squared distance from an ellipse's centre in units of its radius: 0 in the centre, `EDGE` on the outline.

    Returns:
        int64 (h, w) of the frame or part given.
    """
    dx, dy = frame.x - cx, frame.y - cy
    if turn % 512:
        c, s = cosine(turn), sine(turn)
        dx, dy = (dx * c + dy * s) >> 10, (dy * c - dx * s) >> 10
    # multiply and shift: a division on every pixel would take three times as long
    return (dx * dx * ((EDGE << 18) // (rx * rx)) >> 18) + (dy * dy * ((EDGE << 18) // (ry * ry)) >> 18)


def roughened(distance: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """A `radial` distance with a ragged outline: the noise counts most at the edge, so that no hole opens inside."""
    return distance + noise * np.minimum(distance, EDGE) // EDGE


def opacity(distance: np.ndarray, softness: int) -> np.ndarray:
    """Opacity 0..`FULL` of a `radial` distance: half on the outline, falling from whole to none over `softness`."""
    return np.clip((EDGE - distance) * FULL // softness + FULL // 2, 0, FULL)


def texture(frame: Frame, nodes: np.ndarray, cell: int) -> np.ndarray:
    """Smooth noise: the nodes of a lattice, `cell` world units apart, joined without kinks; the lattice repeats.

    Returns:
        int64 (h, w), in the range of the nodes.
    """
    where = []
    for axis, n in ((frame.y[:, 0], nodes.shape[0]), (frame.x[0], nodes.shape[1])):
        step = axis % cell
        where.append((axis // cell % n, (axis // cell + 1) % n, step * step * (3 * cell - 2 * step) // (cell * cell)))
    (top, bottom, down), (left, right, across) = where
    rows = nodes[top] * (cell - down)[:, None] + nodes[bottom] * down[:, None]
    return (rows[:, left] * (cell - across) + rows[:, right] * across) // (cell * cell)


def stroke(frame: Frame, points: Sequence[tuple[int, int]], half_widths: Sequence[int]) -> np.ndarray:
    """A line through points: True within the half width of a segment; bool, of the whole frame.

    Args:
        frame: the whole frame.
        points: x and y in world units, two or more.
        half_widths: one a segment; under half a pixel's diagonal the line has gaps.
    """
    out = np.zeros(frame.shape, dtype=bool)
    for (x0, y0), (x1, y1), half in zip(points[:-1], points[1:], half_widths, strict=True):
        reach = max(abs(x1 - x0), abs(y1 - y0)) // 2 + half + 1
        part = frame.near((x0 + x1) // 2, (y0 + y1) // 2, reach)
        ex, ey = x1 - x0, y1 - y0
        length = max(1, ex * ex + ey * ey)
        dx, dy = part.x - x0, part.y - y0
        along = np.clip(dx * ex + dy * ey, 0, length)  # times the length squared: no division, no rounding
        fx, fy = dx * length - along * ex, dy * length - along * ey
        scale = isqrt(length)
        # distances are kept in units of the length, so that their squares fit 63 bits
        fx, fy = fx // scale, fy // scale
        out[part.rows, part.cols] |= fx * fx + fy * fy <= half * half * length
    return out


def bow(start: tuple[int, int], end: tuple[int, int], bend: int, n: int) -> list[tuple[int, int]]:
    """`n` + 1 points of a parabola from start to end that departs from the chord by `bend` percent of its length."""
    (x0, y0), (x1, y1) = start, end
    points = []
    for k in range(n + 1):
        lift = 4 * k * (n - k) * bend
        x = x0 + (x1 - x0) * k // n - (y1 - y0) * lift // (100 * n * n)
        points.append((x, y0 + (y1 - y0) * k // n + (x1 - x0) * lift // (100 * n * n)))
    return points


def soften(image: np.ndarray, times: int = 1, *, centre: int = 6) -> np.ndarray:
    """Blur (h, w) or (h, w, 3) by 1-`centre`-1 along both axes; a smaller `centre` blurs more."""
    for _ in range(times):
        for axis in (0, 1):
            moved = np.moveaxis(image, axis, 0)
            out = moved * centre
            out[1:] += moved[:-1]
            out[:-1] += moved[1:]
            out[0] += moved[0]
            out[-1] += moved[-1]
            image = np.moveaxis(out // (centre + 2), 0, axis)
    return image


def lay(image: np.ndarray, part: Frame, cover: np.ndarray, tone: int | Sequence[int] | np.ndarray) -> None:
    """Lay a tone over a part of an image, in place, where `cover` (h, w) is its opacity in 0..`FULL`, or bool."""
    under = image[part.rows, part.cols]
    if cover.dtype == bool:
        cover = cover * FULL
    cover = cover[..., None] if image.ndim == 3 else cover
    under += ((np.asarray(tone) - under) * cover) // FULL


def grain(stream: Stream, shape: tuple[int, ...]) -> np.ndarray:
    """Pixel noise around 0: a byte's two halves added, triangular, standard deviation 6.5; int32 of that shape."""
    noise = stream.noise[: int(np.prod(shape))].reshape(shape)
    return noise // 16 + noise % 16 - 15


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

        The attribute `half` ("left", "right") is that of the image, and missing for what lies across the middle.
        """
        mask = mask if self.view is None else mask & self.view
        box = box_from_mask(mask)
        if box is None:
            return
        columns, width = mask.sum(axis=0), mask.shape[1]
        centre = int(columns @ (2 * np.arange(width) + 1)) * 8 // (2 * int(columns.sum()))  # in eighths of a pixel
        if centre < 7 * width // 2:
            attributes["half"] = "left"
        elif centre > 9 * width // 2:
            attributes["half"] = "right"
        self.findings.append(Finding(name, True, attributes, (box,), mask))

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
