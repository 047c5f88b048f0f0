"""Tune learning rates: one grid for every trained arm, on development seeds and validation items; freeze the choice.

Every arm gets the same trials: each rate of the grid on each of `SEEDS`, at the `quick` size and the budget asked for.
The mean validation score over the seeds decides, groups weighing alike where the paper's claims weigh them so; a tie
goes to the lower rate. Where the best rate of any arm lies at an edge, every arm is tried at one rate more beyond that
edge, until none does or the grid was widened `MOST_WIDENED` times. The table is `results/<paper>/tuning.csv`, the
choice `<package>/conf/tuned/quick.yaml`. An arm that repeats another one (`Arm.rate_of`: at another dose, on the other
form of question) takes that rate: a slope over doses must not mix rates, and rivals on another form had the same
trials. Finished trials are not run again. Run as `python -m lightbox.claims.tuning PAPER --claims T1 --budget 2000`.
"""

import argparse
import csv
import importlib.util
import io
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from lightbox.claims.jobs import Job, Plan, make_template, preset_budget, with_seed
from lightbox.claims.registry import Paper, arms_in_order, choose_claims, load_papers
from lightbox.claims.results import scores_of
from lightbox.claims.runner import find_finished, run
from lightbox.claims.spec import Arm, Measure
from lightbox.claims.statistics import Scores
from lightbox.errors import RequestError, WorkError, guard
from lightbox.files import replace_text
from lightbox.paths import default_out, results_dir
from lightbox.runs.folders import SCORES, open_output, read_record

RATES = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)
MIDDLE = 1e-3  # the rate of an arm that another one reads, whatever the grid is widened to
SEEDS = (900, 901, 902)
MOST_WIDENED = 3
PRESET = "quick"
FILE = "tuning.csv"
FIELDS = ("arm", "lr", "seed", "budget", "score", "metric", "items", "key", "commit", "source")

_log = logging.getLogger("lightbox.claims")


def tuned_arms(paper: Paper, arms: Sequence[str] = ()) -> list[Arm]:
    """Arms that are trained and choose their own rate, in the order of their needs.

    `arms` narrows them to those named and those whose rate they take; () is all.
    """
    wanted = [paper.claims.arms[name] for name in arms or paper.claims.arms]
    own = dict.fromkeys(arm.rate_of or arm.name for arm in wanted if arm.is_trained)
    return [paper.claims.arms[name] for name in arms_in_order(paper.claims, own) if name in own]


def plan_trials(
    paper: Paper, arms: Sequence[Arm], rates: Sequence[float], *, seeds: Sequence[int] = SEEDS, budget: int = 0
) -> tuple[Plan, dict[tuple[str, float, int], str]]:
    """The jobs of the grid, and the key of each (arm, rate, seed); `budget` 0 is the preset's.

    An arm that reads other arms' folders gets them trained at `MIDDLE`.
    """
    jobs: dict[str, Job] = {}
    keys: dict[tuple[str, float, int], str] = {}
    tuned = {arm.name for arm in arms}
    for name in arms_in_order(paper.claims, tuned):
        arm = paper.claims.arms[name]
        for rate in dict.fromkeys((*(rates if name in tuned else ()), MIDDLE)):
            template = make_template(paper, _trial(paper, arm, rate, budget), PRESET)
            for seed in seeds:
                needs = {need: keys[need, MIDDLE, seed] for need in arm.needs}
                job = with_seed(template, seed, needs)
                jobs.setdefault(job.key, job)
                keys[name, rate, seed] = job.key
    return Plan(PRESET, (), jobs, {(paper.name, name, seed): key for (name, _, seed), key in keys.items()}), keys


