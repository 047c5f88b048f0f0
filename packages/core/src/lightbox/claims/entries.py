"""One claim decided on the scores there are: effects, gate, levels, verdict, in its printed unit. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lightbox.claims import budget
from lightbox.claims.budget import Convergence, Ladder, Pilot
from lightbox.claims.document import BudgetCurve, BudgetPoint, ClaimEntry, ContrastEntry, GateEntry, JobEntry, Level
from lightbox.claims.gate import GateResult, gate_result
from lightbox.claims.jobs import name_in_claim, seeds_of
from lightbox.claims.spec import BEST, Claim, Contrast, Kind, Measure, Role, base_arm
from lightbox.claims.statistics import Effect, Ends, Scores, contrast_effect
from lightbox.claims.verdicts import PRESETS_WITHOUT_VERDICT, Decision, decide
from lightbox.errors import WorkError

DIGITS = 8
ANY_EFFECT = 1e-9  # in the place of a minimum of 0, by which no effect can be measured
COPIED = ("paper", "id", "kind", "statement", "location", "paper_numbers", "note", "is_primary", "unit", "budget")
SCALED = ("effect", "per_seed", "seed_sd", "between_sd", "min_effect")


def claim_entry(
    claim: Claim,
    preset: str,
    scores: Scores,
    jobs: Mapping[tuple[str, int], JobEntry],
    pilot: Pilot,
    *,
    seeds: Sequence[int] | None = None,
    is_older: bool = False,
) -> ClaimEntry:
    """Decide one claim and write it down.

    Args:
        claim: what is claimed.
        preset: size preset, which says how many seeds are planned.
        scores: of the paper; where some are missing, effects rest on the seeds that are complete.
        jobs: by (arm, seed), for keys, commits, times and what the pilot must share.
        pilot: of the paper.
        seeds: of the scores; None takes those of the preset.
        is_older: the scores may lack what is shown beside the verdict, such as a kind of question that was not asked
            then; that is left out.

    Raises:
        RequestError: where the test set is smaller than the claim needs.
        WorkError: where scores do not pair.
    """
    jobs, scores = as_declared(claim, preset, jobs, scores, pilot)
    if is_older:
        claim = replace(claim, contrasts=_measured(claim, scores))
    planned = len(seeds_of(claim, preset))
    seeds = seeds_of(claim, preset) if seeds is None else seeds
    effects = [contrast_effect(c, scores, seeds=seeds, min_effect=claim.min_effect) for c in claim.contrasts]
    gate = gate_result(claim.gate, scores, seeds=seeds) if claim.gate is not None else None
    judged, curves = by_budget(claim, preset, scores, jobs, pilot, seeds)
    decision = decide(claim, effects, gate, planned_seeds=planned, preset=preset, convergence=judged)
    top, scale = _deciding(claim, effects), claim.unit_scale
    used = {job.key: job for (arm, seed), job in jobs.items() if claim.reads(arm) and seed in seeds}
    return ClaimEntry(
        **{name: getattr(claim, name) for name in COPIED},
        verdict=decision.verdict,
        reason=decision.reason,
        effect=printed(top.effect, scale),
        ci95=_interval(claim, top.ci95),
        min_effect=printed(top.min_effect, scale),
        bound=printed(claim.bound, scale),
        seeds=top.seeds,
        planned_seeds=planned,
        items=top.items,
        gate=_gate_entry(claim, gate, scores) if gate is not None else None,
        contrasts=tuple(_contrast_entry(claim, effect, decision) for effect in effects),
        controls=tuple(effect.name for effect in effects if effect.role is Role.CONTROL),
        baselines=_levels(claim, _baselines(claim), scores, seeds),
        arms=_levels(claim, _arm_measures(claim), scores, seeds),
        run_ids=tuple(used),
        commits=tuple(sorted({job.commit for job in used.values() if job.commit})),
        hardware=tuple(sorted({job.hardware for job in used.values() if job.hardware})),
        caveats=claim.caveats,
        images=claim.images,
        wall_s=round(sum(job.wall_s or 0.0 for job in used.values()), 1),
        convergence=judged,
        by_budget=curves,
    )


def as_declared(
    claim: Claim, preset: str, jobs: Mapping[tuple[str, int], JobEntry], scores: Scores, pilot: Pilot
) -> tuple[dict[tuple[str, int], JobEntry], Scores]:
    """Jobs and scores by the names that the claim has for them; those at budgets that it does not read are left out."""
    budgeted = pilot.claims.budgeted
    trained = {pair: job for pair, job in jobs.items() if base_arm(pair[0])[0] in budgeted}
    usual = next((job.budget for (name, _), job in trained.items() if not base_arm(name)[1]), None) or 0
    names = {pair: pair[0] if claim.reads(pair[0]) else None for pair in jobs}
    for (name, seed), job in trained.items():
        if claim.budget and job.budget:  # of earlier publications no budget is recorded: all ran at the preset's
            names[name, seed] = name_in_claim(claim, preset, name, budget=job.budget, usual=usual)
    read = {pair: (own, pair[1]) for pair, own in names.items() if own is not None}
    tables = {read[pair]: table for pair, table in scores.tables.items() if pair in read}
    return {read[pair]: jobs[pair] for pair in read}, replace(scores, tables=tables)


def _measured(claim: Claim, scores: Scores) -> tuple[Contrast, ...]:
    """Contrasts of a claim without the secondary ones that some scores hold no item of."""

    def is_measured(contrast: Contrast) -> bool:
        ready = scores.complete_seeds((m.arm for _, m in contrast.terms), sorted({seed for _, seed in scores.tables}))
        try:
            return all(scores.values(m, seed=seed)[1].size for _, m in contrast.terms for seed in ready)
        except WorkError:  # a column that was not written then
            return False

    return tuple(c for c in claim.contrasts if c.role is not Role.SECONDARY or is_measured(c))


def by_budget(
    claim: Claim,
    preset: str,
    scores: Scores,
    jobs: Mapping[tuple[str, int], JobEntry],
    pilot: Pilot,
    seeds: Sequence[int],
) -> tuple[Convergence | None, tuple[BudgetCurve, ...]]:
    """Whether a claim is on its plateau, and effects and scores by budget; (None, ()) where there is nothing to judge.

    Args are those of `claim_entry`.
    """
    origins = {arm: job for (arm, _), job in jobs.items()}
    if not claim.budget or preset in PRESETS_WITHOUT_VERDICT or not origins.keys() >= set(claim.arms):
        return None, ()
    links = budget.deciding(claim)
    shown = [*links, *budget.levels(links)]
    run = next((origins[arm].budget for arm in claim.arms if arm in pilot.claims.budgeted), None) or 0
    others = sorted({base_arm(arm)[1] for arm in origins} - {0})
    own = {}
    for contrast in shown if others else ():
        at = {b: budget.at(contrast, b, pilot.claims) for b in others} | {run: contrast}
        settings = {"seeds": seeds, "min_effect": claim.min_effect, "bootstrap": False}
        own[contrast.name] = {b: contrast_effect(at[b], scores, **settings) for b in sorted(at)}
    judged, ladders = budget.judge(claim, run, pilot, origins, own if claim.ladder.get(preset) else None)
    if ladders:  # it speaks for the run, so also for the scores of the arms
        ladders = budget.pilot_ladders(claim, shown, pilot, origins)
    return judged, (*_curves(claim, ladders, is_pilot=True), *_curves(claim, own, is_pilot=False))


def _curves(claim: Claim, ladders: Mapping[str, Ladder], *, is_pilot: bool) -> list[BudgetCurve]:
    roles = {contrast.name: str(contrast.role) for contrast in claim.contrasts}
    curves = []
    for name, ladder in ladders.items():
        ends = {b: printed(effect.ci95, claim.unit_scale) for b, effect in ladder.items()}
        points = (
            BudgetPoint(b, printed(effect.effect, claim.unit_scale), ends[b], len(effect.seeds))
            for b, effect in ladder.items()
            if effect.effect is not None
        )
        curves.append(BudgetCurve(name, roles.get(name, "arm"), is_pilot, tuple(points)))
    return curves


def printed(value: Any, scale: float) -> Any:
    """A number, or a tuple of numbers, in printed units; None stays."""
    if isinstance(value, tuple):
        return tuple(printed(part, scale) for part in value)
    return None if value is None else round(value * scale, DIGITS)


def _deciding(claim: Claim, effects: Sequence[Effect]) -> Effect:
    """The primary contrast shown for the claim; of several, the weakest link."""
    links = [effect for effect in effects if effect.role is Role.PRIMARY]
    measured = [(effect.effect, effect) for effect in links if effect.effect is not None]
    if not measured:
        return links[0]
    if claim.kind is Kind.EQUIVALENCE:
        return max(measured, key=lambda pair: abs(pair[0]) / pair[1].min_effect)[1]
    if claim.kind is Kind.EXACT:
        return max(measured, key=lambda pair: pair[0] if claim.is_upper_bound else -pair[0])[1]
    # a link may ask for any effect above 0
    return min(measured, key=lambda pair: pair[0] / max(pair[1].min_effect, ANY_EFFECT))[1]


def _contrast_entry(claim: Claim, effect: Effect, decision: Decision) -> ContrastEntry:
    scaled = {name: printed(getattr(effect, name), claim.unit_scale) for name in SCALED}
    intervals = {name: _interval(claim, getattr(effect, name)) for name in ("ci95", "ci90", "boot95")}
    state = decision.links.get(effect.name) or decision.controls.get(effect.name) or ""
    return ContrastEntry(**{**vars(effect), **scaled, **intervals, "state": str(state)})


def _gate_entry(claim: Claim, result: GateResult, scores: Scores) -> GateEntry:
    """In the claim's unit where its contrasts read the gate's metric; else in the metric as recorded."""
    gate, lead, metric = result.gate, result.difference, scores.metric(result.gate.arms[0])
    unit, scale = (claim.unit, claim.unit_scale) if metric in _metrics(claim, scores) else (metric, 1.0)
    return GateEntry(
        passed=result.is_passed,
        failures=result.failures,
        unit=unit,
        best=result.best,
        best_mean=printed(result.best_mean, scale),
        baseline=result.baseline,
        baseline_mean=printed(result.baseline_mean, scale),
        effect=printed(lead.effect, scale) if lead is not None else None,
        ci95=printed(lead.ci95, scale) if lead is not None else None,
        margin=printed(gate.margin, scale),
        ceiling=printed(gate.ceiling, scale),
        headroom=printed(gate.headroom, scale),
    )


def _metrics(claim: Claim, scores: Scores) -> set[str]:
    """Metrics that the claim's contrasts read, which its printed unit is for."""
    return {scores.metric(m) for contrast in claim.contrasts for _, m in contrast.terms}


