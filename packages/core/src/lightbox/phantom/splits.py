"""Who may see what: held-out triples and the seed ranges, read from `shared_data/phantom/splits.json`.

The file is written once (`make_splits`) and is the authority from then on; a test asserts that the two agree.
"""

import json
from functools import cache

import numpy as np

from lightbox.errors import RequestError
from lightbox.paths import shared_data
from lightbox.phantom.ontology import DENSITIES, LOCATIONS, SHAPES, TRIPLES

SEEDS_PER_RUN = 1_000_000  # far more than any run draws, so that ranges never meet
RUNS_PER_SPLIT = 1_000
SPLITS = ("pretrain", "pretrain_validation", "train", "validation", "test", "test_shifted", "development")
HELD_OUT_VALUE = ("shape", "ring")
HELD_OUT_PAIRS = (("band", "haze", None), ("oval", None, "hilum"), (None, "lucent", "costophrenic"))


def make_splits() -> dict:
    """Compute the content of `splits.json`: 224 triples in four disjoint sets, and disjoint seed ranges."""
    sets: dict[str, list[str]] = {"known": [], "unseen_composition": [], "unseen_pair": [], "unseen_value": []}
    for shape, density, location in TRIPLES:
        s, d, loc = SHAPES.index(shape), DENSITIES.index(density), LOCATIONS.index(location)
        if shape == HELD_OUT_VALUE[1]:
            part = "unseen_value"
        elif any(_matches((shape, density, location), pair) for pair in HELD_OUT_PAIRS):
            part = "unseen_pair"
        # a third of what is left, spread so that every pair of values stays known
        elif (s + 2 * d + loc) % 3 == 1 and (shape, density, location) not in _ALWAYS_KNOWN:
            part = "unseen_composition"
        else:
            part = "known"
        sets[part].append(f"{shape} {density} {location}")
    span = SEEDS_PER_RUN * RUNS_PER_SPLIT
    seeds = {name: [k * span, (k + 1) * span] for k, name in enumerate(SPLITS)}
    return {"schema": 1, "triples": sets, "seed_ranges": seeds, "seeds_per_run": SEEDS_PER_RUN}


# Named classes that live at one location only must be drawable.
_ALWAYS_KNOWN = {
    ("crescent", "dense", "costophrenic"),
    ("crescent", "lucent", "right upper"),
    ("crescent", "lucent", "left upper"),
}


def _matches(triple: tuple[str, str, str], pair: tuple[str | None, str | None, str | None]) -> bool:
    return all(want is None or want == have for have, want in zip(triple, pair, strict=True))


@cache
def load_splits() -> dict:
    """The committed `splits.json`.

    Raises:
        RequestError: the file is missing, with the path.
    """
    path = shared_data() / "phantom" / "splits.json"
    if not path.is_file():
        raise RequestError(
            f"{path} is missing", "Held-out sets and seed ranges are fixed there", "Restore it from the repository"
        )
    return json.loads(path.read_text())


@cache
def triple_mask(part: str) -> np.ndarray:
    """Boolean (224,): True where the triple belongs to `part` ("all" is everything)."""
    if part == "all":
        return np.ones(len(TRIPLES), dtype=bool)
    members = set(load_splits()["triples"][part])
    return np.array([" ".join(t) in members for t in TRIPLES])


def seed_range(split: str, seed: int, n: int) -> range:
    """Case seeds of `n` cases of a split for run seed `seed`; disjoint between splits and between run seeds.

    Args:
        split: one of `SPLITS`.
        seed: run seed, 0..999.
        n: number of cases, at most 1,000,000.

    Raises:
        RequestError: unknown split, or seed or n out of range.

    Example:
        >>> seed_range("train", 0, 2), seed_range("test", 3, 2)
        (range(2000000000, 2000000002), range(4003000000, 4003000002))
    """
    ranges = load_splits()["seed_ranges"]
    if split not in ranges:
        raise RequestError(f"split='{split}'", "The phantom has no such split", f"Use one of {', '.join(ranges)}")
    if not (0 <= seed < RUNS_PER_SPLIT and 0 <= n <= SEEDS_PER_RUN):
        raise RequestError(
            f"seed={seed}, n={n}",
            f"A split has {RUNS_PER_SPLIT} run seeds of {SEEDS_PER_RUN} cases each",
            "Choose smaller numbers",
        )
    start = ranges[split][0] + seed * SEEDS_PER_RUN
    return range(start, start + n)
