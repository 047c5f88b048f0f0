"""PET of the body, seen from the front, dark where the tracer went: brain, heart, liver, kidneys, bladder, tumours.

Uptake varies from case to case (a fasting heart takes up none), so that a tumour is told by where it lies, and by what
does not belong there. The scan shows the whole body or a part of it.
"""

import numpy as np

from lightbox.phantom.canvas import (
    EDGE,
    FULL,
    Frame,
    PictureKnobs,
    Sketch,
    Stream,
    grain,
    lay,
    opacity,
    radial,
    roughened,
    soften,
    texture,
)

EIGHTHS = (8, 5)
CLASSES = ("brain", "heart", "liver", "kidney", "bladder", "tumour")
_PAPER = 246
# how far down the scan begins, and its enlargement in percent
_SCANS = {"whole body": (0, 100), "neck to thigh": (215, 124), "head to liver": (10, 158), "legs": (565, 165)}
# centre and radii of where a tumour may lie, as of a body 1024 high whose middle is 0
_SITES = ((0, 205, 55, 34), (-75, 330, 62, 76), (75, 330, 62, 76), (0, 590, 92, 110), (-52, 820, 40, 110),
          (52, 820, 40, 110), (-70, 480, 64, 40))  # fmt: skip


class _Body:
    """Where the body lies on the frame: maps a place and radii of the body to the frame's."""

    def __init__(self, frame: Frame, top: int, zoom_pct: int, aside: int) -> None:
        self.frame, self.top, self.zoom_pct = frame, top, zoom_pct
        self.middle = frame.middle[0] + aside

    def at(self, x: int, y: int, *radii: int) -> tuple[int, ...]:
        """Frame coordinates of a point of the body, then radii in the frame's units."""
        scaled = (max(8, r * self.zoom_pct // 100) for r in radii)
        return self.middle + x * self.zoom_pct // 100, (y - self.top) * self.zoom_pct // 100, *scaled

    def oval(self, x: int, y: int, rx: int, ry: int, turn: int = 0) -> np.ndarray:
        """`canvas.radial` of an ellipse of the body."""
        return radial(self.frame, *self.at(x, y, rx, ry), turn)


def draw_pet(stream: Stream, frame: Frame, knobs: PictureKnobs) -> Sketch:
    """Draw one picture: image int64 (h, w), dark is uptake; findings with masks."""
    body = _Body(frame, *_SCANS[stream.pick(tuple(_SCANS))], stream.between(-14, 14))
    uptake = np.zeros(frame.shape, dtype=np.int64)
    sketch = Sketch(frame, uptake)
    _draw_frame(sketch, stream, body)
    if body.top < 100:
        _draw_organ(sketch, stream, "brain", body.oval(0, 78, 62, 74), stream.between(150, 215))
    if stream.chance(60):
        _draw_heart(sketch, stream, body)
    liver = np.minimum(body.oval(-58, 480, 88, 58, 30), body.oval(10, 462, 70, 34))
    _draw_organ(sketch, stream, "liver", liver, stream.between(58, 104))
    if stream.chance(75):
        for side in (-1, 1):
            at = side * 78 + stream.between(-6, 6), 588 + stream.between(-10, 10)
            _draw_organ(sketch, stream, "kidney", body.oval(*at, 28, 46, side * 60), stream.between(78, 180))
    if stream.chance(85):
        full = stream.between(28, 46)
        _draw_organ(sketch, stream, "bladder", body.oval(0, 742, full, full * 8 // 10), stream.between(130, 235))
    for _ in range(stream.below(5)):
        _draw_tumour(sketch, stream, body, knobs.finding_scale_pct)
    uptake = soften(sketch.image, 2, centre=2)  # a scanner resolves little
    # counts: where more decays, more varies
    noise = grain(stream, frame.shape) * (26 + uptake // 3) * knobs.noise_pct // 6400
    sketch.image = np.clip(_PAPER - uptake - noise, 0, 255)
    return sketch


def _draw_frame(sketch: Sketch, stream: Stream, body: _Body) -> None:
    """The outline of head, trunk, arms and legs: a little uptake everywhere, more in marrow and bowel."""
    level = stream.between(16, 30)
    parts = [(0, 90, 74, 92), (0, 200, 42, 50), (0, 400, 158, 200), (0, 620, 146, 180), (-62, 880, 66, 220)]
    parts += [(62, 880, 66, 220), (-196, 440, 32, 220), (196, 440, 32, 220)]
    nearest = body.oval(*parts[0])
    for part in parts[1:]:
        nearest = np.minimum(nearest, body.oval(*part))
    lay(sketch.image, sketch.frame, opacity(nearest, 700), level + texture(sketch.frame, stream.lattice(12, 8, 6), 90))
    for lung in (-76, 76):
        lay(sketch.image, sketch.frame, opacity(body.oval(lung, 330, 58, 92), 1500) * 150 // FULL, level // 3)
    for y in range(250, 760, 34):  # vertebrae
        lay(sketch.image, sketch.frame, opacity(body.oval(0, y, 17, 11), 2500) * 100 // FULL, level + 34)
    bowel = texture(sketch.frame, stream.lattice(12, 9, 60), 46)
    lay(sketch.image, sketch.frame, (bowel > 14) & (body.oval(0, 640, 104, 84) <= EDGE), level + bowel // 2)


def _draw_organ(sketch: Sketch, stream: Stream, name: str, distance: np.ndarray, level: int) -> None:
    distance = distance + texture(sketch.frame, stream.lattice(6, 6, 500), 70)
    inside = opacity(distance, 1100)
    lay(sketch.image, sketch.frame, inside, level + texture(sketch.frame, stream.lattice(9, 9, level // 8), 48))
    sketch.add(name, distance <= EDGE)


def _draw_heart(sketch: Sketch, stream: Stream, body: _Body) -> None:
    """The wall of the left ventricle, a ring open towards the valves."""
    level, r = stream.between(70, 200), stream.between(42, 52)
    outer, hole = body.oval(42, 386, r, r), body.oval(30, 374, r // 2 + 2, r // 2 + 4)
    wall = np.maximum(outer, 2 * EDGE - hole)
    lay(sketch.image, sketch.frame, opacity(wall, 1500), level)
    sketch.keep_clear(*body.at(42, 386, r))
    sketch.add("heart", wall <= EDGE)


def _draw_tumour(sketch: Sketch, stream: Stream, body: _Body, scale_pct: int) -> None:
    size, contrast = stream.pick(("small", "large")), stream.pick(("faint", "strong"))
    r = (stream.between(13, 17) if size == "small" else stream.between(27, 36)) * scale_pct // 100
    level = stream.between(64, 96) if contrast == "faint" else stream.between(150, 220)
    flat, turn, nodes = stream.between(74, 100), stream.below(1024), stream.lattice(9, 9, 1800)
    x, y, rx, ry = stream.pick(_SITES)
    at = sketch.place(stream, body.at(x, y, rx, ry), max(8, r * body.zoom_pct // 100))
    if at is None:
        return
    r = max(8, r * body.zoom_pct // 100)
    part = sketch.frame.near(*at, 2 * r)
    shape = roughened(radial(part, *at, r, max(8, r * flat // 100), turn), texture(part, nodes, max(8, r * 7 // 10)))
    under = sketch.image[part.rows, part.cols]
    lay(sketch.image, part, opacity(shape, 1200), np.maximum(level, under + level // 3))  # it adds to what is there
    sketch.add("tumour", part.whole(shape <= EDGE), size=size, contrast=contrast)
