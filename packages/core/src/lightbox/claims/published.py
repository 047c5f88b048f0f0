"""Published results, in git: per-item scores, the document beside them, and one row a run. No torch.

`results/<paper>/<preset>/<key>.parquet` holds the scores of a job, `results.json` there what they came to, and
`results/runs.csv` one row a run. Rows and scores made by an older source stay; their claims are marked with its commit.
"""

import csv
import io
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from lightbox.claims import results
from lightbox.claims.entries import claim_entry
from lightbox.claims.jobs import Plan, make_template
from lightbox.claims.registry import Paper
from lightbox.claims.runner import Finished
from lightbox.claims.verdicts import PRESETS_WITHOUT_VERDICT
from lightbox.errors import RequestError, WorkError
from lightbox.files import file_sha256, replace_text, sync_folder, write_synced
from lightbox.runs.folders import SCORES

_log = logging.getLogger("lightbox.claims")

DOCUMENT = "results.json"
ROWS = "runs.csv"
COLUMNS = "paper preset arm seed key commit date hardware wall_s peak_gib items correct scores_sha256 source".split()


def committed_scores(root: Path, papers: Sequence[str], preset: str) -> dict[str, Path]:
    """Committed parquet files of some papers at a preset, by job key."""
    files = [path for paper in papers for path in (root / paper / preset).glob("*.parquet")]
    return {path.stem: path for path in files}


def committed_cards(root: Path, papers: Sequence[str], preset: str) -> dict[str, dict[str, Any]]:
    """Rows of `results.json` about committed jobs, by key; empty where nothing is committed."""
    return {row["key"]: row for document in _documents(root, papers, preset) for row in document["jobs"]}


