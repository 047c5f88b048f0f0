"""Tune learning rates: one grid for every trained arm, on development seeds and validation items; freeze the choice.

Every arm gets the same trials: each rate of `RATES` on each of `SEEDS`, at the `quick` size. The mean validation score
over the seeds decides; a tie goes to the lower rate. The table is `results/<paper>/tuning.csv`, the choice
`<package>/conf/tuned/quick.yaml`. An arm that repeats another one (`Arm.rate_of`: at another dose, on the other form of
question) takes that rate: a slope over doses must not mix rates, and rivals on another form had the same trials. Run
as `python -m lightbox.claims.tuning PAPER`.
"""

import argparse
import csv
import importlib.util
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from lightbox.claims.jobs import Job, Plan, make_template, with_seed
from lightbox.claims.registry import Paper, arms_in_order, load_papers
from lightbox.claims.runner import find_finished, run
from lightbox.claims.spec import Arm, PaperClaims
from lightbox.errors import WorkError
from lightbox.paths import default_out, results_dir
from lightbox.runs.folders import SCORES, open_output

RATES = (1e-3, 2e-3, 4e-3)
SEEDS = (900, 901)
PRESET = "quick"
FIELDS = ("arm", "lr", "seed", "score", "metric", "items", "key")

_log = logging.getLogger("lightbox.claims")


def tuned_arms(paper: Paper) -> list[Arm]:
    """Arms that are trained and choose their own rate, in the order of their needs."""
    arms = (paper.claims.arms[name] for name in arms_in_order(paper.claims, paper.claims.arms))
    return [arm for arm in arms if arm.is_trained and not arm.rate_of]


def plan_trials(paper: Paper) -> tuple[Plan, dict[tuple[str, float, int], str]]:
    """The jobs of the grid, and the key of each (arm, rate, seed).

    An arm that reads other arms' folders gets them trained at the middle rate of the grid.
    """
    jobs: dict[str, Job] = {}
    keys: dict[tuple[str, float, int], str] = {}
    middle = sorted(RATES)[len(RATES) // 2]
    tuned = {arm.name for arm in tuned_arms(paper)}
    for name in arms_in_order(paper.claims, tuned):
        arm = paper.claims.arms[name]
        for rate in RATES if name in tuned else (middle,):
            template = make_template(paper, _trial(arm, rate), PRESET)
            for seed in SEEDS:
                needs = {need: keys[need, middle, seed] for need in arm.needs}
                job = with_seed(template, seed, needs)
                jobs.setdefault(job.key, job)
                keys[name, rate, seed] = job.key
    return Plan(PRESET, (), jobs, {(paper.name, name, seed): key for (name, _, seed), key in keys.items()}), keys


def tune(paper: Paper, out: Path, *, workers: int = 2) -> dict[str, float]:
    """Run the grid, write the table and the choice.

    Args:
        paper: which paper.
        out: output folder; finished trials in it are not run again.
        workers: processes.

    Returns:
        The chosen rate of every trained arm.

    Raises:
        WorkError: a trial failed.
    """
    plan, keys = plan_trials(paper)
    with open_output(out):
        finished = run(plan, out, find_finished(plan, out), workers=workers, keys=set(plan.jobs))
    if finished.errors:
        raise next(iter(finished.errors.values()))
    tuned = {arm.name for arm in tuned_arms(paper)}
    rows = [
        {"arm": name, "lr": rate, "seed": seed, "key": key, **trial_score(finished.folders[key], paper.claims)}
        for (name, rate, seed), key in keys.items()
        if name in tuned
    ]
    chosen = choose(rows)
    _write_table(rows, results_dir() / paper.name / "tuning.csv")
    rates = {
        name: chosen[arm.rate_of or name] for name, arm in paper.claims.arms.items() if (arm.rate_of or name) in chosen
    }
    _write_choice(rates, _package_folder(paper) / "conf" / "tuned" / f"{PRESET}.yaml", paper.name)
    return rates


def choose(rows: list[dict]) -> dict[str, float]:
    """The rate with the highest mean score over seeds, per arm; a tie goes to the lower rate.

    Example:
        >>> rows = [{"arm": "a", "lr": 1e-3, "score": 0.5}, {"arm": "a", "lr": 2e-3, "score": 0.7}]
        >>> choose(rows)
        {'a': 0.002}
    """
    scores: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        scores.setdefault(row["arm"], {}).setdefault(row["lr"], []).append(row["score"])
    means = {arm: {lr: sum(v) / len(v) for lr, v in by_rate.items()} for arm, by_rate in scores.items()}
    return {arm: min(by_rate, key=lambda lr: (-by_rate[lr], lr)) for arm, by_rate in means.items()}


def trial_score(folder: Path, claims: PaperClaims) -> dict:
    """Mean of the first tuning metric that the arm has, under the paper's condition where it is scored under that.

    Raises:
        WorkError: where it has none of them.
    """
    scores = pq.read_table(folder / SCORES)
    if claims.condition in scores["condition"].unique().to_pylist():
        scores = scores.filter(pc.equal(scores["condition"], claims.condition))
    metrics = claims.tuning or (claims.headline,)
    for metric in metrics:
        if metric in scores.column_names and scores[metric].null_count < len(scores):
            return {"score": round(pc.mean(scores[metric]).as_py(), 6), "metric": metric, "items": len(scores)}
    why = f"A learning rate is chosen by one of {', '.join(metrics)}"
    raise WorkError(f"The scores of {folder} lack a tuning metric", why, "Correct the paper's claims.py or evaluate.py")


def _trial(arm: Arm, rate: float) -> Arm:
    return replace(arm, overrides=(*arm.overrides, f"optim.lr={rate}", "data.eval_split=validation"))


def _write_table(rows: list[dict], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)


def _write_choice(rates: Mapping[str, float], path: Path, paper: str) -> None:
    head = (
        f"# Learning rate per arm: {len(RATES)} rates on {len(SEEDS)} development seeds at `{PRESET}` size.\n"
        f"# Written by `python -m lightbox.claims.tuning {paper}`; the trials stand in results/{paper}/tuning.csv.\n"
    )
    path.write_text(head + "".join(f"{arm}: {rate}\n" for arm, rate in rates.items()))


def _package_folder(paper: Paper) -> Path:
    spec = importlib.util.find_spec(paper.package)
    assert spec is not None
    assert spec.origin is not None, "a paper is a package with an __init__ file"
    return Path(spec.origin).parent


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paper")
    parser.add_argument("--out", type=Path, default=default_out())
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    tune(load_papers([options.paper])[0], options.out, workers=options.workers)
