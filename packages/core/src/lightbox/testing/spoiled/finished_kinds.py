"""The folder of a finished run as an input, read by the commands that a user has for it. No torch."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from lightbox.claims.registry import load_papers
from lightbox.cli.app import app
from lightbox.errors import LightboxError
from lightbox.paper.entries import Entries, newest_training
from lightbox.runs import folders
from lightbox.runs.finished import is_finished
from lightbox.testing.fake_runs import write_job
from lightbox.testing.spoiled.containers import PARQUET_CHANGES
from lightbox.testing.spoiled.entries import Change
from lightbox.testing.spoiled.inputs import Kind, Look, digest_of
from lightbox.testing.spoiled.single_images import OF_FILES
from lightbox.testing.spoiled.trial import changes_of

NAMES_BY_USE = ("examples.json", folders.PREDICTIONS)  # a run need not have them
QUESTIONS = (("presence", "is there a nodule ?", ("yes", "no")), ("count", "how many ?", ()))


def _write_run(folder: Path, rng: random.Random) -> None:
    """Two runs that can be compared, the second with predictions."""
    for arm in ("none", "explanation"):
        own = write_job(folder, arm, 0, n_items=12, place="runs", key=f"{arm}-{rng.randrange(10**6):06d}")
        lines = []
        for number in range(6):
            kind, text, options = rng.choice(QUESTIONS)
            line = {"id": f"case-0-{number:04d}", "condition": "image", "question": text, "options": options}
            line |= {"answer": options[0] if options else "2", "answer_index": 0 if options else None, "kind": kind}
            lines.append(json.dumps(line | {"prediction": "The answer is (A)."}) + "\n")
        (own / folders.PREDICTIONS).write_text("".join(lines), encoding="utf-8")
        folders.mark_finished(own, json.loads((own / folders.RECORD).read_text(encoding="utf-8")))


def _look_at_run(folder: Path) -> Look:
    """What `compare`, `report --from`, `conventions`, `export` and `predict` make of the runs."""
    seen: list[Any] = []
    said: list[str] = []
    for own in sorted((folder / "runs").iterdir()):
        run = folders.read_run(own) if own.is_dir() else None
        if run is None:
            continue
        scores = folders.read_scores(own)
        seen += [run.arm, run.seed, run.config, run.wall_s, folders.read_history(own), folders.read_card(own)]
        seen += [folders.read_examples(own), None if scores is None else folders.mean_scores(scores)]
        is_finished(own, run.key)
        Entries(run.paper)._check_own(own)
        for words in (["report", "--from", str(own)], ["conventions", str(own)], ["export", str(own), str(own / "x")]):
            said.append(_typed(words))
    said.append(_typed(["compare", "--out", str(folder), "--json"]))
    try:
        newest_training(folder, "medthink")
    except LightboxError as err:
        said.append(err.why)
    return Look(digest_of(*seen), " | ".join(text.replace(str(folder), "") for text in said))


def _typed(words: list[str]) -> str:
    """How a command ended, in brief; what it raises, other than an exit or an error in three parts, is raised here."""
    result = CliRunner().invoke(app, words)
    if isinstance(result.exception, LightboxError):
        return f"{words[0]}: {result.exception.why}"
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return f"{words[0]}: {result.exit_code}"


def _run_changes(file: Path) -> Mapping[str, Change]:
    if file.suffix == ".png":
        return OF_FILES
    every = dict(changes_of(file))
    if file.suffix == ".parquet":
        every |= PARQUET_CHANGES
    return {name: change for name, change in every.items() if "for folder" not in name and name != "link to above"}


PAPERS = [paper.name for paper in load_papers()]  # `report` asks for them: imported before the first look
RUN = Kind(_write_run, _look_at_run, _run_changes, variants=4)