def tune(
    paper: Paper,
    out: Path,
    *,
    arms: Sequence[str] = (),
    budget: int = 0,
    rates: Sequence[float] = RATES,
    seeds: Sequence[int] = SEEDS,
    workers: int = 2,
    root: Path | None = None,
    choice: Path | None = None,
) -> dict[str, float]:
    """Run the grid, widen it where an edge wins, write the table and the choice.

    Args:
        paper: which paper.
        out: output folder; finished trials in it are not run again.
        arms: which arms; () is all.
        budget: training budget, in the paper's axis; 0 is that of `quick`.
        rates: the grid to begin with, ascending.
        seeds: development seeds.
        workers: processes.
        root: folder of results; None is the checkout's.
        choice: file of the chosen rates; None is the paper's.

    Returns:
        The chosen rate of every arm that was tuned or takes a tuned arm's.

    Raises:
        RequestError: where the grid lacks `MIDDLE`, or arms that stay in the table had another budget or grid, be it
            because an edge wins here; finished trials are kept, so that all arms can be tuned on the wider grid.
        WorkError: a trial failed.
    """
    if MIDDLE not in rates:
        why = f"Arms that others read are trained at {MIDDLE:g}, and every arm shall have the same trials"
        raise RequestError(f"The grid of rates is {', '.join(f'{rate:g}' for rate in rates)}", why, "Add that rate")
    own, grid, table = tuned_arms(paper, arms), sorted(rates), (root or results_dir()) / paper.name / FILE
    budgets = {budget or preset_budget(paper, PRESET)}
    _check_others(table, {arm.name for arm in own}, budgets, set(grid))  # before hours of work and not after them
    rows: list[dict] = []
    for _ in range(MOST_WIDENED + 1):
        rows = _trials(paper, own, grid, out, seeds=seeds, budget=budget, workers=workers)
        wider = widened(rows, grid)
        _log.info("chosen from %s: %s", ", ".join(f"{rate:g}" for rate in grid), choose(rows))
        if wider == grid:
            break
        _check_others(table, {arm.name for arm in own}, budgets, set(wider))
        grid = wider
    chosen = choose(rows)
    tried = _merge_table(rows, table)
    taken = {name: chosen.get(arm.rate_of or name) for name, arm in paper.claims.arms.items() if arm.is_trained}
    taken = {name: rate for name, rate in taken.items() if rate is not None}
    _merge_choice(taken, choice or _package_folder(paper) / "conf" / "tuned" / f"{PRESET}.yaml", paper, tried)
    return taken


def _trials(
    paper: Paper,
    arms: Sequence[Arm],
    rates: Sequence[float],
    out: Path,
    *,
    seeds: Sequence[int],
    budget: int,
    workers: int,
) -> list[dict]:
    plan, keys = plan_trials(paper, arms, rates, seeds=seeds, budget=budget)

    def report(job: Job, folder: Path) -> None:
        _log.info("seed %d, %s at %s: %s", job.seed, job.arm, job.config["optim"]["lr"], folder)

    with open_output(out):
        done = find_finished(plan, out)
        _log.info("%d trials, %d of them finished", len(plan.jobs), len(done.folders))
        finished = run(plan, out, done, workers=workers, keys=set(plan.jobs), on_job_done=report)
    if finished.errors:
        raise next(iter(finished.errors.values()))
    tuned = {arm.name for arm in arms}
    rows = []
    for (name, rate, seed), key in keys.items():
        if name not in tuned or rate not in rates:
            continue
        folder, job = finished.folders[key], plan.jobs[key]
        scores = scores_of(paper, {(name, seed): folder / SCORES})
        row = {"arm": name, "lr": rate, "seed": seed, "budget": job.budget, **trial_score(paper, scores, name, seed)}
        commit = (read_record(folder) or {}).get("commit") or ""
        rows.append(row | {"key": key, "commit": commit, "source": job.source})
    return rows


def choose(rows: Sequence[dict]) -> dict[str, float]:
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


def widened(rows: Sequence[dict], rates: Sequence[float]) -> list[float]:
    """The grid with one rate more, half or twice the last, beyond each edge at which an arm's best rate lies.

    Example:
        >>> rows = [{"arm": "a", "lr": 1e-3, "score": 0.5}, {"arm": "a", "lr": 2e-3, "score": 0.7}]
        >>> widened(rows, [1e-3, 2e-3])
        [0.001, 0.002, 0.004]
    """
    best = set(choose(rows).values())
    beyond = {rates[0]: rates[0] / 2, rates[-1]: rates[-1] * 2}
    return sorted({*rates, *(rate for edge, rate in beyond.items() if edge in best)})


def trial_score(paper: Paper, scores: Scores, arm: str, seed: int) -> dict:
    """Mean of the first tuning metric that the arm has, under the condition that the arm or else the paper declares.

    Raises:
        WorkError: where it has none of them, or was not scored under that condition.
    """
    table = scores.tables[arm, seed]
    condition = paper.claims.arms[arm].tuned_under or paper.claims.condition
    conditions = table["condition"].unique().to_pylist()
    if condition not in conditions:
        why = f"Its rate would be chosen under '{condition}', and it was scored under {', '.join(conditions)}"
        do = "Declare Arm.tuned_under in claims.py"
        raise WorkError(f"The scores of arm '{arm}', seed {seed}", why, do)
    metrics = paper.claims.tuning or (paper.claims.headline,)
    for metric in metrics:
        if metric not in table.column_names:
            continue
        _, values = scores.values(Measure(arm, metric, condition), seed=seed)
        if values.size:
            return {"score": round(float(values.mean()), 6), "metric": metric, "items": values.size}
    why = f"A learning rate is chosen by one of {', '.join(metrics)}"
    raise WorkError(
        f"The scores of arm '{arm}', seed {seed}, lack a tuning metric",
        why,
        "Correct the paper's claims.py or evaluate.py",
    )


