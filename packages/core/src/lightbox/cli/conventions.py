"""`lightbox conventions`: one file of predictions under the scoring rules of several groups, as a table.

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
        Path, typer.Argument(help="JSON lines: id, question, options, answer, answer_index, prediction.")
    ],
    only: Annotated[list[str] | None, typer.Option(help="Only this convention; may be repeated.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Score the same predictions under rival conventions, and say where each misleads."""
    from lightbox.eval.conventions import check_names, table
    from lightbox.eval.predictions import read_predictions

    check_names(only or ())  # before a file that may be long
    read, problems = read_predictions(predictions)
    rows = table(read, only or ())
    for problem in problems:
        typer.echo(f"malformed: {problem}", err=True)
    if as_json:
        plain = {"file": str(predictions), "items": len(read), "malformed": [str(problem) for problem in problems]}
        typer.echo(json.dumps(plain | {"conventions": [dataclasses.asdict(row) for row in rows]}, indent=2))
    else:
        typer.echo(f"{len(read)} items of {predictions}; malformed lines left out: {len(problems)}")
        _show(rows)
    raise typer.Exit(1 if problems else 0)


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
