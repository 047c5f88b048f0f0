"""Phantom cases of several worlds, drawn in chunks and kept without their masks. No torch.

`samples.load_splits` draws one world of 64-pixel images. A paper whose images are larger, or whose lesions have several
sizes, draws here; each world of a split has case seeds of its own, so that none shows another one's scene.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TypeVar

from lightbox import phantom
from lightbox.errors import RequestError
from lightbox.paper.samples import Sample, Split
from lightbox.records import Case, Question

CHUNK = 64  # large images and masks live for a chunk only
WORLD_CASES = 100_000
"""Case seeds of a world in a split."""
MOST_CHUNKS = 64
"""Kept in memory: the arms of a seed share their cases, and a worker trains several of them."""

Asked = TypeVar("Asked", bound=Question)


def even_split(
    name: str,
    seed: int,
    worlds: tuple[phantom.Knobs, ...],
    ask: Callable[[int, Case], Sequence[Asked]],
    *,
    kinds: Sequence[str],
    n: int,
) -> Split[Asked]:
    """`n` questions of a split, as many of each kind; where that does not go up, the first kinds have one more.

    Args:
        name: of a phantom split, as of `draw_worlds`.
        seed: run seed.
        worlds: what is drawn.
        ask: (place of a world, a case of it) -> questions; those of a kind that has enough are left out.
        kinds: that there are; each must be met in some world.
        n: >= 1.

    Raises:
        RequestError: an unknown split, or kinds that the worlds do not hold often enough.
    """
    wanted = {kind: n // len(kinds) + (place < n % len(kinds)) for place, kind in enumerate(kinds)}
    samples: list[Sample[Asked]] = []
    shown: list[Case] = []
    for world, case in draw_worlds(name, seed, worlds):
        before = len(samples)
        for own in ask(world, case):
            if wanted[own.kind]:
                wanted[own.kind] -= 1
                samples.append(Sample(own.id, own, case.id, len(shown)))
        shown += [case] if len(samples) > before else []
        if not any(wanted.values()):
            break
    return Split(name, samples, [case.images[0] for case in shown], [case.id for case in shown])


def draw_worlds(split: str, seed: int, worlds: tuple[phantom.Knobs, ...]) -> Iterator[tuple[int, Case]]:
    """Cases of a split with the place of their world, a chunk of each world in turn, until nobody asks for more.

    Args:
        split: a phantom split; "test_shifted" shifts the appearance of every world.
        seed: run seed.
        worlds: what is drawn, each named by its place.

    Raises:
        RequestError: an unknown split, or more cases than a world has.
    """
    seeds = phantom.seed_range(split, seed, WORLD_CASES * len(worlds))
    for start in range(0, WORLD_CASES, CHUNK):
        for place, knobs in enumerate(worlds):
            first = place * WORLD_CASES + start
            own = replace(knobs, shifted=split == "test_shifted")
            yield from ((place, case) for case in _chunk(seeds[first : first + CHUNK], own))
    raise RequestError(
        f"More than {WORLD_CASES} cases of a world are asked for in split {split}",
        "Each world has as many case seeds",
        "Ask for fewer items",
    )


@lru_cache(maxsize=MOST_CHUNKS)
def _chunk(seeds: range, knobs: phantom.Knobs) -> list[Case]:
    cases = phantom.draw_cases(seeds, knobs, questions_per_case=0)
    # a mask is as large as its image, and boxes say what is needed of it
    return [replace(case, findings=tuple(replace(own, mask=None) for own in case.findings)) for case in cases]
