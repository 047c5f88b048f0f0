"""The folder of a run: its files, who writes each and when, and how they are read. No torch, no MLflow.

A claim's job lies in `<out>/jobs/<key>/`, a single training in `<out>/runs/<arm>-<key>/`; both hold the same files.

| file | written by | when |
|---|---|---|
| `checkpoints/` | `train.checkpoint` | at each save; deleted once the run is scored |
| `card.json` | `train.card`, then the paper | when training starts and ends; the paper adds to it |
| `history.json` | `train.driver` | after the last step |
| `nonfinite.json` | `train.watch` | where a number that is not finite stopped the training |
| `scores.parquet` | the paper's `evaluate` | before any mean is taken |
| `predictions.jsonl` | the paper's `evaluate` | with the scores, where the run answers questions |
| `examples.json`, `examples/` | the paper's `evaluate` | with the scores |
| `model/` | the paper's `train` command | after scoring; a claim's job keeps none |
| `log.txt`, `error.json` | the worker; the runner | while a job runs; where it failed |
| `job.json` | `mark_finished` | last, after all else has reached the disk: its presence means finished |

A paper may leave further files of its own beside them. A folder without `job.json` is continued from its checkpoints. A
later attempt at a job (`--fresh`, or a finished one that `runs.finished` does not trust) is `<key>-2`, `<key>-3`, ...;
nothing is deleted, and the newest finished attempt is the one that is read.
"""

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from lightbox.errors import RequestError, WorkError
from lightbox.files import FULL_DISK, canonical_json, file_sha256, replace_with, sync_file, write_json

JOBS, RUNS, CACHE = "jobs", "runs", "cache"
RECORD = "job.json"
CARD = "card.json"
HISTORY = "history.json"
SCORES = "scores.parquet"
PREDICTIONS = "predictions.jsonl"
EXAMPLES, EXAMPLE_IMAGES = "examples.json", "examples"
CHECKPOINTS = "checkpoints"
MODEL = "model"
FAILURE = "error.json"
NONFINITE = "nonfinite.json"
LOG = "log.txt"
LABEL = b"lightbox"  # key of the label in the metadata of a file of scores
LABELLED = ("paper", "arm", "seed", "key")
KEY_COLUMNS = ("item", "condition", "kind")


