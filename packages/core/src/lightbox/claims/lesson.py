"""One claim in about a minute, for a class: one development seed, a short training, and no verdict. No torch.

The arms that the claim's first link compares are trained as the pilot trains them, on the same training set, and scored
on fewer validation images. So what comes out can be laid beside the seeds of the pilot, and the lesson is how far one
seed may lie from the next. Seeds of verdicts, and test images, are not touched: who has seen what comes out of those
cannot decide a claim on them any more.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lightbox.claims.budget import Ladder, Pilot, levels, pilot_ladders
from lightbox.claims.jobs import Plan, arm_jobs, plan_jobs
from lightbox.claims.pilot import PRESET
from lightbox.claims.pilot import SEEDS as PILOT_SEEDS
from lightbox.claims.registry import Paper, arms_in_order
from lightbox.claims.results import scores_of
from lightbox.claims.spec import Claim, Contrast, Role, base_arm
from lightbox.claims.statistics import contrast_effect, paired_differences
from lightbox.errors import RequestError
from lightbox.runs.folders import CHECKPOINTS, SCORES, read_history

SEED = 990
FIRST_SEED, LAST_SEED = max(PILOT_SEEDS) + 1, 999
"""Development seeds (900 and on) that no pilot takes, so that a dot beside the pilot's is another draw."""
BUDGETS = (25, 50, 100, 200, 400, 800)
ITEMS = 100
SECONDS = 60
BESIDE_S = 30.0
"""What is no training: importing torch and transformers (8 s, or 15 to 29 s from a cold disk), drawing, scoring."""
CURVE_POINTS = 12
"""Checkpoints of a training: each holds the curve so far, which is what can be watched."""
LOSS = "train/loss"


@dataclass(frozen=True)
class Lesson:
    """What is trained and compared.

    Args:
        paper, claim: whose.
        link: the first primary contrast of the claim.
        budget: of each arm, in the paper's axis; seed: of all.
        plan: the jobs; their arms are named as planned, such as "none@200".
    """

    paper: Paper
    claim: Claim
    link: Contrast
    budget: int
    seed: int
    plan: Plan


@dataclass(frozen=True)
class Progress:
    """How far an arm has come.

    Args:
        step: last step of its curve; of: its budget, 0 where nothing is trained.
        curve: training loss as (step, value).
        is_done: it has been scored.
    """

    step: int
    of: int
    curve: tuple[tuple[int, float], ...]
    is_done: bool


@dataclass(frozen=True)
class Outcome:
    """What one seed came to, in the unit of the claim.

    Args:
        seed: of the training; budget: of it.
        effect: of the link, as a mean over items.
        item_sd: standard error of that mean from the sampling of items alone; None where the link is not paired.
        items: that were compared.
        levels: mean of each measure of the link, by name.
        key: of the job of its first arm.
    """

    seed: int
    budget: int
    effect: float
    item_sd: float | None
    items: int
    levels: dict[str, float]
    key: str


def plan_lesson(paper: Paper, claim: Claim, *, seed: int = SEED, steps: int = 0, seconds: int = SECONDS) -> Lesson:
    """Plan the arms of a claim's first link at a budget that is forecast to fit a time.

    Args:
        paper, claim: whose.
        seed: `FIRST_SEED` to `LAST_SEED`.
        steps: training budget; 0 takes the largest of `BUDGETS` that fits, or the smallest where none does.
        seconds: for it to fit, on two cores.

    Raises:
        RequestError: for a claim that trains nothing, or another seed.
    """
    if not FIRST_SEED <= seed <= LAST_SEED:
        why = "Verdicts are decided on the seeds below 900, and the pilot has those from 900 on"
        raise RequestError(f"--seed is {seed}", why, f"Give one from {FIRST_SEED} to {LAST_SEED}")
    link = next((c for c in claim.contrasts if c.role is Role.PRIMARY), claim.contrasts[0])
    if not claim.budget or not paper.claims.budgeted & {m.arm for _, m in link.terms}:
        why = "It trains nothing, so that there is nothing to watch"
        do = f"Run `lightbox reproduce {paper.name} --claims {claim.id}`, which decides it"
        raise RequestError(f"A lesson on {claim.id}", why, do)
    lesson = None
    for budget in [steps] if steps else BUDGETS:
        longer = Lesson(paper, claim, link, budget, seed, _plan(paper, link, budget, seed))
        if lesson is not None and forecast_s(longer.plan) > seconds:
            break
        lesson = longer
    assert lesson is not None, "there is at least one budget"
    return lesson


