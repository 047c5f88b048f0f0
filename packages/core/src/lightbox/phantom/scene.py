"""Scenes: what lies where, for a batch of cases, as integer arrays in world units (1024 x 1024).

Image left is the patient's right, as on any radiograph. Every array has the batch first; finding slots come second.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from lightbox.phantom.draws import Draws
from lightbox.phantom.knobs import Knobs
from lightbox.phantom.ontology import (
    CLASSES,
    DENSITIES,
    LOCATIONS,
    PLACE_CELL,
    PLACE_LOCATION,
    PLACES,
    SHAPES,
    SIZES,
    TRIPLES,
    triple_index,
)
from lightbox.phantom.splits import triple_mask

WORLD = 1024
MAX_FINDINGS = 3
N_SLOTS = 6  # three findings and up to three distractors
N_WORDS = 272
QUESTION_WORDS = 136  # eight questions
REPORT_WORDS = 32
_COUNT_PERCENT = np.array([20, 55, 85, 100])  # cumulative share of 0, 1, 2, 3 findings
_COUNT_PERCENT_SHIFTED = np.array([8, 28, 64, 100])
_PLACE_LOCATION, _PLACE_CELL = np.array(PLACE_LOCATION), np.array(PLACE_CELL)
_FIRST_PLACE_OF_LOCATION = np.array([0, 1, 2, 3, 4, 5, 6, 8])
_N_LOC, _N_DEN = len(LOCATIONS), len(DENSITIES)
# Mask area of each shape in thousandths of a**2, where a is the half extent.
AREA_MILLI = np.array([3142, 1885, 1914, 1333, 2000, 3142, 1330])
_FAR = np.int64(1 << 62)


@dataclass
class Scene:
    """A batch of scenes. `b` cases, `s` finding slots; world units unless said otherwise.

    `lung` is (b, 2, 4): cx, cy, rx, ry of the patient's right, then left lung. `heart` is (b, 4) likewise.
    `heart_pct` is the cardiothoracic ratio in percent. `tone` is (b, 6): gain percent, offset, tilt, rib period, rib
    phase, noise percent. Slot arrays are (b, s): `active`, `shape`, `density`, `place` (index into PLACES), `size`,
    `cx`, `cy`, `extent` (half extent), `turn` (orientation draw), `contrast`. `question_words` and `report_words` are
    raw draws for the texts.
    """

    seeds: np.ndarray
    lung: np.ndarray
    heart: np.ndarray
    heart_pct: np.ndarray
    tone: np.ndarray
    active: np.ndarray
    shape: np.ndarray
    density: np.ndarray
    place: np.ndarray
    size: np.ndarray
    cx: np.ndarray
    cy: np.ndarray
    extent: np.ndarray
    turn: np.ndarray
    contrast: np.ndarray
    question_words: np.ndarray
    report_words: np.ndarray
    noise: np.ndarray

    @property
    def area(self) -> np.ndarray:
        """Mask area of each slot in world units squared, (b, s); 0 where inactive."""
        return np.where(self.active, AREA_MILLI[self.shape] * self.extent**2 // 1000, 0)


def draw_scene(case_seeds: Sequence[int], knobs: Knobs) -> Scene:
    """Draw the scenes of a batch of case seeds; each depends on its own seed and the knobs only."""
    draws = Draws(case_seeds, N_WORDS, knobs.image_px**2)
    b = len(case_seeds)
    lung, heart, heart_pct, tone = _draw_anatomy(draws, b, shifted=knobs.shifted)
    active, shape, density, place, size, sub = _draw_findings(draws, b, knobs)
    extent = np.where(size == 0, draws.between(40, 58, N_SLOTS), draws.between(86, 116, N_SLOTS))
    extent = extent * knobs.lesion_scale_pct // 100
    extent = np.where(sub > 0, extent * 2 // 3, extent)  # two in one cell: both shrink, or they touch
    cx, cy = _locate(draws, lung, place, sub)
    turn = draws.take(N_SLOTS)
    contrast = np.array([75, 48, 27, -40])[density] + draws.between(-5, 5, N_SLOTS)
    return Scene(
        seeds=np.asarray(case_seeds, dtype=np.int64),
        lung=lung,
        heart=heart,
        heart_pct=heart_pct,
        tone=tone,
        active=active,
        shape=shape,
        density=density,
        place=place,
        size=size,
        cx=cx,
        cy=cy,
        extent=extent,
        turn=turn,
        contrast=contrast,
        question_words=draws.take(QUESTION_WORDS),
        report_words=draws.take(REPORT_WORDS),
        noise=draws.noise.reshape(b, knobs.image_px, knobs.image_px),
    )


def _draw_anatomy(draws: Draws, b: int, *, shifted: bool) -> tuple[np.ndarray, ...]:
    mid = 512 + draws.between(-18, 18)
    half_width = draws.between(322, 368)  # half the inner thorax
    lung_rx = half_width * 43 // 100
    lung = np.empty((b, 2, 4), dtype=np.int64)
    for s, sign in enumerate((-1, 1)):
        lung[:, s, 0] = mid + sign * (half_width - lung_rx)
        lung[:, s, 1] = 500 + draws.between(-18, 18)
        lung[:, s, 2] = lung_rx
        lung[:, s, 3] = draws.between(318, 358)
    normal, large = draws.between(36, 47), draws.between(53, 63)
    heart_pct = np.where(draws.below(2) == 0, normal, large)  # never 48..52: the ratio is decidable at 64 px
    heart = np.empty((b, 4), dtype=np.int64)
    heart[:, 0] = mid + half_width * 10 // 100
    heart[:, 1] = 640 + draws.between(-16, 16)
    heart[:, 2] = half_width * heart_pct // 100
    heart[:, 3] = draws.between(150, 180)
    gain, offset = (
        (draws.between(70, 92), draws.between(12, 30)) if shifted else (draws.between(88, 112), draws.between(-8, 8))
    )
    noise_pct = draws.between(120, 170) if shifted else draws.between(80, 120)
    tone = np.stack([gain, offset, draws.between(-12, 12), draws.between(92, 122), draws.below(122), noise_pct], axis=1)
    return lung, heart, heart_pct, tone


@cache
def _class_tables(triples: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Allowed places (9, 10), shape, density (9,) and size rule (9,; -1 any) of the named classes."""
    drawable = triple_mask(triples)
    allowed = np.zeros((len(CLASSES), len(PLACES)), dtype=bool)
    for row, c in enumerate(CLASSES):
        for col, (_, place) in enumerate(PLACES):
            index = triple_index(c.shape, c.density, LOCATIONS[PLACE_LOCATION[col]])
            allowed[row, col] = place in c.places and drawable[index]
    shape = np.array([SHAPES.index(c.shape) for c in CLASSES])
    density = np.array([DENSITIES.index(c.density) for c in CLASSES])
    size = np.array([SIZES.index(c.sizes[0]) if len(c.sizes) == 1 else -1 for c in CLASSES])
    return allowed, shape, density, size


