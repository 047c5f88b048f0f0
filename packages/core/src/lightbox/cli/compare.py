"""`lightbox compare`: recorded runs side by side, from their folders, as a table, a plot and CSV.

Runs of one paper are compared with each other, by that paper's own metric. Papers stand one below the other and are not
compared: their questions, items and metrics differ.
"""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lightbox.errors import RequestError
from lightbox.files import replace_bytes, replace_text
from lightbox.paths import default_out

MOST_ROWS, MOST_PARAMS = 40, 12
FEWEST_ROWS = 8
"""Of each paper's runs that are printed, where there are many papers."""
APART = "Papers are not compared with each other: their questions, items and metrics differ."


def compare(
    runs: Annotated[list[str] | None, typer.Argument(help="Runs: job keys, their beginnings, or folders.")] = None,
    paper: Annotated[
        list[str] | None, typer.Option(help="Only runs of this paper; may be given again; left out, all, by paper.")
    ] = None,
    preset: Annotated[str, typer.Option(help="Only runs of this preset.")] = "",
    metric: Annotated[
        str, typer.Option(help="Metric, for example dice or blank/dice; left out, each paper's headline.")
    ] = "",
    against: Annotated[str, typer.Option(help="Arm that the others are compared with; left out, the first.")] = "",
    out: Annotated[Path | None, typer.Option(help="Output folder that holds the runs.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    rebuild_index: Annotated[bool, typer.Option("--rebuild-index", help="First index every run in MLflow.")] = False,
) -> None:
    """Put recorded runs side by side, paper by paper; seeds are pooled and arms compared item by item.

    Writes compare.png and compare.csv.
    """
    out = (out or default_out()).expanduser()
    if not out.is_dir():
        raise RequestError(f"--out is '{out}'", "There is no such folder", "Give the output folder of earlier runs")
    if rebuild_index:
        from lightbox.runs.index import rebuild

        count = rebuild(out)
        Console(stderr=True).print(f"{count} runs are in the MLflow index.")
    chosen = choose_runs(out, list(runs or []), papers=paper or (), preset=preset)
    if rebuild_index and len(chosen) < 2 and not as_json:  # there is nothing to compare, and the index was asked for
        return
    summary = summarise(out, chosen, metric=metric, against=against)
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
    else:
        show(summary, Console())


def choose_runs(out: Path, names: list[str], *, papers: Sequence[str] = (), preset: str = "") -> list[Any]:
    """Finished runs under `out`, or only those named, in the order named.

    Args:
        out: output folder.
        names: job keys, beginnings of them that fit one run, or paths of run folders; empty takes all.
        papers: keep the runs of these; empty keeps all. `preset` likewise, "" keeps all.

    Raises:
        RequestError: for a name that fits no run or several, or a paper without a finished run.
    """
    from lightbox.runs import folders

    finished = folders.newest_runs(out)
    chosen = [_one_run(name, finished, out) for name in names] if names else finished
    there = sorted({run.paper for run in chosen})
    if absent := [name for name in papers if name not in there]:
        given = f"--paper is '{absent[0]}'"
        why = f"No {'run that is named' if names else f'finished run under {out}'} is of it; there are runs of"
        raise RequestError(given, f"{why} {', '.join(there) or 'no paper'}", "Name one of those, or run that one first")
    fitting = {
        run.folder.resolve(): run for run in chosen if run.paper in (papers or there) and preset in ("", run.preset)
    }
    return list(fitting.values())


def summarise(out: Path, runs: list[Any], *, metric: str = "", against: str = "") -> dict[str, Any]:
    """Compare runs, write `compare.csv` and `compare.png` into `out`, and return what they show, JSON-able.

    Returns:
        "papers": of each paper its metric, reference arm, groups, differences, runs, and the parameters that differ;
        "notes": what is not compared and why, a sentence each; "files": what was written.

    Raises:
        RequestError: for fewer than two runs, or where no paper has the metric or arm asked for.
    """
    from lightbox.report import comparison, figures
    from lightbox.runs import index_place

    entries, notes = comparison.load_entries(runs), []
    unscored = len(runs) - len(entries)
    notes += [f"{unscored} finished run{'s have' if unscored > 1 else ' has'} no scores."] if unscored else []
    by_paper = comparison.by_paper(entries)
    metrics, refused = comparison.choose_metrics(by_paper, metric)
    notes += [_of(name, why) for name, why in refused.items()]
    parts, run_ids = {}, index_place.known_run_ids(out)
    for name, own in by_paper.items():
        if name in metrics:
            parts[name], said = _part(own, metrics[name], against, run_ids)
            notes += [_of(name, sentence) for sentence in said]
    _check_arm(against, parts)
    notes += [APART] if len(parts) > 1 else []
    rows = [row for own in by_paper.values() for row in comparison.csv_rows(own, run_ids)]
    _write_csv(out / "compare.csv", rows)
    replace_bytes(out / "compare.png", figures.comparison([_panel(name, part) for name, part in parts.items()]))
    return {"papers": parts, "notes": notes, "files": [str(out / "compare.csv"), str(out / "compare.png")]}


def _part(
    entries: Sequence[Any], metric: str, against: str, run_ids: dict[str, str]
) -> tuple[dict[str, Any], list[str]]:
    """What is shown of one paper, and what of it is not compared, in sentences."""
    from lightbox.report import comparison

    every = comparison.group_entries(entries)
    groups = [group for group in every if comparison.mean_by_seed(group, metric)]
    without = [group.label for group in every if group not in groups]
    fitting = [group for group in groups if against in ("", group.arm, group.label)]
    reference = (fitting or groups)[0]
    paired = comparison.differences(groups, metric, reference)
    apart = {group.label for group in groups} - {reference.label, *(difference.label for difference in paired)}
    notes = [f"{', '.join(without)}: no {metric}, so it is left out."] if without else []
    if len(groups) == 1:
        notes.append(f"{reference.label} is its only group of runs, so there is nothing to compare it with.")
    if apart:
        named = ", ".join(group.label for group in groups if group.label in apart)
        notes.append(f"{named}: no item and seed in common with {reference.label}, so no difference.")
    if against and not fitting:
        notes.append(f"it has no arm '{against}', so its arms are compared with {reference.label}.")
    part = {
        "metric": metric,
        "reference": reference.label,
        "has_arm": bool(fitting),
        "runs": comparison.csv_rows(entries, run_ids),
        "differing": {key: comparison.value_owners(every, key) for key in comparison.differing_params(entries)},
        "groups": [
            {"label": g.label, "arm": g.arm, "mean_by_seed": comparison.mean_by_seed(g, metric)} for g in groups
        ],
        "differences": [vars(difference) for difference in paired],
    }
    return part, notes


def _check_arm(against: str, parts: dict[str, dict[str, Any]]) -> None:
    """Raise `RequestError` where no paper has the arm; takes the answer out of the parts."""
    has_arm = [part.pop("has_arm") for part in parts.values()]
    if not any(has_arm):
        labels = "; ".join(_of(name, ", ".join(g["label"] for g in part["groups"])) for name, part in parts.items())
        raise RequestError(f"--against is '{against}'", f"The arms compared are {labels}", "Choose one of them")


def _panel(name: str, part: dict[str, Any]) -> Any:
    from lightbox.report import figures

    return figures.ComparisonPanel(
        title=name,
        metric=part["metric"],
        reference=part["reference"],
        groups=tuple(figures.Level(g["label"], tuple(g["mean_by_seed"].values())) for g in part["groups"]),
        rows=tuple(
            figures.ForestRow(d["label"], "primary", d["effect"], d["ci95"], tuple(d["per_seed"].values()))
            for d in part["differences"]
        ),
    )


def show(summary: dict[str, Any], console: Console) -> None:
    """Print paper by paper the pooled groups and the parameters that differ, then runs, notes, and files written."""
    parts = summary["papers"]
    for name, part in parts.items():
        console.print(_groups_table(name if len(parts) > 1 else "", part))
        differing = list(part["differing"].items())
        for key, owners in differing[:MOST_PARAMS]:
            values = "; ".join(f"{value[:60]} ({', '.join(labels)})" for value, labels in owners.items())
            console.print(f"{key}: {values}", markup=False, highlight=False)
        if len(differing) > MOST_PARAMS:
            console.print(f"{len(differing) - MOST_PARAMS} more parameters differ; compare.csv has them.")
    most = max(FEWEST_ROWS, MOST_ROWS // len(parts))
    for name, part in parts.items():
        console.print(_runs_table(name if len(parts) > 1 else "", part, most))
        if len(part["runs"]) > most:
            console.print(f"{len(part['runs']) - most} more runs are in compare.csv.")
    for note in summary["notes"]:
        console.print(f"Note: {note}", markup=False, highlight=False)
    console.print(f"Written: {', '.join(summary['files'])}", soft_wrap=True)


def _groups_table(name: str, part: dict[str, Any]) -> Table:
    title = _of(name, f"{part['metric']}, seeds pooled; difference from {part['reference']}, paired by item")
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD)
    for name in ("arm", "seeds", "mean", "difference", "95 % interval", "items"):
        table.add_column(name, justify="left" if name == "arm" else "right", overflow="fold", no_wrap=name != "arm")
    paired = {difference["label"]: difference for difference in part["differences"]}
    for group in part["groups"]:
        values = list(group["mean_by_seed"].values())
        cells = [group["label"], str(len(values)), f"{sum(values) / len(values):.4f}"]
        difference = paired.get(group["label"])
        if difference is None:
            cells += ["reference" if group["label"] == part["reference"] else "no shared items", "", ""]
        else:
            ends = difference["ci95"]
            interval = "needs 2 seeds" if ends is None else f"{ends[0]:+.4f} to {ends[1]:+.4f}"
            cells += [f"{difference['effect']:+.4f}", interval, str(difference["items"])]
        table.add_row(*map(escape, cells))
    return table


def _runs_table(name: str, part: dict[str, Any], most: int) -> Table:
    """One row a run; the preset is a column only where it differs."""
    metric, rows = part["metric"], part["runs"]
    varying = ["preset"] if len({row["preset"] for row in rows}) > 1 else []
    table = Table(title=escape(_of(name, "runs")), title_justify="left", box=SIMPLE_HEAD)
    for name in ("run", *varying, "arm", "seed", metric, "minutes", "MLflow run"):
        table.add_column(name, justify="right" if name in ("seed", metric, "minutes") else "left", overflow="fold")
    for row in rows[:most]:
        minutes = "" if row["wall_s"] is None else f"{row['wall_s'] / 60:.1f}"
        score = "" if row[metric] is None else f"{row[metric]:.4f}"
        cells = [row["run"][:12], *(row[name] for name in varying), row["arm"]]
        cells += ["" if row["seed"] is None else str(row["seed"]), score, minutes, row["mlflow_run_id"][:8]]
        table.add_row(*map(escape, cells))
    return table


def _of(name: str, text: str) -> str:
    """A text with the paper that it is about; the name is "" where there is one paper."""
    return f"{name}: {text}" if name else text


def _one_run(name: str, finished: list[Any], out: Path) -> Any:
    """The run that a name means: a folder, a whole folder name or key, or the beginning of exactly one."""
    path = Path(name)
    exact = [run for run in finished if name in (run.key, run.folder.name) or path.resolve() == run.folder.resolve()]
    fitting = exact or [run for run in finished if run.folder.name.startswith(name)]
    if len(fitting) == 1:
        return fitting[0]
    some = ", ".join(run.folder.name[:12] for run in (fitting or finished)[:6]) or "none"
    raise RequestError(
        f"The run '{name}'",
        f"{'No finished run' if not fitting else f'{len(fitting)} runs'} under {out} match it; for example {some}",
        "Give more of the key, or the path of one run's folder",
    )


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """One table of every paper's runs; a cell is empty where a paper has no such metric or parameter."""
    from lightbox.report.comparison import ORIGIN

    names = dict.fromkeys(name for row in rows for name in row if name not in ORIGIN)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=[*names, *ORIGIN])
    writer.writeheader()
    writer.writerows(rows)
    replace_text(path, buffer.getvalue())  # as a whole: what stands there may be a pipe that nobody reads