def committed_claims(root: Path, papers: Sequence[str], preset: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Committed claim entries, by (paper, claim id); empty where nothing is committed."""
    entries = [entry for document in _documents(root, papers, preset) for entry in document["claims"]]
    return {(entry["paper"], entry["id"]): entry for entry in entries}


def publish(document: Mapping[str, Any], plan: Plan, found: Finished, root: Path) -> list[Path]:
    """Copy the scores of a complete run to `root`, with its document and rows; return the documents written.

    Claims and jobs that an earlier publication holds and this run does not touch stay as they are.

    Args:
        document: from `results.build`.
        plan: the jobs.
        found: all of them finished or reused.
        root: the checkout's `results/`.

    Raises:
        RequestError: for a preset whose runs decide nothing.
        WorkError: where a job is missing.
    """
    if plan.preset in PRESETS_WITHOUT_VERDICT:
        why = "Its runs exercise the code and decide nothing"
        raise RequestError(f"--publish with --preset {plan.preset}", why, "Publish a run of quick or full")
    missing = sorted(plan.scored_keys() - found.folders.keys() - found.reused.keys())
    if missing:
        given = f"--publish with {len(missing)} of {len(plan.scored_keys())} jobs unfinished"
        why = "A published verdict needs every seed, also those that failed"
        raise WorkError(given, why, "Correct what failed (see error.json in its folder) and run again")
    written = []
    for paper in dict.fromkeys(entry["paper"] for entry in document["claims"]):
        folder = root / paper / plan.preset
        folder.mkdir(parents=True, exist_ok=True)
        for (owner, _, _), key in plan.keys.items():
            if owner == paper and key in found.folders and key in plan.scored_keys():
                _copy(found.folders[key] / SCORES, folder / f"{key}.parquet")
        _append_rows(root / ROWS, _rows(document, folder, plan, paper))
        results.write(_merged(document, folder / DOCUMENT, paper), folder / DOCUMENT)
        written.append(folder / DOCUMENT)
    return written


def recompute(folder: Path, paper: Paper) -> dict[str, Any]:
    """Recompute every effect, interval and verdict of a published folder from its parquet files.

    Claims are decided as the paper's `claims.py` declares them now; a claim that it no longer declares is left out. A
    claim whose jobs were made by another source than today's is marked with `older_source`, the commits that made them.

    Args:
        folder: `results/<paper>/<preset>`.
        paper: its claims.

    Raises:
        RequestError: where the document is absent or of another schema.
        WorkError: where a parquet file is absent or damaged.
    """
    document = results.load(folder / DOCUMENT)
    today = today_sources(paper, document["preset"])
    rows = [row for row in document["jobs"] if row["paper"] == paper.name]
    entries = []
    for published in document["claims"]:
        claim = paper.claims.claim(published["id"])
        if claim is None:
            continue
        wanted = {row["key"] for row in rows} & set(published["run_ids"])
        cards = {(row["arm"], row["seed"]): row for row in rows if row["key"] in wanted and row["arm"] in claim.arms}
        scores = {pair: results.read_scores(folder / f"{row['key']}.parquet") for pair, row in cards.items()}
        entry = claim_entry(claim, document["preset"], scores, cards)
        older = sorted({row["commit"] for row in cards.values() if row["source"] not in today})
        entries.append(entry | {"published": None, "older_source": older})
    return {**document, "claims": entries, "family": results.family_of(entries)}


def today_sources(paper: Paper, preset: str) -> set[str]:
    """Digests of the code that the arms of a paper would run with today; arms that choose other modules have others."""
    return {make_template(paper, arm, preset).source for arm in paper.claims.arms.values()}


def published_folders(root: Path, papers: Sequence[Paper], preset: str = "") -> list[tuple[Path, Paper]]:
    """Folders of `root` that hold a document of these papers, at one preset or ("") at any."""
    found = [(path.parent, paper) for paper in papers for path in sorted((root / paper.name).glob(f"*/{DOCUMENT}"))]
    return [(folder, paper) for folder, paper in found if preset in ("", folder.name)]


def joined(documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One document of several papers at one preset; the first one says when and where."""
    parts = {name: [row for document in documents for row in document[name]] for name in ("claims", "jobs", "errors")}
    curves = {paper: by_metric for document in documents for paper, by_metric in document["curves"].items()}
    wall_s = sum(document["wall_s"] for document in documents)
    return {**documents[0], **parts, "curves": curves, "wall_s": wall_s, "family": results.family_of(parts["claims"])}


def _documents(root: Path, papers: Sequence[str], preset: str) -> list[dict[str, Any]]:
    found = [_earlier(root / paper / preset / DOCUMENT) for paper in papers]
    return [document for document in found if document is not None]


def _earlier(path: Path) -> dict[str, Any] | None:
    """What is published, or None where nothing is; what another version wrote must not stop a new run."""
    try:
        return results.load(path) if path.exists() else None
    except RequestError as err:
        _log.warning("%s", err)
        return None


def _copy(source: Path, target: Path) -> None:
    """Copy a file whole: the name appears once the content is on the disk."""
    staged = target.with_name(f".{target.name}.tmp")
    write_synced(staged, source.read_bytes())
    staged.replace(target)
    sync_folder(target.parent)


def _rows(document: Mapping[str, Any], folder: Path, plan: Plan, paper: str) -> list[dict[str, Any]]:
    rows = []
    for job in document["jobs"]:
        path = folder / f"{job['key']}.parquet"
        if job["paper"] == paper and path.exists():
            scores = results.read_scores(path)
            image = scores.filter(pc.equal(scores["condition"], "image"))
            mean = pc.mean(image["correct"]).as_py() if "correct" in image.column_names else None
            rows.append(
                {name: job.get(name) for name in COLUMNS}
                | {"preset": plan.preset, "date": (job["ended"] or time.strftime("%Y-%m-%d"))[:10]}
                | {"items": image.num_rows, "correct": "" if mean is None else round(mean, 6)}
                | {"scores_sha256": file_sha256(path)}
            )
    return rows


def _append_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append the rows that are not there: a row is known by arm, seed, key and the digest of its scores."""
    text = path.read_text(encoding="utf-8") if path.exists() else ",".join(COLUMNS) + "\n"
    identity = ("paper", "preset", "arm", "seed", "key", "scores_sha256")
    known = {tuple(row[name] for name in identity) for row in csv.DictReader(io.StringIO(text))}
    new = [row for row in rows if tuple(str(row[name]) for name in identity) not in known]
    buffer = io.StringIO()
    csv.DictWriter(buffer, COLUMNS, lineterminator="\n").writerows(new)
    replace_text(path, text + buffer.getvalue())


def _merged(document: Mapping[str, Any], path: Path, paper: str) -> dict[str, Any]:
    """The paper's part of a document, with what an earlier publication holds of other claims and jobs."""
    earlier = _earlier(path) or {"claims": [], "jobs": [], "curves": {}}
    claims = {entry["id"]: entry for entry in earlier["claims"]}
    claims |= {entry["id"]: entry | {"published": None} for entry in document["claims"] if entry["paper"] == paper}
    jobs = {(row["arm"], row["seed"], row["key"]): row for row in earlier["jobs"]}
    jobs |= {(row["arm"], row["seed"], row["key"]): row for row in document["jobs"] if row["paper"] == paper}
    used = {key for entry in claims.values() for key in entry["run_ids"]}
    curves = earlier["curves"].get(paper, {})
    for metric, by_arm in document["curves"].get(paper, {}).items():  # one seed's curve an arm keeps the file small
        curves = curves | {metric: curves.get(metric, {}) | {arm: found[:1] for arm, found in by_arm.items()}}
    return {
        **document,
        "claims": [claims[name] for name in sorted(claims)],
        "family": results.family_of(list(claims.values())),
        "jobs": [row | {"reused": False} for row in jobs.values() if row["key"] in used],
        "errors": [],
        "skipped": [],
        "examples": [],
        "curves": {paper: curves} if curves else {},
    }
