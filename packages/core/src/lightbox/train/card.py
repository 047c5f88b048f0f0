"""The run card: what trained, on what, with which versions, and how long it took. Times stand here and nowhere else."""

import importlib.metadata
import json
import logging
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from lightbox.config import RunConfig
from lightbox.errors import WorkError
from lightbox.train.files import write_json

PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "numpy")
_log = logging.getLogger(__name__)


class RunCard:
    """`card.json` of a run: written when training begins, and again with `wall_s` when it ends, however it ends.

    `wall_s` adds up over resumes, apart from sessions that were killed outright.

    Args:
        path: of the file.
        facts: see `describe`.
        is_resumed: True where an earlier session's time is to be added.
    """

    def __init__(self, path: Path, facts: dict[str, Any], *, is_resumed: bool) -> None:
        self._path, self._facts = path, facts
        self._former_s = _former_wall_s(path) if is_resumed else 0.0
        self._began = 0.0

    def __enter__(self) -> Self:
        self._began = time.perf_counter()
        self._write(self._former_s)
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        try:
            self._write(self._former_s + time.perf_counter() - self._began)
        except WorkError as failure:
            if err is None:
                raise
            _log.warning("%s", failure)  # what ended the run matters more

    def _write(self, wall_s: float) -> None:
        write_json(self._path, self._facts | {"wall_s": round(wall_s, 3)})


def describe(model: nn.Module, device: torch.device, run: RunConfig, *, notes: list[str]) -> dict[str, Any]:
    """Facts of a run card: sizes, device, precision, threads, versions, notes."""
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "parameters_trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "precision": run.precision,
        "threads": run.threads,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "notes": notes,
    }


def _former_wall_s(path: Path) -> float:
    if not path.is_file():
        return 0.0
    return float(json.loads(path.read_text(encoding="utf-8")).get("wall_s") or 0.0)
