"""MR of the upper abdomen: the slices of CT in other tones, wider than high, under a coil that shades them.

The weighting is drawn: fluid is bright in one and dark in the other, and so are cysts; fat, muscle and organs change
too. So a grey value means nothing by itself.
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
    bow,
    grain,
    lay,
    opacity,
    radial,
    soften,
    stroke,
    texture,
)

EIGHTHS = (6, 8)
CLASSES = ("liver", "spleen", "kidney", "cyst", "tumour", "vessel")
# grey levels of either weighting; kidney is its rim, core what lies within
_TONES = {
    "fluid is bright": {
        "fat": 176, "muscle": 44, "bowel": 92, "marrow": 96, "fluid": 236, "blood": 16,
        "liver": 78, "spleen": 138, "kidney": 128, "core": 176, "tumour": 34,
    },
    "fluid is dark": {
        "fat": 214, "muscle": 78, "bowel": 96, "marrow": 138, "fluid": 34, "blood": 30,
        "liver": 138, "spleen": 96, "kidney": 122, "core": 84, "tumour": -34,
    },
}  # fmt: skip


def draw_mr(stream: Stream, frame: Frame, knobs: PictureKnobs) -> Sketch:
    """Draw one picture: image int64 (h, w), findings with masks."""
    tones = _TONES[stream.pick(tuple(_TONES))]
    scene = draw_slice(stream, frame)
    image = np.full(frame.shape, 4, dtype=np.int64)
    for distance, level in ((scene.body, tones["fat"]), (scene.wall, tones["muscle"]), (scene.cavity, tones["fat"])):
        lay(image, frame, opacity(distance, 500), level)
    bowel = texture(frame, stream.lattice(9, 9, 60), 84)
    lay(image, frame, inside(scene.cavity) & (bowel > -8), tones["bowel"] + bowel // 2)
    sketch = Sketch(frame, image)
    for organ in scene.organs:
        _draw_organ(sketch, stream, organ, tones)
    for distance, level in ((scene.spine, "marrow"), (scene.canal, "fluid"), (scene.aorta, "blood")):
        lay(image, frame, opacity(distance, 900), tones[level])
    liver = next((organ for organ in scene.organs if organ.name == "liver"), None)
    for _ in range(stream.below(3) if liver else 0):
        _draw_vessel(sketch, stream, liver, tones)
    for name in stream.shuffled(("cyst", "cyst", "tumour", "tumour"))[: stream.below(4)]:
        lesion = draw_lesion(stream, name, knobs.finding_scale_pct)
        _draw_lesion(sketch, stream, lesion, stream.pick(scene.organs), tones)
    coil = FULL + texture(frame, stream.lattice(4, 4, 80), 420)  # brighter near the coil
    # magnitudes of noise: where there is no signal it cannot go below zero
    noise = grain(stream, frame.shape) * knobs.noise_pct // 100
    sketch.image = np.clip(abs(soften(sketch.image) * coil // FULL + noise), 0, 255)
    return sketch


def _draw_organ(sketch: Sketch, stream: Stream, organ: Organ, tones: dict[str, int]) -> None:
    lay(sketch.image, sketch.frame, opacity(organ.distance, 700), tones[organ.name] + stream.between(-9, 9))
    if organ.name == "kidney":
        cx, cy, ax, ay = organ.home
        core = radial(sketch.frame, cx, cy, ax * 6 // 10, ay * 6 // 10)
        lay(sketch.image, sketch.frame, opacity(core, 2500), tones["core"])
    sketch.add(organ.name, inside(organ.distance))


def _draw_vessel(sketch: Sketch, stream: Stream, liver: Organ, tones: dict[str, int]) -> None:
    """A vein of the liver; flowing blood gives no signal."""
    cx, cy, rx, ry = liver.home
    start = cx + stream.between(-rx, rx) // 2, cy + stream.between(-ry, ry) // 2
    end = start[0] + stream.pick((-1, 1)) * stream.between(80, 170), start[1] + stream.between(-90, 90)
    points = bow(start, end, stream.between(-20, 20), 4)
    mask = stroke(sketch.frame, points, [stream.between(10, 14)] * 4) & inside(liver.distance)
    lay(sketch.image, sketch.frame, mask * 230, tones["blood"])
    for x, y in points[::2]:
        sketch.keep_clear(x, y, 12)
    sketch.add("vessel", mask)


def _draw_lesion(sketch: Sketch, stream: Stream, lesion: Lesion, organ: Organ, tones: dict[str, int]) -> None:
    at = sketch.place(stream, organ.home, lesion.radius)
    if at is None:
        return
    part = sketch.frame.near(*at, 2 * lesion.radius)
    distance, is_strong = lesion.distance(part, at), lesion.contrast == "strong"
    organ_distance = organ.distance[part.rows, part.cols]
    under = sketch.image[part.rows, part.cols]
    if lesion.name == "cyst":
        tone = under + (tones["fluid"] - under) * (FULL if is_strong else 120) // FULL
    else:  # halfway to fluid, and uneven
        tone = under + tones["tumour"] * (6 if is_strong else 3) // 5 + texture(part, lesion.nodes[::-1], 26) // 170
    shape = np.maximum(distance, np.where(organ_distance <= EDGE, 0, 4 * EDGE))
    lay(sketch.image, part, opacity(shape, 800), tone)
    sketch.add(lesion.name, part.whole(inside(shape)), **lesion.attributes)