@cache
def _neighbours(triples: str) -> tuple[np.ndarray, np.ndarray]:
    """For each triple, the allowed ones that share exactly two attributes: padded table (224, m) and counts."""
    allowed = np.flatnonzero(triple_mask(triples))
    rows = []
    for t in TRIPLES:
        near = [u for u in allowed if sum(x == y for x, y in zip(t, TRIPLES[u], strict=True)) == 2]
        rows.append(near or [0])
    width = max(map(len, rows))
    table = np.array([row + [row[0]] * (width - len(row)) for row in rows])
    return table, np.array([len(row) for row in rows])


def _draw_findings(draws: Draws, b: int, knobs: Knobs) -> tuple[np.ndarray, ...]:
    cumulative = _COUNT_PERCENT_SHIFTED if knobs.shifted else _COUNT_PERCENT
    count = (draws.below(100)[:, None] >= cumulative[None]).sum(axis=1)
    if knobs.distractors:
        count = np.maximum(count, 1)  # a distractor needs a target
    fields = {name: np.zeros((b, N_SLOTS), dtype=np.int64) for name in ("shape", "density", "place", "size", "sub")}
    active = np.zeros((b, N_SLOTS), dtype=bool)
    used = np.zeros((b, 6), dtype=np.int64)
    rows = np.arange(b)
    sizes = draws.below(2, N_SLOTS)
    draw = _named_picker(draws, b, knobs) if knobs.vocabulary == "named" else _triple_picker(draws, knobs)
    for j in range(MAX_FINDINGS):
        shape, density, place, size, possible = draw(j, used)
        keep = possible & (j < count)
        active[:, j] = keep
        size = np.where(size < 0, sizes[:, j], size)
        for name, value in (("shape", shape), ("density", density), ("place", place), ("size", size)):
            fields[name][:, j] = value
        used[rows[keep], _PLACE_CELL[place][keep]] += 1
    table, counts = _neighbours(knobs.triples)
    for j in range(MAX_FINDINGS, N_SLOTS):
        target = (fields["shape"][:, 0] * _N_DEN + fields["density"][:, 0]) * _N_LOC + _PLACE_LOCATION[
            fields["place"][:, 0]
        ]
        pick, side = draws.below(counts[target]), draws.below(2)
        near = table[target, pick]
        location = near % _N_LOC
        place = _FIRST_PLACE_OF_LOCATION[location] + np.where(location >= 6, side, 0)
        cell = _PLACE_CELL[place]
        keep = active[:, 0] & (j - MAX_FINDINGS < knobs.distractors) & (used[rows, cell] < 2)
        active[:, j] = keep
        fields["shape"][:, j], fields["density"][:, j] = near // (_N_DEN * _N_LOC), near // _N_LOC % _N_DEN
        fields["place"][:, j], fields["size"][:, j] = place, sizes[:, j]
        fields["sub"][:, j] = np.where(used[rows, cell] > 0, 2, 0)
        first_in_cell = (_PLACE_CELL[fields["place"]] == cell[:, None]) & active & (np.arange(N_SLOTS) < j)
        fields["sub"] = np.where(first_in_cell & keep[:, None] & (fields["sub"] == 0), 1, fields["sub"])
        used[rows[keep], cell[keep]] += 1
    return active, fields["shape"], fields["density"], fields["place"], fields["size"], fields["sub"]