def _trial(paper: Paper, arm: Arm, rate: float, budget: int) -> Arm:
    more = (f"{paper.claims.budget}={budget}",) if budget else ()
    return replace(arm, overrides=(*arm.overrides, f"optim.lr={rate}", "data.eval_split=validation", *more))


def _merge_table(rows: Sequence[dict], path: Path) -> set[str]:
    """Write the trials; those of arms that were not tried this time stay, if they are of the same budget and grid.

    Trials of before a budget was recorded go: they were of another source, and stay in git. Gives the table's arms.

    Raises:
        RequestError: see `_check_others`.
    """
    arms, budgets = {row["arm"] for row in rows}, {row["budget"] for row in rows}
    others = _check_others(path, arms, budgets, {row["lr"] for row in rows})
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows([*others, *rows])
    replace_text(path, buffer.getvalue())
    return {row["arm"] for row in (*others, *rows)}


def _check_others(path: Path, arms: set[str], budgets: set[int], rates: set[float]) -> list[dict]:
    """Trials in the table of other arms than these.

    Raises:
        RequestError: where they were tried at another budget or on another grid.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    others = [row for row in csv.DictReader(io.StringIO(text)) if row.get("budget") and row["arm"] not in arms]
    for arm in sorted({row["arm"] for row in others}):
        own = [row for row in others if row["arm"] == arm]
        own_budgets, own_rates = {int(row["budget"]) for row in own}, {float(row["lr"]) for row in own}
        if (own_budgets, own_rates) != (budgets, rates):
            raise RequestError(
                f"The trials of {', '.join(sorted(arms))} are at {_size(budgets, rates)}",
                f"{path} holds trials of '{arm}' at {_size(own_budgets, own_rates)}, and rivals share both",
                "Tune with those --budget and --rates, or tune all arms again",
            )
    return others


def _size(budgets: set[int], rates: set[float]) -> str:
    at = ", ".join(map(str, sorted(budgets)))
    return f"budget {at} and rates {', '.join(f'{rate:g}' for rate in sorted(rates))}"


def _merge_choice(rates: dict[str, float], path: Path, paper: Paper, tried: set[str]) -> None:
    """Write the rate of every trained arm: chosen now, what stood there, or the middle of the grid where nothing did.

    Arms that are not among those `tried`, and take no such arm's rate, are marked as not tuned.
    """
    earlier = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    lines = [
        f"# Learning rate per arm, chosen on development seeds at `{PRESET}` size, every arm from the same grid.",
        f"# Written by `python -m lightbox.claims.tuning {paper.name}`; trials: results/{paper.name}/{FILE}.",
    ]
    for name, arm in paper.claims.arms.items():
        if arm.is_trained:
            rate = rates.get(name, earlier.get(arm.rate_of or name, earlier.get(name)))
            mark = "" if (arm.rate_of or name) in tried else "  # not tuned on this grid"
            lines.append(f"{name}: {MIDDLE if rate is None else rate}{mark}")
    replace_text(path, "\n".join(lines) + "\n")


def _package_folder(paper: Paper) -> Path:
    spec = importlib.util.find_spec(paper.package)
    assert spec is not None
    assert spec.origin is not None, "a paper is a package with an __init__ file"
    return Path(spec.origin).parent


def command_line() -> argparse.ArgumentParser:
    """What `python -m lightbox.claims.tuning` takes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paper")
    parser.add_argument("--claims", nargs="*", default=[], help="ids, whose arms are tuned; none means all")
    parser.add_argument("--budget", type=int, default=0, help="training budget; left out: that of the preset quick")
    parser.add_argument("--rates", nargs="*", type=float, default=RATES)
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS)
    parser.add_argument("--out", type=Path, default=default_out())
    parser.add_argument("--workers", type=int, default=2)
    return parser


def _from_words(words: Sequence[str]) -> None:
    options = command_line().parse_args(words)
    paper = load_papers([options.paper])[0]
    claims = [claim for _, claim in choose_claims([paper], options.claims)]
    named = tuple(dict.fromkeys(arm for claim in claims for arm in claim.arms)) if options.claims else ()
    sizes = {"budget": options.budget, "rates": options.rates, "seeds": options.seeds, "workers": options.workers}
    tune(paper, options.out, arms=named, **sizes)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    sys.exit(guard(lambda: _from_words(sys.argv[1:])))
