"""Where an image is noised: everywhere, its known findings, where a tower sees one, or a file for each image. No torch.

The paper takes MedKLIP's map. Any tool can stand in its place that writes one mask an image as a file.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from lightbox.errors import WorkError
from lightbox.files import file_sha256
from lightbox.readers.findings import region_of
from lightbox.readers.rows import RowError
from mmedpo.curation.questions import Subject, file_name
from mmedpo.noise import FOUND


class Place(NamedTuple):
    """Where an image is noised, bool h w, and how sure the localiser is of it, in [0, 1]; None where it cannot say."""

    mask: np.ndarray
    confidence: float | None = None


class Localiser(Protocol):
    """Anything that says where an image is noised."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the masks of all images."""
        ...

    def inputs(self, subject: Subject) -> Any:
        """What decides the mask of one image beside its pixels, as JSON can hold it."""
        ...

    def find(self, subject: Subject, pixels: np.ndarray) -> Place | None:
        """The place in uint8 h w or h w 3; None where there is nothing to be noised.

        Raises:
            WorkError: a mask that cannot be used.
        """
        ...


@dataclass(frozen=True)
class Everywhere:
    """The whole image, the paper's "global" noise."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Nothing can be set."""
        return {"kind": "full"}

    def inputs(self, subject: Subject) -> Any:
        """Nothing beside the pixels."""
        return None

    def find(self, subject: Subject, pixels: np.ndarray) -> Place:
        """All of it."""
        return Place(np.ones(pixels.shape[:2], bool))


@dataclass(frozen=True)
class Known:
    """The findings that the source knows: the phantom's."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Nothing can be set."""
        return {"kind": "oracle"}

    def inputs(self, subject: Subject) -> Any:
        """Nothing: the phantom's pixels say which case it is."""
        return None

    def find(self, subject: Subject, pixels: np.ndarray) -> Place | None:
        """The findings; None where the image has none."""
        return None if subject.findings is None else Place(subject.findings)


@dataclass(frozen=True)
class MaskFiles:
    """A folder with a mask for each image, named as it is in `images/` and of its size; what is not black is noised."""

    folder: Path

    @property
    def settings(self) -> Mapping[str, Any]:
        """That files say it; which, is each item's."""
        return {"kind": "files"}

    def inputs(self, subject: Subject) -> Any:
        """Name and content of the file."""
        path = self._path(subject)
        return [path.name, file_sha256(path) if path.is_file() else None]

    def find(self, subject: Subject, pixels: np.ndarray) -> Place:
        """The mask of the file."""
        path = self._path(subject)
        try:
            height, width = pixels.shape[:2]
            return Place(region_of(path, "mask", size_wh=(width, height)))
        except RowError as err:
            do = "Give a mask of the image's size that is not black all over, or leave the image out"
            raise WorkError(f"Mask '{path.name}' of image {subject.image_id}", f"It {err.reason}", do) from err

    def _path(self, subject: Subject) -> Path:
        return self.folder / file_name(subject.image_id)


@dataclass(frozen=True)
class Tower:
    """Where the finding head of a tower is surer than `noise.FOUND`.

    Args:
        name, digest: of its weights.
        open_map: loads it; the result maps uint8 h w or h w 3 to float h w in [0, 1].
    """

    name: str
    digest: str
    open_map: Callable[[], Callable[[np.ndarray], np.ndarray]]

    @property
    def settings(self) -> Mapping[str, Any]:
        """The weights, and the threshold."""
        return {"kind": "tower", "localiser": self.name, "weights": self.digest, "above": FOUND}

    @cached_property
    def _map(self) -> Callable[[np.ndarray], np.ndarray]:
        return self.open_map()

    def inputs(self, subject: Subject) -> Any:
        """Nothing beside the pixels."""
        return None

    def find(self, subject: Subject, pixels: np.ndarray) -> Place | None:
        """What it sees, and its mean probability there; None where it sees nothing."""
        found = self._map(pixels)
        mask = found > FOUND
        return Place(mask, round(float(found[mask].mean()), 4)) if mask.any() else None
