"""Abdominal CT as a stack of axial slices: organs and round lesions in three dimensions, by integer arithmetic.

Draws come from the same streams as those of `chest` and depend on the case seed alone; slices follow each other from
the feet up, as neighbours that differ little. Image left is the patient's right.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lightbox.errors import RequestError
from lightbox.phantom.draws import Draws
from lightbox.phantom.scene import WORLD
from lightbox.records import Box, Question, box_from_mask

VERSION = "abdomen-1"
DEPTH = 480
"""Height of the stack in world units, of which an image has 1024 x 1024."""
ORGANS = ("liver", "spleen", "right kidney", "left kidney")
# cx, cy, cz, rx, ry, rz in world units, and grey level; the patient's right is on the image's left
_ORGAN = np.array(
    [
        (330, 470, 290, 200, 190, 190, 128),
        (740, 540, 330, 100, 130, 120, 138),
        (370, 690, 170, 78, 88, 130, 152),
        (660, 690, 190, 78, 88, 130, 152),
    ]
)
LESIONS = ("cyst", "mass", "calcification")
_CONTRAST = np.array([-52, 42, 100])
SIZES = ("small", "large")
MAX_LESIONS = 3
_COUNT_PERCENT = np.array([25, 60, 85, 100])  # cumulative share of 0, 1, 2, 3 lesions
_BACKGROUND, _FAT, _MUSCLE, _SPINE, _AORTA = 8, 62, 100, 212, 160
_N_WORDS = 96
_NOISE = (np.arange(256) // 16 + np.arange(256) % 16 - 15).astype(np.int32)
"""As a radiograph's: the sum of a byte's two halves, centred."""


@dataclass(frozen=True)
class StackKnobs:
    """What kind of stack is drawn.

    Args:
        image_px: side of a slice in pixels, a multiple of 8 in 32..512.
        n_slices: 2..48; fewer are thicker.
        lesion_scale_pct: size of lesions in percent of the default, 50..200.
        noise_pct: strength of the noise in percent, 0..200.
    """

    image_px: int = 64
    n_slices: int = 12
    lesion_scale_pct: int = 100
    noise_pct: int = 100

    def __post_init__(self) -> None:
        ranges = {"image_px": (32, 512), "n_slices": (2, 48), "lesion_scale_pct": (50, 200), "noise_pct": (0, 200)}
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise RequestError(f"{name}={value}", f"It must lie in {low}..{high}", f"Choose {name} in that range")
        if self.image_px % 8:
            raise RequestError(
                f"image_px={self.image_px}", "The towers cut images into patches of 8 pixels", "Use a multiple of 8"
            )


@dataclass(frozen=True)
class StackLesion:
    """A lesion: `mask` bool (s, h, w), True inside; `boxes` one a slice that shows it, by the slice's place."""

    name: str
    organ: str
    size: str
    mask: np.ndarray
    boxes: dict[int, Box]

    @property
    def largest_slice(self) -> int:
        """Place of the slice that shows most of it, the lower one of equals."""
        return int(self.mask.sum(axis=(1, 2)).argmax())


@dataclass(frozen=True)
class Stack:
    """A case: `slices` uint8 (s, h, w), from the feet up; every lesion shows on one slice at least."""

    id: str
    slices: np.ndarray
    lesions: tuple[StackLesion, ...]
    questions: tuple[Question, ...]


def draw_stacks(case_seeds: Sequence[int], knobs: StackKnobs | None = None) -> list[Stack]:
    """Draw stacks with lesions and questions about them.

    Args:
        case_seeds: from `seed_range`.
        knobs: None means the default.

    Returns:
        One stack a seed, with two questions: is some lesion there (yes and no equally often), and how many there are.
    """
    knobs = knobs or StackKnobs()
    return [_draw(int(seed), knobs) for seed in case_seeds]  # one by one: a batch of stacks would leave the cache


