"""Axial CT of the upper abdomen in a soft-tissue window: organs, and cysts, tumours and stones in them.

A tumour is darker or brighter than its organ, a cyst darker; a stone is as bright as bone, of which there is more.
"""

import numpy as np

from lightbox.phantom.abdominal_slice import Lesion, Organ, draw_lesion, draw_slice, inside
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
    sine,
    soften,
    texture,
)

EIGHTHS = (8, 8)
CLASSES = ("liver", "spleen", "kidney", "cyst", "tumour", "stone")
_AIR, _FAT, _MUSCLE, _BOWEL, _BONE, _AORTA = 6, 58, 104, 96, 214, 166
_LEVEL = {"liver": 124, "spleen": 136, "kidney": 150}


def draw_ct(stream: Stream, frame: Frame, knobs: PictureKnobs) -> Sketch:
    """Draw one picture: image int64 (h, w), findings with masks."""
    scene = draw_slice(stream, frame)
    image = np.full(frame.shape, _AIR, dtype=np.int64)
    mx, my = frame.middle
    couch = radial(frame, mx, my - 260, 640, 640)  # an arc under the back
    image[(couch > 3900) & (couch < 4400) & (frame.y > my + 280)] = 70
    for distance, level in ((scene.body, _FAT), (scene.wall, _MUSCLE), (scene.cavity, _FAT - 8)):
        lay(image, frame, opacity(distance, 500), level)
    bowel = texture(frame, stream.lattice(9, 9, 60), 84)
    lay(image, frame, inside(scene.cavity) & (bowel > 4), _BOWEL + texture(frame, stream.lattice(8, 8, 10), 60))
    image[inside(scene.cavity) & (bowel > 42)] = 22  # gas
    sketch = Sketch(frame, image)
    gain = stream.between(94, 106)
    for organ in scene.organs:
        _draw_organ(sketch, stream, organ)
    _draw_bones(sketch, stream)
    lay(image, frame, opacity(scene.aorta, 1200), _AORTA)
    for distance, level in ((scene.spine, _BONE), (scene.canal, 116)):
        lay(image, frame, opacity(distance, 900), level)
    for name in stream.shuffled(("cyst", "cyst", "tumour", "tumour", "stone", "stone"))[: stream.below(5)]:
        lesion = draw_lesion(stream, name, knobs.finding_scale_pct)
        _draw_lesion(sketch, stream, lesion, stream.pick(scene.organs), is_bright=stream.chance(35))
    noise = soften(grain(stream, frame.shape).astype(np.int64) * 3, centre=4) * knobs.noise_pct // 100
    sketch.image = np.clip(soften(sketch.image) * gain // 100 + noise, 0, 255)
    return sketch


def _draw_organ(sketch: Sketch, stream: Stream, organ: Organ) -> None:
    level = _LEVEL[organ.name] + stream.between(-7, 7)
    lay(sketch.image, sketch.frame, opacity(organ.distance, 700), level)
    if organ.name == "kidney":  # the rim takes up more contrast medium than the core
        cx, cy, ax, ay = organ.home
        core = radial(sketch.frame, cx, cy, ax * 6 // 10, ay * 6 // 10)
        lay(sketch.image, sketch.frame, opacity(core, 2500) * 200 // FULL, level - stream.between(22, 46))
    if organ.name == "liver":  # veins, faintly brighter
        veins = abs(texture(sketch.frame, stream.lattice(9, 9, 100), 110)) < 7
        lay(sketch.image, sketch.frame, (veins & inside(organ.distance)) * 120, level + 30)
    sketch.add(organ.name, inside(organ.distance))


def _draw_bones(sketch: Sketch, stream: Stream) -> None:
    """Ribs, cut across, around the wall."""
    mx, my = sketch.frame.middle
    for k in range(10):
        angle = 90 + 84 * k + stream.between(-16, 16)
        x, y = mx + sine(angle) * 390 // 1024, my - cosine(angle) * 268 // 1024
        part = sketch.frame.near(x, y, 40)
        lay(sketch.image, part, opacity(radial(part, x, y, 30, 11, 256 - angle), 1500) * 220 // FULL, _BONE)


def _draw_lesion(sketch: Sketch, stream: Stream, lesion: Lesion, organ: Organ, *, is_bright: bool) -> None:
    at = sketch.place(stream, organ.home, lesion.radius)
    if at is None:
        return
    part = sketch.frame.near(*at, 2 * lesion.radius)
    distance, is_strong = lesion.distance(part, at), lesion.contrast == "strong"
    under = sketch.image[part.rows, part.cols]
    if lesion.name == "stone":
        tone = 228 if is_strong else 184
    elif lesion.name == "cyst":
        tone = 74 if is_strong else 96  # fluid: the same all over
    else:
        shift = (46 if is_strong else 24) * (1 if is_bright else -1)
        tone = under + shift + texture(part, lesion.nodes[::-1], 26) // 190
    shape = np.maximum(distance, np.where(inside(organ.distance[part.rows, part.cols]), 0, 4 * EDGE))
    lay(sketch.image, part, opacity(shape, 800), tone)
    sketch.add(lesion.name, part.whole(inside(shape)), **lesion.attributes)
