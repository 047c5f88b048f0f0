"""Questions that pairs are made of: of a data set by its reader, or of the phantom. No torch."""

import logging
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lightbox import phantom
from lightbox.errors import RequestError
from lightbox.files import digest
from lightbox.readers import catalog
from lightbox.records import Case
from mmedpo.data import Asked, lesion, pick

PHANTOM = "phantom"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subject:
    """One question about one image.

    `image_id` names the image, once in a source. `image` is None where the source has none. `findings` is bool h w,
    None where nothing says where they are.
    """

    id: str
    asked: Asked
    image_id: str
    image: Path | np.ndarray | None
    findings: np.ndarray | None = None


def load_subjects(
    source: str, *, root: Path | None, split: str | None, images: int, per_image: int, seed: int
) -> list[Subject]:
    """The first questions of the first images that are asked about.

    Args:
        source: name of a reader of questions, or "phantom".
        root: folder of the data set; None is `$LIGHTBOX_DATA_ROOT/SOURCE`.
        split: one official split; None is "train" where there is one.
        images: most images, >= 1.
        per_image: most questions about one, >= 1.
        seed: of the phantom's cases.

    Raises:
        RequestError: what the reader refuses, or a source without a question.
    """
    if source == PHANTOM:
        cases = phantom.draw_cases(phantom.seed_range(split or "train", seed, images))
    else:
        # questions that a tuned model is scored on make no pairs unless they are asked for
        trained_on = "train" if "train" in catalog.find(source).splits else None
        found = catalog.read(source, root, split or trained_on)
        if found.problems:
            why = "malformed rows are left out, as `lightbox data validate` lists them"
            _log.warning("%s: %d %s", source, len(found.problems), why)
        cases = found.cases
    asked_about = [case for case in cases if case.questions][:images]
    if not asked_about:
        raise RequestError(f"--source is {source}", "It holds no question", "Name a data set of questions and answers")
    met = Counter(case.id for case in asked_about)
    return [subject for case in asked_about for subject in _subjects(case, per_image, is_alone=met[case.id] == 1)]


def file_name(image_id: str) -> str:
    """A PNG's name; an id with signs that a name may not hold adds its digest, so that none collide."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", image_id)[:80].lstrip(".")
    return f"{safe}.png" if safe == image_id else f"{safe}-{digest(image_id)[:8]}.png"


def _subjects(case: Case, per_image: int, *, is_alone: bool) -> list[Subject]:
    image = case.images[0] if case.images else None
    # the case's own name where it can be, so that training finds the pairs of an image by it
    image_id = case.id if is_alone else f"{case.split}-{case.id}"
    return [Subject(own.id, own, image_id, image, lesion(own)) for own in pick(case)[:per_image]]
