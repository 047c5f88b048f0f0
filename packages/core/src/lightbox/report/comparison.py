"""Runs side by side, from their folders: what differs, how they scored, and paired differences. No torch, no MLflow.

Runs that differ in their seed only are one *group*. Two groups are compared as a claim is: per seed, the mean
difference over the items both scored; over seeds, the t interval.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lightbox.claims import registry
from lightbox.errors import RequestError
from lightbox.eval.intervals import t_interval
from lightbox.runs import folders
from lightbox.runs.key import effective

SEED = "run.seed"
ORIGIN = ("wall_s", "commit", "mlflow_run_id")


@dataclass(frozen=True)
class Entry:
    """One run with its scores, `means` by "condition/metric", and its parameters, flat."""

    run: folders.Run
    scores: pa.Table
    means: dict[str, float]
    params: dict[str, str]


@dataclass(frozen=True)
class Group:
    """Runs of one paper, preset and arm with equal parameters, by seed; `label` is unique among the groups."""

    label: str
    arm: str
    by_seed: dict[int | None, Entry]


@dataclass(frozen=True)
class Difference:
    """Group minus reference: d_s by seed, the fewest items of a seed, and the t interval (None below 2 seeds)."""

    label: str
    per_seed: dict[int | None, float]
    items: int
    effect: float
    ci95: tuple[float, float] | None


def load_entries(runs: Sequence[folders.Run]) -> list[Entry]:
    """Read the scores of runs; one without scores is left out.

    Raises:
        RequestError: where fewer than two runs with scores remain.
        WorkError: for a damaged file.
    """
    entries = []
    for run in runs:
        scores = folders.read_scores(run.folder)
        if scores is not None:
            entries.append(Entry(run, scores, folders.mean_scores(scores), effective(run.config)))
    if len(entries) < 2:
        raise RequestError(
            f"{len(entries)} finished runs with scores match",
            "A comparison needs two or more",
            "Loosen --paper, --preset or the run names, or point --out at a folder with more runs",
        )
    return entries


def by_paper(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Entries of each paper, in order of name; only those of one paper are compared."""
    names = sorted({entry.run.paper for entry in entries})
    return {name: [entry for entry in entries if entry.run.paper == name] for name in names}


def choose_metrics(papers: Mapping[str, Sequence[Entry]], name: str) -> tuple[dict[str, str], dict[str, str]]:
    """Metric by paper, and for each paper that does not have the one asked for, why it is left out.

    Args:
        papers: entries by paper.
        name: of the metric; "" takes each paper's own.

    Raises:
        RequestError: for a metric that no paper has, listing those there are.
    """
    chosen, refused = {}, {}
    for paper, entries in papers.items():
        metric = choose_metric(entries, name)
        if metric is None:
            refused[paper] = (
                f"no run has the metric '{name}', so it is left out; there are {', '.join(_metrics(entries))}."
            )
        else:
            chosen[paper] = metric
    if chosen:
        return chosen, refused
    lists = [", ".join(_metrics(entries)) for entries in papers.values()]
    do = "Choose one of them; the condition may be left out where it is the paper's own"
    several = "; ".join(f"{paper}: {metrics}" for paper, metrics in zip(papers, lists, strict=True))
    why = f"The runs have {lists[0] if len(lists) == 1 else f'by paper {several}'}"
    raise RequestError(f"--metric is '{name}'", why, do)


def choose_metric(entries: Sequence[Entry], name: str) -> str | None:
    """Full name "condition/metric" of a metric of one paper's runs, None where no run has it.

    "" takes the paper's headline, or the first there is.
    """
    metrics = _metrics(entries)
    declared = registry.declarations(entry.run.paper for entry in entries).values()
    for metric in (name, *(f"{paper.condition}/{name or paper.headline}" for paper in declared)):
        if metric in metrics:
            return metric
    return None if name or not metrics else metrics[0]


def _metrics(entries: Sequence[Entry]) -> list[str]:
    return list(dict.fromkeys(metric for entry in entries for metric in entry.means))


def differing_params(entries: Sequence[Entry]) -> list[str]:
    """Keys of parameters that not all runs share, the seed and what cannot change a score left out, in order."""
    keys = dict.fromkeys(key for entry in entries for key in entry.params)
    return [key for key in keys if key != SEED and len({entry.params.get(key) for entry in entries}) > 1]


