"""What saved weights were trained for, in `purpose.json` beside them, and whether they are asked for it. No torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightbox.errors import RequestError

PURPOSE = "purpose.json"


def read_purpose(folder: Path) -> dict[str, Any]:
    """What the weights in a folder were trained for; empty for weights that no run saved."""
    path = folder / PURPOSE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def check_purpose(folder: Path, asked: Mapping[str, str], *, backbone: str) -> None:
    """Refuse saved weights that were trained for something else than they are asked for.

    Args:
        folder: of the weights.
        asked: settings that change what the weights mean, by config key.
        backbone: what `model.backbone` says, for the message.

    Raises:
        RequestError: naming the first setting that differs.
    """
    for key, own in read_purpose(folder).get("purpose", {}).items():
        if own != asked.get(key, own):
            raise RequestError(
                f"model.backbone is '{backbone}', trained with {key}={own}, and {key} is {asked[key]}",
                "Its answers follow the template it was trained on",
                f"Choose the experiment that has {key}={own}",
            )


def check_width(folder: Path, width: int | None) -> None:
    """Compare features with those that saved weights were trained on; None is whatever they were trained on.

    Raises:
        RequestError: another width.
    """
    facts = read_purpose(folder)
    own = facts.get("vision_width", width)
    if width is not None and own != width:
        raise RequestError(
            f"The weights '{folder}' hold a fusion for features of width {own}, and these have {width}",
            f"It was trained with '{facts['vision'] or 'no tower'}'",
            "Set model.tower or model.features to what it was trained with",
        )
