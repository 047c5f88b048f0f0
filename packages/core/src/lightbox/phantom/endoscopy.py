"""Endoscopy: the inside of a gut, lit from the tip, with lumen and folds, polyps, ulcers, blood and an instrument.

Brightness falls with the distance from the lumen, so that the same mucosa is bright or dark; a polyp has the colour of
its wall and shows by its shading alone.
"""

import numpy as np

from lightbox.phantom.canvas import (
    EDGE,
    FULL,
    Frame,
    PictureKnobs,
    Sketch,
    Stream,
    cosine,
    grain,
    lay,
    opacity,
    radial,
    roughened,
    sine,
    soften,
    stroke,
    texture,
)

EIGHTHS = (7, 8)
CLASSES = ("lumen", "polyp", "ulcer", "haemorrhage", "instrument")
_MUCOSA, _BLOOD, _FIBRIN, _RIM, _STEEL = (206, 112, 92), (116, 12, 14), (232, 206, 150), (176, 52, 44), (120, 126, 134)
_LUMEN, _SHEEN = (34, 14, 14), (255, 244, 236)


def draw_endoscopy(stream: Stream, frame: Frame, knobs: PictureKnobs) -> Sketch:
    """Draw one picture: image int64 (h, w, 3), findings with masks inside the eight-sided view."""
    mx, my = frame.middle
    corner = abs(frame.x - mx) + abs(frame.y - my)
    view = (corner <= 770) & (abs(frame.x - mx) < 496) & (abs(frame.y - my) < 432)
    ax, ay = mx + stream.between(-220, 220), my + stream.between(-160, 160)  # where the gut leads
    depth = radial(frame, ax, ay, 190, 165, stream.below(1024)) + texture(frame, stream.lattice(6, 6, 3000), 170)
    depth = np.maximum(depth, 0)
    is_open = stream.chance(75)  # or the tip looks at the wall
    tint = np.asarray([channel + stream.between(-16, 16) for channel in _MUCOSA])
    light = _light(frame, stream, depth, (mx, my), is_open=is_open)
    sketch = Sketch(frame, tint * light[..., None] // FULL, view)
    for _ in range(stream.between(2, 5)):  # wet mucosa glistens
        x, y, r = stream.between(120, 900), stream.between(120, 780), stream.between(9, 20)
        part = frame.near(x, y, 3 * r)
        lay(sketch.image, part, opacity(radial(part, x, y, 2 * r, r, stream.below(1024)), 4000) * 200 // FULL, _SHEEN)
    if is_open:
        lay(sketch.image, frame, opacity(depth, 7000), _LUMEN)
        sketch.add("lumen", depth <= EDGE)
        sketch.keep_clear(ax, ay, 190)
    for name in stream.shuffled(("polyp", "ulcer", "haemorrhage") * 2)[: stream.between(0, 4)]:
        _draw_finding(sketch, stream, name, light, knobs.finding_scale_pct)
    if stream.chance(35):
        _draw_instrument(sketch, stream, (ax, ay))
    noise = grain(stream, sketch.image.shape) * knobs.noise_pct * 5 // 1000
    sketch.image = np.clip(soften(sketch.image) + noise, 0, 255)
    sketch.image[~view] = 4
    return sketch


def _light(frame: Frame, stream: Stream, depth: np.ndarray, middle: tuple[int, int], *, is_open: bool) -> np.ndarray:
    """Brightness in 1/`FULL`: folds as rings around the lumen, a lamp in the middle, and mottled mucosa."""
    lamp = 300 - radial(frame, *middle, 560, 520) * 110 // EDGE
    mottle = texture(frame, stream.lattice(9, 9, 20), 90) + texture(frame, stream.lattice(9, 9, 26), 260)
    if not is_open:
        return np.clip(lamp + mottle, 50, 330)
    near = np.minimum(depth * 5 // EDGE, 60)  # farther from the lumen is nearer to the lamp
    # the root of a whole number under 2**52 is rounded alike everywhere; 512 is the lumen's edge
    distance = np.sqrt(depth * (512 * 512 // EDGE)).astype(np.int64)
    period = stream.between(300, 480)
    phase = (distance + stream.below(512)) % period * 1024 // period
    ring = np.minimum(phase // 4, (1023 - phase) // 12)  # a fold rises steeply and falls off slowly
    height = 80 + texture(frame, stream.lattice(6, 6, 70), 190)  # folds come and go around the wall
    return np.clip(lamp - 52 + near + mottle + ring * height // 64, 50, 330)


def _draw_finding(sketch: Sketch, stream: Stream, name: str, light: np.ndarray, scale_pct: int) -> None:
    size, contrast = stream.pick(("small", "large")), stream.pick(("faint", "strong"))
    r = (stream.between(40, 54) if size == "small" else stream.between(88, 122)) * scale_pct // 100
    flat, turn, nodes = stream.between(74, 100), stream.below(1024), stream.lattice(9, 9, 3000)
    drips = [(stream.between(-60, 60), stream.between(110, 220)) for _ in range(2)]
    at = sketch.place(stream, (sketch.frame.middle[0], sketch.frame.middle[1], 420, 350), r)
    if at is None:
        return
    part = sketch.frame.near(*at, 2 * r + 20)
    shape = radial(part, *at, r, r * flat // 100, turn)
    here = light[part.rows, part.cols][..., None]
    if name == "polyp":
        mask = part.whole(shape <= EDGE)
        _draw_dome(sketch, part, shape, at, r, contrast == "strong")
    elif name == "ulcer":
        shape = roughened(shape, texture(part, nodes, max(8, r * 6 // 10)))
        cover = 230 if contrast == "strong" else 130
        lay(sketch.image, part, opacity(shape * 5 // 9, 1500) * cover // FULL, np.asarray(_RIM) * here // FULL)
        lay(sketch.image, part, opacity(shape * 9 // 8, 1100) * cover // FULL, np.asarray(_FIBRIN) * here // FULL)
        mask = part.whole(shape <= EDGE)
    else:
        shape = roughened(shape, texture(part, nodes, max(8, r * 8 // 10)))
        mask = part.whole(shape <= EDGE)
        for aside, length in drips:  # blood runs down
            x, y = at[0] + aside * r // 100, at[1]
            mask |= stroke(sketch.frame, [(x, y), (x + aside // 8, y + r * length // 100)], [max(9, r // 6)])
        mask &= sketch.view
        lay(sketch.image, sketch.frame, mask * (236 if contrast == "strong" else 130), _BLOOD)
    sketch.add(name, mask, size=size, contrast=contrast)


def _draw_dome(sketch: Sketch, part: Frame, shape: np.ndarray, at: tuple[int, int], r: int, is_raised: bool) -> None:
    """Shade a bulge lit from above: brighter on its upper side, a dark rim and a shadow under it."""
    strength = 100 if is_raised else 52
    inside = opacity(shape, 700)
    slope = (at[1] - part.y) + (at[0] - part.x) // 2  # positive towards the light
    shade = FULL + np.clip(slope * strength // r, -strength, strength) - shape * strength * 6 // (10 * EDGE)
    under = sketch.image[part.rows, part.cols]
    shadow = opacity(radial(part, at[0] + r // 6, at[1] + r // 4, r * 11 // 10, r * 11 // 10), 3000) * strength // 190
    under -= under * (shadow * (FULL - inside) // FULL)[..., None] // FULL
    dome = np.clip(under * shade[..., None] // FULL + np.asarray((10, -6, -6)), 0, 255)
    lay(sketch.image, part, inside, dome)
    x, y = at[0] - r // 4, at[1] - r * 4 // 10
    spot = sketch.frame.near(x, y, r // 3)
    lay(sketch.image, spot, opacity(radial(spot, x, y, max(9, r // 7), max(9, r // 9)), 5000) * strength // 110, _SHEEN)


def _draw_instrument(sketch: Sketch, stream: Stream, toward: tuple[int, int]) -> None:
    """A shaft that comes in from the rim: bright along its axis, dark at its sides, with rings."""
    mx, my = sketch.frame.middle
    angle, half = stream.below(1024), stream.between(30, 44)
    start = mx + cosine(angle) * 640 // 1024, my + sine(angle) * 600 // 1024
    share = stream.between(45, 80)
    end = start[0] + (toward[0] - start[0]) * share // 100, start[1] + (toward[1] - start[1]) * share // 100
    mask = stroke(sketch.frame, [start, end], [half]) & sketch.view
    lay(sketch.image, sketch.frame, mask, _STEEL)
    along = (sketch.frame.x - start[0]) * (end[0] - start[0]) + (sketch.frame.y - start[1]) * (end[1] - start[1])
    lay(sketch.image, sketch.frame, (mask & (along // 14_000 % 4 == 0)) * 120, (70, 74, 82))
    core = stroke(sketch.frame, [start, end], [half * 4 // 10]) & mask
    lay(sketch.image, sketch.frame, core * 150, (214, 220, 226))
    sketch.add("instrument", mask)
