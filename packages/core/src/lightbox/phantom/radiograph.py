"""The chest radiograph of `chest` with its anatomy: lungs and heart are named and masked beside the findings.

Picture and findings are those that the chest world draws from the same seed; its draws are not repeated here.
"""

import numpy as np

from lightbox.phantom.canvas import Frame, PictureKnobs, Sketch, Stream
from lightbox.phantom.chest import render_chest
from lightbox.phantom.knobs import Knobs
from lightbox.phantom.ontology import CLASS_NAMES
from lightbox.phantom.ontology import CLASSES as NAMED
from lightbox.phantom.scene import draw_scene
from lightbox.phantom.world import fact_tables

EIGHTHS = (8, 8)
CLASSES = ("lung", "heart", *CLASS_NAMES)
_HALF_COLUMN = 62
"""Half the width of the mediastinum, which hides the inner part of either lung."""
_SIZED = {c.name for c in NAMED if len(c.sizes) == 2}  # the name of the others says their size


def draw_radiograph(stream: Stream, frame: Frame, knobs: PictureKnobs) -> Sketch:
    """Draw one picture: image int64 (h, w), anatomy and findings with masks."""
    world = Knobs(image_px=knobs.image_px, lesion_scale_pct=knobs.finding_scale_pct)
    scene = draw_scene([stream.case_seed], world)
    scene.tone[:, 5] = scene.tone[:, 5] * knobs.noise_pct // 100
    pixels, masks = render_chest(scene, world)
    sketch = Sketch(frame, pixels[0].astype(np.int64))
    heart = _ellipse(frame, scene.heart[0])
    middle = (scene.lung[0, 0, 0] + scene.lung[0, 1, 0]) // 2
    hidden = heart | (abs(frame.x - middle) < _HALF_COLUMN)
    for side, lung in zip(("right", "left"), scene.lung[0], strict=True):  # the patient's: right is on image left
        sketch.add("lung", _ellipse(frame, lung) & ~hidden, side=side)
    sketch.add("heart", heart)
    ((facts, order),) = fact_tables(scene)
    for fact, row in zip(facts.findings, order, strict=True):
        size = {"size": fact.size} if fact.name in _SIZED else {}
        sketch.add(fact.name, masks[row], side=fact.side, **size)
    return sketch


def _ellipse(frame: Frame, ellipse: np.ndarray) -> np.ndarray:
    """True inside cx, cy, rx, ry, on the same pixels as `chest` draws it."""
    cx, cy, rx, ry = (int(value) for value in ellipse)
    return (frame.x - cx) ** 2 * 4096 // rx**2 + (frame.y - cy) ** 2 * 4096 // ry**2 <= 4096