def _baselines(claim: Claim) -> list[Measure]:
    """The gate's baselines; one declared for the best arm is read from each candidate, so that all are printed."""
    if claim.gate is None:
        return []
    candidates = [m.arm for m in claim.gate.arms]
    every = [replace(m, arm=arm) for m in claim.gate.baselines for arm in (candidates if m.arm == BEST else [m.arm])]
    return list(dict.fromkeys(every))


def _arm_measures(claim: Claim) -> list[Measure]:
    compared = [m for contrast in claim.contrasts for _, m in contrast.terms]
    return list(dict.fromkeys([*compared, *(claim.gate.arms if claim.gate is not None else ())]))


def _levels(claim: Claim, measures: Sequence[Measure], scores: Scores, seeds: Sequence[int]) -> dict[str, Level]:
    """Mean of each measure, and per seed, by label; the metric is named where a label has several."""
    labels = [m.label for m in measures]
    levels = {}
    for name, m in zip(labels, measures, strict=True):
        means, metric = scores.means(m, scores.complete_seeds([m.arm], seeds)), scores.metric(m)
        scale = claim.unit_scale if metric in _metrics(claim, scores) else 1.0
        levels[name if labels.count(name) == 1 else f"{name} {metric}"] = Level(
            metric=metric,
            mean=printed(float(np.mean(means)), scale) if means else None,
            per_seed=printed(tuple(means), scale),
        )
    return levels


def _interval(claim: Claim, ends: Ends | None) -> Ends | None:
    return None if claim.kind is Kind.EXACT else printed(ends, claim.unit_scale)
