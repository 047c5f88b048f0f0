"""One image, one name of a finding: its box."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from lightbox.paper.features import features_of
from lightbox.paper.schema import from_plain
from lightbox.runs import folders
from lightbox.testing.boxes.config import Config
from lightbox.testing.boxes.model import HEAD, Head, box_of, name_ids


def load_run(folder: Path) -> Config:
    """The configuration of a run; its head is small enough to be read for each question."""
    return from_plain(Config, folders.finished_run(folder).config)


def predict(image: Path, question: str, *, folder: Path, opened: Config | None = None, **_: Any) -> dict[str, object]:
    """Draw the box of the finding that `question` names; a run's head, the run's tower."""
    vision = features_of((opened or load_run(folder)).model, image)
    head = Head(vision.shape[-1]).eval()
    head.load_state_dict(load_file(folder / HEAD))
    return {"finding": question, "boxes": [tuple(box_of(head(vision, name_ids([question]))[0].detach()))]}
