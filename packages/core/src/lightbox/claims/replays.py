"""The replay log: who ran a published claim again, when, on what, and whether the two runs agree. No torch.

`results/replays.csv` has one row a claim and run. It is appended to and never rewritten, so that a row can be sent as a
change to the repository. A run is told by its jobs and by when each of them ended; it is logged once, by whomever. What
was published at the time stands in its row: a later publication does not change it.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from filelock import FileLock, Timeout

from lightbox.claims.document import ClaimEntry, JobEntry
from lightbox.errors import WorkError
from lightbox.files import digest, replace_text

FILE = "replays.csv"
AGREES, DIFFERS, NOT_COMPARABLE, NOTHING = "agrees", "differs", "not comparable", "nothing published"
OUTCOMES = {True: AGREES, False: DIFFERS, None: NOT_COMPARABLE}
"""By `Published.agrees`; `NOTHING` where the claim has no published run."""
PATIENCE_S = 30.0
"""For another process that appends: it takes milliseconds."""
FORMULA = ("=", "+", "-", "@")
"""A spreadsheet takes a cell that begins so for a formula."""
LONGEST = 200
RUN_DIGITS = 12


@dataclass(frozen=True)
class Replay:
    """One claim of one run, beside what was published of it then.

    Args:
        date: when its last job ended, YYYY-MM-DD.
        by: who ran it.
        paper, preset, claim: what was run.
        commit, hardware: of its jobs, as in `runs.csv`; system, python, torch: what they ran under, "" where unknown.
        seeds: how many; items: a seed.
        unit: of effects; effect, low, high: of the deciding contrast with its 95 % interval, None where there is none.
        published_effect, published_low, published_high: the same contrast as published.
        outcome: of the test of the difference between the two.
        contrasts: how many links and controls agree, of how many that can be tested, in words.
        verdict, published_verdict: of the two runs; published_commit: of the published one.
        wall_s: time of its jobs, all together.
        run: digest of its jobs and of when each ended.
    """

    date: str
    by: str
    paper: str
    preset: str
    claim: str
    commit: str
    hardware: str
    system: str
    python: str
    torch: str
    seeds: int
    items: int
    unit: str
    effect: float | None
    low: float | None
    high: float | None
    published_effect: float | None
    published_low: float | None
    published_high: float | None
    outcome: str
    contrasts: str
    verdict: str
    published_verdict: str
    published_commit: str
    wall_s: float | None
    run: str

    @property
    def place(self) -> tuple[str, str, str, str]:
        """What the row is about; a second row about it is not added."""
        return self.paper, self.preset, self.claim, self.run


COLUMNS = [column.name for column in fields(Replay)]
WHOLE = ("seeds", "items")
NUMBERS = ("effect", "low", "high", "published_effect", "published_low", "published_high", "wall_s")


@dataclass(frozen=True)
class Machine:
    """What jobs ran under; "" where that is not known."""

    system: str = ""
    python: str = ""
    torch: str = ""


def run_digest(claim: ClaimEntry, jobs: Iterable[JobEntry]) -> str:
    """Digest of the jobs behind a claim and of when each ended: another run of the same jobs has another one."""
    ended = {(job.key, job.ended or "") for job in jobs if job.paper == claim.paper and job.key in claim.run_ids}
    return digest(sorted(ended))[:RUN_DIGITS]


def replay_of(claim: ClaimEntry, preset: str, jobs: Sequence[JobEntry], *, by: str, machine: Machine) -> Replay:
    """The row of one claim of a finished run.

    Args:
        claim: with what is published beside it, see `ClaimEntry.beside`.
        preset: of the run.
        jobs: of the run; those of other claims are left out.
        by: who ran it.
        machine: what its jobs ran under.
    """
    own = [job for job in jobs if job.paper == claim.paper and job.key in claim.run_ids]
    ours, theirs = claim.deciding, claim.published
    is_published = theirs is not None and theirs.effect is not None
    low, high = ours.ci95 or (None, None)
    published_low, published_high = (theirs.ci95 if is_published else None) or (None, None)
    return Replay(
        date=max((job.ended or "" for job in own), default="")[:10],
        by=plain_text(by),
        paper=claim.paper,
        preset=preset,
        claim=claim.id,
        commit="; ".join(claim.commits),
        hardware="; ".join(claim.hardware),
        **asdict(machine),
        seeds=len(claim.seeds),
        items=claim.items,
        unit=claim.unit,
        effect=ours.effect,
        low=low,
        high=high,
        published_effect=theirs.effect if is_published else None,
        published_low=published_low,
        published_high=published_high,
        outcome=OUTCOMES[theirs.agrees] if is_published else NOTHING,
        contrasts=_contrasts_in_words(claim),
        verdict=str(claim.verdict),
        published_verdict=theirs.verdict if is_published else "",
        published_commit="; ".join(theirs.commits) if is_published else "",
        wall_s=claim.wall_s,
        run=run_digest(claim, own),
    )


def read_replays(path: Path) -> list[Replay]:
    """Rows of the log, oldest first; [] where there is no file.

    Raises:
        WorkError: where its columns are not those of this version, or a row does not fit them.
    """
    if not path.exists():
        return []
    return _parsed(_read_text(path), path)


def append_replays(path: Path, new: Sequence[Replay]) -> list[Replay]:
    """Add rows to the log; those that are there already are not. What stood there before stays, byte for byte.

    Several processes may append at once.

    Returns:
        The rows that were added.

    Raises:
        WorkError: see `read_replays`; where the file cannot be written, or another process holds it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock"), timeout=PATIENCE_S):
            text = _read_text(path) if path.exists() else ",".join(COLUMNS) + "\n"
            there = {row.place for row in _parsed(text, path)}
            added = [row for row in {row.place: row for row in new}.values() if row.place not in there]
            if added or not path.exists():
                replace_text(path, f"{text}{'' if text.endswith(chr(10)) else chr(10)}{_written(added)}")
            return added
    except Timeout as err:
        why = f"Another process has held it for {PATIENCE_S:.0f} seconds"
        raise WorkError(f"The replay log is {path}", why, "Wait until that one ends and run the command again") from err
    except OSError as err:
        why = f"It cannot be written: {err.strerror or err}"
        raise WorkError(f"The replay log is {path}", why, "Run in a checkout that you may write to") from err


