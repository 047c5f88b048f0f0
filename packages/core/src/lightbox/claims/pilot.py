"""Pilot: train arms over a ladder of budgets on development seeds, score validation items, keep every mean.

Each run has its own schedule, so each budget is a job of its own, with a key like any other. What an untrained arm
scores stands for every budget. The rows are `results/<paper>/budget.csv`; `claims.budget` reads them. A pilot that was
stopped goes on with the same command, and a longer ladder trains only what has no row yet. Run as
`python -m lightbox.claims.pilot PAPER --claims T1 T2`.
"""

import argparse
import logging
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from lightbox.claims.budget import (
    FEWEST,
    FILE,
    PilotRow,
    convergence,
    deciding,
    load_pilot,
    merge_rows,
    pilot_ladders,
    read_rows,
    written,
)
from lightbox.claims.jobs import Job, Plan, arm_jobs, plan_jobs
from lightbox.claims.registry import Paper, arms_in_order, choose_claims, load_papers
from lightbox.claims.results import scores_of
from lightbox.claims.runner import Finished, find_finished, run
from lightbox.claims.spec import BEST, Claim, Measure, base_arm
from lightbox.errors import RequestError, guard
from lightbox.paths import default_out, results_dir
from lightbox.runs.folders import SCORES, flatten, open_output, read_record

BUDGETS = (300, 600, 1200, 2400)
SEEDS = (900, 901, 902)
PRESET = "quick"
ITEMS = 2000
"""Scored a job: of 500, the items alone give half of the variance between seeds, and scoring costs next to nothing."""

_log = logging.getLogger("lightbox.claims")


def check_ladder(budgets: Sequence[int]) -> None:
    """Raise `RequestError` unless there are at least `FEWEST` budgets, each twice the last."""
    doubles = all(later == 2 * earlier for earlier, later in zip(budgets, budgets[1:], strict=False))
    if len(budgets) < FEWEST or budgets[0] < 1 or not doubles:
        raise RequestError(
            f"The ladder of budgets is {', '.join(map(str, budgets))}",
            f"A plateau is judged by doublings: a pilot has at least {FEWEST} budgets, each twice the last",
            f"Give a ladder such as --budgets {' '.join(map(str, BUDGETS))}",
        )


def deciding_arms(claim: Claim) -> list[str]:
    """Arms that links, controls, premises and the gate of a claim read."""
    return list(replace(claim, contrasts=tuple(deciding(claim))).arms)


def plan_pilot(
    paper: Paper,
    claims: Sequence[Claim],
    budgets: Sequence[int],
    seeds: Sequence[int],
    *,
    rate: float | None = None,
    items: int = ITEMS,
) -> Plan:
    """The jobs of the ladder, small budgets first within a seed; arguments as `pilot`."""
    arms = arms_in_order(paper.claims, [arm for claim in claims for arm in deciding_arms(claim)])
    overrides = [] if rate is None else [f"optim.lr={rate}"]
    overrides += ["data.eval_split=validation", f"data.n_test={items}"]
    jobs: list[Job] = []
    for budget in budgets:
        jobs += arm_jobs(paper, dict.fromkeys(arms, seeds), PRESET, budget=budget, overrides=tuple(overrides))
    return plan_jobs(jobs, PRESET)


def pilot(
    paper: Paper,
    claims: Sequence[Claim],
    out: Path,
    *,
    root: Path,
    budgets: Sequence[int] = BUDGETS,
    seeds: Sequence[int] = SEEDS,
    rate: float | None = None,
    items: int = ITEMS,
    workers: int = 2,
) -> Path:
    """Train the ladder and write its rows; what finished gets its rows, also where other jobs failed.

    Args:
        paper: whose claims they are.
        claims: which; those without a training budget are left out.
        out: output folder; finished jobs in it are not run again.
        root: folder of published results.
        budgets: the ladder, ascending.
        seeds: development seeds.
        rate: learning rate for every arm; None takes the tuned ones.
        items: validation items that each job scores; jobs of another number have no row yet.
        workers: processes.

    Returns:
        The file of rows.

    Raises:
        RequestError: for a ladder that tells nothing, a file that is damaged, or where no claim has a training budget.
        WorkError: a job failed.
    """
    check_ladder(budgets)
    claims = [claim for claim in claims if claim.budget]
    if not claims:
        why = "None of the claims has a training budget"
        raise RequestError(f"A pilot of {paper.name}", why, "Choose other claims with --claims")
    path = root / paper.name / FILE
    rows = read_rows(path)  # a damaged file is refused before hours of work and not after them
    plan = plan_pilot(paper, claims, budgets, seeds, rate=rate, items=items)
    keys = without_rows(paper, claims, plan, rows)

    def report(job: Job, folder: Path) -> None:
        _log.info("seed %d, %s: %s", job.seed, job.arm, folder)

    with open_output(out):
        done = find_finished(plan, out)
        counts = len(plan.jobs), len(plan.jobs) - len(keys), len(keys & done.folders.keys())
        _log.info("%d jobs, %d of them have their rows; of the others %d are finished", *counts)
        finished = run(plan, out, done, workers=workers, keys=keys, on_job_done=report)
    merge_rows(path, pilot_rows(paper, claims, plan, finished))
    if finished.errors:
        raise next(iter(finished.errors.values()))
    origins = {base_arm(name)[0]: plan.jobs[key] for (_, name, _), key in plan.keys.items()}
    for claim in claims:
        ladders = pilot_ladders(claim, deciding(claim), load_pilot(root, paper.claims), origins)
        for budget in budgets[:-1]:
            _log.info("%s: %s", claim.id, convergence(claim, ladders, budget).summary())
    return path


