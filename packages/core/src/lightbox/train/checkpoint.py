"""Checkpoint folders that a kill, a full disk or a flipped bit cannot turn into a wrong resume. No pickle.

A checkpoint is staged under another name, its manifest (size and SHA-256 of each file) is written last, everything is
synced, then one rename makes it appear. What resumes is the highest step whose manifest verifies.
"""

import errno
import json
import logging
import os
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightbox import files
from lightbox.errors import RequestError, WorkError
from lightbox.files import digest
from lightbox.train import processes, updates, weights

KEEP = 2
FAILURES_ALLOWED = 3
MODEL, OPTIMIZER, STATE, MANIFEST = "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"
FREE_TO_CHANGE = ("optim.micro_batch_size",)
"""Settings that a continued run may have otherwise: they cut a step's batch, and change its result by rounding only."""
_STEP = re.compile(r"step-(\d{8,})$")
_log = logging.getLogger(__name__)


@dataclass
class ResumeState:
    """Everything beside tensors that a resumed run needs to be the same run.

    `history` holds the curves so far, `window` the sums since the last logged step, `batches` the place in the data,
    `rng` every generator of the first process and `other_rngs` those of the others, `groups` the optimiser's numbers,
    `scaler` the loss scale of fp16 and `overflows` its skipped steps in a row, `micro_batch_size` what a shortage of
    memory left (0 before one), `settings` the configuration that defines the run, schedule included.
    """

    step: int = 0
    history: dict[str, list[list[float | None]]] = field(default_factory=dict)
    window: dict[str, list[float]] = field(default_factory=dict)
    batches: dict[str, Any] = field(default_factory=dict)
    rng: dict[str, Any] = field(default_factory=dict)
    other_rngs: list[dict[str, Any]] = field(default_factory=list)
    groups: list[dict[str, Any]] = field(default_factory=list)
    scaler: dict[str, Any] = field(default_factory=dict)
    overflows: int = 0
    micro_batch_size: int = 0
    settings: dict[str, Any] = field(default_factory=dict)


def save(folder: Path, model: nn.Module, optimizer: Optimizer, state: ResumeState) -> Path:
    """Write one checkpoint, then delete all but the newest two.

    Args:
        folder: holds `step-XXXXXXXX` folders; made where absent.
        model: its trainable parameters and buffers are stored.
        optimizer: of parameters of `model`.
        state: the rest; `groups` is filled in here.

    Returns:
        The folder of this checkpoint.

    Raises:
        OSError: where the disk is full or refuses; earlier checkpoints are untouched then.
    """
    tensors = {MODEL: weights.trained_tensors(model), OPTIMIZER: updates.state_tensors(model, optimizer)}
    state.groups = updates.group_numbers(model, optimizer)
    target, staged = folder / f"step-{state.step:08d}", folder / f".tmp-{state.step}-{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    _check_free(folder, sum(t.nbytes for named in tensors.values() for t in named.values()))
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    try:
        for name, named in tensors.items():
            weights.write_tensors(staged / name, named)
            files.sync_file(staged / name)
        files.write_synced(staged / STATE, files.canonical_json(asdict(state)))
        files.write_synced(staged / MANIFEST, _manifest(staged, state))
        files.sync_folder(staged)
        if target.exists():  # a damaged one that `latest` skipped, or this step saved before
            target.rename(staged.with_name(staged.name + "-replaced"))
        staged.rename(target)
        files.sync_folder(folder)
    except OSError:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    _prune(folder, target)
    return target


def save_or_warn(folder: Path, model: nn.Module, optimizer: Optimizer, state: ResumeState, *, failures: int) -> int:
    """Save in the first process; on a full disk warn and let training go on with the earlier checkpoints kept.

    Every process must call it, so that all of them go on or all stop.

    Args:
        folder, model, optimizer, state: as for `save`.
        failures: failed saves in a row so far.

    Returns:
        Failed saves in a row now: 0 after a good one.

    Raises:
        WorkError: at the third failure in a row.
    """
    refused: OSError | None = None
    try:
        if processes.is_main():
            save(folder, model, optimizer, state)
    except OSError as err:
        refused = err
    reason = processes.from_main("" if refused is None else refused.strerror or str(refused))
    if not reason:
        return 0
    failures += 1
    if failures >= FAILURES_ALLOWED:
        raise WorkError(
            f"The checkpoint of step {state.step} cannot be written to {folder}",
            f"{reason}, {failures} times in a row",
            "Free space there or choose another folder with run.out, then run the same command again",
        ) from refused
    _log.warning(
        "Step %d: no checkpoint written (%s); the earlier ones are kept and the next save tries again",
        state.step,
        reason,
    )
    return failures


