"""What a user would put on an image to mean a region: a point, a box, a scribble, a polygon or a mask, from a mask.

Each is drawn from integers and comes with the pixels that it covers, so that one pooling serves all of them.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lightbox.errors import RequestError
from lightbox.phantom.canvas import Stream
from lightbox.records import Box, Finding

PROMPTS = ("point", "box", "scribble", "polygon", "mask")
MAX_CORNERS = 12
_STREAM = 101  # of the draws for prompts and for questions about regions; those of modalities are below 100


@dataclass(frozen=True, slots=True)
class RegionPrompt:
    """A region as a user gives it.

    Args:
        kind: one of `PROMPTS`.
        points: x and y as fractions of the image: the point, the line of a scribble, the corners of a polygon; the two
            opposite corners of a box; none for a mask.
        mask: bool (h, w) at the image's resolution, True where the prompt covers a pixel; never empty.
    """

    kind: str
    points: tuple[tuple[float, float], ...]
    mask: np.ndarray

    @property
    def box(self) -> Box:
        """The prompt's own box: that of a box prompt, else the tight one around its pixels."""
        if self.kind == "box":
            (x0, y0), (x1, y1) = self.points
            return Box(x0, y0, x1, y1)
        rows, cols = np.flatnonzero(self.mask.any(axis=1)), np.flatnonzero(self.mask.any(axis=0))
        h, w = self.mask.shape
        return Box(cols[0] / w, rows[0] / h, (cols[-1] + 1) / w, (rows[-1] + 1) / h)


