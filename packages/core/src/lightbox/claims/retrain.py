"""Train one job of each arm again by today's source, beside what is published: are the scores the same?

For the day after an edit that should change no number: hours of published runs stand if it did not, see
`claims.same_source`. The first seed of each arm is trained anew with all that it reads, and its per-item scores are
compared with the published ones, to the last bit. Of a pilot it is the smallest budget of the first seed, and the means
of its rows. Both outcomes are written down. Another processor gives other bits, also one of the same name: a difference
is the edit's only where the older source, run here, does not show it too. So where published scores differ, `--older`
names a folder of jobs that the older source finished on this machine, and those decide.

Run as `python -m lightbox.claims.retrain PAPER --preset full`, or with `--pilot` and the pilot's `--items`. In a
checkout of the older source, `--only` trains the same jobs for `--older`, and compares nothing.
"""

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from lightbox import machine
from lightbox.claims import document
from lightbox.claims.budget import FILE as PILOT_FILE
from lightbox.claims.budget import PilotRow, read_rows
from lightbox.claims.document import JobEntry
from lightbox.claims.jobs import Job, Plan
from lightbox.claims.jobs import plan as plan_jobs
from lightbox.claims.pilot import ITEMS, pilot_rows, plan_pilot, rate_of
from lightbox.claims.published import DOCUMENT, check_scores
from lightbox.claims.registry import Paper, choose_claims, load_papers
from lightbox.claims.results import read_scores
from lightbox.claims.runner import Finished, find_finished, run
from lightbox.claims.same_source import (
    DIFFERENT,
    FILE,
    ON_THIS_MACHINE,
    PILOT,
    PUBLISHED,
    SAME,
    Retrained,
    append,
)
from lightbox.claims.spec import Claim, base_arm
from lightbox.errors import RequestError, guard
from lightbox.paths import default_out, results_dir
from lightbox.runs.folders import JOBS, SCORES, open_output, read_record

_log = logging.getLogger("lightbox.claims")


@dataclass(frozen=True)
class Pair:
    """A published job of an older source, or a row of a pilot's, and the job of today of the same arm and seed."""

    old: JobEntry | PilotRow
    new: Job


def retrain(
    paper: Paper, preset: str, out: Path, *, root: Path, older: Path | None = None, workers: int = 2
) -> list[Retrained]:
    """Train the first seed of every arm again whose published jobs are of an older source.

    Args:
        paper: whose results they are.
        preset: that they were published at.
        out: output folder; finished jobs in it are not run again.
        root: folder of published results; `results/<paper>/retrained.csv` there gets the rows.
        older: output folder in which the older source finished published jobs on this machine; None has none.
        workers: processes.

    Returns:
        A row for each arm, source and settings of before.

    Raises:
        RequestError: where nothing is published, or all of it is of today's source, or none of it is planned any more.
        WorkError: where a published file is not what was published, or a job failed.
    """
    folder, today = root / paper.name / preset, _plan(paper, preset)
    jobs = published_jobs(paper, preset, root=root)
    pairs = first_seeds(jobs, today)
    if not pairs:
        arms = sorted({job.arm for job in jobs if job.key not in today.jobs})
        why = f"No arm of today has the seeds of {', '.join(arms)}" if arms else "It is of today's source"
        raise RequestError(
            f"{paper.name} at {preset}, to be trained again",
            why,
            "Run `lightbox reproduce` where it has to be made anew",
        )
    finished = _run(today, {pair.new.key for pair in pairs}, out, workers)
    rows = []
    for pair in pairs:
        then = read_scores(folder / f"{pair.old.key}.parquet")
        now = content_of(read_scores(finished.folders[pair.new.key] / SCORES))
        is_same, beside = content_of(then) == now, PUBLISHED
        here = _trained_here(older, pair.old.key)
        if not is_same and here is not None:
            is_same, beside = content_of(read_scores(here / SCORES)) == now, ON_THIS_MACHINE
        rows.append(_row(preset, pair, is_same=is_same, n_rows=then.num_rows, beside=beside))
    append(root / paper.name / FILE, rows)
    return rows


def train_only(paper: Paper, preset: str, out: Path, *, root: Path, workers: int = 2) -> Finished:
    """Train by the source of today what it has published, the first seed of every arm: for a later source's `older`.

    Args:
        paper, preset, out, root, workers: as of `retrain`.

    Raises:
        RequestError: where nothing is published, or nothing by today's source.
    """
    today = _plan(paper, preset)
    first: dict[str, str] = {}
    for job in sorted(published_jobs(paper, preset, root=root), key=lambda job: (job.arm, job.seed)):
        if job.key in today.jobs:
            first.setdefault(base_arm(job.arm)[0], job.key)
    if not first:
        raise RequestError(
            f"{paper.name} at {preset}, to be trained by the source that published it",
            "That is not the source here: none of the published jobs has a key of today's",
            "Check out the commit that the results name",
        )
    return _run(today, {*first.values()}, out, workers)


