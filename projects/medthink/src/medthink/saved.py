"""What a run saves of its model: an adapter or all weights, and what they were trained for."""

import json
from pathlib import Path

from lightbox.adapters import artifact
from lightbox.backbones.backbone import Backbone
from lightbox.backbones.seq2seq import quiet_loading
from lightbox.errors import RequestError
from lightbox.files import write_json
from medthink.config import Config

STRATEGY = "strategy.json"
UNTRAINED = "weights scored as loaded, nothing trained"


def save(cfg: Config, backbone: Backbone, folder: Path, **facts: object) -> None:
    """Write a trained model to `folder`: its adapter where it has one, else the whole of it with its processor.

    Args:
        cfg: settings that it was trained with.
        backbone: around the model.
        folder: replaced where it holds an adapter.
        facts: what else `strategy.json` is to say.
    """
    if cfg.adapter.kind == "none":
        with quiet_loading():
            backbone.core.save_pretrained(folder)
            backbone.processor.save_pretrained(folder)
    else:
        artifact.save(folder, backbone, cfg.adapter)
    write_json(folder / STRATEGY, {"method": cfg.objective.method, "form": cfg.data.form, **facts})


def read_strategy(folder: Path) -> dict:
    """What saved weights were trained for; empty for weights that no run of this paper saved."""
    path = folder / STRATEGY
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def strategy_of(folder: Path) -> dict[str, str]:
    """Strategy and form that saved weights were trained for, "" where no run of this paper saved them."""
    told = read_strategy(folder)
    return {key: told.get(key, "") for key in ("method", "form")}


def check_width(folder: Path, width: int | None) -> None:
    """Compare features with those that an adapter's fusion was trained on; None is whatever it was trained on.

    Raises:
        RequestError: another width.
    """
    told = read_strategy(folder)
    own = told.get("vision_width", width)
    if width is not None and own != width:
        raise RequestError(
            f"The adapter '{folder}' holds a fusion for features of width {own}, and these have {width}",
            f"It was trained with '{told['tower'] or 'no tower'}'",
            "Set model.tower or model.features to what it was trained with",
        )


def check_strategy(cfg: Config, *, method: str, form: str) -> None:
    """Raise `RequestError` where saved weights were trained for another strategy or form than they are asked for."""
    for key, own, asked in (
        ("objective.method", method, cfg.objective.method),
        ("data.form", form, cfg.data.form),
    ):
        if own and own != asked:
            raise RequestError(
                f"model.backbone is '{cfg.model.backbone}', trained with {key}={own}, and {key} is {asked}",
                "Its answers follow the template it was trained on",
                f"Choose the experiment that has {key}={own}",
            )
