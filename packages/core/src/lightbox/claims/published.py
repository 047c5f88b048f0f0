"""Published results, in git: per-item scores, the document beside them, and one row a run. No torch.

`results/<paper>/<preset>/<key>.parquet` holds the scores of a job, `results.json` there what they came to, and
`results/runs.csv` one row a run, with the mean of the paper's headline metric under its condition. Rows and scores made
by an older source stay; their claims are marked with its commit.
"""

import csv
import io
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from lightbox.claims import document, results
from lightbox.claims.budget import load_pilot
from lightbox.claims.document import ClaimEntry, Document, JobEntry
from lightbox.claims.entries import claim_entry
from lightbox.claims.jobs import Plan
from lightbox.claims.jobs import plan as plan_jobs
from lightbox.claims.registry import Paper
from lightbox.claims.runner import Finished
from lightbox.claims.same_source import SameSources
from lightbox.claims.spec import REAL, base_arm
from lightbox.claims.verdicts import PRESETS_WITHOUT_VERDICT
from lightbox.errors import RequestError, WorkError
from lightbox.files import file_sha256, replace_bytes, replace_text
from lightbox.runs.folders import SCORES, read_label

_log = logging.getLogger("lightbox.claims")

DOCUMENT = "results.json"
ROWS = "runs.csv"
COLUMNS = (
    "paper preset arm seed key commit date hardware wall_s peak_gib items metric headline scores_sha256 source".split()
)
IDENTITY = ("paper", "preset", "arm", "seed", "key", "scores_sha256")


def committed_jobs(root: Path, papers: Sequence[str], preset: str) -> dict[str, JobEntry]:
    """Committed jobs by key; empty where nothing is committed."""
    return {job.key: job for published in _documents(root, papers, preset) for job in published.jobs}


def committed_scores(root: Path, papers: Sequence[str], preset: str) -> dict[str, Path]:
    """Parquet files of committed jobs, by key.

    Raises:
        WorkError: where a file is not what was published, see `check_scores`.
    """
    paths = {}
    for published in _documents(root, papers, preset):
        jobs = [job for job in published.jobs if scores_path(root / job.paper / preset, job).exists()]
        for paper in {job.paper for job in jobs}:
            check_scores(root / paper / preset, [job for job in jobs if job.paper == paper])
        paths |= {job.key: scores_path(root / job.paper / preset, job) for job in jobs}
    return paths


def committed_claims(root: Path, papers: Sequence[str], preset: str) -> dict[tuple[str, str], ClaimEntry]:
    """Committed claims, by (paper, claim id); empty where nothing is committed."""
    claims = [claim for published in _documents(root, papers, preset) for claim in published.claims]
    return {(claim.paper, claim.id): claim for claim in claims}


def check_scores(folder: Path, jobs: Sequence[JobEntry]) -> None:
    """Check the scores of published jobs: each file is the one that a row of `runs.csv` names for that arm and seed.

    A file that carries a label must say the same of itself; those published before there were labels have their row.

    Args:
        folder: `results/<paper>/<preset>`.
        jobs: of its document.

    Raises:
        WorkError: where a file is absent, edited, cut or another run's, or its row is.
    """
    table = folder.parents[1] / ROWS
    rows = {tuple(row[name] for name in IDENTITY[:-1]): row for row in _rows_of(table)}  # of several the last
    owners: dict[str, set[tuple[str, int]]] = {}
    for job in jobs:
        owners.setdefault(job.key, set()).add((base_arm(job.arm)[0], job.seed))
    for job in jobs:
        path, named = scores_path(folder, job), f"arm '{job.arm}', seed {job.seed}"
        row = rows.get((job.paper, folder.name, job.arm, str(job.seed), job.key))
        given, again = (
            f"The published scores of {named} are {path}",
            f"Restore {folder} and {table}, for example from git",
        )
        if row is None:
            raise WorkError(given, f"{table} has no row of {named} with that key: one of the two was edited", again)
        try:
            sha256, label, count = file_sha256(path), read_label(path), results.read_scores(path).num_rows
        except (OSError, ValueError) as err:
            raise WorkError(given, f"They cannot be read: {str(err).splitlines()[0]}", again) from err
        if sha256 != row["scores_sha256"]:
            why = f"Their SHA-256 begins {sha256[:12]}, and {table} names {str(row['scores_sha256'])[:12]}"
            raise WorkError(given, f"{why}: the file was edited, cut or exchanged", again)
        own = {"paper": job.paper, "key": job.key, "rows": count}
        # a budget may become the preset's own: the arm is then planned under another name, and the job is the same
        is_owner = label and (base_arm(label["arm"])[0], label["seed"]) in owners[job.key]
        if label and not (own.items() <= label.items() and is_owner):
            said = (
                f"arm '{label.get('arm')}', seed {label.get('seed')}, key {label.get('key')}, {label.get('rows')} rows"
            )
            raise WorkError(given, f"The file says of itself: {said}, and it holds {count} rows", again)


