"""The append-only table of benchmark rows, one ratio a row. No torch."""

import csv
import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightbox import machine
from lightbox.errors import WorkError

HEADER = ("date", "commit", "machine", "benchmark", "case", "peer", "value", "unit", "ratio", "notes")


def append(path: Path, benchmark: str, rows: Sequence[Mapping[str, Any]], *, commit: str = "") -> None:
    """Add rows below those recorded before, with date, commit and machine; a new file gets the header first.

    Args:
        path: the table.
        benchmark: name of the benchmark.
        commit: of the code; "" means that of the checkout, which a machine without git does not know.
        rows: as `run(...)` of a benchmark gives them, with keys case, peer, value, unit, ratio, notes; a goal goes
            in front of the notes.

    Raises:
        WorkError: where the file begins with another header.
    """
    header = path.read_text(encoding="utf-8").splitlines()[:1] if path.is_file() else []
    if header and header[0] != ",".join(HEADER):
        raise WorkError(
            f"{path} begins with '{header[0][:60]}'", "It is no table of benchmark rows", "Choose another file"
        )
    facts = {
        "date": datetime.date.today().isoformat(),
        "commit": commit or machine.commit(),
        "machine": machine.hardware(),
        "benchmark": benchmark,
    }
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, HEADER, lineterminator="\n")
        if not header:
            writer.writeheader()
        writer.writerows(facts | _with_goal_in_notes(row) for row in rows)


def _with_goal_in_notes(row: Mapping[str, Any]) -> dict[str, Any]:
    row = dict(row)
    goal = row.pop("goal", "")
    return row | {"notes": f"goal {goal}; {row['notes']}"} if goal else row
