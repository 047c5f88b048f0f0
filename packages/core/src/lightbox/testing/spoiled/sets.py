"""All small sets that are spoiled, by name: of questions, of boxes and of masks."""

import random
from pathlib import Path

from lightbox.testing.spoiled.box_sets import BOX_SETS
from lightbox.testing.spoiled.masked_sets import MASKED_SETS
from lightbox.testing.spoiled.question_sets import QUESTION_SETS
from lightbox.testing.spoiled.small import SmallSet, draw_from

SETS: dict[str, SmallSet] = QUESTION_SETS | BOX_SETS | MASKED_SETS


def write_set(name: str, folder: Path, seed: int, data_root: Path | None = None) -> None:
    """Write the small set `name` into a folder that does not exist yet; `seed` decides which rows and pictures."""
    chosen = SETS[name]
    rng = random.Random(f"{name} {seed}")
    folder.mkdir(parents=True)
    if chosen.folder:
        assert data_root is not None, f"{name} is cut from real data"
        chosen.write(folder, rng, data_root / chosen.folder)
    else:
        chosen.write(folder, rng, draw_from(rng, data_root))
