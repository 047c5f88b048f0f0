"""What a finished run was made from, and what of it is another thing today: `lightbox explain --job KEY`. No torch."""

import csv
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightbox.claims import jobs, registry
from lightbox.claims.published import ROWS
from lightbox.errors import RequestError
from lightbox.files import to_plain
from lightbox.runs import folders
from lightbox.runs.key import KEY_LENGTH, OLDER, Identity, differences, identify

LEAST_DIGITS = 6
IN_A_NAME = 12
"""Digits of the key in the name of a single training's folder."""
PARTS = {"Module": "modules", "Input": "inputs", "Library": "computing", "Needs": "needs"}
Packages = Mapping[str, str] | None


@dataclass(frozen=True)
class Origin:
    """Where a key was found, and what stands there about it: `job.json`, or a row of the published runs."""

    key: str
    place: Path
    record: Mapping[str, Any]

    @property
    def is_row(self) -> bool:
        """True for a published row, which names what was run and not what it was made from."""
        return self.place.name == ROWS


def explanation(digits: str, out: Path, root: Path, *, packages: Packages = None) -> list[str]:
    """What one key was made from, a line a part, and what would be different if it were made today.

    Args:
        digits: the key, or at least its first `LEAST_DIGITS` digits.
        out: output folder, whose jobs and runs are searched.
        root: the committed results, searched too.
        packages: package by paper name, in place of the installed papers.

    Raises:
        RequestError: for what is no key, belongs to no finished run, or to several.
        WorkError: for a run folder that is damaged.
    """
    origin = find_origin(digits, out, root)
    record = origin.record
    run = f"{record['paper']} {record['arm']}, seed {record['seed']}, {record['preset']}"
    lines = [f"{origin.key}: {run}, commit {record['commit']}", f"From {origin.place}"]
    for title, name in PARTS.items():
        lines += [f"{title} {part}: {content or 'absent'}" for part, content in record.get(name, {}).items()]
    changes = _changes(origin, out, root, packages)
    return [*lines, *(f"Today: {change}" for change in changes or ["nothing differs"])]


def find_origin(digits: str, out: Path, root: Path) -> Origin:
    """The one finished run whose key begins with some digits; a folder goes before a published row.

    Raises:
        RequestError, WorkError: see `explanation`.
    """
    named = f"--job is '{digits}'"
    digits = digits.lower()
    if not LEAST_DIGITS <= len(digits) <= KEY_LENGTH or not set(digits) <= set(string.hexdigits):
        raise RequestError(
            named,
            f"A key has {KEY_LENGTH} hexadecimal digits, and at least the first {LEAST_DIGITS} are needed",
            "Take it from results.json, or from the name of a run's folder",
        )
    origins = _origins(digits, out, root)
    if not origins:
        raise RequestError(
            named,
            f"Neither a finished run under '{out}' nor a row of {root / ROWS} has such a key",
            "Name the output folder with --out, or take a key from results.json",
        )
    if len(origins) > 1:
        raise RequestError(named, f"{len(origins)} keys begin so: {', '.join(origins)}", "Give more of its digits")
    return next(iter(origins.values()))


def identity_today(record: Mapping[str, Any], out: Path, root: Path, *, packages: Packages = None) -> Identity:
    """What the command that made a run would run today.

    Args:
        record: `job.json` of the run.
        out, root: where the runs that it needs are found.
        packages: see `explanation`.

    Raises:
        RequestError: where the paper, or a configuration of those overrides, is there no longer.
    """
    paper = registry.load_papers((record["paper"],), packages=packages)[0]
    module = paper.config()
    cfg = module.resolve(list(record["overrides"]))
    needs = {}
    for arm, key in record["needs"].items():
        needed = _origins(key, out, root).get(key)
        is_told = needed is not None and not needed.is_row
        needs[arm] = identity_today(needed.record, out, root, packages=packages).key if is_told else key
    return identify(paper.package, to_plain(cfg), inputs=module.inputs(cfg), needs=needs, chosen=module.chosen(cfg))


def _origins(digits: str, out: Path, root: Path) -> dict[str, Origin]:
    """Every finished run whose key begins with some digits, by key; of several attempts the last."""
    rows = root / ROWS
    text = rows.read_text(encoding="utf-8") if rows.is_file() else ""
    origins = {row["key"]: Origin(row["key"], rows, row) for row in csv.DictReader(text.splitlines())}
    for folder in folders.run_folders(out):
        run = folders.read_run(folder) if digits[:IN_A_NAME] in folder.name else None
        if run is not None:
            key = run.key.rpartition("-")[2]  # an older layout has no key but its folder's name
            facts = {name: getattr(run, name) for name in ("paper", "arm", "seed", "preset", "commit")}
            origins[key] = Origin(key, folder, {**(folders.read_record(folder) or {}), **facts})
    return {key: origin for key, origin in origins.items() if key.startswith(digits)}


def _changes(origin: Origin, out: Path, root: Path, packages: Packages) -> list[str]:
    """What differs today, in brief; [] where nothing does."""
    record = origin.record
    try:
        if origin.is_row:
            return _changes_of_row(record, packages)
        if "overrides" not in record or "needs" not in record:
            return [OLDER]
        return differences(record, identity_today(record, out, root, packages=packages))
    except RequestError as err:
        return [f"the same command is refused: {err}"]


def _changes_of_row(row: Mapping[str, Any], packages: Packages) -> list[str]:
    paper = registry.load_papers((row["paper"],), packages=packages)[0]
    if row["arm"] not in paper.claims.arms:
        return [f"{paper.name} has no arm '{row['arm']}'"]
    job = jobs.arm_job(paper, row["arm"], preset=row["preset"], seed=int(row["seed"]))
    if job.key == row["key"]:
        return []
    what = "settings, inputs, libraries or the runs it reads" if job.source == row["source"] else "its code"
    return [f"the same job has the key {job.key}; what changed is {what}, and a row does not tell more"]
