"""`lightbox bench data|train|memory|kernels|pruning|rollout`: ratios against named peers, measured in turns in one run.

The peer is part of the row, since a speed without one says little. Rows are kept only on request.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from lightbox.bench import ledger
from lightbox.config import check_choice
from lightbox.errors import RequestError
from lightbox.paths import repo_root

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Measure ratios against named peers.")

PARTS = {"driver": "train_throughput", "qlora": "training_step", "workers": "train_workers"}
"""What `lightbox bench train` measures -> its name in the table of rows."""

NOTES_WIDTH = 160
"""Columns of a terminal from which on notes, which are long, stand beside the numbers."""

Repeats = Annotated[int, typer.Option(help="Measurements of each side; the median counts.")]
Record = Annotated[bool, typer.Option("--record", help="Append the rows to benchmarks/results.csv.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON list of rows.")]


@app.command()
def data(
    cases: Annotated[int, typer.Option(help="Phantom cases in each measurement.")] = 2000,
    repeats: Repeats = 5,
    record: Record = False,
    as_json: AsJson = False,
) -> None:
    """Labelled phantom cases per second on one core."""
    _check_counts(cases=cases, repeats=repeats)
    from lightbox.bench.data import run

    _finish("data", run(cases=cases, repeats=repeats), record=record, as_json=as_json)


@app.command()
def train(
    epochs: Annotated[int, typer.Option(help="Passes over 512 items in each measurement.")] = 2,
    repeats: Repeats = 7,
    only: Annotated[str, typer.Option(help=f"One of {', '.join(PARTS)}.")] = "",
    record: Record = False,
    as_json: AsJson = False,
) -> None:
    """Training steps per second: the loop against a Trainer, a QLoRA step against peft's, workers against in line."""
    _check_counts(epochs=epochs, repeats=repeats)
    if only and only not in PARTS:
        raise RequestError(f"--only is '{only}'", f"What can be measured is {', '.join(PARTS)}", "Name one of them")
    rows: list[dict[str, Any]] = []
    for part, benchmark in PARTS.items():
        if only in ("", part):
            measured = _train_rows(part, epochs=epochs, repeats=repeats)
            if record:
                ledger.append(repo_root() / "benchmarks" / "results.csv", benchmark, measured)
            rows += measured
    _finish("", rows, record=False, as_json=as_json)


@app.command()
def memory(
    model: Annotated[list[str] | None, typer.Option(help="Only this model; may be given several times.")] = None,
    device: Annotated[str, typer.Option(help="cpu: small models; cuda: 7B models in NF4 with random weights.")] = "cpu",
    record: Record = False,
    as_json: AsJson = False,
) -> None:
    """Peak memory of training steps, measured, against trace and closed form."""
    check_choice("--device", device, ("cpu", "cuda"))
    from lightbox.bench import memory as bench

    models = bench.CARD_MODELS if device == "cuda" else tuple(bench.WIDER)
    for name in model or ():
        check_choice("--model", name, models)
    _finish("memory", bench.run(device=device, models=model or ()), record=record, as_json=as_json)


@app.command()
def kernels(
    only: Annotated[
        list[str] | None, typer.Option(help="Only this operator of lightbox.kernels; may be given several times.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Turns of all forms of a case; the median ratio counts.")] = 5,
    record: Record = False,
    as_json: AsJson = False,
) -> None:
    """Operators against their published form, PyTorch, torch.compile and the device's own floor; tests first."""
    _check_counts(rounds=rounds)
    from lightbox.bench.kernels.measure import run

    _finish("kernels", run(only=only or (), rounds=rounds), record=record, as_json=as_json)


@app.command()
def pruning(
    method: Annotated[list[str] | None, typer.Option(help="Only this method; may be given several times.")] = None,
    budget: Annotated[float, typer.Option(help="Share of visual tokens that stays, between 0 and 1.")] = 0.2,
    repeats: Repeats = 7,
    record: Record = False,
    as_json: AsJson = False,
) -> None:
    """Time to first token and tokens a second, pruned against unpruned, and what choosing takes of it."""
    _check_counts(repeats=repeats)
    from lightbox.bench import pruning as bench

    rows = bench.run(methods=method or bench.METHODS, budget=budget, repeats=repeats)
    _finish("pruning", rows, record=record, as_json=as_json)


@app.command()
def rollout(
    prompts: Annotated[int, typer.Option(help="Prompts, with --group conversations each.")] = 8,
    group: Annotated[int, typer.Option(help="Conversations that begin with one prompt.")] = 8,
    repeats: Repeats = 7,
    record: Record = False,
    as_json: AsJson = False,
) -> None:
    """Tokens a second in conversations of two turns with images, against generate once a turn and trl's GRPOTrainer."""
    _check_counts(prompts=prompts, group=group, repeats=repeats)
    from lightbox.bench import rollout as bench

    _finish("rollout", bench.run(prompts=prompts, group=group, repeats=repeats), record=record, as_json=as_json)


def _train_rows(part: str, *, epochs: int, repeats: int) -> list[dict[str, Any]]:
    if part == "driver":
        from lightbox.bench.train import run

        return run(epochs=epochs, repeats=repeats)
    if part == "qlora":
        from lightbox.bench import step

        return step.run(repeats=repeats)
    from lightbox.bench import workers

    return workers.run(repeats=repeats)


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise RequestError(f"--{name} is {count}", "Nothing would be measured", f"Set --{name} to 1 or more")


def _finish(benchmark: str, rows: Sequence[Mapping[str, Any]], *, record: bool, as_json: bool) -> None:
    if record:
        ledger.append(repo_root() / "benchmarks" / "results.csv", benchmark, rows)
    if as_json:
        typer.echo(json.dumps(list(rows), indent=2))
        return
    console = Console()
    names = ["case", "peer", "value", "unit", "ratio", *(["goal"] if any("goal" in row for row in rows) else [])]
    has_notes = console.width >= NOTES_WIDTH
    table = Table(*names, *(["notes"] if has_notes else []), box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(str(row[name]) for name in names), *([str(row["notes"])] if has_notes else []))
    console.print(table)
    if not has_notes:
        console.print(f"How each was measured: --json, or a terminal of {NOTES_WIDTH} columns")
