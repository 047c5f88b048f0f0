"""Findings with boxes: rows that each mark a box are gathered by image, and every image becomes one case.

A finding has all boxes of its name on the image. Where a source looked for every one of its classes on every image,
the classes without a box are findings that are not present. An image with a malformed row says nothing of absence,
since that row may have marked the class in question.
"""

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lightbox.errors import RequestError
from lightbox.readers.boxes import make_box
from lightbox.readers.images import load_image
from lightbox.readers.rows import Gathering, RowError, case_id_of, inside, shown
from lightbox.readers.stores import ImageStore, image_fault, image_note, image_size_wh
from lightbox.records import Box, Case, Finding, box_from_mask

Name = tuple[str, tuple[tuple[str, str], ...]]
"""Name of a finding and its attributes: what two boxes must share to belong to one finding."""


MAX_NAME = 200
"""Longest name of a class, in characters."""


@dataclass
class MarkedImage:
    """One image and what is marked on it.

    `size_wh` are the pixels that its boxes are measured in, None where they are fractions. `boxes` of a finding may be
    empty: it is present, nobody says where. `is_whole` is False once a row of the image turned out malformed.
    """

    case: Case
    size_wh: tuple[int, int] | None
    boxes: dict[Name, list[Box]] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)
    is_whole: bool = True

    def finding(self, name: str, **attributes: str) -> list[Box]:
        """The boxes of a present finding, to be added to.

        Raises:
            RowError: a name that is too long to be one, or holds control or formatting signs.
        """
        if len(name) > MAX_NAME or any(unicodedata.category(sign).startswith("C") for sign in name):
            raise RowError("name", f"is {shown(name)}, no name of a class")
        return self.boxes.setdefault((name, tuple(attributes.items())), [])

    @property
    def names(self) -> set[str]:
        """Names of the present findings."""
        return {name for name, _ in self.boxes}

    @contextmanager
    def row(self) -> Iterator[None]:
        """Read a row of this image; a malformed one is passed on, and noted."""
        try:
            yield
        except RowError:
            self.is_whole = False
            raise


