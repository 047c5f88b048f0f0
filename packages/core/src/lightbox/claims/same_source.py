"""When two sources count as one: jobs trained again by a later source that gave the same scores. No torch.

Every edit of a module that a paper reaches gives its jobs other keys, whether or not it changes a number, and a key
that is not today's makes an older result. `claims.retrain` trains one job of each arm again, and
`results/<paper>/retrained.csv` says of each whether its scores are those of before, to the last bit, as published or as
the older source gives them on the same processor. Where they are, the older jobs of that arm and preset stand beside
those of today, and so do the rows of its pilot. A single job that differs takes that away.

One job an arm is no proof for its other seeds and budgets, so whoever shows such a result says how it was kept.
"""

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Protocol

from lightbox.claims.spec import base_arm
from lightbox.errors import RequestError
from lightbox.files import replace_text

FILE = "retrained.csv"
PILOT = "pilot"
"""In the place of a preset: the job belongs to the paper's pilot."""
SAME, DIFFERENT = "same", "different"
PUBLISHED, ON_THIS_MACHINE = "published", "the older source on this machine"
"""What a job that was trained again was compared with."""


class Made(Protocol):
    """What a job says of how it was made: digest of its code, and of its configuration, data and weights."""

    @property
    def source(self) -> str | None: ...
    @property
    def settings(self) -> str | None: ...


@dataclass(frozen=True)
class Retrained:
    """A job of an older source, trained again.

    Args:
        preset: that it was published at, or `PILOT`.
        arm, seed, budget: of the job.
        old_key, old_source, old_settings, old_commit: of the job of before, as `JobEntry` has them.
        key, source, settings, commit: of the job that was trained now.
        outcome: `SAME` or `DIFFERENT`; rows: how many rows of scores, or means of the pilot, were compared.
        hardware, date: where and when.
        beside: what it was compared with, `PUBLISHED` or `ON_THIS_MACHINE`. Scores that another processor made differ
            in any case, and then what the older source gives here decides.
    """

    preset: str
    arm: str
    seed: int
    budget: int
    old_key: str
    old_source: str
    old_settings: str
    old_commit: str
    key: str
    source: str
    settings: str
    commit: str
    outcome: str
    rows: int
    hardware: str
    date: str
    beside: str = PUBLISHED

    @property
    def sides(self) -> frozenset[tuple[str, str]]:
        """Source and settings of both jobs; which is the older one makes no difference to what they show."""
        return frozenset(((self.old_source, self.old_settings), (self.source, self.settings)))


COLUMNS = [column.name for column in fields(Retrained)]


@dataclass(frozen=True)
class SameSources:
    """What was trained again, of one paper."""

    rows: tuple[Retrained, ...] = ()

    def count_as_one(self, arm: str, old: Made, new: Made, *, preset: str = "") -> bool:
        """Whether a job of an arm made as `old` says is as good as one made as `new` says.

        Args:
            arm: of both; its budget makes no difference.
            old, new: jobs, or rows of a pilot.
            preset: where the proof has to come from; "" takes that of any size.
        """
        made = [(side.source or "", side.settings or "") for side in (old, new)]
        if made[0] == made[1]:
            return True
        outcomes = {
            row.outcome
            for row in self.rows
            if base_arm(row.arm)[0] == base_arm(arm)[0] and row.sides == {*made} and preset in ("", row.preset)
        }
        return outcomes == {SAME}


def load_same_sources(root: Path, paper: str) -> SameSources:
    """The file of a paper under a folder of results; without one nothing was trained again.

    Raises:
        RequestError: where the file holds something else.
    """
    path = root / paper / FILE
    return SameSources(tuple(_read(path)))


def append(path: Path, rows: Iterable[Retrained]) -> None:
    """Add rows that are not there yet; a job trained again once more has a row of its own.

    Raises:
        RequestError: where the file holds something else.
    """
    every = list(dict.fromkeys((*_read(path), *rows)))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in every)
    replace_text(path, buffer.getvalue())


def _read(path: Path) -> list[Retrained]:
    if not path.exists():
        return []
    rows: list[Retrained] = []
    try:
        for cells in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")), strict=True):
            numbers = {name: int(cells[name]) for name in ("seed", "budget", "rows")}
            cells.setdefault("beside", PUBLISHED)  # files from before there was a choice
            row = Retrained(**{name: cells[name] for name in COLUMNS} | numbers)
            if None in cells.values() or row.outcome not in (SAME, DIFFERENT) or row.rows < 1:
                raise ValueError("a cell is missing, or the outcome is neither same nor different")
            rows.append(row)
    except (KeyError, TypeError, ValueError, csv.Error) as err:
        raise RequestError(
            f"The jobs that were trained again are {path}",
            f"Line {len(rows) + 2} is no row of it ({type(err).__name__}: {err})",
            "Restore the file from git, or delete it: older results are then marked as such",
        ) from err
    return rows
