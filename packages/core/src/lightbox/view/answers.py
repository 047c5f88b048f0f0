"""What a model answered, as HTML: every text escaped, every picture inside the page. No torch, no gradio."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from PIL import Image

from lightbox.errors import LightboxError
from lightbox.paper.entries import PICTURES
from lightbox.paper.overlay import Mark, draw_boxes
from lightbox.records import Box

MOST_PX, FEWEST_PX = 1024, 384
"""Longest side of a picture on the page, and what a small one is enlarged to, a whole number of times."""
SHOWN_APART = ("answer", "boxes", "labels", "scores", "note", PICTURES)


@dataclass(frozen=True)
class Asked:
    """What one side of the page was asked.

    Args:
        paper: its name.
        checkpoint: name of the run's folder.
        question: text.
        region: in words, "" for none.
        number: of the question, so that an answer can be told from one that reads alike.
    """

    paper: str
    checkpoint: str
    question: str
    region: str = ""
    number: int = 0


def answer_html(asked: Asked, pixels: np.ndarray, prediction: Mapping[str, Any], *, wall_s: float) -> str:
    """One side of the page.

    Args:
        asked: what for.
        pixels: uint8, h w or h w 3, of the image.
        prediction: what the paper's `predict` returned.
        wall_s: how long that took, in seconds.
    """
    rows = {name: _shown(value) for name, value in prediction.items() if name not in SHOWN_APART}
    pictures = {name: data_address(_fitted(picture)) for name, picture in prediction.get(PICTURES, {}).items()}
    return _template().render(
        asked=asked,
        error=None,
        answer=prediction.get("answer"),
        boxes=data_address(_with_boxes(pixels, prediction)) if "boxes" in prediction else "",
        n_boxes=len(prediction.get("boxes", ())),
        rows=rows,
        pictures=pictures,
        wall_s=wall_s,
    )


def error_html(asked: Asked | None, error: LightboxError) -> str:
    """The three parts of an error."""
    return _template().render(
        asked=asked, error=error, answer=None, boxes="", n_boxes=0, rows={}, pictures={}, wall_s=0.0
    )


def picture_address(pixels: np.ndarray) -> str:
    """Pixels as an address that holds them, at most `MOST_PX` wide and high."""
    return data_address(_fitted(Image.fromarray(pixels)))


def data_address(picture: Image.Image) -> str:
    """A picture as an address that holds it; gradio would put a file of it on disk."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _with_boxes(pixels: np.ndarray, prediction: Mapping[str, Any]) -> Image.Image:
    boxes = prediction["boxes"]
    labels = prediction.get("labels", [""] * len(boxes))
    scores = prediction.get("scores", [None] * len(boxes))
    marks = [Mark(label, Box(*box), score) for label, box, score in zip(labels, boxes, scores, strict=True)]
    shown = np.asarray(_fitted(Image.fromarray(pixels)))
    return draw_boxes(shown, marks, scale=max(1, FEWEST_PX // max(shown.shape[:2])))


def _fitted(picture: Image.Image) -> Image.Image:
    if max(picture.size) <= MOST_PX:
        return picture
    small = picture.copy()
    small.thumbnail((MOST_PX, MOST_PX))
    return small


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(own)}" for name, own in value.items())
    if isinstance(value, float):
        return f"{value:.3f}"
    return "" if value is None else str(value)


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("lightbox.view", "assets"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("answer.html.j2")
