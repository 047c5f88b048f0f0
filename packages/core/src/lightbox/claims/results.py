"""`results.json`: what a `reproduce` found, in one document that the page, `explain` and a script can read. No torch.

Numbers of a claim are in its printed unit ("points" are hundredths of an accuracy). `examples` name image files by
path relative to the document; `curves` hold, by paper, metric and arm, one thinned curve a seed.
"""

import json
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lightbox import machine
from lightbox.claims.entries import claim_entry, with_published
from lightbox.claims.jobs import Plan
from lightbox.claims.runner import Finished
from lightbox.claims.spec import Kind, Verdict
from lightbox.claims.verdicts import family
from lightbox.errors import RequestError, WorkError
from lightbox.files import replace_text
from lightbox.runs import folders
from lightbox.runs.folders import SCORES, read_record

SCHEMA = 1
CURVE_POINTS = 60
EXAMPLES_PER_ARM = 6

Cards = Mapping[str, Mapping[str, Any]]


def build(
    plan: Plan,
    found: Finished,
    *,
    started: str,
    wall_s: float,
    folder: Path,
    committed_cards: Cards | None = None,
    published: Mapping[tuple[str, str], Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Write down what a plan has come to so far.

    Args:
        plan: claims and jobs.
        found: finished jobs; those missing leave their claims with fewer seeds and no verdict.
        started: when, ISO 8601.
        wall_s: seconds since.
        folder: where the document will lie; paths in it are relative to that.
        committed_cards: rows of committed jobs by key, for jobs that were reused.
        published: committed claim entries by (paper, claim id).

    Raises:
        RequestError: where a test set is smaller than a claim needs.
        WorkError: where scores do not pair or a file is damaged.
    """
    cards = {key: read_record(path) or {} for key, path in found.folders.items()}
    cards |= {key: (committed_cards or {})[key] for key in found.reused}
    paths = {key: path / SCORES for key, path in found.folders.items()} | found.reused
    claims = []
    for paper, claim in plan.claims:
        keys = {(arm, seed): key for (owner, arm, seed), key in plan.keys.items() if owner == paper.name}
        ready = {pair: key for pair, key in keys.items() if key in paths}
        scores = {pair: read_scores(paths[key]) for pair, key in ready.items()}
        entry = claim_entry(claim, plan.preset, scores, {pair: cards[key] for pair, key in ready.items()})
        claims.append(with_published(entry, (published or {}).get((paper.name, claim.id))))
    return {
        "schema": SCHEMA,
        "preset": plan.preset,
        "commit": machine.commit(),
        "started": started,
        "wall_s": round(wall_s, 1),
        "machine": {"hardware": machine.hardware(), "versions": machine.versions()},
        "claims": claims,
        "family": family_of(claims),
        "skipped": [claim.id for claim in plan.skipped],
        "jobs": job_rows(plan, cards, found),
        "errors": [_error_row(plan, key, error) for key, error in found.errors.items()],
        "examples": _examples(plan, found, folder),
        "curves": _curves(plan, found),
    }


def family_of(claims: list[dict[str, Any]]) -> dict[str, Any]:
    """How many verdicts some claim entries drew, and the share of false "reproduced" to expect."""
    return family([(Kind(entry["kind"]), Verdict(entry["verdict"])) for entry in claims])


def job_rows(plan: Plan, cards: Cards, found: Finished) -> list[dict[str, Any]]:
    """One row a finished (paper, arm, seed): key, commit, source, time, memory; several arms may share a key."""
    kept = ("commit", "source", "hardware", "wall_s", "peak_gib", "ended")
    return [
        {"paper": paper, "arm": arm, "seed": seed, "key": key, "reused": key in found.reused}
        | {name: cards[key].get(name) for name in kept}
        for (paper, arm, seed), key in plan.keys.items()
        if key in cards
    ]


def write(document: Mapping[str, Any], path: Path) -> None:
    """Replace `results.json` as a whole."""
    replace_text(path, json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def load(path: Path) -> dict[str, Any]:
    """Read `results.json`.

    Raises:
        RequestError: where there is none, it is no results document, or another version of Lightbox wrote it.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        why = f"It cannot be read: {err.strerror or err}"
        raise RequestError(f"The results are {path}", why, "Run `lightbox reproduce` first, or correct --from") from err
    except ValueError as err:
        do = "Run `lightbox reproduce` again; its finished jobs are kept"
        raise RequestError(f"The results are {path}", f"It is not JSON: {err}", do) from err
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise RequestError(
            f"{path} has schema {schema!r}",
            f"This version of Lightbox reads schema {SCHEMA}",
            "Run `lightbox reproduce` again, which keeps finished jobs, or use the version that wrote it",
        )
    return document


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


def _error_row(plan: Plan, key: str, error: Exception) -> dict[str, Any]:
    job = plan.jobs[key]
    return {"paper": job.paper, "arm": job.arm, "seed": job.seed, "key": key, "error": str(error)}


def _examples(plan: Plan, found: Finished, folder: Path) -> list[dict[str, Any]]:
    """Example rows of the first seed of each arm, with their image's path relative to `folder`."""
    rows: list[dict[str, Any]] = []
    for (paper, arm, seed), key in plan.keys.items():
        if seed == 0 and key in found.folders:
            place = os.path.relpath(found.folders[key], folder)
            for row in folders.read_examples(found.folders[key])[:EXAMPLES_PER_ARM]:
                image = Path(place, row["image"]).as_posix() if row.get("image") else ""
                rows.append({"paper": paper, "arm": arm, "seed": seed, **row, "image": image})
    return rows


def _curves(plan: Plan, found: Finished) -> dict[str, Any]:
    """Curves by paper, metric and arm, one a seed, each thinned to at most `CURVE_POINTS` points."""
    curves: dict[str, Any] = {}
    for (paper, arm, _), key in plan.keys.items():
        if key in found.folders:
            for metric, points in folders.read_history(found.folders[key]).items():
                thinned = points[:: -(-len(points) // CURVE_POINTS)] if points else []
                by_arm = curves.setdefault(paper, {}).setdefault(metric, {})
                by_arm.setdefault(arm, []).append([[step, _finite(value)] for step, value in thinned])
    return curves


def _finite(value: float) -> float | None:
    return round(value, 6) if abs(value) < float("inf") else None