def _draw(seed: int, knobs: StackKnobs) -> Stack:
    px, n = knobs.image_px, knobs.n_slices
    draws = Draws([seed], _N_WORDS, n * px * px)
    across = (2 * np.arange(px, dtype=np.int64) + 1) * WORLD // (2 * px)
    up = (2 * np.arange(n, dtype=np.int64) + 1) * DEPTH // (2 * n)
    grid = up[:, None, None], across[None, :, None], across[None, None, :]
    body = draws.between(-24, 24, 4)[0]
    image = _frame(grid, body)
    organs = _ORGAN[:, :6] + draws.between(-14, 14, 24).reshape(4, 6)
    inside = [_ellipsoid(grid, organ) for organ in organs]
    for own, level in zip(inside, _ORGAN[:, 6], strict=True):
        image[own] = level
    lesions = []
    for organ, name, size, mask, contrast in _place(draws, grid, organs, inside, knobs):
        image[mask] = image[mask] + contrast
        boxes = {place: box for place in range(n) if (box := box_from_mask(mask[place])) is not None}
        lesions.append(StackLesion(LESIONS[name], ORGANS[organ], SIZES[size], mask, boxes))
    gain, offset = draws.between(92, 108)[0], draws.between(-6, 6)[0]
    noise = _NOISE[draws.noise.reshape(n, px, px)] * knobs.noise_pct // 100
    pixels = np.clip(image * gain // 100 + offset + noise, 0, 255).astype(np.uint8)
    case_id = f"abdomen-{seed}"
    return Stack(case_id, pixels, tuple(lesions), _ask(case_id, lesions, draws))


def _ellipsoid(grid: tuple[np.ndarray, ...], shape: np.ndarray) -> np.ndarray:
    """Bool (s, h, w): centres inside cx, cy, cz, rx, ry, rz."""
    (z, y, x), (cx, cy, cz, rx, ry, rz) = grid, shape
    scale = 4096
    return (x - cx) ** 2 * scale // rx**2 + (y - cy) ** 2 * scale // ry**2 + (z - cz) ** 2 * scale // rz**2 <= scale


def _frame(grid: tuple[np.ndarray, ...], body: np.ndarray) -> np.ndarray:
    """Fat, the wall of muscle, spine and aorta: the same on every slice but for a waist."""
    z, y, x = grid
    waist = (z - DEPTH // 2) ** 2 // 4096
    outer = 430 + body[0] - waist, 330 + body[1] - waist

    def ellipse(cx: int, cy: int, rx: np.ndarray, ry: np.ndarray) -> np.ndarray:
        return (x - cx) ** 2 * 4096 // rx**2 + (y - cy) ** 2 * 4096 // ry**2 <= 4096

    image = np.full(np.broadcast_shapes(z.shape, y.shape, x.shape), _BACKGROUND, dtype=np.int32)
    image[ellipse(512, 560, *outer)] = _FAT
    image[ellipse(512, 560, *(side - 40 for side in outer))] = _MUSCLE
    for cx, cy, side, level in ((512, 770, 70, _SPINE), (540, 660 + int(body[2]) // 4, 30, _AORTA)):
        image[ellipse(cx, cy, np.full_like(z, side), np.full_like(z, side))] = level
    return image


def _place(draws: Draws, grid: tuple[np.ndarray, ...], organs: np.ndarray, inside: list[np.ndarray], knobs: StackKnobs):
    """Organ, kind, size, mask and contrast of each lesion; each organ holds one at most, each kind comes once."""
    n_lesions = int((draws.below(100) >= _COUNT_PERCENT).sum())
    organ_order = np.argsort(draws.take(len(ORGANS))[0], kind="stable")
    kind_order = np.argsort(draws.take(len(LESIONS))[0], kind="stable")
    sizes, shifts = draws.below(2, MAX_LESIONS)[0], draws.between(-45, 45, 3 * MAX_LESIONS)[0].reshape(-1, 3)
    radii = np.where(sizes == 0, draws.between(26, 36, MAX_LESIONS)[0], draws.between(52, 66, MAX_LESIONS)[0])
    jitter = draws.between(-6, 6, MAX_LESIONS)[0]
    for k in range(n_lesions):
        organ, kind = int(organ_order[k]), int(kind_order[k])
        centre = organs[organ, :3] + organs[organ, 3:] * shifts[k] // 100
        # on the middle of a slice: between two thick ones a small lesion would not show at all
        thickness = DEPTH // knobs.n_slices
        centre[2] = np.clip(centre[2] // thickness, 0, knobs.n_slices - 1) * thickness + thickness // 2
        radius = max(8, int(radii[k]) * knobs.lesion_scale_pct // 100)
        mask = _ellipsoid(grid, np.array([*centre, radius, radius, radius])) & inside[organ]
        if mask.any():
            yield organ, kind, int(sizes[k]), mask, int(_CONTRAST[kind] + jitter[k])


def _ask(case_id: str, lesions: Sequence[StackLesion], draws: Draws) -> tuple[Question, ...]:
    names = [lesion.name for lesion in lesions]
    absent = [name for name in LESIONS if name not in names]
    # a coin says which, so that yes and no come equally often where both are possible
    is_there = bool(names) and (not absent or int(draws.below(2)[0]) == 0)
    choices = names if is_there else absent
    name = choices[int(draws.below(len(choices))[0])]
    options = ("yes", "no")
    answer = 0 if is_there else 1
    counts = ("none", "one", "two", "three")
    return (
        Question(f"{case_id}-presence", f"is there a {name} ?", options[answer], options, answer, kind="presence"),
        Question(f"{case_id}-count", "how many lesions are there ?", counts[len(names)], kind="count"),
    )
