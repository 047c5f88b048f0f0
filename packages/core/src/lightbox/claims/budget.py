"""Training budget of a claim: rows of the pilot. No torch."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lightbox.claims.spec import PaperClaims
from lightbox.errors import RequestError
from lightbox.files import digest, replace_text
from lightbox.runs.key import effective

FILE = "budget.csv"
FREE = ("run.seed", "run.device", "run.threads", "optim.lr", "data.eval_split", "data.n_test")
"""Config keys, beside the budget, in which a pilot may differ from the run that it speaks for."""


@dataclass(frozen=True)
class PilotRow:
    """Mean of one measure on one job of the pilot.

    Args:
        arm, seed: of the job; budget: its value of the axis, 0 for an arm whose scores no budget changes.
        metric, condition, where: what was measured, written out; mean: of its `items` validation items.
        lr: learning rate, "" where nothing is trained.
        key, commit, source: of the job. settings: see `settings_digest`.
    """

    arm: str
    seed: int
    budget: int
    metric: str
    condition: str
    where: str
    mean: float
    items: int
    lr: str
    key: str
    commit: str
    source: str
    settings: str

    @property
    def place(self) -> tuple:
        """What the row is about; a newer row about it takes its place."""
        return self.arm, self.seed, self.budget, self.metric, self.condition, self.where


COLUMNS = [column.name for column in fields(PilotRow)]


def read_rows(path: Path) -> list[PilotRow]:
    """Rows of a pilot; [] where there is no file.

    Raises:
        RequestError: where the file holds something else.
    """
    if not path.exists():
        return []
    rows = []
    try:
        for line in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")), strict=True):
            numbers = {"seed": int(line["seed"]), "budget": int(line["budget"]), "items": int(line["items"])}
            rows.append(PilotRow(**{name: line[name] for name in COLUMNS} | numbers | {"mean": float(line["mean"])}))
    except (KeyError, TypeError, ValueError, csv.Error) as err:
        raise RequestError(
            f"The pilot is {path}",
            f"Line {len(rows) + 2} is no row of a pilot ({type(err).__name__}: {err})",
            "Restore the file from git, or delete it and run the pilot again",
        ) from err
    return rows


def merge_rows(path: Path, new: Sequence[PilotRow]) -> None:
    """Add rows to a pilot's file; one about the same arm, seed, budget and measure is replaced."""
    rows = {row.place: row for row in (*read_rows(path), *new)}
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(rows[place]) for place in sorted(rows))
    replace_text(path, buffer.getvalue())


def written(where: Sequence[tuple[str, str]]) -> str:
    """Further columns of a measure with their values, as a cell of the file."""
    return "; ".join(f"{column}={value}" for column, value in where)


def settings_digest(config: Mapping[str, Any], inputs: Mapping[str, str], axis: str) -> str:
    """Digest of what a run and the pilot that speaks for it must share: configuration, data and weights."""
    shared = {key: text for key, text in effective(config).items() if key not in (*FREE, axis)}
    return digest([shared, {name: text for name, text in inputs.items() if name != "device"}])[:20]


def at_budget(arm: str, budget: int) -> str:
    """Name of an arm at another budget than the preset's; 0 is the arm itself."""
    return f"{arm}@{budget}" if budget else arm


def budgeted_arms(paper: PaperClaims) -> set[str]:
    """Arms whose scores depend on the training budget: trained ones, and those that need one."""

    def depends(name: str) -> bool:
        return paper.arms[name].is_trained or any(depends(need) for need in paper.arms[name].needs)

    return {name for name in paper.arms if depends(name)}
