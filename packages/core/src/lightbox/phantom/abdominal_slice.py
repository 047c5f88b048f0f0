"""One axial slice of the upper abdomen as a scene: what CT and MR draw, each in its own tones.

Image left is the patient's right. The slice lies at a drawn height, so that liver, spleen and kidneys are there or not.
"""

from dataclasses import dataclass, replace

import numpy as np

from lightbox.phantom.canvas import EDGE, Frame, Stream, radial, roughened, texture

ORGANS = ("liver", "spleen", "kidney")
# which organs a slice shows, by its height from the dome of the liver down
_LEVELS = (("liver", "spleen"), ("liver", "spleen", "kidney"), ("liver", "kidney"), ("kidney",), ("spleen", "kidney"))


@dataclass(frozen=True)
class Organ:
    """An organ of the slice: `distance` as of `canvas.radial`, `home` an upright ellipse well inside it."""

    name: str
    distance: np.ndarray
    home: tuple[int, int, int, int]


@dataclass(frozen=True)
class Lesion:
    """A lesion to be placed: `radius` in world units, `nodes` of its texture and outline."""

    name: str
    size: str
    contrast: str
    margin: str
    radius: int
    flat_pct: int
    turn: int
    nodes: np.ndarray

    @property
    def attributes(self) -> dict[str, str]:
        """What a record says of it; a margin is told of a large tumour alone, where it shows."""
        margin = {"margin": self.margin} if self.name == "tumour" and self.size == "large" else {}
        return {"size": self.size, "contrast": self.contrast, **margin}

    def distance(self, part: Frame, at: tuple[int, int]) -> np.ndarray:
        """As of `canvas.radial`, with the margin of a tumour."""
        shape = radial(part, *at, self.radius, self.radius * self.flat_pct // 100, self.turn)
        if self.attributes.get("margin") == "ragged":
            shape = roughened(shape, texture(part, self.nodes, max(8, self.radius * 6 // 10)))
        return shape


@dataclass(frozen=True)
class AbdominalSlice:
    """A scene: its distances are as of `canvas.radial`, and its organs.

    `body` is of the skin, `wall` of the inner side of the fat, `cavity` of the inner side of the muscle, `spine` of a
    vertebra with its `canal`, `aorta` of the vessel before it.
    """

    body: np.ndarray
    wall: np.ndarray
    cavity: np.ndarray
    spine: np.ndarray
    canal: np.ndarray
    aorta: np.ndarray
    organs: tuple[Organ, ...]


def draw_slice(stream: Stream, frame: Frame) -> AbdominalSlice:
    """Draw the anatomy of one slice into the middle of a frame at least 768 world units high."""
    mx, my = frame.middle
    rx, ry, fat = stream.between(420, 468), stream.between(296, 330), stream.between(26, 60)
    bent = texture(frame, stream.lattice(5, 5, 240), 260)
    body, wall, cavity = (
        radial(frame, mx, my, rx - inset, ry - inset) + bent for inset in (0, fat, fat + stream.between(24, 34))
    )
    spine_y = my + ry * 52 // 100
    organs = []
    for name in stream.pick(_LEVELS):
        for side in (-1, 1) if name == "kidney" else (0,):
            organs.append(_organ(stream, frame, name, side, (mx, my, rx, ry)))
    for kidney in [organ for organ in organs if organ.name == "kidney"]:  # the others make room for it
        organs = [
            organ if organ.name == "kidney" else replace(organ, distance=np.maximum(organ.distance, room))
            for room in (2 * EDGE + 300 - kidney.distance,)
            for organ in organs
        ]
    return AbdominalSlice(
        body=body,
        wall=wall,
        cavity=cavity,
        spine=radial(frame, mx, spine_y, 66, 56),
        canal=radial(frame, mx, spine_y + 62, 26, 22),
        aorta=radial(frame, mx + 26, spine_y - 92, 30, 30),
        organs=tuple(organs),
    )


def _organ(stream: Stream, frame: Frame, name: str, side: int, body: tuple[int, int, int, int]) -> Organ:
    mx, my, rx, ry = body
    bent = texture(frame, stream.lattice(6, 6, 620), 150)
    dx, dy = stream.between(-12, 12), stream.between(-12, 12)
    if name == "liver":
        cx, cy, ax, ay = mx - rx * 40 // 100 + dx, my - ry * 16 // 100 + dy, rx * 42 // 100, ry * 60 // 100
        lobe = radial(frame, mx - 20, my - ry * 42 // 100, rx * 34 // 100, ry * 26 // 100, 40)  # across the midline
        distance = np.minimum(radial(frame, cx, cy, ax, ay, -30), lobe) + bent
        return Organ(name, distance, (cx, cy, ax * 86 // 100, ay * 82 // 100))
    if name == "spleen":
        cx, cy, ax, ay = mx + rx * 64 // 100 + dx, my + ry * 12 // 100 + dy, rx * 18 // 100, ry * 42 // 100
        return Organ(name, radial(frame, cx, cy, ax, ay, 40) + bent, (cx, cy, ax * 86 // 100, ay * 86 // 100))
    cx, cy = mx + side * rx * 43 // 100 + dx, my + ry * 42 // 100 + dy
    ax, ay = rx * stream.between(17, 20) // 100, ry * stream.between(27, 32) // 100
    return Organ(name, radial(frame, cx, cy, ax, ay, side * 80) + bent // 3, (cx, cy, ax, ay))


def draw_lesion(stream: Stream, name: str, scale_pct: int) -> Lesion:
    """Draw what a lesion is, not yet where: the same number of draws whatever comes of it."""
    size, contrast = stream.pick(("small", "large")), stream.pick(("faint", "strong"))
    low, high = {"stone": ((15, 19), (26, 34))}.get(name, ((24, 32), (50, 66)))[size == "large"]
    return Lesion(
        name,
        size,
        contrast,
        stream.pick(("smooth", "ragged")),
        stream.between(low, high) * scale_pct // 100,
        stream.between(78, 100),
        stream.below(1024),
        stream.lattice(9, 9, 3000),
    )


def inside(distance: np.ndarray) -> np.ndarray:
    """True within the outline of a distance as of `canvas.radial`."""
    return distance <= EDGE