def text_key(text: str) -> int:
    """A number in [0, 2**64) that depends on a text alone, for example on the id of a case: real ones have no seed."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def text_stream(text: str) -> Stream:
    """The draws that belong to a text."""
    return Stream(text_key(text), _STREAM)


def own_pixels(findings: Sequence[Finding], place: int) -> np.ndarray:
    """The pixels of a finding that no smaller finding covers; all of its pixels where none is left.

    A point in a red cell must not lie on the parasite in it: what is meant is the smallest thing under the point.
    """
    mask = _mask_of(findings[place])
    smaller = [f.mask for f in findings if f.mask is not None and f.mask.sum() < mask.sum()]
    own = mask & ~np.logical_or.reduce([np.zeros_like(mask), *smaller])
    return own if own.any() else mask


def prompt_region(
    findings: Sequence[Finding], place: int, *, kind: str, stream: Stream, jitter_pct: int = 10
) -> RegionPrompt:
    """Draw a prompt that means one finding of an image.

    Args:
        findings: of the image, each with its mask.
        place: of the finding that is meant.
        kind: one of `PROMPTS`.
        stream: of the draws, for example `text_stream` of a question's id.
        jitter_pct: how far sides, corners and outline depart from the truth, in percent of the region's sides, 0..50.
            A point and a scribble stay on `own_pixels` whatever it is.

    Raises:
        RequestError: unknown kind, jitter out of range, or a finding without mask or with an empty one.
    """
    if kind not in PROMPTS:
        raise RequestError(f"kind='{kind}'", "A region is prompted in no such way", f"Use one of {', '.join(PROMPTS)}")
    if not 0 <= jitter_pct <= 50:
        raise RequestError(f"jitter_pct={jitter_pct}", "It must lie in 0..50", "Choose jitter_pct in that range")
    mask = _mask_of(findings[place])
    if kind in ("point", "scribble"):
        return (_point if kind == "point" else _scribble)(own_pixels(findings, place), stream)
    return {"box": _box, "polygon": _polygon, "mask": _outline}[kind](mask, stream, jitter_pct)


def _mask_of(finding: Finding) -> np.ndarray:
    if finding.mask is None or not finding.mask.any():
        raise RequestError(
            f"The finding '{finding.name}' {'without' if finding.mask is None else 'with an empty'} mask",
            "A region is prompted from its pixels",
            "Leave out findings that have none",
        )
    return finding.mask


def _point(own: np.ndarray, stream: Stream) -> RegionPrompt:
    y, x = stream.pick(np.argwhere(_deep(own)).tolist())
    return RegionPrompt("point", (_centre(x, y, own.shape),), _pixels([(x, y)], own.shape))


def _box(mask: np.ndarray, stream: Stream, jitter_pct: int) -> RegionPrompt:
    h, w = mask.shape
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    sides = []
    for places, limit in ((cols, w), (rows, h)):
        first, last = int(places[0]), int(places[-1]) + 1
        reach = (last - first) * jitter_pct // 100
        first, last = (side + stream.between(-reach, reach) for side in (first, last))
        first = min(max(first, 0), limit - 1)
        sides.append((first, min(max(last, first + 1), limit)))
    (x0, x1), (y0, y1) = sides
    covered = np.zeros_like(mask)
    covered[y0:y1, x0:x1] = True
    return RegionPrompt("box", ((x0 / w, y0 / h), (x1 / w, y1 / h)), covered)


def _scribble(own: np.ndarray, stream: Stream) -> RegionPrompt:
    """Up to three straight strokes that follow each other and never leave the region."""
    places = [(x, y) for y, x in np.argwhere(_deep(own)).tolist()]
    line = [stream.pick(places)]
    covered = set(line)
    for _ in range(3):
        strokes = [_between(line[-1], stream.pick(places)) for _ in range(6)]
        inside = [stroke for stroke in strokes if all(own[y, x] for x, y in stroke)]
        if inside:
            stroke = max(inside, key=lambda stroke: len(set(stroke) - covered))
            covered |= set(stroke)
            line.append(stroke[-1])
    return RegionPrompt("scribble", tuple(_centre(x, y, own.shape) for x, y in line), _pixels(covered, own.shape))


def _polygon(mask: np.ndarray, stream: Stream, jitter_pct: int) -> RegionPrompt:
    """The convex hull of the region, with few corners, each a little off."""
    h, w = mask.shape
    hull = _hull(mask)
    step = -(-len(hull) // MAX_CORNERS)
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    reach = min(int(np.ptp(rows)) + 1, int(np.ptp(cols)) + 1) * jitter_pct // 200
    corners = [
        (min(max(x + stream.between(-reach, reach), 0), w), min(max(y + stream.between(-reach, reach), 0), h))
        for x, y in hull[::step]
    ]
    covered = _inside_polygon(corners, mask.shape)
    if not covered.any():  # jitter can fold a thin polygon
        corners, covered = hull, _inside_polygon(hull, mask.shape)
    return RegionPrompt("polygon", tuple((x / w, y / h) for x, y in corners), covered if covered.any() else mask)


def _outline(mask: np.ndarray, stream: Stream, jitter_pct: int) -> RegionPrompt:
    """The region grown or shrunk, and shifted, by whole pixels."""
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    reach = min(len(rows), len(cols)) * jitter_pct // 200
    covered = mask
    change = stream.between(-reach, reach)
    for _ in range(abs(change)):
        covered = _grown(covered) if change > 0 else ~_grown(~covered)
    dx, dy = stream.between(-reach, reach), stream.between(-reach, reach)
    padded = np.pad(covered, reach)
    h, w = mask.shape
    covered = padded[reach - dy : reach - dy + h, reach - dx : reach - dx + w]
    return RegionPrompt("mask", (), covered if covered.any() else mask)


def _grown(mask: np.ndarray) -> np.ndarray:
    out = mask.copy()
    out[1:] |= mask[:-1]
    out[:-1] |= mask[1:]
    out[:, 1:] |= mask[:, :-1]
    out[:, :-1] |= mask[:, 1:]
    return out


def _deep(mask: np.ndarray) -> np.ndarray:
    """The pixels whose neighbours are in the mask too, where there are any: nobody points at the very edge."""
    inner = ~_grown(~mask)
    return inner if inner.any() else mask


def _centre(x: int, y: int, shape: tuple[int, ...]) -> tuple[float, float]:
    return (2 * x + 1) / (2 * shape[1]), (2 * y + 1) / (2 * shape[0])


def _pixels(places, shape: tuple[int, ...]) -> np.ndarray:
    out = np.zeros(shape, dtype=bool)
    for x, y in places:
        out[y, x] = True
    return out


def _between(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """The pixels of a straight line, both ends included."""
    (x0, y0), (x1, y1) = start, end
    n = max(abs(x1 - x0), abs(y1 - y0), 1)
    return [(x0 + (2 * (x1 - x0) * k + n) // (2 * n), y0 + (2 * (y1 - y0) * k + n) // (2 * n)) for k in range(n + 1)]


def _hull(mask: np.ndarray) -> list[tuple[int, int]]:
    """Corners of the convex hull of the mask's pixels, in order, on the grid of pixel corners (monotone chain)."""
    corners = set()
    for y in np.flatnonzero(mask.any(axis=1)).tolist():
        cols = np.flatnonzero(mask[y])
        first, last = int(cols[0]), int(cols[-1]) + 1
        corners |= {(first, y), (first, y + 1), (last, y), (last, y + 1)}
    ordered = sorted(corners)
    hull: list[tuple[int, int]] = []
    for points in (ordered, ordered[::-1]):
        chain: list[tuple[int, int]] = []
        for point in points:
            while len(chain) > 1 and _turn(chain[-2], chain[-1], point) <= 0:
                chain.pop()
            chain.append(point)
        hull += chain[:-1]
    return hull


def _turn(a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]) -> int:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def _inside_polygon(corners: Sequence[tuple[int, int]], shape: tuple[int, ...]) -> np.ndarray:
    """Pixels whose centres lie inside: a ray from there to the right crosses the outline an odd number of times."""
    y, x = 2 * np.arange(shape[0])[:, None] + 1, 2 * np.arange(shape[1])[None, :] + 1  # in half pixels
    inside = np.zeros(shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, (*corners[1:], corners[0]), strict=True):
        if ay > by:
            (ax, ay), (bx, by) = (bx, by), (ax, ay)
        crosses = (2 * ay <= y) & (y < 2 * by)
        # to the left of the edge: a cross product, so that nothing is divided
        inside ^= crosses & ((x - 2 * ax) * (by - ay) < (y - 2 * ay) * (bx - ax))
    return inside
