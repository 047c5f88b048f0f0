"""Chest radiograph renderer: integer arithmetic only, so pixels are the same on every platform."""

import numpy as np

from lightbox.phantom.geometry import finding_masks, finding_rows, pixel_centres
from lightbox.phantom.knobs import Knobs
from lightbox.phantom.ontology import SHAPES
from lightbox.phantom.scene import Scene

_BACKGROUND, _THORAX, _LUNG, _MEDIASTINUM, _HEART = 14, 150, 66, 168, 176
_RETICULAR = SHAPES.index("reticular")
# The sum of a byte's two nibbles, centred: a triangular distribution with standard deviation 6.5 grey levels.
_NOISE = (np.arange(256) // 16 + np.arange(256) % 16 - 15).astype(np.int32)
_GLYPHS = {
    "R": ("11110", "10001", "10001", "11110", "10100", "10010", "10001"),
    "P": ("11110", "10001", "10001", "11110", "10000", "10000", "10000"),
}


def render_chest(scene: Scene, knobs: Knobs) -> tuple[np.ndarray, np.ndarray]:
    """Render a batch of scenes.

    Returns:
        Pixels uint8 (b, h, w) and finding masks bool (f, h, w) in the order of `finding_rows`.
    """
    px = knobs.image_px
    grid = pixel_centres(px)
    image = _anatomy(scene, grid)
    masks = finding_masks(scene, px)
    _add_findings(image, scene, masks, grid)
    _burn_text(image, scene, knobs)
    image = _soften(image)  # before gain and noise: a detector blurs what arrives and not its own noise
    gain, offset, tilt, noise_pct = (scene.tone[:, k, None, None].astype(np.int32) for k in (0, 1, 2, 5))
    image = image * gain // 100 + offset + tilt * (grid - 512).astype(np.int32)[None, None, :] // 512
    image += _NOISE[scene.noise] * noise_pct // 100
    return np.clip(image, 0, 255).astype(np.uint8), masks


def _inside(grid: np.ndarray, ellipse: np.ndarray) -> np.ndarray:
    """Bool (b, h, w): pixel centres inside ellipses (b, 4) of cx, cy, rx, ry."""
    scale = 4096
    cx, cy, rx, ry = (ellipse[:, k, None] for k in range(4))
    # far pixels are cut off, so that a sum of two fits 32 bits
    x = np.minimum((grid[None] - cx) ** 2 * scale // rx**2, 1 << 20).astype(np.int32)
    y = np.minimum((grid[None] - cy) ** 2 * scale // ry**2, 1 << 20).astype(np.int32)
    return x[:, None, :] + y[:, :, None] <= scale


def _anatomy(scene: Scene, grid: np.ndarray) -> np.ndarray:
    b, px = len(scene.seeds), len(grid)
    mid = (scene.lung[:, 0, 0] + scene.lung[:, 1, 0]) // 2
    half = (scene.lung[:, 1, 0] - scene.lung[:, 0, 0]) // 2 + scene.lung[:, 0, 2]
    thorax = np.stack([mid, np.full(b, 560), half * 118 // 100, np.full(b, 600)], axis=1)
    # 32 bits: half the time of 64 on every pixel
    image = np.where(_inside(grid, thorax), np.int32(_THORAX), np.int32(_BACKGROUND))
    rows = grid.astype(np.int32)
    bend = ((grid[None] - mid[:, None]) ** 2 >> 11).astype(np.int32)  # ribs fall away from the spine
    period, phase = scene.tone[:, 3, None, None].astype(np.int32), scene.tone[:, 4, None, None].astype(np.int32)
    wave = (rows[None, :, None] - bend[:, None, :] + phase + 1024) % period
    ribs = np.where(3 * wave < period, np.int32(13), np.int32(-4))
    lungs = _inside(grid, scene.lung[:, 0]) | _inside(grid, scene.lung[:, 1])
    image = np.where(lungs, np.int32(_LUNG) + ribs, image)
    column = np.abs(grid[None] - mid[:, None]) < 62
    image = np.where(column[:, None, :] & (image > _BACKGROUND), np.int32(_MEDIASTINUM), image)
    return np.where(_inside(grid, scene.heart), np.int32(_HEART), image).reshape(b, px, px)


def _add_findings(image: np.ndarray, scene: Scene, masks: np.ndarray, grid: np.ndarray) -> None:
    rows, slots = finding_rows(scene)
    contrast = scene.contrast[rows, slots].astype(np.int32)
    mesh = scene.shape[rows, slots] == _RETICULAR
    line = (grid % 80 < 36)[None, :] | (grid % 80 < 36)[:, None]
    weave = np.where(line, np.int32(5), np.int32(-1))  # a mesh brightens its lines and darkens its holes
    for slot in np.unique(slots):
        at = np.flatnonzero((slots == slot) & ~mesh)
        image[rows[at]] += masks[at] * contrast[at, None, None]
        at = np.flatnonzero((slots == slot) & mesh)
        image[rows[at]] += masks[at] * (contrast[at, None, None] * weave // 4)


def _burn_text(image: np.ndarray, scene: Scene, knobs: Knobs) -> None:
    if knobs.burned_in_text == "none":
        return
    letter = "R" if knobs.burned_in_text == "marker" else "P"
    at = np.arange(len(image)) if letter == "R" else np.flatnonzero(scene.active.any(axis=1))
    glyph = np.array([[c == "1" for c in row] for row in _GLYPHS[letter]])
    k = max(1, knobs.image_px // 64)
    glyph = np.kron(glyph, np.ones((k, k), dtype=bool))
    h, w = glyph.shape
    patch = image[at, 2 * k : 2 * k + h, 2 * k : 2 * k + w]  # outside the lungs, where no finding can lie
    image[at, 2 * k : 2 * k + h, 2 * k : 2 * k + w] = np.where(glyph, np.int32(245), patch)


def _soften(image: np.ndarray) -> np.ndarray:
    """A 1-6-1 blur along both axes: edges of a detector, not of a drawing."""
    out = image * 6
    out[:, 1:] += image[:, :-1]
    out[:, :-1] += image[:, 1:]
    out[:, 0] += image[:, 0]
    out[:, -1] += image[:, -1]
    both = out * 6
    both[:, :, 1:] += out[:, :, :-1]
    both[:, :, :-1] += out[:, :, 1:]
    both[:, :, 0] += out[:, :, 0]
    both[:, :, -1] += out[:, :, -1]
    return both // 64
