"""Masks gathered by image into cases: what `findings` does for boxes, for findings whose masks stay in files.

Every mask is decoded once while it is read: its box is the tight one, and what is wrong with it costs its row alone.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lightbox.errors import RequestError
from lightbox.readers.documents import read_json
from lightbox.readers.findings import MAX_NAME
from lightbox.readers.masks import MaskedFinding, MaskError, MaskPart, part_mask
from lightbox.readers.pixels import pixels_size_wh
from lightbox.readers.rows import Gathering, RowError, shown
from lightbox.records import Box, Case, Finding, box_from_mask


@dataclass
class MaskedImage:
    """One image and the masks on it, by class.

    `absent` names classes that were looked for and are not there. `is_whole` is False once a mask of the image turned
    out faulty: it may have been of any class, so nothing is said of absence.
    """

    case: Case
    size_wh: tuple[int, int]
    parts: dict[str, list[MaskPart]] = field(default_factory=dict)
    boxes: dict[str, list[Box]] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)
    is_whole: bool = True


class MaskedCases:
    """The images of one dataset with their masks.

    Args:
        rows: where cases, problems and counts go.
        fields: of every case, such as its modality.
    """

    def __init__(self, rows: Gathering, **fields: Any) -> None:
        self.rows, self.fields = rows, fields
        self.images: dict[tuple[str, str], MaskedImage] = {}

    def image(self, case: Case, field_name: str) -> MaskedImage:
        """The image of a case, measured at its first row; `case` shows one image, a path.

        Raises:
            RowError: it cannot be measured, or another image has this id.
        """
        key = (case.split, case.id)
        if key not in self.images:
            (path,) = case.images
            assert isinstance(path, Path)
            try:
                size_wh = pixels_size_wh(path)
            except RequestError as err:
                raise RowError(field_name, f"is {path.name}, an image that cannot be measured: {err.why}") from err
            self.images[key] = MaskedImage(replace(case, **self.fields), size_wh)
        image = self.images[key]
        if image.case.images != case.images:
            raise RowError(field_name, f"is {case.images[0]}, but case {case.id} shows {image.case.images[0]}")
        return image

    @contextmanager
    def row(self, image: MaskedImage, file: Path, row: int | str, *, counter: str = "regions") -> Iterator[None]:
        """Read one mask of an image; a faulty one becomes a problem, its check is counted, and the rest is read."""
        with self.rows.row(file, row, counter=counter):
            try:
                with count_faults(self.rows):
                    yield
            except RowError:
                image.is_whole = False
                raise

    def mark(self, image: MaskedImage, name: str, part: MaskPart) -> np.ndarray:
        """Add a mask to the finding `name`, and return it, bool h w.

        Raises:
            MaskError: as `masks.part_mask`.
            RowError: a name that is too long to be one, or holds control signs.
        """
        check_name(name)
        mask = part_mask(part, image.size_wh)
        box = box_from_mask(mask)
        assert box is not None
        image.parts.setdefault(name, []).append(part)
        image.boxes.setdefault(name, []).append(box)
        self.rows.counts["masks"] += 1
        return mask

    def finish(self, file: Path, classes: Iterable[str] = ()) -> None:
        """Turn every image into a case; `classes` were looked for on every image, so the others are absent there."""
        looked_for = sorted(classes)
        for image in self.images.values():
            with self.rows.row(file, image.case.id, counter="annotated_images"):
                absent = {name for name in looked_for if image.is_whole} | image.absent
                present = [self._finding(image, name) for name in image.boxes]
                findings = (*present, *(Finding(name, present=False) for name in sorted(absent - image.boxes.keys())))
                self.rows.add(replace(image.case, findings=findings))
                self.rows.counts["findings_present"] += len(present)
                self.rows.counts["findings_absent"] += len(findings) - len(present)
        self.rows.counts["names_in_two_splits"] += len(self.images) - len({name for _, name in self.images})
        self.images = {}

    def _finding(self, image: MaskedImage, name: str) -> Finding:
        boxes = tuple(dict.fromkeys(image.boxes[name]))  # two instances may fill one box
        self.rows.counts["boxes_repeated"] += len(image.boxes[name]) - len(boxes)
        self.rows.counts["boxes"] += len(boxes)
        self.rows.counts["boxes_moved_to_the_edge"] += 0
        parts = tuple(image.parts.get(name, ()))
        if not parts:  # its class is present, nobody says where
            return Finding(name)
        return MaskedFinding(name, boxes=boxes, parts=parts, size_wh=image.size_wh, id=f"{image.case.id} {name}")


def check_name(name: str) -> str:
    """The name of a class, where it can be one; else a `RowError`."""
    if len(name) > MAX_NAME or not name.isprintable():
        raise RowError("name", f"is {shown(name)}, no name of a class")
    return name


def read_whole_object(file: Path) -> dict[str, Any]:
    """A small JSON file that is one object, read strictly: a key that stands twice would hide one of its values.

    Raises:
        RequestError: as `documents.read_json`, or a key stands twice.
    """
    content = read_json(file, dict)
    repeated = getattr(content, "repeated", ())
    if repeated:
        raise RequestError(f"File '{file}', key {shown(repeated[0][0])}", "It stands twice in one object", "Correct it")
    return content


@contextmanager
def count_faults(rows: Gathering) -> Iterator[None]:
    """Count a `MaskError` under its check and pass it on."""
    try:
        yield
    except MaskError as err:
        rows.counts[err.check] += 1
        raise