def published_jobs(paper: Paper, preset: str, *, root: Path) -> list[JobEntry]:
    """Jobs that published claims of a preset read, which are claimed at it today.

    Raises:
        RequestError: where nothing is published.
        WorkError: where a published file is not what was published.
    """
    folder = root / paper.name / preset
    published = document.load(folder / DOCUMENT)
    check_scores(folder, published.jobs)
    claimed = {claim.id for claim in paper.claims.claims if preset in claim.presets}
    read = {key for entry in published.claims if entry.id in claimed for key in entry.run_ids}
    return [job for job in published.jobs if job.key in read]


def _plan(paper: Paper, preset: str) -> Plan:
    return plan_jobs([(paper, claim) for claim in paper.claims.claims], preset)


def first_seeds(jobs: Sequence[JobEntry], today: Plan) -> list[Pair]:
    """Published jobs that today's plan gives other keys: of each arm, source and settings the one of the first seed.

    Of an arm that a ladder trains at several budgets it is the one at the declared budget, where that has one.
    """
    first: dict[tuple[str, str | None, str | None], Pair] = {}
    for old in sorted(jobs, key=lambda job: (job.arm, job.seed)):
        key = today.keys.get((old.paper, old.arm, old.seed))
        if key is not None and old.key not in today.jobs:
            first.setdefault((base_arm(old.arm)[0], old.source, old.settings), Pair(old, today.jobs[key]))
    return list(first.values())


def content_of(scores: pa.Table) -> bytes:
    """All columns and values, without what a file says of itself."""
    sink = pa.BufferOutputStream()
    bare = scores.replace_schema_metadata(None).combine_chunks()
    with pa.ipc.new_stream(sink, bare.schema) as writer:
        writer.write_table(bare)
    return sink.getvalue().to_pybytes()


def retrain_pilot(
    paper: Paper,
    claims: Sequence[Claim],
    out: Path,
    *,
    root: Path,
    older: Path | None = None,
    items: int = ITEMS,
    workers: int = 2,
) -> list[Retrained]:
    """The same for the rows of a pilot: its smallest budget on its first seed.

    Args:
        paper: whose pilot it is.
        claims: whose arms are trained again; those without a training budget are left out.
        out: output folder; finished jobs in it are not run again.
        root: folder of published results.
        older: output folder in which the older source finished these jobs on this machine; None has none.
        items: validation items that each job of the pilot scored.
        workers: processes.

    Raises:
        RequestError: where the pilot has no rows of these arms, or all are of today's source.
        WorkError: a job failed.
    """
    claims = [claim for claim in claims if claim.budget]
    before, plan = _pilot(paper, claims, root, items)
    jobs = {(*base_arm(name), seed): plan.jobs[key] for (_, name, seed), key in plan.keys.items()}
    earlier: dict[str, list[PilotRow]] = {}
    for row in before:
        job = jobs.get((row.arm, row.budget, row.seed))
        if job is not None and row.key != job.key and row.lr == rate_of(job):
            earlier.setdefault(row.key, []).append(row)
    if not earlier:
        why = (
            "At its smallest budget its rows of these claims are of today's source or at other rates, or there are none"
        )
        raise RequestError(_pilot_request(paper), why, "Name the claims that it was run for with --claims")
    pairs = {key: Pair(own[0], jobs[own[0].arm, own[0].budget, own[0].seed]) for key, own in earlier.items()}
    finished = _run(plan, {pair.new.key for pair in pairs.values()}, out, workers)

    def means(folders: dict[str, Path]) -> dict[tuple[Any, ...], tuple[float, int]]:
        return {row.place: (row.mean, row.items) for row in pilot_rows(paper, claims, plan, Finished(folders))}

    now, rows = means(finished.folders), []
    for key, own in earlier.items():
        read = [row for row in own if row.place in now]
        if not read:
            continue
        is_same, beside = all(now[row.place] == (row.mean, row.items) for row in read), PUBLISHED
        here = _trained_here(older, key)
        if not is_same and here is not None:
            then = means({pairs[key].new.key: here})
            is_same, beside = all(now[row.place] == then.get(row.place) for row in read), ON_THIS_MACHINE
        rows.append(_row(PILOT, pairs[key], is_same=is_same, n_rows=len(read), beside=beside))
    append(root / paper.name / FILE, rows)
    return rows


