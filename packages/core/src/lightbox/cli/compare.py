"""`lightbox compare`: recorded runs side by side, from their folders, as a table, a plot and CSV."""

import csv
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lightbox.errors import RequestError
from lightbox.paths import default_out

MOST_ROWS, MOST_PARAMS = 40, 12


def compare(
    runs: Annotated[list[str] | None, typer.Argument(help="Runs: job keys, their beginnings, or folders.")] = None,
    paper: Annotated[str, typer.Option(help="Only runs of this paper.")] = "",
    preset: Annotated[str, typer.Option(help="Only runs of this preset.")] = "",
    metric: Annotated[str, typer.Option(help="Metric, for example dice or blank/dice; left out, the headline.")] = "",
    against: Annotated[str, typer.Option(help="Arm that the others are compared with; left out, the first.")] = "",
    out: Annotated[Path | None, typer.Option(help="Output folder that holds the runs.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    rebuild_index: Annotated[bool, typer.Option("--rebuild-index", help="First index every run in MLflow.")] = False,
) -> None:
    """Put recorded runs side by side; seeds are pooled and arms compared item by item. Writes compare.png and .csv."""
    out = (out or default_out()).expanduser()
    if not out.is_dir():
        raise RequestError(f"--out is '{out}'", "There is no such folder", "Give the output folder of earlier runs")
    if rebuild_index:
        from lightbox.runs.index import rebuild

        count = rebuild(out)
        Console(stderr=True).print(f"{count} runs are in the MLflow index.")
    chosen = choose_runs(out, list(runs or []), paper=paper, preset=preset)
    if rebuild_index and len(chosen) < 2 and not as_json:  # there is nothing to compare, and the index was asked for
        return
    summary = summarise(out, chosen, metric=metric, against=against)
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
    else:
        show(summary, Console())


def choose_runs(out: Path, names: list[str], *, paper: str = "", preset: str = "") -> list[Any]:
    """Finished runs under `out`, or only those named, in the order named.

    Args:
        out: output folder.
        names: job keys, beginnings of them that fit one run, or paths of run folders; empty takes all.
        paper: keep this paper's runs; "" keeps all. `preset` likewise.

    Raises:
        RequestError: for a name that fits no run or several.
    """
    from lightbox.runs import folders

    finished = folders.newest_runs(out)
    chosen = [_one_run(name, finished, out) for name in names] if names else finished
    fitting = {run.folder.resolve(): run for run in chosen if paper in ("", run.paper) and preset in ("", run.preset)}
    return list(fitting.values())


def summarise(out: Path, runs: list[Any], *, metric: str = "", against: str = "") -> dict[str, Any]:
    """Compare runs, write `compare.csv` and `compare.png` into `out`, and return what they show, JSON-able.

    Raises:
        RequestError: for fewer than two runs, or an unknown metric or arm.
    """
    from lightbox.report import comparison, figures
    from lightbox.runs import index_place

    entries = comparison.load_entries(runs)
    metric = comparison.choose_metric(entries, metric)
    groups = [g for g in comparison.group_entries(entries) if comparison.mean_by_seed(g, metric)]
    reference = _reference(groups, against)
    paired = comparison.differences(groups, metric, reference)
    rows = comparison.csv_rows(entries, index_place.known_run_ids(out))
    _write_csv(out / "compare.csv", rows)
    levels = [figures.Level(g.label, tuple(comparison.mean_by_seed(g, metric).values())) for g in groups]
    effects = [figures.ForestRow(d.label, "primary", d.effect, d.ci95, tuple(d.per_seed.values())) for d in paired]
    picture = figures.comparison(levels, effects, metric=metric, reference=reference.label)
    (out / "compare.png").write_bytes(picture)
    return {
        "metric": metric,
        "reference": reference.label,
        "runs": rows,
        "differing": {key: comparison.value_owners(groups, key) for key in comparison.differing_params(entries)},
        "groups": [
            {"label": g.label, "arm": g.arm, "mean_by_seed": comparison.mean_by_seed(g, metric)} for g in groups
        ],
        "differences": [vars(difference) for difference in paired],
        "files": [str(out / "compare.csv"), str(out / "compare.png")],
    }


def show(summary: dict[str, Any], console: Console) -> None:
    """Print the pooled groups, the parameters that differ, the runs, and the files written."""
    console.print(_groups_table(summary))
    differing = list(summary["differing"].items())
    for key, owners in differing[:MOST_PARAMS]:
        values = "; ".join(f"{value[:60]} ({', '.join(labels)})" for value, labels in owners.items())
        console.print(f"{key}: {values}", markup=False, highlight=False)
    if len(differing) > MOST_PARAMS:
        console.print(f"{len(differing) - MOST_PARAMS} more parameters differ; compare.csv has them.")
    console.print(_runs_table(summary))
    if len(summary["runs"]) > MOST_ROWS:
        console.print(f"{len(summary['runs']) - MOST_ROWS} more runs are in compare.csv.")
    console.print(f"Written: {', '.join(summary['files'])}", soft_wrap=True)


def _groups_table(summary: dict[str, Any]) -> Table:
    title = f"{summary['metric']}, seeds pooled; difference from {summary['reference']}, paired by item"
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD)
    for name in ("arm", "seeds", "mean", "difference", "95 % interval", "items"):
        table.add_column(name, justify="left" if name == "arm" else "right", overflow="fold", no_wrap=name != "arm")
    paired = {difference["label"]: difference for difference in summary["differences"]}
    for group in summary["groups"]:
        values = list(group["mean_by_seed"].values())
        cells = [group["label"], str(len(values)), f"{sum(values) / len(values):.4f}"]
        difference = paired.get(group["label"])
        if difference is None:
            cells += ["reference" if group["label"] == summary["reference"] else "no shared items", "", ""]
        else:
            ends = difference["ci95"]
            interval = "needs 2 seeds" if ends is None else f"{ends[0]:+.4f} to {ends[1]:+.4f}"
            cells += [f"{difference['effect']:+.4f}", interval, str(difference["items"])]
        table.add_row(*map(escape, cells))
    return table


def _runs_table(summary: dict[str, Any]) -> Table:
    """One row a run; paper and preset are columns only where they differ."""
    metric, rows = summary["metric"], summary["runs"]
    varying = [name for name in ("paper", "preset") if len({row[name] for row in rows}) > 1]
    table = Table(title="Runs", title_justify="left", box=SIMPLE_HEAD)
    for name in ("run", *varying, "arm", "seed", metric, "minutes", "MLflow run"):
        table.add_column(name, justify="right" if name in ("seed", metric, "minutes") else "left", overflow="fold")
    for row in rows[:MOST_ROWS]:
        minutes = "" if row["wall_s"] is None else f"{row['wall_s'] / 60:.1f}"
        score = "" if row[metric] is None else f"{row[metric]:.4f}"
        cells = [row["run"][:12], *(row[name] for name in varying), row["arm"]]
        cells += ["" if row["seed"] is None else str(row["seed"]), score, minutes, row["mlflow_run_id"][:8]]
        table.add_row(*map(escape, cells))
    return table


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


def _reference(groups: list[Any], against: str) -> Any:
    fitting = [group for group in groups if against in ("", group.arm, group.label)]
    if not fitting:
        labels = ", ".join(group.label for group in groups)
        raise RequestError(f"--against is '{against}'", f"The arms compared are {labels}", "Choose one of them")
    return fitting[0]


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
