"""Finding masks and boxes on the pixel grid, by integer predicates on pixel centres."""

import numpy as np

from lightbox.phantom.ontology import DENSITIES, SHAPES
from lightbox.phantom.scene import WORLD, Scene


def pixel_centres(image_px: int) -> np.ndarray:
    """World coordinates of pixel centres along one axis, int64 (image_px,)."""
    # centres and not corners: a mask is the same region at every size
    return (2 * np.arange(image_px, dtype=np.int64) + 1) * WORLD // (2 * image_px)


def finding_rows(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Case and slot index of every active finding, in (case, slot) order."""
    return np.nonzero(scene.active)


def finding_masks(scene: Scene, image_px: int) -> np.ndarray:
    """Masks of all active findings, bool (f, h, w), in the order of `finding_rows`. True is inside."""
    rows, slots = finding_rows(scene)
    grid = pixel_centres(image_px).astype(np.int32)
    u = grid[None, None, :] - scene.cx[rows, slots].astype(np.int32)[:, None, None]
    v = grid[None, :, None] - scene.cy[rows, slots].astype(np.int32)[:, None, None]
    a = scene.extent[rows, slots].astype(np.int32)[:, None, None]
    turn = scene.turn[rows, slots]
    shape, density = scene.shape[rows, slots], scene.density[rows, slots]
    # -1 on the image's left: a wedge points to the hilum of its own lung
    lateral = np.where(scene.cx[rows, slots] < WORLD // 2, -1, 1).astype(np.int32)
    masks = np.zeros((len(rows), image_px, image_px), dtype=bool)
    for s, name in enumerate(SHAPES):
        at = np.flatnonzero(shape == s)
        if at.size:
            masks[at] = _SHAPE_MASKS[name](u[at], v[at], a[at], turn[at], density[at], lateral[at])
    return masks


def _disc(u, v, a, turn, density, lateral):
    return u * u + v * v <= a * a


def _oval(u, v, a, turn, density, lateral):
    flat = (turn % 2 == 0)[:, None, None]
    p, q = np.where(flat, 3, 5).astype(np.int32), np.where(flat, 5, 3).astype(np.int32)  # axes 5:3
    return (p * u) ** 2 + (q * v) ** 2 <= (3 * a) ** 2


def _ring(u, v, a, turn, density, lateral):
    r = u * u + v * v
    return (r <= a * a) & (25 * r >= 9 * a * a)  # the hole has 0.6 of the radius: wide enough to show at 64 pixels


def _band(u, v, a, turn, density, lateral):
    tilt = (turn % 3 - 1).astype(np.int32)[:, None, None]  # down, level, up
    return (np.abs(u) <= a) & (6 * np.abs(2 * v + tilt * u) <= 4 * a)


def _wedge(u, v, a, turn, density, lateral):
    w = u * lateral[:, None, None]  # base on the pleural side
    return (np.abs(w) <= a) & (2 * np.abs(v) <= w + a)


def _crescent(u, v, a, turn, density, lateral):
    up = np.where(
        density == DENSITIES.index("dense"), -1, np.where(density == DENSITIES.index("lucent"), 1, turn % 2 * 2 - 1)
    )
    t = up.astype(np.int32)[:, None, None] * (13 * a // 20)  # dense sinks (meniscus), lucent rises (air)
    return (u * u + v * v <= a * a) & (u * u + (v - t) ** 2 > a * a)


_SHAPE_MASKS = {
    "disc": _disc,
    "oval": _oval,
    "ring": _ring,
    "band": _band,
    "wedge": _wedge,
    "reticular": _disc,
    "crescent": _crescent,
}


def mask_boxes_px(masks: np.ndarray) -> np.ndarray:
    """Tight half-open pixel boxes (f, 4) x0 y0 x1 y1 of non-empty masks (f, h, w); zeros where a mask is empty."""
    if len(masks) == 0:
        return np.zeros((0, 4), dtype=np.int64)
    cols, rows = masks.any(axis=1), masks.any(axis=2)
    x0, y0 = cols.argmax(axis=1), rows.argmax(axis=1)
    x1 = masks.shape[2] - cols[:, ::-1].argmax(axis=1)
    y1 = masks.shape[1] - rows[:, ::-1].argmax(axis=1)
    boxes = np.stack([x0, y0, x1, y1], axis=1)
    return np.where(rows.any(axis=1)[:, None], boxes, 0)
