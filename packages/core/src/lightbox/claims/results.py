"""What a plan has come to so far, written down as a document: claims decided, jobs, examples, curves. No torch."""

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import combinations
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lightbox import machine
from lightbox.claims import document
from lightbox.claims.budget import load_pilot
from lightbox.claims.document import ClaimEntry, Curves, Document, ErrorEntry, JobEntry, ShownExample
from lightbox.claims.entries import claim_entry
from lightbox.claims.jobs import Plan
from lightbox.claims.registry import Paper
from lightbox.claims.runner import Finished
from lightbox.claims.spec import base_arm
from lightbox.claims.statistics import Scores
from lightbox.errors import WorkError
from lightbox.runs import folders
from lightbox.runs.examples import Example

CURVE_POINTS = 60
EXAMPLES_PER_ARM = 6
RECORDED = ("commit", "source", "hardware", "wall_s", "peak_gib", "ended", "budget", "settings")


def build(
    plan: Plan,
    finished: Finished,
    *,
    started: str,
    wall_s: float,
    folder: Path,
    root: Path,
    committed: Mapping[str, JobEntry] | None = None,
    published: Mapping[tuple[str, str], ClaimEntry] | None = None,
) -> Document:
    """Write down what a plan has come to.

    Args:
        plan: claims and jobs.
        finished: its finished jobs; those missing leave their claims with fewer seeds and no verdict.
        started: when, ISO 8601.
        wall_s: seconds since.
        folder: where the document will lie; paths in it are relative to that.
        root: folder of committed results, with the pilot.
        committed: committed jobs by key, for those that were reused.
        published: committed claims by (paper, claim id).

    Raises:
        RequestError: where a test set is smaller than a claim needs.
        WorkError: where scores do not pair or a file is damaged.
    """
    jobs = _job_entries(plan, finished, committed or {})
    paths = {key: path / folders.SCORES for key, path in finished.folders.items()} | finished.reused
    claims = []
    for paper, claim in plan.claims:
        own = {(arm, seed): job for (owner, arm, seed), job in jobs.items() if owner == paper.name}
        scores = scores_of(paper, {pair: paths[job.key] for pair, job in own.items() if claim.reads(pair[0])})
        pilot = load_pilot(root, paper.claims)
        entry = claim_entry(claim, plan.preset, scores, own, pilot)
        claims.append(entry.beside((published or {}).get((paper.name, claim.id))))
    return Document(
        schema=document.SCHEMA,
        preset=plan.preset,
        commit=machine.commit(),
        started=started,
        wall_s=round(wall_s, 1),
        machine={"hardware": machine.hardware(), "versions": machine.versions()},
        claims=tuple(claims),
        family=document.family_of(tuple(claims)),
        skipped=tuple(claim.id for claim in plan.skipped),
        jobs=tuple(jobs.values()),
        errors=tuple(_error_entry(plan, key, error) for key, error in finished.errors.items()),
        examples=tuple(_examples(plan, finished, folder)),
        curves=_curves(plan, finished),
    )


def scores_of(paper: Paper, paths: Mapping[tuple[str, int], Path]) -> Scores:
    """Scores of some (arm, seed) of a paper, read from their files.

    Raises:
        WorkError: where a file is not there or damaged, or two seeds of a trained arm hold the same scores of the same
            items. Arms that are not trained may, on a test set that is the same for every seed.
    """
    tables = {pair: read_scores(path) for pair, path in paths.items()}
    for first, other in combinations(
        sorted(pair for pair in tables if paper.claims.arms[base_arm(pair[0])[0]].is_trained), 2
    ):
        if first[0] == other[0] and tables[first].equals(tables[other]):
            raise WorkError(
                f"The scores of arm '{first[0]}' are {paths[first]} for seed {first[1]}, {paths[other]} for {other[1]}",
                "They hold the same scores of the same items, so one is a copy, or the seed does not reach the run",
                "Restore the copy, or run both jobs again with --fresh",
            )
    return Scores(tables, paper.claims.headline, paper.claims.condition, paper.claims.balanced_by)


def read_scores(path: Path) -> pa.Table:
    """Per-item scores of a job, kept in memory while the file does not change.

    Raises:
        WorkError: where the file is not there or damaged.
    """
    try:
        return _read_table(path, path.stat().st_mtime_ns)
    except (pa.ArrowException, OSError) as err:
        why = f"They cannot be read: {str(err).splitlines()[0]}"
        raise WorkError(f"The scores are {path}", why, "Restore the file, or run the job again with --fresh") from err


@lru_cache(maxsize=1024)
def _read_table(path: Path, stamp: int) -> pa.Table:
    return pq.read_table(path)


def _job_entries(
    plan: Plan, finished: Finished, committed: Mapping[str, JobEntry]
) -> dict[tuple[str, str, int], JobEntry]:
    """Finished jobs by (paper, arm, seed), from the `job.json` of their folders or from what is committed of them."""
    records = {key: folders.read_record(path) or {} for key, path in finished.folders.items()}
    entries = {}
    for (paper, arm, seed), key in plan.keys.items():
        if key in finished.reused:
            entries[paper, arm, seed] = replace(committed[key], paper=paper, arm=arm, seed=seed, reused=True)
        elif key in records:
            recorded = {name: records[key].get(name) for name in RECORDED}
            entries[paper, arm, seed] = JobEntry(paper, arm, seed, key, reused=False, **recorded)
    return entries


def _error_entry(plan: Plan, key: str, error: Exception) -> ErrorEntry:
    job = plan.jobs[key]
    return ErrorEntry(job.paper, job.arm, job.seed, key, str(error))


def _examples(plan: Plan, finished: Finished, folder: Path) -> list[ShownExample]:
    """Examples of the first seed, with the paths of their images relative to `folder`."""
    first, shown, own = min((seed for _, _, seed in plan.keys), default=0), [], plan.own_arms()
    for (paper, arm, seed), key in plan.keys.items():
        if seed == first and key in finished.folders and (paper, arm) in own:
            place = Path(os.path.relpath(finished.folders[key], folder))
            for row in folders.read_examples(finished.folders[key])[:EXAMPLES_PER_ARM]:
                shown.append(ShownExample(paper, arm, seed, Example.from_row(row).moved_to(place)))
    return shown


def _curves(plan: Plan, finished: Finished) -> dict[str, Curves]:
    """Curves by paper, metric and arm, one a seed, each thinned to at most `CURVE_POINTS` points."""
    curves: dict[str, Curves] = {}
    own = plan.own_arms()
    for (paper, arm, _), key in plan.keys.items():
        if key in finished.folders and (paper, arm) in own:
            for metric, points in folders.read_history(finished.folders[key]).items():
                thinned = points[:: -(-len(points) // CURVE_POINTS)] if points else []
                by_arm = curves.setdefault(paper, {}).setdefault(metric, {})
                by_arm.setdefault(arm, []).append([(step, _finite(value)) for step, value in thinned])
    return curves


def _finite(value: float) -> float | None:
    return round(value, 6) if abs(value) < float("inf") else None
