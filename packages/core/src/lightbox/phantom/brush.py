"""Shapes, textures and layers on a frame, in integers throughout: the same masks and pixels on every machine."""

from collections.abc import Sequence
from math import isqrt

import numpy as np

from lightbox.phantom.canvas import Frame, Stream

EDGE = 4096
"""Value of `radial` on the outline of an ellipse; 0 is its centre."""
FULL = 256
"""Opacity of what hides everything under it."""


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
    # multiply and shift: dividing every pixel is slower
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


def colour_cast(stream: Stream, reach_pct: int) -> np.ndarray:
    """What lamp and camera do to red, green and blue, in percent: a colour means little until it is compared."""
    exposure = stream.between(76, 110)
    return np.array([exposure * stream.between(100 - reach_pct, 100 + reach_pct) // 100 for _ in range(3)])