def publish(new: Document, plan: Plan, finished: Finished, root: Path) -> list[Path]:
    """Copy the scores of a complete run to `root`, with its document and rows; return the documents written.

    Claims and jobs that an earlier publication holds and this run does not touch stay as they are.

    Args:
        new: from `results.build`.
        plan: the jobs.
        finished: all of them finished or reused.
        root: the checkout's `results/`.

    Raises:
        RequestError: for a preset whose runs decide nothing.
        WorkError: where a job is missing.
    """
    if plan.preset in PRESETS_WITHOUT_VERDICT:
        why = "Its runs exercise the code and decide nothing"
        raise RequestError(f"--publish with --preset {plan.preset}", why, "Publish a run of quick or full")
    missing = sorted(plan.scored_keys() - finished.folders.keys() - finished.reused.keys())
    if missing:
        request = f"--publish with {len(missing)} of {len(plan.scored_keys())} jobs unfinished"
        why = "A published verdict needs every seed, also those that failed"
        raise WorkError(request, why, "Correct what failed (see error.json in its folder) and run again")
    written = []
    for paper in {paper.name: paper for paper, _ in plan.claims}.values():
        folder = root / paper.name / plan.preset
        folder.mkdir(parents=True, exist_ok=True)
        jobs = [job for job in new.jobs if job.paper == paper.name]
        for job in jobs:
            if job.key in finished.folders and job.key in plan.scored_keys():
                replace_bytes(scores_path(folder, job), (finished.folders[job.key] / SCORES).read_bytes())
        _append_rows(root / ROWS, [_row(job, folder, paper) for job in jobs if scores_path(folder, job).exists()])
        document.write(_merged(new, folder / DOCUMENT, paper.name), folder / DOCUMENT)
        written.append(folder / DOCUMENT)
    return written


def scores_path(folder: Path, job: JobEntry) -> Path:
    """Where the published scores of a job lie in `results/<paper>/<preset>`."""
    return folder / f"{job.key}.parquet"


def recompute(folder: Path, paper: Paper) -> Document:
    """Recompute every effect, interval and verdict of a published folder from its parquet files.

    Claims are decided as the paper's `claims.py` declares them now, on the seeds that were published; a claim that it
    no longer declares, or not at that preset, is left out. A claim whose jobs have other keys than today's, as source,
    settings or data changed, is marked with `older_source`, the commits that made them, and what is shown beside its
    verdict is left out where their scores lack it, such as a kind of question that was not asked then. Where one job of
    each arm was trained again and gave the same scores, it has `retrained` in that place. Where real data are not on
    this machine, keys cannot be compared and nothing is marked.

    Args:
        folder: `results/<paper>/<preset>`.
        paper: its claims.

    Raises:
        RequestError: where the document is absent, edited or of another schema.
        WorkError: where a parquet file is not what was published, see `check_scores`.
    """
    published = document.load(folder / DOCUMENT)
    check_scores(folder, published.jobs)
    today = _plan_of_today(paper, published.preset)
    pilot = load_pilot(folder.parents[1], paper.claims)
    entries = []
    for earlier in published.claims:
        claim = paper.claims.claim(earlier.id)
        if claim is None or published.preset not in claim.presets:
            continue
        own = [job for job in published.jobs if job.key in earlier.run_ids and claim.reads(job.arm)]
        jobs = {(job.arm, job.seed): job for job in own}
        scores = results.scores_of(paper, {pair: scores_path(folder, job) for pair, job in jobs.items()})
        changed = [job for job in own if today is not None and job.key not in today.jobs]
        older = _commits(job for job in changed if not _is_as_good(job, today, pilot.same))
        seeds = sorted({job.seed for job in own})
        entry = claim_entry(claim, published.preset, scores, jobs, pilot, seeds=seeds, is_older=bool(older))
        entries.append(replace(entry, older_source=older, retrained=() if older else _commits(changed)))
    return replace(published, claims=tuple(entries), family=document.family_of(tuple(entries)))


def _commits(jobs: Iterable[JobEntry]) -> tuple[str, ...]:
    return tuple(sorted({job.commit for job in jobs if job.commit}))


def _is_as_good(job: JobEntry, today: Plan | None, same: SameSources) -> bool:
    """Whether the job of today of the same arm and seed counts as made by the same source."""
    key = today.keys.get((job.paper, job.arm, job.seed)) if today is not None else None
    if today is None or key is None:
        return False
    return same.count_as_one(job.arm, job, today.jobs[key], preset=today.preset)