def without_rows(paper: Paper, claims: Sequence[Claim], plan: Plan, rows: Iterable[PilotRow]) -> set[str]:
    """Keys of jobs that lack a row of some measure of the claims, and of the jobs that those read."""
    measured = {(row.key, row.metric, row.condition, row.where) for row in rows}
    measures = _measures(claims)
    keys: set[str] = set()
    for (_, name, _), key in plan.keys.items():
        for m in measures.get(base_arm(name)[0], ()):
            place = m.metric or paper.claims.headline, m.condition or paper.claims.condition, written(m.where)
            if (key, *place) not in measured:
                keys.add(key)
    while more := {need for key in keys for need in plan.jobs[key].needs.values()} - keys:
        keys |= more
    return keys


def pilot_rows(paper: Paper, claims: Sequence[Claim], plan: Plan, finished: Finished) -> list[PilotRow]:
    """Mean of each measure of the claims on each finished job."""
    measures = _measures(claims)
    rows = []
    for (_, name, seed), key in plan.keys.items():
        (arm, budget), job = base_arm(name), plan.jobs[key]
        if key not in finished.folders:
            continue
        scores = scores_of(paper, {(arm, seed): finished.folders[key] / SCORES})
        for measure in measures.get(arm, ()):
            _, values = scores.values(measure, seed=seed)
            if not values.size:  # it applies to none of the items, such as a kind that was not drawn
                continue
            rows.append(
                PilotRow(
                    arm=arm,
                    seed=seed,
                    budget=budget,
                    metric=scores.metric(measure),
                    condition=measure.condition or scores.condition,
                    where=written(measure.where),
                    mean=round(float(values.mean()), 8),
                    items=values.size,
                    lr=rate_of(job),
                    key=key,
                    commit=(read_record(finished.folders[key]) or {}).get("commit") or "",
                    source=job.source,
                    settings=job.settings,
                )
            )
    return rows


def rate_of(job: Job) -> str:
    """Learning rate of a job, "" where no budget, and so no rate, changes its scores."""
    return flatten(job.config).get("optim.lr", "") if base_arm(job.arm)[1] else ""


def _measures(claims: Iterable[Claim]) -> dict[str, list[Measure]]:
    """What claims read, by arm, each once; a baseline for the gate's best arm is read from every candidate."""
    by_arm: dict[str, list[Measure]] = {}
    for claim in claims:
        read = [m for contrast in claim.contrasts for _, m in contrast.terms]
        if claim.gate is not None:
            best = [m.arm for m in claim.gate.arms]
            for m in (*claim.gate.arms, *claim.gate.baselines):
                read += [replace(m, arm=arm) for arm in (best if m.arm == BEST else [m.arm])]
        for m in read:
            if m not in by_arm.setdefault(m.arm, []):
                by_arm[m.arm].append(m)
    return by_arm


def command_line() -> argparse.ArgumentParser:
    """What `python -m lightbox.claims.pilot` takes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paper")
    parser.add_argument("--claims", nargs="*", default=[], help="ids; none means all")
    parser.add_argument("--budgets", nargs="*", type=int, default=BUDGETS)
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS)
    parser.add_argument("--rate", type=float, help="learning rate of every arm; left out: the tuned ones")
    parser.add_argument("--items", type=int, default=ITEMS, help="validation items that each job scores")
    parser.add_argument("--out", type=Path, default=default_out())
    parser.add_argument("--workers", type=int, default=2)
    return parser


def _from_words(words: Sequence[str]) -> None:
    options = command_line().parse_args(words)
    paper = load_papers([options.paper])[0]
    claims = [claim for _, claim in choose_claims([paper], options.claims)]
    sizes = {"budgets": options.budgets, "seeds": options.seeds, "rate": options.rate, "items": options.items}
    sizes["workers"] = options.workers
    _log.info("rows: %s", pilot(paper, claims, options.out, root=results_dir(), **sizes))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    sys.exit(guard(lambda: _from_words(sys.argv[1:])))
