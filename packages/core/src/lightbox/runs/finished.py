"""Which finished folder of a job may be read: one that holds what its `job.json` says, of that very job. No torch.

What is not trusted is warned of and counts as unfinished; it stays where it is, and the job is run in a new attempt.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from lightbox.files import file_sha256
from lightbox.runs.folders import SCORES, attempts, label_of, read_label, read_record
from lightbox.runs.key import recorded

_log = logging.getLogger(__name__)


def finished_folder(out: Path, key: str) -> Path | None:
    """The newest finished and undamaged attempt at a job, or None."""
    return next((folder for folder in reversed(attempts(out, key)) if is_finished(folder, key)), None)


def is_finished(folder: Path, key: str) -> bool:
    """True where `job.json` is that of the job, and the scores are those that it names; all else is warned of."""
    try:
        record = read_record(folder)
        if record is None:
            return False
        fault = _fault(folder, record, key)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        fault = f"it is damaged, {type(err).__name__}: {err}"
    if fault:
        _log.warning("%s counts as unfinished: %s", folder, fault)
    return not fault


def sweep(folder: Path) -> None:
    """Remove what killed writes left under hidden names in a finished folder; no reader takes them for anything."""
    for path in folder.rglob(".*.tmp-*"):
        if path.is_file():
            path.unlink(missing_ok=True)


def _fault(folder: Path, record: Mapping[str, Any], key: str) -> str:
    scores = folder / SCORES
    if file_sha256(scores) != record["files"][SCORES]:
        return f"{SCORES} does not match its digest"
    if not record["key"] == recorded(record).key == key:
        return f"its job.json is that of another run, arm '{record['arm']}', seed {record['seed']}"
    label = read_label(scores)
    if label != label_of(record, pq.read_metadata(scores).num_rows):
        return f"{SCORES} is that of another run, arm '{label.get('arm')}', seed {label.get('seed')}"
    return ""