def _named_picker(draws: Draws, b: int, knobs: Knobs):
    allowed, class_shape, class_density, class_size = _class_tables(knobs.triples)
    keys = draws.take(len(CLASSES))
    if knobs.shifted:
        keys = keys // np.where(np.arange(len(CLASSES)) % 2 == 0, 3, 1)  # every second class becomes commoner
    order = np.argsort(keys, axis=1, kind="stable")  # classes without replacement
    # The cell is drawn first, then the place in it: zones come equally often although some hold two places.
    cell_keys, place_keys = draws.take(6) >> 26 << 26, draws.take(len(PLACES)) >> 27
    place_keys = cell_keys[:, _PLACE_CELL] + place_keys

    def draw(j: int, used: np.ndarray):
        cls = order[:, j]
        free = allowed[cls] & (used[:, _PLACE_CELL] == 0)
        place = np.argmin(np.where(free, place_keys, _FAR), axis=1)
        return class_shape[cls], class_density[cls], place, class_size[cls], free.any(axis=1)

    return draw


def _triple_picker(draws: Draws, knobs: Knobs):
    members = np.flatnonzero(triple_mask(knobs.triples))
    picks, sides = draws.below(len(members), MAX_FINDINGS), draws.below(2, MAX_FINDINGS)

    def draw(j: int, used: np.ndarray):
        triple = members[picks[:, j]]
        location = triple % _N_LOC
        place = _FIRST_PLACE_OF_LOCATION[location] + np.where(location >= 6, sides[:, j], 0)
        free = used[np.arange(len(used)), _PLACE_CELL[place]] == 0
        return triple // (_N_DEN * _N_LOC), triple // _N_LOC % _N_DEN, place, np.full(len(used), -1), free

    return draw


# Centre of each place inside its lung, in thousandths of rx (lateral positive) and ry (down positive), and jitter.
_DX_MILLI = np.array([0, 150, 150, 0, 150, 150, -450, -450, 430, 430])
_DY_MILLI = np.array([-520, 0, 500, -520, 0, 500, 20, 20, 740, 740])
_JITTER_X = np.array([30, 25, 25, 30, 25, 25, 12, 12, 12, 12])
_JITTER_Y = np.array([40, 45, 35, 40, 45, 35, 30, 30, 15, 15])
_PLACE_SIDE = np.array([0 if side == "right" else 1 for side, _ in PLACES])


def _locate(draws: Draws, lung: np.ndarray, place: np.ndarray, sub: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    side = _PLACE_SIDE[place]
    cx, cy, rx, ry = np.moveaxis(lung[np.arange(len(lung))[:, None], side], -1, 0)
    lateral = np.where(side == 0, -1, 1)
    jx = draws.below(2 * _JITTER_X[place] + 1, N_SLOTS) - _JITTER_X[place]
    jy = draws.below(2 * _JITTER_Y[place] + 1, N_SLOTS) - _JITTER_Y[place]
    shift = np.array([0, -1, 1])[sub]
    x = cx + lateral * (_DX_MILLI[place] * rx // 1000) + jx + shift * 62
    y = cy + _DY_MILLI[place] * ry // 1000 + jy + shift * 44
    return x, y
