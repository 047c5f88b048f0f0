"""Fundus photograph: a round colour picture of the retina with optic disc and cup, macula, vessels and two findings.

Disc, cup and exudate are yellow, macula, vessel and haemorrhage dark red: form and place tell them apart. The field may
be centred so that disc or macula lies outside it, and a hazy eye hides its vessels.
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

EIGHTHS = (8, 8)
CLASSES = ("optic disc", "optic cup", "macula", "vessel", "exudate", "haemorrhage")
_RETINA, _DISC, _CUP, _EXUDATE = (188, 92, 44), (236, 178, 104), (250, 222, 168), (242, 204, 112)
_MACULA, _VEIN, _ARTERY, _BLOOD = (112, 40, 22), (112, 26, 18), (146, 44, 28), (98, 16, 14)
_RADIUS = 484
# where the disc lies against the middle of the field, and how far the macula lies from the disc, in world units
_FIELDS = {"posterior": (-190, 50), "disc": (-20, 25), "temporal": (-420, 0), "peripheral": (-760, 20)}
_TO_MACULA = 330


def draw_fundus(stream: Stream, frame: Frame, knobs: PictureKnobs) -> Sketch:
    """Draw one picture: image int64 (h, w, 3), findings with masks inside the round field."""
    field = stream.pick(("posterior", "posterior", "disc", "temporal", "peripheral"))
    facing, is_hazy = stream.pick((-1, 1)), stream.chance(15)  # which eye; opaque media
    far = radial(frame, 512, 512, _RADIUS, _RADIUS)
    tint = [channel + stream.between(-14, 14) for channel in _RETINA]
    light = FULL + 20 - far * 90 // EDGE + texture(frame, stream.lattice(5, 5, 24), 240)
    image = np.asarray(tint) * light[..., None] // FULL
    sketch = Sketch(frame, image, far <= EDGE)
    out, down = _FIELDS[field]
    disc = 512 + facing * (out + stream.between(-30, 30)), 512 + down * stream.pick((-1, 1)) + stream.between(-25, 25)
    macula = disc[0] + facing * (_TO_MACULA + stream.between(-20, 20)), disc[1] + stream.between(5, 40)
    _draw_macula(sketch, stream, macula)
    vessels = _draw_vessels(sketch, stream, disc, facing, is_hazy=is_hazy)
    _draw_disc(sketch, stream, disc)
    if not is_hazy:
        lay(
            sketch.image, frame, (vessels & (radial(frame, *disc, 110, 110) < EDGE)) * 150, _VEIN
        )  # they leave over the disc
        sketch.add("vessel", vessels)
    for name in stream.shuffled(("exudate",) * 3 + ("haemorrhage",) * 3)[: stream.below(5)]:
        _draw_finding(sketch, stream, name, knobs.finding_scale_pct)
    if is_hazy:
        sketch.image = (soften(sketch.image, 2, centre=2) * 7 + 3 * np.asarray((176, 130, 92))) // 10
    noise = grain(stream, image.shape) * knobs.noise_pct * 5 // 1000
    sketch.image = np.clip(soften(sketch.image) + noise, 0, 255)
    sketch.image[far > EDGE] = 6
    return sketch


def _draw_macula(sketch: Sketch, stream: Stream, at: tuple[int, int]) -> None:
    r = stream.between(78, 100)
    spread = radial(sketch.frame, *at, r, r)
    lay(sketch.image, sketch.frame, np.clip((2 * EDGE - spread) * 180 // (2 * EDGE), 0, 180), _MACULA)
    sketch.keep_clear(*at, r // 2)
    sketch.add("macula", spread <= EDGE)


def _draw_disc(sketch: Sketch, stream: Stream, at: tuple[int, int]) -> None:
    rx, ry = stream.between(76, 92), stream.between(86, 102)
    lay(sketch.image, sketch.frame, opacity(radial(sketch.frame, *at, rx, ry), 1100), _DISC)
    sketch.keep_clear(*at, ry + 20)
    sketch.add("optic disc", radial(sketch.frame, *at, rx, ry) <= EDGE)
    if stream.chance(80):
        ratio = stream.between(38, 78)  # of cup to disc, in percent: wide in glaucoma
        cup = radial(sketch.frame, at[0] + stream.between(-8, 8), at[1], rx * ratio // 100, ry * ratio // 100)
        lay(sketch.image, sketch.frame, opacity(cup, 1500) * 220 // FULL, _CUP)
        sketch.add("optic cup", cup <= EDGE)


def _draw_vessels(sketch: Sketch, stream: Stream, disc: tuple[int, int], facing: int, *, is_hazy: bool) -> np.ndarray:
    """Arcades that leave the disc above and below, bend round the macula and branch; their mask."""
    everything = np.zeros(sketch.frame.shape, dtype=bool)
    for up in (-1, 1):
        for toward, tone, half in ((1, _VEIN, 13), (1, _ARTERY, 10), (-1, _VEIN, 11), (-1, _ARTERY, 9)):
            reach = stream.between(520, 700) if toward == 1 else stream.between(360, 520)
            rise = stream.between(130, 270) + (80 if tone is _VEIN else 0)
            end = disc[0] + facing * toward * reach, disc[1] + up * rise
            trunk = bow(disc, end, facing * toward * up * stream.between(14, 28), 6)
            mask = stroke(sketch.frame, trunk, [max(8, half - k) for k in range(6)])
            for k in (2, 4):
                tip = (
                    trunk[k][0] + facing * toward * stream.between(60, 240),
                    trunk[k][1] + up * stream.between(90, 240),
                )
                mask |= stroke(sketch.frame, bow(trunk[k], tip, stream.between(-18, 18), 3), [8] * 3)
            if not is_hazy:
                lay(sketch.image, sketch.frame, mask * 225, tone)
            everything |= mask
    return everything


def _draw_finding(sketch: Sketch, stream: Stream, name: str, scale_pct: int) -> None:
    size, contrast = stream.pick(("small", "large")), stream.pick(("faint", "strong"))
    r = (stream.between(26, 36) if size == "small" else stream.between(60, 82)) * scale_pct // 100
    cover = 226 if contrast == "strong" else 120
    turn, flat, nodes = stream.below(1024), stream.between(50, 100), stream.lattice(9, 9, 2600)
    dots = [(stream.below(1024), stream.between(0, 90), stream.between(26, 42)) for _ in range(9)]
    at = sketch.place(stream, (512, 512, 440, 440), r)
    if at is None:
        return
    part = sketch.frame.near(*at, 2 * r)
    if name == "haemorrhage":
        shape = roughened(radial(part, *at, r, r * flat // 100, turn), texture(part, nodes, max(8, r * 6 // 10)))
        lay(sketch.image, part, opacity(shape, 1600) * cover // FULL, _BLOOD)
        sketch.add(name, part.whole(shape <= EDGE), size=size, contrast=contrast)
        return
    mask = np.zeros((part.y.shape[0], part.x.shape[1]), dtype=bool)
    for angle, out, width in dots[: 4 if size == "small" else 9]:  # hard exudates come as a cluster of sharp dots
        x, y = at[0] + cosine(angle) * r * out // 102_400, at[1] + sine(angle) * r * out // 102_400
        mask |= radial(part, x, y, *[max(11, r * width // (100 if size == "small" else 170))] * 2) <= EDGE
    lay(sketch.image, part, mask * cover, _EXUDATE)
    sketch.add(name, part.whole(mask), size=size, contrast=contrast)
