"""The folders of jobs: which attempt is finished, which is continued, and how a job is marked finished. No torch.

A job lies in `<out>/jobs/<key>/`. It is finished once `job.json` is there: written last, as a whole, after every other
file has reached the disk, with the SHA-256 of the scores. A folder without it is continued from its checkpoints. A
later attempt (`--fresh`, or scores that no longer match their digest) is `<key>-2`, `<key>-3`, ...; nothing is deleted,
and the newest finished attempt is the one that is read.
"""

import errno
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lightbox.errors import RequestError, WorkError
from lightbox.train.files import file_sha256, sync_file, sync_folder, write_json, write_synced

CARD = "job.json"
SCORES = "scores.parquet"
FAILURE = "error.json"
LOG = "log.txt"
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)

_log = logging.getLogger("lightbox.claims")


@contextmanager
def open_output(out: Path) -> Iterator[None]:
    """Make an output folder ready and hold its lock inside the block; a killed process holds it no longer.

    Raises:
        RequestError: where the folder cannot be written, or another process holds it.
    """
    lock = FileLock(out / ".lock")
    try:
        (out / "jobs").mkdir(parents=True, exist_ok=True)
        probe = out / "jobs" / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
        lock.acquire(timeout=0)
    except Timeout as err:
        raise RequestError(
            f"The output folder is {out}",
            "Another lightbox process is writing to it",
            "Wait until that one ends, or choose another folder with --out",
        ) from err
    except OSError as err:
        if err.errno in FULL_DISK:
            raise disk_full(out) from err
        raise RequestError(
            f"The output folder is {out}",
            f"It cannot be written: {err.strerror or err}",
            "Choose a folder you may write to with --out",
        ) from err
    try:
        yield
    finally:
        lock.release()


def finished_folder(out: Path, key: str) -> Path | None:
    """The newest finished and undamaged attempt at a job, or None."""
    return next((folder for folder in reversed(_attempts(out, key)) if is_finished(folder)), None)


def folder_to_run(out: Path, key: str, *, fresh: bool) -> Path:
    """Folder that an unfinished job is run in: its newest attempt if that can be continued, else a new one."""
    attempts = _attempts(out, key)
    if attempts and not fresh and not (attempts[-1] / CARD).exists():
        return attempts[-1]
    return out / "jobs" / (f"{key}-{_number(attempts[-1]) + 1}" if attempts else key)


def is_finished(folder: Path) -> bool:
    """True where `job.json` says so and the scores still have the digest it names; damage is warned of."""
    try:
        card = read_card(folder)
        is_sound = card is not None and file_sha256(folder / SCORES) == card["files"][SCORES]
    except (OSError, ValueError, KeyError, TypeError) as err:
        _log.warning("%s is damaged and counts as unfinished (%s: %s)", folder, type(err).__name__, err)
        return False
    if card is not None and not is_sound:
        _log.warning("%s does not match its digest; the job counts as unfinished", folder / SCORES)
    return is_sound


def read_card(folder: Path) -> dict[str, Any] | None:
    """`job.json` of a folder, or None where there is none.

    Raises:
        ValueError: where it is not JSON.
    """
    path = folder / CARD
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def mark_finished(folder: Path, card: Mapping[str, Any]) -> dict[str, Any]:
    """Write `job.json`, after everything else in the folder is on the disk; return what it holds.

    Raises:
        FileNotFoundError: where the job wrote no scores.
        OSError: where the disk is full; the job then stays unfinished, with all it wrote.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix in (".parquet", ".json"):
            sync_file(path)
    done = {**card, "files": {SCORES: file_sha256(folder / SCORES)}, "finished": True}
    (folder / FAILURE).unlink(missing_ok=True)
    write_json(folder / CARD, done)
    return done


def replace_text(path: Path, text: str) -> None:
    """Replace a text file as a whole: a reader, or a crash, sees the old or the new content, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    write_synced(staged, text.encode("utf-8"))
    staged.replace(path)
    sync_folder(path.parent)


def disk_full(folder: Path) -> WorkError:
    """The error for a disk that filled up while `folder` was written."""
    return WorkError(
        f"The folder is {folder}",
        "The disk is full; finished jobs and checkpoints are kept, what was being written is not",
        "Free some space and run the same command again: it continues",
    )


def _attempts(out: Path, key: str) -> list[Path]:
    """Folders of a job, oldest first."""
    found = [out / "jobs" / key, *(out / "jobs").glob(f"{key}-*")]
    return sorted((folder for folder in found if folder.is_dir()), key=_number)


def _number(folder: Path) -> int:
    number = folder.name.partition("-")[2]
    return int(number) if number.isdigit() else 1
