"""The run card: what trained, on what, with which versions, and how long it took. Times stand here and nowhere else."""

import importlib.metadata
import logging
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn

from lightbox.config import RunConfig
from lightbox.errors import WorkError
from lightbox.runs import folders
from lightbox.train import processes

PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "numpy")
_log = logging.getLogger(__name__)


class RunCard:
    """`card.json` of a run: written when training begins, and again with `wall_s` when it ends, however it ends.

    `wall_s` adds up over resumes, apart from sessions that were killed outright.

    Args:
        out: folder of the run.
        facts: see `describe`.
        is_resumed: True where an earlier session's time is to be added.
    """

    def __init__(self, out: Path, facts: dict[str, Any], *, is_resumed: bool) -> None:
        self._out, self._facts = out, facts
        self._former_s = float(folders.read_card(out).get("wall_s") or 0.0) if is_resumed else 0.0
        self._began = 0.0

    def __enter__(self) -> Self:
        self._began = time.perf_counter()
        self._write(self._former_s)
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        try:
            self._write(self._wall_s())
        except WorkError as failure:
            if err is None:
                raise
            _log.warning("%s", failure)  # what ended the run matters more

    def note(self, text: str) -> None:
        """Add a sentence to `notes` and write the card anew."""
        _log.warning("%s", text)
        self._facts["notes"] = [*self._facts.get("notes", ()), text]
        self._write(self._wall_s())

    def _wall_s(self) -> float:
        return self._former_s + time.perf_counter() - self._began

    def _write(self, wall_s: float) -> None:
        if processes.is_main():
            folders.write_card(self._out, self._facts | {"wall_s": round(wall_s, 3)})


def describe(model: nn.Module, device: torch.device, run: RunConfig, *, notes: list[str]) -> dict[str, Any]:
    """Facts of a run card: sizes, what trains, device, precision, threads, processes, versions, notes."""
    return {
        "parameters": sum(_numbers(p) for p in model.parameters()),
        "parameters_trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "trained": trained_groups(model),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "dtype": str(next(p.dtype for p in model.parameters() if p.is_floating_point())).removeprefix("torch."),
        "precision": run.precision,
        "threads": run.threads,
        "processes": {"count": processes.count(), "model": "whole in each"},
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "notes": notes,
    }


def trained_groups(model: nn.Module) -> dict[str, int]:
    """Numbers that train, by name, with layers of one kind together.

    Example:
        >>> trained_groups(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3, bias=False)))
        {'*.weight': 15, '*.bias': 3}
    """
    groups: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = ".".join("*" if part.isdigit() else part for part in name.split("."))
            groups[kind] = groups.get(kind, 0) + parameter.numel()
    return groups


def _numbers(parameter: nn.Parameter) -> int:
    """Numbers in a parameter; a byte of a 4-bit one holds two."""
    return parameter.numel() * (2 * parameter.element_size() if type(parameter).__name__ == "Params4bit" else 1)
