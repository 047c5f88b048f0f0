"""Blood smear under the microscope: red cells with their pale middle, white cells, platelets, and malaria parasites.

Nuclei, platelets and parasites take the same purple stain; where they lie and their form tell them apart. In a thick
film the red cells have burst and do not show.
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
    texture,
)

EIGHTHS = (6, 8)
CLASSES = ("red cell", "white cell", "platelet", "parasite")
_GROUND, _RED, _PALE = (236, 226, 218), (212, 138, 130), (232, 196, 186)
_PLASM, _NUCLEUS, _PLATELET, _PARASITE = (188, 174, 206), (94, 54, 138), (146, 98, 160), (104, 52, 128)


def draw_microscopy(stream: Stream, frame: Frame, knobs: PictureKnobs) -> Sketch:
    """Draw one picture: image int64 (h, w, 3), findings with masks."""
    shift = stream.between(-14, 10), stream.between(-10, 10), stream.between(-12, 10)  # of the stain
    light = FULL + texture(frame, stream.lattice(5, 6, 12), 280) + texture(frame, stream.lattice(11, 11, 5), 60)
    sketch = Sketch(frame, np.asarray(_GROUND) * light[..., None] // FULL)
    scale = knobs.finding_scale_pct
    is_thick = stream.chance(22)
    mx, my = frame.middle
    whole = mx, my, mx + 330, my + 250  # an ellipse that holds the corners too
    for _ in range(stream.pick((0, 0, 1, 1, 2))):
        _draw_white_cell(sketch, stream, whole, scale)
    if is_thick:
        mottle = texture(frame, stream.lattice(9, 11, 70), 118) + texture(frame, stream.lattice(13, 15, 60), 52)
        lay(sketch.image, frame, np.clip(mottle + 34, 0, 96), _RED)  # what is left of burst cells
    hosts = [] if is_thick else _draw_red_cells(sketch, stream, whole, scale)
    for _ in range(stream.below(4) if stream.chance(70) else 0):
        _draw_platelet(sketch, stream, whole, scale)
    if stream.chance(55):
        spots = stream.shuffled(hosts)[: stream.between(1, 4)] if hosts else [None] * stream.between(1, 4)
        for host in spots:
            _draw_parasite(sketch, stream, host, whole, scale)
    noise = grain(stream, sketch.image.shape) * knobs.noise_pct * 5 // 1000
    sketch.image = np.clip(soften(sketch.image) + np.asarray(shift) + noise, 0, 255)
    return sketch


def _draw_red_cells(
    sketch: Sketch, stream: Stream, whole: tuple[int, int, int, int], scale_pct: int
) -> list[tuple[int, int, int]]:
    """Discs with a pale middle; centre and radius of each."""
    cells = []
    for _ in range(stream.between(14, 40)):
        size, contrast = stream.pick(("small", "large")), stream.pick(("faint", "strong"))
        r = (stream.between(50, 58) if size == "small" else stream.between(74, 84)) * scale_pct // 100
        ry, turn = r * stream.between(86, 100) // 100, stream.below(1024)
        at = sketch.place(stream, whole, r, gap=4, attempts=6)
        if at is None:
            continue
        part = sketch.frame.near(*at, r + 20)
        shape = radial(part, *at, r, ry, turn)
        cover = 236 if contrast == "strong" else 118  # a pale cell holds little haemoglobin
        lay(sketch.image, part, opacity(shape, 900) * cover // FULL, _RED)
        lay(sketch.image, part, opacity(shape * 6, 7000) * (130 if contrast == "strong" else 200) // FULL, _PALE)
        sketch.add("red cell", part.whole(shape <= EDGE), size=size, contrast=contrast)
        cells.append((*at, r))
    return cells


def _draw_white_cell(sketch: Sketch, stream: Stream, whole: tuple[int, int, int, int], scale_pct: int) -> None:
    size = stream.pick(("small", "large"))
    r = (stream.between(88, 100) if size == "small" else stream.between(126, 142)) * scale_pct // 100
    lobes = stream.pick((1, 1, 2, 3, 4))
    first, nodes = stream.below(1024), stream.lattice(7, 7, 900)
    jitter = [stream.between(-40, 40) for _ in range(lobes)]
    cx, cy, rx, ry = whole
    at = sketch.place(stream, (cx, cy, rx - 120, ry - 90), r, gap=6)
    if at is None:
        return
    part = sketch.frame.near(*at, r + 30)
    shape = roughened(radial(part, *at, r, r), texture(part, nodes, r))
    lay(sketch.image, part, opacity(shape, 900) * 220 // FULL, _PLASM)
    if lobes == 1:
        nucleus = radial(part, at[0] + jitter[0] * r // 300, at[1], r * 74 // 100, r * 70 // 100)
    else:
        nucleus = np.full(shape.shape, 9 * EDGE, dtype=np.int64)
        for k in range(lobes):  # on an arc, so that the lobes hang together
            angle = first + 210 * k + jitter[k]
            x, y = at[0] + cosine(angle) * r * 44 // 102_400, at[1] + sine(angle) * r * 44 // 102_400
            nucleus = np.minimum(nucleus, radial(part, x, y, r * 37 // 100, r * 33 // 100, angle))
    grainy = np.asarray(_NUCLEUS) + texture(part, nodes[::-1], 30)[..., None] // 60
    lay(sketch.image, part, opacity(nucleus, 1300) * 240 // FULL, grainy)
    sketch.add("white cell", part.whole(shape <= EDGE), size=size)


def _draw_platelet(sketch: Sketch, stream: Stream, whole: tuple[int, int, int, int], scale_pct: int) -> None:
    size, contrast = stream.pick(("small", "large")), stream.pick(("faint", "strong"))
    r = (stream.between(18, 22) if size == "small" else stream.between(32, 40)) * scale_pct // 100
    turn, nodes = stream.below(1024), stream.lattice(7, 7, 2400)
    at = sketch.place(stream, whole, r, gap=6)
    if at is None:
        return
    part = sketch.frame.near(*at, 2 * r)
    shape = roughened(radial(part, *at, r, r * 8 // 10, turn), texture(part, nodes, max(8, r * 7 // 10)))
    lay(sketch.image, part, opacity(shape, 1600) * (230 if contrast == "strong" else 130) // FULL, _PLATELET)
    sketch.add("platelet", part.whole(shape <= EDGE), size=size, contrast=contrast)


def _draw_parasite(
    sketch: Sketch,
    stream: Stream,
    host: tuple[int, int, int] | None,
    whole: tuple[int, int, int, int],
    scale_pct: int,
) -> None:
    """A ring with a dark dot at its rim, inside a red cell, or free in a thick film where `host` is None."""
    size, contrast = stream.pick(("small", "large")), stream.pick(("faint", "strong"))
    r = (stream.between(22, 26) if size == "small" else stream.between(34, 40)) * scale_pct // 100
    angle, aside = stream.below(1024), stream.between(20, 50)
    if host is None:
        at = sketch.place(stream, whole, r, gap=6)
        if at is None:
            return
    else:
        r = min(r, host[2] * 6 // 10)
        out = (host[2] - r) * aside // 100
        at = host[0] + cosine(angle) * out // 1024, host[1] + sine(angle) * out // 1024
    part = sketch.frame.near(*at, 2 * r)
    shape = radial(part, *at, r, r)
    cover = 235 if contrast == "strong" else 140
    ring = opacity(np.maximum(shape, 2 * EDGE - shape * 4), 2200)
    lay(sketch.image, part, ring * cover // FULL, _PARASITE)
    x, y = at[0] + cosine(angle * 3) * r * 7 // 10_240, at[1] + sine(angle * 3) * r * 7 // 10_240
    dot = radial(part, x, y, max(9, r * 4 // 10), max(9, r * 4 // 10))
    lay(sketch.image, part, opacity(dot, 1800) * cover // FULL, (70, 20, 84))
    sketch.add("parasite", part.whole((shape <= EDGE) | (dot <= EDGE)), size=size, contrast=contrast)