class Markings:
    """The images of one dataset with what is marked on them.

    Args:
        rows: where cases, problems and counts go.
        store: the images, or None where the annotations travel without them; cases then hold no image.
        patient_of: the patient that an image's name gives away; None where it does not.
        fields: of every case, such as its modality.
    """

    def __init__(
        self,
        rows: Gathering,
        store: ImageStore | None,
        *,
        patient_of: Callable[[str], str] | None = None,
        **fields: Any,
    ) -> None:
        self.rows, self.store, self.patient_of, self.fields = rows, store, patient_of, fields
        self.images: dict[tuple[str, str], MarkedImage] = {}

    @property
    def names(self) -> set[str]:
        """Names of the findings that are present anywhere."""
        return {name for image in self.images.values() for name in image.names}

    def image(
        self,
        name: str,
        field_name: str,
        *,
        split: str = "",
        size_wh: tuple[int, int] | None = None,
        in_px: bool = True,
        is_scaled: bool = False,
        **fields: Any,
    ) -> MarkedImage:
        """The image that a row names, opened at its first row.

        Args:
            name: its path from some folder on, with or without the ending.
            field_name: for messages.
            split: the source's.
            size_wh: pixels of the image as the annotation has them; None measures the image.
            in_px: whether boxes are in pixels; else the image is not measured.
            is_scaled: the image may have another size than the annotation says.
            fields: of the case.

        Raises:
            RowError: no such image, one that cannot be measured, or one of another size.
        """
        key = (split, name)
        if key not in self.images:
            path = None if self.store is None else self.store.path(name, field_name)
            if in_px and path is not None and not is_scaled:
                size_wh = _checked_size(path, size_wh, field_name)
            if in_px and size_wh is None:
                raise RowError(field_name, f"is {name}, whose size nothing tells: there are no images here")
            case = Case(
                id=case_id_of(inside(Path(), name, field_name).as_posix()),
                images=() if path is None else (path,),
                patient_id=self.patient_of(name) if self.patient_of else None,
                split=split,
            )
            self.images[key] = MarkedImage(replace(case, **(self.fields | fields)), size_wh if in_px else None)
        image = self.images[key]
        if in_px and size_wh not in (None, image.size_wh) and not is_scaled:
            raise RowError(field_name, f"has {_pixels(size_wh)} here and {_pixels(image.size_wh)} in a row before")
        return image

    def add(
        self, image: MarkedImage, name: str, xyxy: Sequence[float], field_name: str = "box", **attributes: str
    ) -> None:
        """Add a box: left, top, right, bottom, in the unit the image was opened for; errors as `boxes.make_box`."""
        box, is_moved = make_box(xyxy, field_name, size_wh=image.size_wh)
        image.finding(name, **attributes).append(box)
        self.rows.counts["boxes_moved_to_the_edge"] += is_moved

    def finish(self, file: Path, classes: Iterable[str] | None = None) -> None:
        """Turn every image into a case; `file` is for messages.

        `classes` were looked for on every image, so they are absent where not marked; None stands for all `names`.
        """
        images = self.images.values()
        looked_for = sorted(self.names if classes is None else set(classes))
        for image in images:
            with self.rows.row(file, image.case.id, counter="annotated_images"):
                absent = [name for name in looked_for if image.is_whole and name not in image.names]
                absent += sorted(image.absent - {*absent, *image.names})
                present = []
                for (name, attributes), boxes in image.boxes.items():
                    distinct = tuple(dict.fromkeys(boxes))  # a box saved twice would be missed once by every detector
                    self.rows.counts["boxes_repeated"] += len(boxes) - len(distinct)
                    self.rows.counts["boxes"] += len(distinct)
                    present.append(Finding(name, attributes=dict(attributes), boxes=distinct))
                findings = (*present, *(Finding(name, present=False) for name in absent))
                self.rows.add(replace(image.case, findings=findings))
                self.rows.counts["findings_present"] += len(present)
                self.rows.counts["findings_absent"] += len(absent)
                self.rows.counts["cases_without_an_image"] += not image.case.images
        # where nothing tells the images apart but their names, one that stands in two splits may be a leak
        self.rows.counts["names_in_two_splits"] += len(images) - len({name for _, name in self.images})
        self.images = {}


def region_of(path: Path, field_name: str, *, size_wh: tuple[int, int]) -> np.ndarray:
    """A mask file as boolean h x w, True where not black; broken, of another size, or all black is a `RowError`."""
    try:
        region = load_image(path) > 0
        fault = image_fault(path) or ("It has printing colours" if image_note(path) == "cmyk_images" else "")
    except RequestError as err:
        raise RowError(field_name, f"is {path.name}, a mask that cannot be read: {err.why}") from err
    if fault:
        raise RowError(field_name, f"is {path.name}, a damaged mask: {fault}")
    if region.shape[::-1] != size_wh:
        raise RowError(field_name, f"has {_pixels(region.shape[::-1])}, but {_pixels(size_wh)} belong")
    if not region.any():
        raise RowError(field_name, "is black all over, so it marks nothing")
    return region


def region_edges(region: np.ndarray, *, left: float = 0, top: float = 0) -> tuple[float, float, float, float]:
    """Edges in pixels of the box around a region (not empty) whose corner lies at `left`, `top` of the image."""
    box, (height, width) = box_from_mask(region), region.shape
    assert box is not None
    return left + box.x0 * width, top + box.y0 * height, left + box.x1 * width, top + box.y1 * height


def _checked_size(path: Path, declared: tuple[int, int] | None, field_name: str) -> tuple[int, int]:
    try:
        size_wh = image_size_wh(path)
    except RequestError as err:
        raise RowError(field_name, f"is {path.name}, an image that cannot be measured: {err.why}") from err
    if declared not in (None, size_wh):
        raise RowError(field_name, f"has {_pixels(size_wh)}, but the annotation says {_pixels(declared)}")
    return size_wh


def _pixels(size_wh: tuple[int, ...] | None) -> str:
    return "no size" if size_wh is None else f"{size_wh[0]} x {size_wh[1]} pixels"
