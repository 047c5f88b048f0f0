"""Walkthroughs: their cells, what a run of one printed, and the page made of both. No torch here.

A run is kept under the digest of everything that it could read, so that nothing is run twice and nothing old is shown.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lightbox.errors import WorkError
from lightbox.site.kept import kept_place, store

NAME = "walkthrough.py"
RECORD, FIGURES = "record.json", "figures"
MARK = "# %%"
SEEN = ("packages/core", "shared_data", "results", "uv.lock")
"""What any walkthrough may read beside its own folder."""


@dataclass(frozen=True)
class Cell:
    """One cell of a percent script; `first` is the number of its first line, from 1, the mark's."""

    first: int
    is_text: bool
    body: str


def find_walkthroughs(root: Path) -> list[Path]:
    """Every walkthrough of the checkout, of papers and of parts of core."""
    return sorted((*root.glob(f"projects/*/{NAME}"), *root.glob(f"packages/core/*/{NAME}")))


def split_cells(script: str) -> list[Cell]:
    """Cells of a percent script in order; comment marks of text cells are removed."""
    found: list[Cell] = []
    lines = script.splitlines()
    starts = [at for at, line in enumerate(lines) if line.startswith(MARK)]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        is_text = "[markdown]" in lines[start]
        body = [re.sub(r"^# ?", "", line) if is_text else line for line in lines[start + 1 : end]]
        found.append(Cell(start + 1, is_text, "\n".join(body).strip("\n")))
    return found


def execute(script: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a walkthrough on one thread, its warnings as errors; `folder` gets its record and its figures.

    Returns:
        The ended process with what it wrote; the record is there only where its return code is 0.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-m", "lightbox.site.record"]
        + [str(part) for part in (script, folder / FIGURES, folder / RECORD)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )


def place_of(root: Path, script: Path) -> Path:
    """Where a run of this walkthrough, with the content that the checkout has now, is kept."""
    parts = (str(script.parent.relative_to(root)), *SEEN)
    return kept_place(root, f"walkthrough-{script.parent.name}", parts)


def keep(root: Path, script: Path, folder: Path) -> None:
    """Keep a run's record and figures for the site; an equal one may be there already."""
    store(folder, place_of(root, script))


def recorded(root: Path, script: Path, *, is_run: bool) -> Path | None:
    """Folder with a run of this walkthrough: a kept one, else a new one; None where there is none and none is wanted.

    Raises:
        WorkError: where the walkthrough fails.
    """
    place = place_of(root, script)
    if (place / RECORD).is_file():
        return place
    if not is_run:
        return None
    with tempfile.TemporaryDirectory() as work:
        done = execute(script, Path(work, "run"))
        if done.returncode:
            name = str(script.relative_to(root))
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            do = f"Run `python {name}` and mend it, or build with --no-run"
            raise WorkError(f"The site shows what {name} prints", f"It ended with {done.returncode}: {last}", do)
        store(Path(work, "run"), place)
    return place


def run_beside(script: Path) -> Path:
    """Where a run lies while pages are made: beside the copy of its walkthrough."""
    return script.with_name(f"{script.stem}-run")


def page_text(script: str, folder: Path | None, figures: str) -> str:
    """A walkthrough as Markdown: its texts, its code, and below each cell what that printed and drew.

    Args:
        script: the percent script.
        folder: of a run, see `recorded`; None shows the code alone, and says so.
        figures: folder of the figures as the page names it.
    """
    record = json.loads((folder / RECORD).read_text(encoding="utf-8")) if folder else {"texts": []}
    names = sorted(path.name for path in (folder / FIGURES).iterdir()) if folder else []
    found = split_cells(script)
    parts = []
    for cell, following in zip(found, [*found[1:], None], strict=True):
        if cell.is_text:
            parts.append(cell.body)
            continue
        parts.append(_fenced(cell.body, "python"))
        end = following.first if following else float("inf")
        printed = "".join(text for line, text in record["texts"] if cell.first <= line < end).strip("\n")
        if printed:
            parts.append(_fenced(f":class: printed\n\n{printed}", "{code-block} text"))
        parts += [f"![{_caption(name)}]({figures}/{name})" for name in names if f'"{name}"' in cell.body]
    says = "Not executed in this build: code alone."
    if folder:
        says = f"Executed on {record['day']}, {record['cpu_s']:.0f} s of one core. What a cell printed stands below it."
    return "\n\n".join([*parts[:1], says, *parts[1:], ""])


def _caption(name: str) -> str:
    return f"{Path(name).stem.replace('_', ' ')}, drawn by the cell above"


def _fenced(text: str, language: str) -> str:
    """A fence that is longer than any inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
