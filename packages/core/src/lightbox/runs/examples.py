"""An example of a run: pictures with boxes and masks, what was asked, what the arm said and did. No torch.

`examples.json` is a list of them. A paper fills in what it has; the page shows what it finds, in this order. What the
arms of one item share (pictures, true regions, task) is drawn once; `output`, `trace` and predicted regions are one
arm's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from lightbox.errors import WorkError
from lightbox.records import Box

Role = Literal["truth", "predicted"]
Lines = tuple[tuple[str, str], ...]
"""Text to show, as (label, text), the most important first."""


@dataclass(frozen=True)
class BoxMark:
    """A box to draw on a picture: `xyxy`, fractions of the picture in [0, 1]."""

    box: Box
    role: Role
    label: str = ""


@dataclass(frozen=True)
class MaskMark:
    """A mask to draw on a picture: a grey PNG, relative to the run folder, 0 outside of the region."""

    path: str
    role: Role
    label: str = ""


@dataclass(frozen=True)
class Picture:
    """A PNG, relative to the run folder, and what is marked on it."""

    path: str
    title: str = ""
    boxes: tuple[BoxMark, ...] = ()
    masks: tuple[MaskMark, ...] = ()

    def moved_to(self, place: Path) -> "Picture":
        """The same, its paths relative to the folder that `place` leads from."""
        masks = tuple(replace(mask, path=(place / mask.path).as_posix()) for mask in self.masks)
        return replace(self, path=(place / self.path).as_posix(), masks=masks)


@dataclass(frozen=True)
class Step:
    """One step of a trace: what was said, and what was looked at."""

    text: str
    picture: Picture | None = None


@dataclass(frozen=True)
class Example:
    """One scored item.

    Args:
        item: its id in the scores.
        pictures: one or several.
        task: question, options, truth and the like.
        output: answer, rationale and the like.
        trace: steps that led to the output.
        condition: under which it was scored; "" is the paper's default condition.
        score: of the item, in the metric's unit; None where it has none.
        is_right: None where right and wrong say nothing.
    """

    item: str
    pictures: tuple[Picture, ...] = ()
    task: Lines = ()
    output: Lines = ()
    trace: tuple[Step, ...] = ()
    condition: str = ""
    score: float | None = None
    is_right: bool | None = None

    def moved_to(self, place: Path) -> "Example":
        """The same, its paths relative to the folder that `place` leads from."""
        pictures = tuple(picture.moved_to(place) for picture in self.pictures)
        steps = tuple(replace(s, picture=s.picture.moved_to(place) if s.picture else None) for s in self.trace)
        return replace(self, pictures=pictures, trace=steps)

    def to_row(self) -> dict[str, Any]:
        """The example as `examples.json` holds it."""
        return _EXAMPLE.dump_python(self, mode="json")

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Example":
        """Read one row of `examples.json`.

        Raises:
            WorkError: where it lacks something or holds another type.
        """
        try:
            return _EXAMPLE.validate_python(row)
        except ValidationError as err:
            fault = err.errors()[0]
            why = f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
            do = "Delete the run's examples.json; only the page's examples are lost"
            raise WorkError(f"An example of item {row.get('item')!r}", f"It does not read: {why}", do) from err


_EXAMPLE = TypeAdapter(Example)
