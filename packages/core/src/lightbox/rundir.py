"""Read a finished run's folder, the only truth about it: card, curves, examples, per-item scores. No torch, no MLflow.

A claim job lies in `<out>/jobs/<key>/`, a single training in `<out>/runs/<name>/`. Both hold `job.json` (written last,
so its presence means finished), `scores.parquet`, `history.json`, `examples.json` and `card.json`.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lightbox.errors import WorkError

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
    path = folder / "job.json"
    if not path.is_file():
        return None
    card = _read_json(path, kind=dict)
    if card.get("finished") is False:
        return None
    known = {name: card[name] for name in Run.__dataclass_fields__ if card.get(name) is not None and name != "folder"}
    return Run(folder, **{"key": folder.name} | known)


def run_folders(out: Path) -> list[Path]:
    """Folders under `<out>/jobs` and `<out>/runs`, in order of name, finished or not."""
    return [folder for place in ("jobs", "runs") for folder in sorted((out / place).glob("*/"))]


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
    path = folder / "history.json"
    if not path.is_file():
        return {}
    curves = _read_json(path, kind=dict)
    try:
        return {key: [(int(step), _number(value)) for step, value in points] for key, points in curves.items()}
    except (TypeError, ValueError) as err:
        raise _damaged(path, f"A curve is a list of [step, value]: {err}") from err


def read_examples(folder: Path) -> list[dict[str, Any]]:
    """Example rows as the run wrote them; empty where it wrote none."""
    path = folder / "examples.json"
    return _read_json(path, kind=list) if path.is_file() else []


def read_card(folder: Path) -> dict[str, Any]:
    """What the run says of itself: parameters, device, versions, notes; empty where it wrote none."""
    path = folder / "card.json"
    return _read_json(path, kind=dict) if path.is_file() else {}


def read_scores(folder: Path) -> pa.Table | None:
    """Per-item scores: columns item, condition, kind and one float column a metric; None where the run has none.

    Raises:
        WorkError: where the file is damaged.
    """
    path = folder / "scores.parquet"
    if not path.is_file():
        return None
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as err:
        raise _damaged(path, str(err)) from err


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