def forecast_s(plan: Plan, workers: int = 2) -> float:
    """Seconds that a plan is expected to take: its longest chain of needs, or its work shared out."""
    ends: dict[str, float] = {}
    for job in plan.jobs.values():  # needs come first
        ends[job.key] = job.minutes + max((ends[key] for key in job.needs.values()), default=0.0)
    shared = sum(job.minutes for job in plan.jobs.values()) / workers
    return BESIDE_S + 60 * max(shared, *ends.values())


def progress(lesson: Lesson, folders: Mapping[str, Path]) -> dict[str, Progress]:
    """How far each arm has come, by its plain name; `folders` holds those of the jobs that were begun, by key."""
    arms = {}
    for job in lesson.plan.jobs.values():
        folder = folders.get(job.key)
        curve = read_loss(folder) if folder is not None else []
        budget = job.budget if lesson.paper.claims.arms[base_arm(job.arm)[0]].is_trained else 0
        is_done = folder is not None and (folder / SCORES).is_file()
        step = curve[-1][0] if curve else 0
        arms[base_arm(job.arm)[0]] = Progress(step, budget, tuple(curve), is_done)
    return arms


def outcome(lesson: Lesson, folders: Mapping[str, Path]) -> Outcome:
    """Compare the arms item by item; `folders` holds those of the finished jobs, by key.

    Raises:
        WorkError: for scores that do not pair.
    """
    keys = {base_arm(arm)[0]: key for (_, arm, _), key in lesson.plan.keys.items()}
    arms = {m.arm for _, m in lesson.link.terms}
    scores = scores_of(lesson.paper, {(arm, lesson.seed): folders[keys[arm]] / SCORES for arm in arms})
    scale, seeds = lesson.claim.unit_scale, [lesson.seed]
    effect = contrast_effect(lesson.link, scores, seeds=seeds, min_effect=lesson.claim.min_effect, bootstrap=False)
    assert effect.effect is not None, "every arm has its scores"
    error = None
    if lesson.link.is_paired and effect.items > 1:
        differences = paired_differences(lesson.link, scores, seed=lesson.seed)
        error = float(scale * differences.std(ddof=1) / np.sqrt(differences.size))
    means = {
        level.name: scale * scores.means(measure, seeds)[0]
        for level in levels([lesson.link])
        for _, measure in level.terms
    }
    own = scale * effect.effect
    return Outcome(lesson.seed, lesson.budget, own, error, effect.items, means, keys[lesson.link.arm])


def pilot_effects(lesson: Lesson, pilot: Pilot) -> tuple[Ladder, str]:
    """Effects of the link by budget in the pilot of the paper, and "", or none of them and why.

    Where the source or the settings are not the pilot's any more, its seeds cannot be laid beside this one.
    """
    origins = {base_arm(job.arm)[0]: job for job in lesson.plan.jobs.values()}
    try:
        return pilot_ladders(lesson.claim, [lesson.link], pilot, origins)[lesson.link.name], ""
    except RequestError as err:
        return {}, str(err)


def read_loss(folder: Path) -> list[tuple[int, float]]:
    """The training loss of a run as far as it has been written down, as (step, value); [] before its first checkpoint.

    A run writes its curves when it ends. Before that they are in its checkpoints, the newest of which is read; one that
    is pruned meanwhile gives none, and the next look finds its successor.
    """
    curves = read_history(folder)
    if not curves:
        states = sorted((folder / CHECKPOINTS).glob("step-*/state.json"))
        try:
            curves = json.loads(states[-1].read_text(encoding="utf-8"))["history"] if states else {}
        except FileNotFoundError:
            curves = {}
    return [(int(step), float(value)) for step, value in curves.get(LOSS, []) if value is not None]


def _plan(paper: Paper, link: Contrast, budget: int, seed: int) -> Plan:
    arms = arms_in_order(paper.claims, [m.arm for _, m in link.terms])
    overrides = (
        "data.eval_split=validation",
        f"data.n_test={ITEMS}",
        f"run.save_every_steps={max(1, budget // CURVE_POINTS)}",
    )
    return plan_jobs(arm_jobs(paper, dict.fromkeys(arms, (seed,)), PRESET, budget=budget, overrides=overrides), PRESET)
