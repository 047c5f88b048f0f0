"""What curation leaves in its folder: images and masks as PNG, the preference file, and where each pair is from."""

import hashlib
import io
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lightbox.errors import RequestError
from lightbox.files import file_sha256, replace_bytes, replace_text
from lightbox.paper.stages import Result
from lightbox.readers.documents import read_json
from lightbox.readers.images import load_image
from lightbox.readers.preferences import write_preferences
from lightbox.records import Case, Preference
from mmedpo.curation.plan import Plan
from mmedpo.curation.questions import Subject, file_name
from mmedpo.relevance import normalised

PREFERENCES, PROVENANCE, IMAGES, MASKS = "preferences.json", "provenance.jsonl", "images", "masks"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Draft:
    """A pair, the images that it shows, and what each stage said of it."""

    subject: Subject
    pair: Preference
    images: tuple[Path, ...]
    made: Mapping[str, Any]


@dataclass(frozen=True)
class Gallery:
    """The PNG files of a folder, each named in the result of the stage that made it."""

    root: Path

    def save(self, folder: str, image_id: str, pixels: np.ndarray) -> Result:
        """Write uint8 h w or h w 3 to a folder below; its file, digest of the file, and digest of the pixels."""
        file, name = io.BytesIO(), file_name(image_id)
        Image.fromarray(pixels).save(file, "PNG")
        path = self.root / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(path, file.getvalue())
        return {"file": f"{folder}/{name}", "sha256": file_sha256(path), "pixels": pixels_digest(pixels)}

    def load(self, result: Result) -> np.ndarray:
        """The pixels that were saved."""
        return load_image(self.root / result["file"], in_colour=True)

    def holds(self, result: Result) -> bool:
        """Whether the file of a result, if it names one, is there and as it was written."""
        path = self.root / result["file"] if "file" in result else None
        return path is None or (path.is_file() and file_sha256(path) == result["sha256"])


def check_folder(plan: Plan) -> None:
    """Refuse a folder whose pairs reject answers of another model; they would be replaced."""
    file = plan.out / PREFERENCES
    rows = read_json(file, list) if file.exists() else []
    for row in rows:
        name = row.get("base_model", "") if isinstance(row, dict) else ""
        if name and name.lower() != plan.target.name.lower():  # as the reader compares them
            raise RequestError(
                f"'{file}' rejects answers of the base model '{name}', and --model is '{plan.target.name}'",
                "What one model gets wrong, another may never say, and that file would be replaced",
                "Name another folder with --out, or that model with --model",
            )


def write(plan: Plan, drafts: Sequence[Draft]) -> None:
    """The preference file and the provenance of its pairs; nothing where there is no pair."""
    if not drafts:
        _log.warning("There is no pair, so %s is not written", PREFERENCES)
        return
    cases = [Case(own.pair.id, own.images, preferences=(own.pair,)) for own in drafts]
    weights = normalised(np.array([own.pair.relevance for own in drafts]), "affine")
    lines = [
        {
            "pair": own.pair.id,
            "kind": own.pair.kind,
            "base_model": plan.target.name,
            "source": plan.source,
            "question": own.subject.id,
            "images": [path.relative_to(plan.out).as_posix() for path in own.images],
            "relevance": own.pair.relevance,
            "weight": round(float(weight), 6),
            "made": own.made,
        }
        for own, weight in zip(drafts, weights, strict=True)
    ]
    write_preferences(plan.out / PREFERENCES, cases, images=plan.out / IMAGES, base_model=plan.target.name)
    text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
    replace_text(plan.out / PROVENANCE, text)


def pixels_digest(pixels: np.ndarray) -> str:
    """Digest of shape and values."""
    return hashlib.sha256(str(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()
