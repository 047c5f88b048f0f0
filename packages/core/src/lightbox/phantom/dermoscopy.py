"""Dermoscopy: a skin lesion through a contact lens, with globules, vessels, ulcers and blood in it, and hair over it.

Lesion, globule and hair are brown, vessel, ulcer and haemorrhage red; what they are shows in form, not in tone. Some
pictures show healthy skin alone.
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
CLASSES = ("lesion", "globule", "hair", "vessel", "ulcer", "haemorrhage")
_SKIN, _LESION, _GLOBULE, _HAIR = (222, 172, 148), (150, 92, 62), (72, 40, 28), (52, 36, 30)
_VESSEL, _RAW, _CRUST, _BLOOD = (186, 48, 56), (206, 88, 70), (226, 176, 96), (84, 16, 36)


def draw_dermoscopy(stream: Stream, frame: Frame, knobs: PictureKnobs) -> Sketch:
    """Draw one picture: image int64 (h, w, 3), findings with masks."""
    shade = stream.between(70, 104)  # of the skin, in percent
    tint = np.asarray([(channel + stream.between(-9, 9)) * shade // 100 for channel in _SKIN])
    light = FULL + texture(frame, stream.lattice(5, 6, 14), 260) + texture(frame, stream.lattice(12, 14, 10), 70)
    mx, my = frame.middle
    sketch = Sketch(frame, tint * light[..., None] // FULL)
    where = mx, my, 330, 230
    lesion = _draw_lesion(sketch, stream, knobs.finding_scale_pct) if stream.chance(78) else None
    if lesion is not None:
        where = lesion
        if stream.chance(55):
            _draw_globules(sketch, stream, lesion, knobs.finding_scale_pct)
    for name in stream.shuffled(("ulcer", "haemorrhage", "vessel", "vessel"))[: stream.below(4)]:
        _draw_mark(sketch, stream, name, where, knobs.finding_scale_pct)
    for _ in range(stream.between(1, 5) if stream.chance(50) else 0):
        _draw_hair(sketch, stream)
    if stream.chance(40):  # the rim of the lens
        far = radial(frame, mx, my, stream.between(560, 640), stream.between(470, 540))
        lay(sketch.image, frame, np.clip((far - EDGE * 8 // 10) * FULL // 900, 0, 245), (18, 14, 14))
    noise = grain(stream, sketch.image.shape) * knobs.noise_pct * 6 // 1000
    sketch.image = np.clip(soften(sketch.image) + noise, 0, 255)
    return sketch


def _draw_lesion(sketch: Sketch, stream: Stream, scale_pct: int) -> tuple[int, int, int, int]:
    size, contrast = stream.pick(("small", "large")), stream.pick(("faint", "strong"))
    margin = stream.pick(("smooth", "ragged"))
    r = (stream.between(130, 165) if size == "small" else stream.between(230, 285)) * scale_pct // 100
    ry, turn = r * stream.between(72, 100) // 100, stream.below(1024)
    mx, my = sketch.frame.middle
    cx, cy = mx + stream.between(-110, 110), my + stream.between(-60, 60)
    shape = radial(sketch.frame, cx, cy, r, ry, turn) + texture(sketch.frame, stream.lattice(7, 7, 900), r)
    rough = stream.lattice(13, 13, 3400)
    if margin == "ragged":
        shape = roughened(shape, texture(sketch.frame, rough, max(20, r * 4 // 10)))
    lift = stream.between(-34, 20)
    tone = np.asarray([channel + lift + stream.between(-7, 7) for channel in _LESION])
    mottle = FULL + texture(sketch.frame, stream.lattice(11, 11, 80), 80) - (EDGE - np.minimum(shape, EDGE)) // 70
    cover = opacity(shape, 1400 if margin == "ragged" else 2600) * (236 if contrast == "strong" else 128) // FULL
    lay(sketch.image, sketch.frame, cover, tone * mottle[..., None] // FULL)
    sketch.add("lesion", shape <= EDGE, size=size, contrast=contrast, margin=margin)
    return cx, cy, r * 8 // 10, ry * 8 // 10


def _draw_globules(sketch: Sketch, stream: Stream, lesion: tuple[int, int, int, int], scale_pct: int) -> None:
    for _ in range(stream.between(3, 7)):
        size = stream.pick(("small", "large"))
        r = (stream.between(17, 22) if size == "small" else stream.between(30, 38)) * scale_pct // 100
        lift = stream.between(-10, 26)
        tone = [channel + lift for channel in _GLOBULE]
        at = sketch.place(stream, lesion, r, gap=8)
        if at is not None:
            part = sketch.frame.near(*at, 2 * r)
            shape = radial(part, *at, r, r)
            lay(sketch.image, part, opacity(shape, 1800) * 226 // FULL, tone)
            sketch.add("globule", part.whole(shape <= EDGE), size=size)


def _draw_mark(sketch: Sketch, stream: Stream, name: str, where: tuple[int, int, int, int], scale_pct: int) -> None:
    size, contrast = stream.pick(("small", "large")), stream.pick(("faint", "strong"))
    r = (stream.between(36, 46) if size == "small" else stream.between(74, 96)) * scale_pct // 100
    turn, flat, nodes = stream.below(1024), stream.between(60, 100), stream.lattice(9, 9, 3000)
    bends = [(stream.pick((-1, 1)), stream.between(30, 60)) for _ in range(3)]
    reach = stream.between(34, 60), stream.between(-30, 30)
    at = sketch.place(stream, where, r)
    if at is None:
        return
    cover = 230 if contrast == "strong" else 124
    if name == "vessel":
        # a thin thread that winds: an arc, and one back
        tip = at[0] + reach[0] * r // 28, at[1] + reach[1] * r // 28
        middle = (at[0] + tip[0]) // 2, (at[1] + tip[1]) // 2
        points = bow(at, middle, bends[0][0] * bends[0][1], 3) + bow(middle, tip, -bends[0][0] * bends[1][1], 3)[1:]
        mask = stroke(sketch.frame, points, [9] * 6)
        lay(sketch.image, sketch.frame, mask * cover, _VESSEL)
        sketch.add(name, mask, size=size, contrast=contrast)
        return
    part = sketch.frame.near(*at, 2 * r)
    shape = roughened(radial(part, *at, r, r * flat // 100, turn), texture(part, nodes, max(8, r * 6 // 10)))
    if name == "haemorrhage":
        lay(sketch.image, part, opacity(shape, 1300) * cover // FULL, _BLOOD)
    else:
        lay(sketch.image, part, opacity(shape, 1100) * cover // FULL, _RAW)
        crust = opacity(shape * 2 + texture(part, nodes[::-1], max(8, r // 3)), 2500)
        lay(sketch.image, part, crust * cover // FULL * 200 // FULL, _CRUST)
    sketch.add(name, part.whole(shape <= EDGE), size=size, contrast=contrast)


def _draw_hair(sketch: Sketch, stream: Stream) -> None:
    """One hair across the picture, from one side towards another."""
    width, height = sketch.frame.middle[0] * 2, sketch.frame.middle[1] * 2
    start = stream.pick(((stream.below(width), -20), (-20, stream.below(height))))
    end = start[0] + stream.between(150, 620), start[1] + stream.between(120, 560)
    contrast = stream.pick(("faint", "strong"))
    mask = stroke(sketch.frame, bow(start, end, stream.between(-22, 22), 6), [9, 9, 9, 9, 8, 8])
    lay(sketch.image, sketch.frame, mask * (220 if contrast == "strong" else 130), _HAIR)
    sketch.add("hair", mask, contrast=contrast)