def _plan_of_today(paper: Paper, preset: str) -> Plan | None:
    """The jobs of a preset as they would be now; None where they depend on real data that are not here."""
    claims = [(paper, claim) for claim in paper.claims.claims]
    try:
        return plan_jobs(claims, preset)
    except RequestError as err:
        if not any(claim.images == REAL and preset in claim.presets for _, claim in claims):
            raise
        _log.warning("%s at %s is not compared with the code of today: %s", paper.name, preset, err.given)
        return None


def can_be_compared(paper: Paper, preset: str) -> bool:
    """Whether the jobs of a preset have keys here: not where they depend on real data that are not on this machine."""
    try:
        plan_jobs([(paper, claim) for claim in paper.claims.claims], preset)
    except RequestError:
        return False
    return True


def published_folders(root: Path, papers: Sequence[Paper], preset: str = "") -> list[tuple[Path, Paper]]:
    """Folders of `root` that hold a document of these papers, at one preset or ("") at any."""
    folders = [(path.parent, paper) for paper in papers for path in sorted((root / paper.name).glob(f"*/{DOCUMENT}"))]
    return [(folder, paper) for folder, paper in folders if preset in ("", folder.name)]


def joined(documents: Sequence[Document]) -> Document:
    """One document of several papers at one preset; the first one says when and where."""
    claims = tuple(claim for part in documents for claim in part.claims)
    return replace(
        documents[0],
        claims=claims,
        family=document.family_of(claims),
        jobs=tuple(job for part in documents for job in part.jobs),
        errors=tuple(error for part in documents for error in part.errors),
        curves={paper: curves for part in documents for paper, curves in part.curves.items()},
        wall_s=sum(part.wall_s for part in documents),
    )


def _documents(root: Path, papers: Sequence[str], preset: str) -> list[Document]:
    published = [_earlier(root / paper / preset / DOCUMENT) for paper in papers]
    return [part for part in published if part is not None]


def _earlier(path: Path) -> Document | None:
    """What is published, or None where nothing is; what another version wrote must not stop a new run."""
    try:
        return document.load(path) if path.exists() else None
    except RequestError as err:
        _log.warning("%s", err)
        return None


def _row(job: JobEntry, folder: Path, paper: Paper) -> dict[str, Any]:
    scores, claims = results.read_scores(scores_path(folder, job)), paper.claims
    judged = scores.filter(pc.equal(scores["condition"], claims.condition))
    mean = pc.mean(judged[claims.headline]).as_py() if claims.headline in judged.column_names else None
    return {name: value for name, value in asdict(job).items() if name in COLUMNS} | {
        "preset": folder.name,
        "date": (job.ended or time.strftime("%Y-%m-%d"))[:10],
        "items": judged.num_rows,
        "metric": claims.headline,
        "headline": "" if mean is None else round(mean, 6),
        "scores_sha256": file_sha256(scores_path(folder, job)),
    }


def _rows_of(path: Path) -> list[dict[str, str]]:
    table = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8") if path.exists() else ",".join(COLUMNS)))
    if table.fieldnames != list(COLUMNS):
        why = f"Its first line does not name the columns {', '.join(COLUMNS)}"
        raise WorkError(f"The published runs are {path}", why, "Restore the file, for example from git")
    return list(table)


def _append_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append the rows that are not there, told apart by arm, seed, key and the digest of their scores."""
    text = path.read_text(encoding="utf-8") if path.exists() else ",".join(COLUMNS) + "\n"
    there = {tuple(row[name] for name in IDENTITY) for row in _rows_of(path)}
    new = [row for row in rows if tuple(str(row[name]) for name in IDENTITY) not in there]
    buffer = io.StringIO()
    csv.DictWriter(buffer, COLUMNS, lineterminator="\n").writerows(new)
    replace_text(path, text + buffer.getvalue())


def _merged(new: Document, path: Path, paper: str) -> Document:
    """The paper's part of a document, with what an earlier publication holds of other claims and jobs."""
    earlier = _earlier(path)
    claims = {claim.id: claim for claim in earlier.claims} if earlier is not None else {}
    claims |= {claim.id: claim.beside(None) for claim in new.claims if claim.paper == paper}
    jobs = [*(earlier.jobs if earlier is not None else ()), *(job for job in new.jobs if job.paper == paper)]
    used = {key for claim in claims.values() for key in claim.run_ids}
    curves = dict(earlier.curves.get(paper, {})) if earlier is not None else {}
    for metric, by_arm in new.curves.get(paper, {}).items():  # one seed's curve an arm keeps the file small
        curves[metric] = curves.get(metric, {}) | {arm: seeds[:1] for arm, seeds in by_arm.items()}
    return replace(
        new,
        claims=tuple(claims[name] for name in sorted(claims)),
        family=document.family_of(tuple(claims.values())),
        jobs=tuple(
            {(job.arm, job.seed, job.key): replace(job, reused=False) for job in jobs if job.key in used}.values()
        ),
        errors=(),
        skipped=(),
        examples=(),
        curves={paper: curves} if curves else {},
    )
