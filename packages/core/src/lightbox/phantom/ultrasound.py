"""Ultrasound of the upper abdomen: a sector of speckle, kidney and liver in it, echo-free cysts, stones with shadows.

A cyst brightens what lies behind it and a stone shadows it, as sound does: dark is a cyst, a vessel, a shadow or the
kidney's rim, so that no grey value alone names a class.
"""

import numpy as np

from lightbox.phantom.canvas import (
    EDGE,
    FULL,
    Frame,
    PictureKnobs,
    Sketch,
    Stream,
    bow,
    grain,
    lay,
    opacity,
    radial,
    roughened,
    soften,
    stroke,
    texture,
)

EIGHTHS = (6, 8)
CLASSES = ("kidney", "liver", "cyst", "stone", "tumour", "vessel")
_TISSUE, _LIVER, _CORTEX, _SINUS, _CAPSULE = 76, 112, 48, 158, 190
_ECHO_FREE, _STONE = 10, 238
_APEX = (512, -150)
_NEAR, _FAR = 215, 880
"""Distances of the probe's face and of the deepest echo from the apex of the sector."""


def draw_ultrasound(stream: Stream, frame: Frame, knobs: PictureKnobs) -> Sketch:
    """Draw one picture: image int64 (h, w), findings with masks inside the sector."""
    slope = stream.between(72, 92)  # of the sector's sides, in percent
    dx, dy = frame.x - _APEX[0], frame.y - _APEX[1]
    distance = dx * dx + dy * dy
    view = (distance >= _NEAR**2) & (distance <= _FAR**2) & (abs(dx) * 100 <= dy * slope)
    image = _TISSUE + texture(frame, stream.lattice(6, 8, 26), 180)
    for depth in (238, 262 + stream.below(16), 300 + stream.below(20)):  # skin, fat and muscle under the probe
        image = image + np.where((distance > depth**2) & (distance < (depth + 13) ** 2), 62, 0)
    sketch = Sketch(frame, image, view)
    gain = np.full(frame.shape, FULL, dtype=np.int64)
    liver, liver_mask = _draw_liver(sketch, stream) if stream.chance(65) else (None, None)
    kidney, kidney_mask = _draw_kidney(sketch, stream) if stream.chance(65) else (None, None)
    if liver_mask is not None:  # the kidney lies before the liver's edge
        sketch.add("liver", liver_mask if kidney_mask is None else liver_mask & ~kidney_mask)
    if kidney_mask is not None:
        sketch.add("kidney", kidney_mask)
    for _ in range(stream.below(3) if liver else 0):
        _draw_vessel(sketch, stream, liver)
    homes = [home for home in (liver, kidney) if home is not None] or [(512, 430, 300, 200)]
    for name in stream.shuffled(("cyst", "cyst", "stone", "stone", "tumour", "tumour"))[: stream.between(1, 4)]:
        home = stream.pick(homes)
        _draw_finding(sketch, stream, name, home, gain, knobs.finding_scale_pct, is_in_kidney=home == kidney)
    depth_gain = FULL + texture(frame, stream.lattice(7, 2, 44), 128)[:, :1]  # the operator's time-gain curve
    sketch.image = _speckle(sketch.image * gain * depth_gain // FULL**2, stream, knobs.noise_pct)
    sketch.image[~view] = 3
    return sketch


def _draw_liver(sketch: Sketch, stream: Stream) -> tuple[tuple[int, int, int, int], np.ndarray]:
    cx, cy = 400 + stream.between(-70, 60), 330 + stream.between(-40, 40)
    rx, ry, turn = stream.between(270, 330), stream.between(170, 215), stream.between(-50, 50)
    bent = radial(sketch.frame, cx, cy, rx, ry, turn) + texture(sketch.frame, stream.lattice(5, 7, 700), 170)
    level = _LIVER + texture(sketch.frame, stream.lattice(8, 10, 8), 90)
    lay(sketch.image, sketch.frame, opacity(bent, 500), level)
    rim = (bent > EDGE) & (bent < EDGE + 950) & (sketch.frame.y > cy + 40)  # the diaphragm, a bright arc behind it
    lay(sketch.image, sketch.frame, rim * 210, 215)
    return (cx, cy, rx * 8 // 10, ry * 8 // 10), bent <= EDGE


def _draw_kidney(sketch: Sketch, stream: Stream) -> tuple[tuple[int, int, int, int], np.ndarray]:
    cx, cy = 620 + stream.between(-130, 90), 500 + stream.between(-60, 50)
    rx, ry, turn = stream.between(175, 215), stream.between(88, 112), stream.between(-90, 90)
    bent = radial(sketch.frame, cx, cy, rx, ry, turn)
    lay(sketch.image, sketch.frame, (bent < EDGE + 620) * 170, _CAPSULE)
    lay(sketch.image, sketch.frame, opacity(bent, 500), _CORTEX)
    inner = radial(sketch.frame, cx, cy, rx * 62 // 100, ry * 46 // 100, turn)
    inner = inner + texture(sketch.frame, stream.lattice(6, 8, 1500), 70)
    lay(sketch.image, sketch.frame, opacity(inner, 2000), _SINUS)
    return (cx, cy, rx * 9 // 10, ry * 9 // 10), bent <= EDGE


def _draw_vessel(sketch: Sketch, stream: Stream, liver: tuple[int, int, int, int]) -> None:
    cx, cy, rx, ry = liver
    start = cx + stream.between(-rx, rx) * 6 // 10, cy + stream.between(-ry, ry) * 6 // 10
    end = start[0] + stream.pick((-1, 1)) * stream.between(120, 230), start[1] + stream.between(-90, 110)
    half = stream.between(13, 20)
    points = bow(start, end, stream.between(-14, 14), 4)
    lumen = stroke(sketch.frame, points, [half] * 4)
    wall = stroke(sketch.frame, points, [half + 13] * 4) & ~lumen
    lay(sketch.image, sketch.frame, wall * 110, 170)
    lay(sketch.image, sketch.frame, lumen * 230, _ECHO_FREE)
    for x, y in points[::2]:
        sketch.keep_clear(x, y, half)
    sketch.add("vessel", lumen)


def _draw_finding(
    sketch: Sketch,
    stream: Stream,
    name: str,
    home: tuple[int, int, int, int],
    gain: np.ndarray,
    scale_pct: int,
    *,
    is_in_kidney: bool,
) -> None:
    size, contrast = stream.pick(("small", "large")), stream.pick(("faint", "strong"))
    low, high = {"stone": ((17, 21), (28, 36)), "cyst": ((26, 36), (56, 72))}.get(name, ((30, 40), (60, 78)))[
        size == "large"
    ]
    r = stream.between(low, high) * scale_pct // 100
    rx, ry, turn = r, r * stream.between(82, 100) // 100, stream.below(1024)
    nodes, margin = stream.lattice(9, 9, 2600), stream.pick(("smooth", "ragged"))
    tone = stream.between(-6, 6)
    at = sketch.place(stream, home, r)
    if at is None:
        return
    part = sketch.frame.near(*at, 2 * r)
    shape = radial(part, *at, rx, ry, turn)
    if name == "tumour":
        if margin == "ragged" and size == "large":
            shape = roughened(shape, texture(part, nodes, max(8, r * 6 // 10)))
        # darker than the liver, brighter than the kidney's rim
        faint, strong = (84, 118) if is_in_kidney else (66, 36)
        level = tone + (strong if contrast == "strong" else faint) + texture(part, nodes[::-1], 24) // 150
        lay(sketch.image, part, opacity(shape, 1200), level)
    elif name == "cyst":
        lay(sketch.image, part, opacity(shape, 600), _ECHO_FREE if contrast == "strong" else 38)
        _send_behind(sketch.frame, at, r, gain, FULL + 110)
    else:
        lay(sketch.image, part, opacity(shape, 1500), (_STONE if contrast == "strong" else 186) + tone)
        _send_behind(sketch.frame, at, r, gain, 60)
    words = {"size": size, "contrast": contrast, **({"margin": margin} if name == "tumour" and size == "large" else {})}
    sketch.add(name, part.whole(shape <= EDGE), **words)


def _send_behind(frame: Frame, at: tuple[int, int], r: int, gain: np.ndarray, factor: int) -> None:
    """Change the gain, in 1/`FULL`, of all that lies behind a disc as seen from the apex."""
    ox, oy = at[0] - _APEX[0], at[1] - _APEX[1]
    dx, dy = frame.x - _APEX[0], frame.y - _APEX[1]
    across = dx * oy - dy * ox
    deep = dx * dx + dy * dy
    # the angle that the disc covers: across / |o| is the distance from the ray, and the disc covers r |d| / |o| there
    behind = (across * across <= r * r * deep) & (dx * ox + dy * oy > ox * ox + oy * oy + r * oy * 9 // 10)
    gain[behind] = gain[behind] * factor // FULL


def _speckle(image: np.ndarray, stream: Stream, noise_pct: int) -> np.ndarray:
    """Multiplicative noise, longer across the beam than along it, as interference of echoes gives."""
    spots = grain(stream, image.shape).astype(np.int64) * 8
    spots[:, 1:] += spots[:, :-1] * 3 // 4  # neighbours along a line share an echo
    return np.clip(soften(image) * (FULL + spots * noise_pct // 100) // FULL, 0, 255)