@dataclass(frozen=True)
class Run:
    """What `job.json` says about a finished run; `folder` holds the rest.

    `key` is the job key, or the folder's name for a single training; later attempts at a job share its key and lie in
    `<key>-2`, `<key>-3`, ... . `needs` maps arms to the keys of jobs read.
    """

    folder: Path
    key: str
    paper: str = ""
    arm: str = ""
    seed: int | None = None
    preset: str = ""
    commit: str = ""
    hardware: str = ""
    wall_s: float | None = None
    config: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    needs: dict[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Short name for tables and legends: paper, arm and seed where known, else the key's first 12 characters."""
        parts = [self.paper, self.arm, "" if self.seed is None else f"seed {self.seed}"]
        return " ".join(part for part in parts if part) or self.key[:12]


def read_run(folder: Path) -> Run | None:
    """Read `job.json` of one folder; None where the run has not finished.

    Raises:
        WorkError: where the file is not a JSON object.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    record = _read_json(path, kind=dict)
    if record.get("finished") is False:
        return None
    fields = {
        name: record[name] for name in Run.__dataclass_fields__ if record.get(name) is not None and name != "folder"
    }
    return Run(folder, **{"key": folder.name} | fields)


def finished_run(folder: Path) -> Run:
    """The run in a folder that somebody names.

    Raises:
        RequestError: where it has not finished.
    """
    run = read_run(folder)
    if run is None:
        raise RequestError(
            f"The run is '{folder}'",
            f"It holds no {RECORD}, so it is no finished run",
            "Name a finished run",
        )
    return run


def needed_runs(folders: Sequence[str]) -> dict[str, Path]:
    """Folders of `needs` by the arm that each says it is.

    Raises:
        RequestError: a folder that is no finished run.
    """
    by_arm = {}
    for folder in map(Path, folders):
        run = read_run(folder)
        if run is None:
            raise RequestError(
                f"needs names '{folder}'", f"It holds no {RECORD}, so it is no finished run", "Name a finished run"
            )
        by_arm[run.arm] = folder
    return by_arm


def run_folders(out: Path) -> list[Path]:
    """Folders under `<out>/jobs` and `<out>/runs`, in order of name, finished or not."""
    return [folder for place in (JOBS, RUNS) for folder in sorted((out / place).glob("*/"))]


def newest_runs(out: Path) -> list[Run]:
    """Finished runs under `out`, of each key the newest attempt, in order of folder name.

    Raises:
        WorkError: for a damaged `job.json`.
    """
    newest: dict[str, Run] = {}
    for folder in run_folders(out):
        run = read_run(folder)
        if run is not None and (run.key not in newest or attempt(run) > attempt(newest[run.key])):
            newest[run.key] = run
    return list(newest.values())


def attempt(run: Run) -> int:
    """Number of the attempt that the run's folder holds, from 1."""
    number = run.folder.name.removeprefix(run.key).removeprefix("-")
    return int(number) if number.isdigit() else 1


def read_history(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Learning curves by metric key, as (step, value); empty where the run has none."""
    path = folder / HISTORY
    if not path.is_file():
        return {}
    curves = _read_json(path, kind=dict)
    try:
        return {key: [(int(step), _number(value)) for step, value in points] for key, points in curves.items()}
    except (TypeError, ValueError) as err:
        raise _damaged(path, f"A curve is a list of [step, value]: {err}") from err


def read_examples(folder: Path) -> list[dict[str, Any]]:
    """Example rows as the run wrote them; empty where it wrote none."""
    path = folder / EXAMPLES
    return _read_json(path, kind=list) if path.is_file() else []


def read_card(folder: Path) -> dict[str, Any]:
    """What the run says of itself: parameters, device, versions, notes; empty where it wrote none."""
    path = folder / CARD
    return _read_json(path, kind=dict) if path.is_file() else {}


def read_scores(folder: Path) -> pa.Table | None:
    """Per-item scores: columns item, condition, kind and one float column a metric; None where the run has none.

    Raises:
        WorkError: where the file is damaged, or not the one that `job.json` names.
    """
    path = folder / SCORES
    if not path.is_file():
        return None
    record = _read_json(folder / RECORD, kind=dict) if (folder / RECORD).is_file() else {}
    if record.get("files", {}).get(SCORES) not in (None, file_sha256(path)):
        raise _damaged(path, f"It does not match the digest in {RECORD}")
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as err:
        raise _damaged(path, str(err)) from err


def write_scores(folder: Path, rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> pa.Table:
    """Write per-item scores, sorted by condition and item, so that equal rows are equal bytes; returns them so.

    Args:
        folder: of the run.
        rows: item, condition, kind, and a number or None for each metric.
        metrics: names of the metric columns, in the order of the file.
    """
    schema = pa.schema([*((name, pa.string()) for name in KEY_COLUMNS), *((name, pa.float64()) for name in metrics)])
    table = pa.table({name: [row[name] for row in rows] for name in schema.names}, schema=schema)
    table = table.sort_by([("condition", "ascending"), ("item", "ascending")])
    _write_table(table, folder)
    return table


def label_of(record: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """What a file of scores says of itself: whose they are, and how many rows."""
    return {name: record.get(name) for name in LABELLED} | {"rows": rows}


def read_label(path: Path) -> dict[str, Any]:
    """The label of a file of scores; {} where it was written before there were labels.

    Raises:
        OSError, ValueError: where it cannot be read, or is no file of scores.
    """
    return json.loads((pq.read_schema(path).metadata or {}).get(LABEL, b"{}"))


def write_history(folder: Path, curves: Mapping[str, Any]) -> None:
    """Write learning curves, by metric key a list of [step, value]; {} where nothing was trained."""
    write_json(folder / HISTORY, curves)


def write_examples(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write example rows; the path of an image in them is relative to the folder."""
    write_json(folder / EXAMPLES, rows)


def write_card(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write what the run says of itself, as a whole."""
    write_json(folder / CARD, facts)


def add_to_card(folder: Path, facts: Mapping[str, Any]) -> None:
    """Add facts to the run's card; those of the same name are replaced."""
    write_card(folder, read_card(folder) | dict(facts))


def drop_checkpoints(folder: Path, *, parts: str = "") -> None:
    """Delete the checkpoints of a scored run: nothing resumes from them, and many runs would hold gigabytes.

    Args:
        folder: of the run.
        parts: pattern of folders of trainings inside the run, such as "fold-*", which go as a whole.
    """
    for path in (folder / CHECKPOINTS, *(folder.glob(parts) if parts else ())):
        if path.is_dir():
            shutil.rmtree(path)


def metric_columns(scores: pa.Table) -> list[str]:
    """Names of the metric columns, in file order."""
    return [name for name in scores.column_names if name not in KEY_COLUMNS]


def mean_scores(scores: pa.Table) -> dict[str, float]:
    """Mean of each metric over the items of each condition, by "condition/metric"; absent where all values are null."""
    means: dict[str, float] = {}
    for condition in sorted(set(scores["condition"].to_pylist())):
        rows = scores.filter(pc.equal(scores["condition"], condition))
        for metric in metric_columns(rows):
            mean = pc.mean(rows[metric]).as_py()
            if mean is not None:
                means[f"{condition}/{metric}"] = mean
    return means


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested configuration as dotted keys and text values; a list is one value, in JSON.

    Example:
        >>> flatten({"optim": {"lr": 0.1}, "data": {"kinds": ["side"]}})
        {'optim.lr': '0.1', 'data.kinds': '["side"]'}
    """
    flat: dict[str, str] = {}
    for name, entry in value.items():
        key = f"{prefix}{name}"
        if isinstance(entry, dict):
            flat |= flatten(entry, f"{key}.")
        else:
            flat[key] = entry if isinstance(entry, str) else json.dumps(entry)
    return flat


@contextmanager
def open_output(out: Path) -> Iterator[None]:
    """Make an output folder ready and hold its lock inside the block; a killed process holds it no longer.

    Raises:
        RequestError: where the folder cannot be written, or another process holds it.
    """
    lock = FileLock(out / ".lock")
    try:
        (out / JOBS).mkdir(parents=True, exist_ok=True)
        probe = out / JOBS / f".probe-{os.getpid()}"
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


def attempts(out: Path, key: str) -> list[Path]:
    """Folders of a job, oldest first."""
    folders = [out / JOBS / key, *(out / JOBS).glob(f"{key}-*")]
    return sorted((folder for folder in folders if folder.is_dir()), key=_attempt_number)


def folder_to_run(out: Path, key: str, *, fresh: bool) -> Path:
    """Folder that an unfinished job is run in: its newest attempt if that can be continued, else a new one."""
    folders = attempts(out, key)
    if folders and not fresh and not (folders[-1] / RECORD).exists():
        return folders[-1]
    return out / JOBS / (f"{key}-{_attempt_number(folders[-1]) + 1}" if folders else key)


def read_record(folder: Path) -> dict[str, Any] | None:
    """`job.json` of a folder, or None where there is none.

    Raises:
        ValueError: where it is not JSON.
    """
    path = folder / RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def mark_finished(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Label the scores, and write `job.json` after everything else in the folder is on the disk; return what it holds.

    Raises:
        FileNotFoundError: where the job wrote no scores.
        ArrowInvalid: where it wrote something else in their place.
        OSError: where the disk is full; the job then stays unfinished, with all it wrote.
    """
    scores = pq.read_table(folder / SCORES)
    _write_table(scores.replace_schema_metadata({LABEL: canonical_json(label_of(record, scores.num_rows))}), folder)
    for path in sorted(folder.iterdir()):
        if path.suffix in (".parquet", ".json", ".jsonl"):
            sync_file(path)
    done = {**record, "files": {SCORES: file_sha256(folder / SCORES)}, "finished": True}
    (folder / FAILURE).unlink(missing_ok=True)
    write_json(folder / RECORD, done)
    return done


def disk_full(folder: Path) -> WorkError:
    """The error for a disk that filled up while `folder` was written."""
    return WorkError(
        f"The folder is {folder}",
        "The disk is full; finished jobs and checkpoints are kept, what was being written is not",
        "Free some space and run the same command again: it continues",
    )


def _write_table(scores: pa.Table, folder: Path) -> None:
    replace_with(folder / SCORES, lambda staged: pq.write_table(scores, staged, compression="zstd"))


def _number(value: float | str | None) -> float:
    """JSON has no NaN: a curve may hold null, or a name such as "Infinity"."""
    return math.nan if value is None else float(value)


def _read_json(path: Path, *, kind: type) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise _damaged(path, str(err)) from err
    if not isinstance(value, kind):
        raise _damaged(path, f"It holds a {type(value).__name__} and must hold a {kind.__name__}")
    return value


def _damaged(path: Path, why: str) -> WorkError:
    return WorkError(f"{path} cannot be read", why, f"Delete the folder {path.parent}; the run is then made again")


def _attempt_number(folder: Path) -> int:
    number = folder.name.partition("-")[2]
    return int(number) if number.isdigit() else 1