@dataclass(frozen=True)
class Replayed:
    """Replays of one claim at one preset: how many ended how, and on which machines.

    `of_another` counts those that were compared with an earlier publication than today's, or with none.
    """

    outcomes: Mapping[str, int]
    machines: tuple[str, ...]
    of_another: int

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(self.outcomes.values())


def replays_of(rows: Sequence[Replay], claim: ClaimEntry, preset: str) -> Replayed:
    """Count the replays of a published claim."""
    own = [row for row in rows if (row.paper, row.preset, row.claim) == (claim.paper, preset, claim.id)]
    published = "; ".join(claim.commits)
    return Replayed(
        outcomes=dict(Counter(row.outcome for row in own)),
        machines=tuple(dict.fromkeys(row.hardware for row in own if row.hardware)),
        of_another=sum(row.published_commit != published for row in own),
    )


def plain_text(text: str) -> str:
    """A text on one line, without signs that cannot be seen, cut where it is very long."""
    return "".join(sign for sign in " ".join(text.split()) if sign.isprintable())[:LONGEST].strip()


def safe_cell(text: str) -> str:
    """A text as a cell that no spreadsheet takes for a formula.

    Example:
        >>> safe_cell("=HYPERLINK(1)"), safe_cell("Ada")
        ("'=HYPERLINK(1)", 'Ada')
    """
    return f"'{text}" if text.startswith((*FORMULA, *(f"'{sign}" for sign in FORMULA))) else text


def _unsafe(cell: str) -> str:
    """The text of a cell: undoes `safe_cell`."""
    return cell[1:] if cell[1:] != safe_cell(cell[1:]) else cell


def _contrasts_in_words(claim: ClaimEntry) -> str:
    """No text that a spreadsheet would take for a date, as "4/4"."""
    tested = [c.published.agrees for c in claim.deciding_contrasts() if c.published is not None]
    tested = [agrees for agrees in tested if agrees is not None]
    return f"{sum(tested)} of {len(tested)} agree" if tested else ""


def _written(rows: Sequence[Replay]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    for row in rows:
        writer.writerow({name: _cell(value) for name, value in asdict(row).items()})
    return buffer.getvalue()


def _cell(value: str | float | None) -> str:
    if isinstance(value, str):
        return safe_cell(value)
    return "" if value is None else f"{value:.8g}"


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as err:
        raise _refusal(path, f"It is no text in UTF-8: {err.reason} at byte {err.start}") from err


def _parsed(text: str, path: Path) -> list[Replay]:
    table = csv.reader(io.StringIO(text), strict=True)
    rows: list[Replay] = []
    try:
        names = next(table, [])
        if names != COLUMNS:
            raise _refusal(path, _difference(names))
        for cells in filter(None, table):  # an editor may leave an empty line
            if len(cells) != len(COLUMNS):
                raise ValueError(f"it has {len(cells)} cells, and there are {len(COLUMNS)} columns")
            rows.append(_replay(dict(zip(COLUMNS, cells, strict=True))))
    except (ValueError, csv.Error) as err:
        raise _refusal(path, f"Line {table.line_num} is no row of it: {err}") from err
    return rows


def _replay(cells: Mapping[str, str]) -> Replay:
    texts = {name: _unsafe(cell) for name, cell in cells.items()}
    whole = {name: int(cells[name]) for name in WHOLE}
    numbers = {name: float(cells[name]) if cells[name] else None for name in NUMBERS}
    return Replay(**texts | whole | numbers)


def _difference(names: Sequence[str]) -> str:
    """What is wrong with a first line."""
    unknown = [name for name in names if name not in COLUMNS]
    missing = [name for name in COLUMNS if name not in names]
    parts = [f"it has columns that are unknown here: {', '.join(unknown)}"] if unknown else []
    parts += [f"it lacks {', '.join(missing)}"] if missing else []
    return f"Its first line does not fit: {'; '.join(parts) or 'the columns are in another order, or named twice'}"


def _refusal(path: Path, why: str) -> WorkError:
    do = "Restore the file, for example from git, or update this checkout where a newer version wrote it"
    return WorkError(f"The replay log is {path}", why, do)