def load(path: Path, model: nn.Module, optimizer: Optimizer, *, settings: dict[str, Any] | None = None) -> ResumeState:
    """Put a checkpoint's weights and optimiser tensors back, in place.

    Args:
        path: a checkpoint folder, as `latest` gives it.
        model: has the same trainable parameters and buffers.
        optimizer: has the same groups.
        settings: the configuration of this run, `FREE_TO_CHANGE` apart; None accepts any.

    Raises:
        RequestError: where the settings or the parameters are not those of the checkpoint.
        WorkError: where a file is damaged.
    """
    reason = damage(path)  # again after `latest`: another process found it, and safetensors has no checksum
    if reason is not None:
        raise WorkError(f"{path} is damaged", reason, "Run the same command again, which continues from the one before")
    state = _read_state(path / STATE)
    if settings is not None and _fixed(settings) != _fixed(state.settings):
        raise RequestError(
            f"{path} was made with {_differences(state.settings, settings)}",
            "A run that continues with other settings is neither the old run nor the new one",
            "Restore those settings, choose another folder with run.out, or start anew with run.resume=false",
        )
    weights.load_trained_tensors(path / MODEL, model)
    updates.restore(model, optimizer, weights.read_tensors(path / OPTIMIZER), state.groups)
    return state


def latest(folder: Path) -> Path | None:
    """The checkpoint with the highest step that verifies, or None; a damaged one is named in a warning and skipped."""
    for path in _newest_first(folder):
        reason = damage(path)
        if reason is None:
            return path
        _log.warning("Checkpoint %s is skipped: %s", path.name, reason)
    return None


def damage(path: Path) -> str | None:
    """Say what is wrong with a checkpoint folder, naming the file; None where every file matches the manifest."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        listed, own = manifest["files"], manifest.pop("self")
    except (OSError, ValueError, KeyError, TypeError) as err:
        return f"{MANIFEST} cannot be read ({type(err).__name__})"
    if own != digest(manifest):
        return f"{MANIFEST} does not match its own digest"
    for name, facts in listed.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != facts["bytes"]:
            return f"{name} has {file.stat().st_size} bytes, not {facts['bytes']}"
        if files.file_sha256(file) != facts["sha256"]:
            return f"{name} does not match its digest"
    return None


def clean(folder: Path) -> None:
    """Remove what killed saves left behind. Call it when no other process saves here."""
    for path in folder.glob(".tmp-*"):
        shutil.rmtree(path, ignore_errors=True)


def set_aside(folder: Path) -> None:
    """Rename a folder of checkpoints so that a fresh run starts without them and nothing is deleted."""
    if folder.exists():
        number = 1
        while (aside := folder.with_name(f"{folder.name}-before-{number}")).exists():
            number += 1
        folder.rename(aside)


def _newest_first(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("step-*") if _STEP.match(path.name)), key=_step, reverse=True)


def _read_state(path: Path) -> ResumeState:
    try:
        return ResumeState(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as err:
        raise WorkError(
            f"{path} cannot be read", f"Another version of Lightbox wrote it: {err}", "Start anew with run.resume=false"
        ) from err


def _manifest(staged: Path, state: ResumeState) -> bytes:
    listed = {
        name: {"bytes": (staged / name).stat().st_size, "sha256": files.file_sha256(staged / name)}
        for name in (MODEL, OPTIMIZER, STATE)
    }
    manifest = {"step": state.step, "settings": digest(state.settings), "files": listed}
    return files.canonical_json(manifest | {"self": digest(manifest)})


def _fixed(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in FREE_TO_CHANGE}


def _differences(then: dict[str, Any], now: dict[str, Any]) -> str:
    then, now = _fixed(then), _fixed(now)
    keys = sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))
    return ", ".join(f"{key}={then.get(key)} (now {now.get(key)})" for key in keys)


def _check_free(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{needed >> 20} MiB needed, {free >> 20} MiB free")


def _prune(folder: Path, newest: Path) -> None:
    """Once the newest checkpoint verifies, delete all older ones but one; a higher step is a damaged one and stays."""
    reason = damage(newest)
    if reason is not None:
        _log.warning("Checkpoint %s does not verify (%s); no earlier one is deleted", newest.name, reason)
        return
    older = [path for path in _newest_first(folder) if _step(path) < _step(newest)]
    for path in older[KEEP - 1 :]:
        doomed = path.with_name(f".tmp-{path.name}-{os.getpid()}")  # else a kill here leaves a half-deleted one
        path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    for path in folder.glob(f".tmp-*-{os.getpid()}-replaced"):
        shutil.rmtree(path, ignore_errors=True)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))