def train_pilot_only(
    paper: Paper, claims: Sequence[Claim], out: Path, *, root: Path, items: int = ITEMS, workers: int = 2
) -> Finished:
    """The same as `train_only`, for the pilot.

    Raises:
        RequestError: where the pilot has no rows of these claims, or none by today's source.
    """
    before, plan = _pilot(paper, [claim for claim in claims if claim.budget], root, items)
    own = plan.jobs.keys() & {row.key for row in before}
    if not own:
        why = "None of its rows has a key of today's source, at these items"
        raise RequestError(_pilot_request(paper), why, "Check out the commit that the rows name")
    return _run(plan, own, out, workers)


def _pilot(paper: Paper, claims: Sequence[Claim], root: Path, items: int) -> tuple[list[PilotRow], Plan]:
    """Rows of the pilot, and today's jobs at its smallest budget on its first seed."""
    before = read_rows(root / paper.name / PILOT_FILE)
    budgets, seeds = {row.budget for row in before if row.budget}, {row.seed for row in before}
    if not claims or not budgets:
        why = "It has no rows" if claims else "None of the claims has a training budget"
        raise RequestError(
            _pilot_request(paper), why, "Run `python -m lightbox.claims.pilot` first, or name other --claims"
        )
    return before, plan_pilot(paper, claims, [min(budgets)], [min(seeds)], items=items)


def _pilot_request(paper: Paper) -> str:
    return f"The pilot of {paper.name}, to be trained again"


def _trained_here(older: Path | None, key: str) -> Path | None:
    """The folder of a job that the older source finished on this machine's kind of processor."""
    folder = None if older is None else older / JOBS / key
    if folder is None or not (folder / SCORES).is_file():
        return None
    return folder if (read_record(folder) or {}).get("hardware") == machine.hardware() else None


def _run(plan: Plan, keys: set[str], out: Path, workers: int) -> Finished:
    def report(job: Job, folder: Path) -> None:
        _log.info("seed %d, %s: %s", job.seed, job.arm, folder)

    with open_output(out):
        finished = run(plan, out, find_finished(plan, out), workers=workers, keys=keys, on_job_done=report)
    if finished.errors:
        raise next(iter(finished.errors.values()))
    return finished


def _row(preset: str, pair: Pair, *, is_same: bool, n_rows: int, beside: str) -> Retrained:
    old, new = pair.old, pair.new
    return Retrained(
        preset=preset,
        arm=new.arm,
        seed=new.seed,
        budget=new.budget,
        old_key=old.key,
        old_source=old.source or "",
        old_settings=old.settings or "",
        old_commit=old.commit or "",
        key=new.key,
        source=new.source,
        settings=new.settings,
        commit=machine.commit(),
        outcome=SAME if is_same else DIFFERENT,
        rows=n_rows,
        hardware=machine.hardware(),
        date=time.strftime("%Y-%m-%d"),
        beside=beside,
    )


def command_line() -> argparse.ArgumentParser:
    """What `python -m lightbox.claims.retrain` takes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paper")
    parser.add_argument("--preset", default="quick", help="whose published jobs are trained again")
    parser.add_argument("--pilot", action="store_true", help="the rows of the pilot in place of a preset's jobs")
    parser.add_argument("--claims", nargs="*", default=[], help="of the pilot: ids; none means all")
    parser.add_argument("--items", type=int, default=ITEMS, help="of the pilot: validation items that each job scored")
    parser.add_argument("--older", type=Path, help="--out of the older source's --only, trained on this machine")
    parser.add_argument("--only", action="store_true", help="train what this source published, and compare nothing")
    parser.add_argument("--out", type=Path, default=default_out())
    parser.add_argument("--workers", type=int, default=2)
    return parser


def _from_words(words: Sequence[str]) -> None:
    options = command_line().parse_args(words)
    paper = load_papers([options.paper])[0]
    sizes = {"root": results_dir(), "workers": options.workers}
    claims = [claim for _, claim in choose_claims([paper], options.claims)]
    if options.only and options.pilot:
        train_pilot_only(paper, claims, options.out, items=options.items, **sizes)
        rows = []
    elif options.only:
        train_only(paper, options.preset, options.out, **sizes)
        rows = []
    elif options.pilot:
        rows = retrain_pilot(paper, claims, options.out, older=options.older, items=options.items, **sizes)
    else:
        rows = retrain(paper, options.preset, options.out, older=options.older, **sizes)
    for row in rows:
        _log.info("%s, arm %s, seed %d, %d rows: %s", row.preset, row.arm, row.seed, row.rows, row.outcome)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    sys.exit(guard(lambda: _from_words(sys.argv[1:])))
