"""Texts that one arm wrote and another reads: `generated.json` in the folder of a run. No torch.

It maps condition -> sample -> text; "train" stands for the training samples.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightbox.errors import RequestError
from lightbox.files import write_json
from lightbox.paper.samples import Sample

GENERATED = "generated.json"
TRAIN = "train"

Generated = dict[str, dict[str, str]]
"""Condition -> sample -> generated text."""


def add_generated(folder: Path, generated: Generated) -> None:
    """Add conditions to `generated.json`, written as a whole; a condition that is there already is replaced."""
    path = folder / GENERATED
    former = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_json(path, former | generated)


def read_generated(needs: Mapping[str, Path], arm: str, condition: str) -> dict[str, str]:
    """Texts that an earlier arm generated under a condition, by sample.

    Raises:
        RequestError: where the arm's folder is not named or lacks them.
    """
    folder = needs.get(arm)
    if folder is None or not (folder / GENERATED).is_file():
        raise RequestError(
            f"Arm '{arm}' is needed and its folder is '{folder or 'not given'}'",
            f"It holds no {GENERATED}, so there is no generated text to read",
            f"Run experiment={arm} first and name its folder as needs=[FOLDER]",
        )
    generated = json.loads((folder / GENERATED).read_text(encoding="utf-8"))
    if condition not in generated:
        raise RequestError(
            f"'{folder / GENERATED}'",
            f"It holds texts for {', '.join(generated)}, not for '{condition}'",
            f"Run experiment={arm} again",
        )
    return generated[condition]


def with_generated(samples: Sequence[Sample[Any]], texts: Mapping[str, str], field: str) -> list[Sample[Any]]:
    """Samples with a field of their record replaced by what an earlier arm generated for it.

    Raises:
        RequestError: where a sample has none: the two runs then used other data.
    """
    missing = [sample.id for sample in samples if sample.id not in texts]
    if missing:
        raise RequestError(
            f"{len(missing)} of {len(samples)} items have no generated {field}, the first is '{missing[0]}'",
            "The earlier run was made with other data or another seed",
            "Use the same preset, data and run.seed for both",
        )
    return [sample.with_record(**{field: texts[sample.id]}) for sample in samples]