def group_entries(entries: Sequence[Entry]) -> list[Group]:
    """Pool runs that differ in nothing but the seed; of two runs of one seed the newer one counts."""
    differing = differing_params(entries)
    members: dict[tuple, dict[int | None, Entry]] = {}
    for entry in sorted(entries, key=lambda entry: (entry.run.folder / "job.json").stat().st_mtime):
        values = tuple(entry.params.get(key, "") for key in differing)
        members.setdefault((entry.run.paper, entry.run.preset, entry.run.arm, values), {})[entry.run.seed] = entry
    labels = _labels(list(members), differing)
    groups = [Group(label, name[2], by_seed) for label, (name, by_seed) in zip(labels, members.items(), strict=True)]
    return sorted(groups, key=lambda group: group.label)


def value_owners(groups: Sequence[Group], key: str) -> dict[str, list[str]]:
    """Labels of the groups that have each value of one parameter, by value."""
    owners: dict[str, list[str]] = {}
    for group in groups:
        first = next(iter(group.by_seed.values()))
        owners.setdefault(first.params.get(key, "not set"), []).append(group.label)
    return owners


def mean_by_seed(group: Group, metric: str) -> dict[int | None, float]:
    """Mean of one "condition/metric" by seed; seeds without it are left out."""
    return {seed: entry.means[metric] for seed, entry in _by_seed(group) if metric in entry.means}


def differences(groups: Sequence[Group], metric: str, reference: Group) -> list[Difference]:
    """Every other group minus the reference, paired by item within each seed; one that shares no item is left out."""
    differences = []
    for group in groups:
        per_seed, items = {}, []
        for seed, entry in _by_seed(group):
            if group is not reference and seed in reference.by_seed:
                paired = paired_difference(entry.scores, reference.by_seed[seed].scores, metric)
                if paired.size:
                    per_seed[seed] = float(paired.mean())
                    items.append(paired.size)
        if per_seed:
            values = list(per_seed.values())
            ends = tuple(float(end) for end in t_interval(values)) if len(values) > 1 else None
            differences.append(Difference(group.label, per_seed, min(items), float(np.mean(values)), ends))
    return differences


def paired_difference(scores: pa.Table, rival: pa.Table, metric: str) -> np.ndarray:
    """Score minus rival score for each item that both hold under the metric's condition; float64, in order of item."""
    condition, _, column = metric.partition("/")
    values, rivals = (_by_item(table, condition, column) for table in (scores, rival))
    shared = sorted(values.keys() & rivals.keys())
    return np.array([values[item] - rivals[item] for item in shared], dtype=np.float64)


def csv_rows(entries: Sequence[Entry], run_ids: dict[str, str]) -> list[dict[str, Any]]:
    """One flat row a run, by paper, preset, arm and seed: identity, means, the parameters that differ, origin."""
    metrics = dict.fromkeys(name for entry in entries for name in entry.means)
    rows = []
    for entry in sorted(entries, key=lambda e: (e.run.paper, e.run.preset, e.run.arm, str(e.run.seed))):
        run = entry.run
        row: dict[str, Any] = {"run": run.folder.name, "paper": run.paper, "preset": run.preset, "arm": run.arm}
        row |= {"seed": run.seed} | {name: entry.means.get(name) for name in metrics}
        row |= {key: entry.params.get(key, "") for key in differing_params(entries)}
        origin = (run.wall_s, run.commit, run_ids.get(run.folder.name, ""))
        rows.append(row | dict(zip(ORIGIN, origin, strict=True)))
    return rows


def _by_seed(group: Group) -> list[tuple[int | None, Entry]]:
    return sorted(group.by_seed.items(), key=lambda pair: (pair[0] is None, pair[0]))


def _by_item(scores: pa.Table, condition: str, column: str) -> dict[str, float]:
    if column not in scores.column_names:
        return {}
    rows = scores.filter(pc.and_(pc.equal(scores["condition"], condition), pc.is_valid(scores[column])))
    return dict(zip(rows["item"].to_pylist(), rows[column].to_pylist(), strict=True))


def _labels(names: Sequence[tuple], differing: Sequence[str]) -> list[str]:
    """A label a group: its arm, then what is needed to tell it from the others: paper, preset, parameters."""
    has_many = [len({name[part] for name in names}) > 1 for part in (0, 1)]
    labels = []
    for paper, preset, arm, values in names:
        twins = [name for name in names if name[:3] == (paper, preset, arm)]
        apart = [i for i in range(len(differing)) if len({name[3][i] for name in twins}) > 1]
        extra = [preset] if has_many[1] else []
        extra += [f"{differing[i]}={values[i]}" for i in apart]
        name = " ".join(part for part in (paper if has_many[0] else "", arm or "run") if part)
        labels.append(f"{name} ({', '.join(extra)})" if extra else name)
    return labels
