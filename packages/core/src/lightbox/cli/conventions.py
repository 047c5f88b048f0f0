"""`lightbox conventions`: predictions of a file, or of a run, under the scoring rules of several groups, as a table.

Exit codes: 0 every line was read, 1 some were malformed (named on stderr, the rest is scored), 2 the request was wrong.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lightbox.eval.conventions import Row


def conventions(
    predictions: Annotated[
        Path,
        typer.Argument(help="JSON lines: id, question, options, answer, answer_index, prediction; or a run's folder."),
    ],
    only: Annotated[list[str] | None, typer.Option(help="Only this convention; may be repeated.")] = None,
    condition: Annotated[
        str, typer.Option(help="Which lines, where they name a condition, as a run's do: image, blank, shuffled.")
    ] = "image",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Score the same predictions under rival conventions, and say where each misleads."""
    from lightbox.eval.conventions import check_names, table
    from lightbox.eval.predictions import read_predictions

    check_names(only or ())  # before a file that may be long
    file = predictions_of(predictions) if predictions.is_dir() else predictions
    read, problems, others = read_predictions(file, condition)
    rows = table(read, only or ())
    for problem in problems:
        typer.echo(f"malformed: {problem}", err=True)
    if as_json:
        plain = {"file": str(file), "items": len(read), "condition": condition, "of_other_conditions": dict(others)}
        plain |= {"malformed": [str(problem) for problem in problems]}
        typer.echo(json.dumps(plain | {"conventions": [dataclasses.asdict(row) for row in rows]}, indent=2))
    else:
        left_out = [f"{len(problems)} malformed", *(f"{count} of condition {name}" for name, count in others.items())]
        typer.echo(f"{len(read)} items of {file}; lines left out: {', '.join(left_out)}")
        _show(rows)
    raise typer.Exit(1 if problems else 0)


def predictions_of(folder: Path) -> Path:
    """The file of predictions in the folder of a run.

    Raises:
        RequestError: where there is none.
    """
    from lightbox.errors import RequestError
    from lightbox.runs.folders import PREDICTIONS

    if not (folder / PREDICTIONS).is_file():
        raise RequestError(
            f"Folder '{folder}' holds no {PREDICTIONS}",
            "It is no run that answered questions, or one of an older version",
            "Name a run's folder or a file; an older run is scored anew by `lightbox evaluate`",
        )
    return folder / PREDICTIONS


def _show(rows: Sequence["Row"]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=SIMPLE_HEAD)
    for name, justify in (("convention", "left"), ("score", "right"), ("counted", "right"), ("not as ours", "right")):
        shown.add_column(name, justify=justify, no_wrap=True)
    shown.add_column("where it misleads", overflow="fold")
    for row in rows:
        score = "" if row.score is None else f"{100 * row.score:.1f} %"
        cells = [row.convention, score, f"{row.n_counted} of {row.n_items}", str(row.n_differs)]
        shown.add_row(*cells, Text(f"cannot score: {row.cannot_score}" if row.cannot_score else row.misleads))
    Console().print(shown)
