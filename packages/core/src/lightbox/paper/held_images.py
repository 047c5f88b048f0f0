"""Real sets of few images: a division that every seed makes anew, and released pairs about their images. No torch.

Where a set has twenty images, a tenth of them decides nothing. Here each seed holds out another part, so that as many
seeds as there are parts score every image once, by models that have not seen it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np

from lightbox.paper.samples import Sample, Split
from lightbox.readers.images import load_image
from lightbox.readers.preferences import read_file
from lightbox.readers.rows import Gathering
from lightbox.readers.splits import split_by_image
from lightbox.records import Case, Preference, Question

TRAIN, TEST = "train", "test"
MOST_DECODED = 4096
Asked = TypeVar("Asked", bound=Question)


def rotated(cases: Sequence[Case], *, parts: int, seed: int, held: str = TEST) -> tuple[Case, ...]:
    """Divide cases by patient or image into parts, of which one is held out and all others are trained on.

    Args:
        cases: of one data set; official splits are forgotten.
        parts: >= 2; seeds from a multiple of it on share a division until the next multiple.
        seed: of the run; part `seed % parts` is the test part.
        held: which split is held out; any but "test" is the part after the test part.

    Returns:
        Cases whose split is "train" or `held`.

    Raises:
        RequestError: a negative seed.
    """
    divided = split_by_image(cases, seed=seed // parts, fractions={str(part): 1 / parts for part in range(parts)})
    wanted = str((seed + (held != TEST)) % parts)
    return tuple(replace(case, split=held if case.split == wanted else TRAIN) for case in divided)


def split_of(name: str, cases: Sequence[Case], pick: Callable[[Case], Sequence[Asked]], *, limit: int) -> Split[Asked]:
    """At most `limit` questions of the cases of a split, with the images they are about."""
    samples: list[Sample[Asked]] = []
    shown: list[Case] = []
    for case in cases:
        records = list(pick(case))[: limit - len(samples)] if case.split == name else []
        if records:
            samples += [Sample(record.id, record, case.id, len(shown)) for record in records]
            shown.append(case)
    return Split(name, samples, [case.images[0] for case in shown], [case.id for case in shown])


def released_pairs(file: Path) -> dict[str, list[Preference]]:
    """Text pairs of a file in the JSON of MMedPO by case, that is by the name of their image.

    Some answers of the released files repeat their question in a line of its own, which is left out here.

    Raises:
        RequestError: an unreadable file.
    """
    rows = Gathering(file.stem, "")
    read_file(file, rows, store=None)
    return {
        case.id: [_cleaned(pair) for pair in case.preferences if pair.kind == "text"]
        for case in rows.result(file.parent).cases
    }


def in_memory(split: Split[Asked], image_px: int) -> Split[Asked]:
    """The same split with its images decoded: grey squares of one size, uint8 h w, on which noise has one grain."""
    return replace(split, images=[_decoded(image, image_px) for image in split.images])


@lru_cache(maxsize=MOST_DECODED)
def _decoded(image: Path, image_px: int) -> np.ndarray:
    """Several jobs of a worker read the same set, and an arm reads it more than once."""
    return load_image(image, image_px=image_px)


def _cleaned(pair: Preference) -> Preference:
    chosen, rejected = (
        " ".join(text.rpartition("\n")[2].split()) if text.lower().startswith("question:") else " ".join(text.split())
        for text in (pair.chosen, pair.rejected)
    )
    return replace(pair, chosen=chosen, rejected=rejected)
