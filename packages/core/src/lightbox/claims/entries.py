"""One claim decided on the scores there are: effects, gate, levels, verdict, in its printed unit. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from lightbox.claims.document import ClaimEntry, ContrastEntry, Ends, GateEntry, JobEntry, Level
from lightbox.claims.gate import GateResult, gate_result
from lightbox.claims.jobs import seeds_of
from lightbox.claims.spec import BEST, Claim, Kind, Measure, Role
from lightbox.claims.statistics import Effect, Scores, contrast_effect
from lightbox.claims.verdicts import Decision, decide

DIGITS = 8


def claim_entry(claim: Claim, preset: str, scores: Scores, jobs: Mapping[tuple[str, int], JobEntry]) -> ClaimEntry:
    """Decide one claim and write it down.

    Args:
        claim: what is claimed.
        preset: size preset, which says how many seeds are planned.
        scores: of the paper; where some are missing, effects rest on the seeds that are complete.
        jobs: by (arm, seed), for keys, commits and times.

    Raises:
        RequestError: where the test set is smaller than the claim needs.
        WorkError: where scores do not pair.
    """
    seeds = seeds_of(claim, preset)
    effects = [contrast_effect(c, scores, seeds=seeds, min_effect=claim.min_effect) for c in claim.contrasts]
    gate = gate_result(claim.gate, scores, seeds=seeds) if claim.gate is not None else None
    decision = decide(claim, effects, gate, planned_seeds=len(seeds), preset=preset)
    top, scale = _deciding(claim, effects), claim.unit_scale
    used = {job.key: job for (arm, seed), job in jobs.items() if arm in claim.arms and seed in seeds}
    return ClaimEntry(
        paper=claim.paper,
        id=claim.id,
        kind=claim.kind,
        statement=claim.statement,
        location=claim.location,
        paper_numbers=claim.paper_numbers,
        note=claim.note,
        is_primary=claim.is_primary,
        verdict=decision.verdict,
        reason=decision.reason,
        effect=_tidy(top.effect, scale),
        ci95=_interval(claim, top.ci95),
        unit=claim.unit,
        min_effect=_tidy(top.min_effect, scale),
        bound=_tidy(claim.bound, scale),
        seeds=top.seeds,
        planned_seeds=len(seeds),
        items=top.items,
        gate=_gate_entry(claim, gate, scores) if gate is not None else None,
        contrasts=tuple(_contrast_entry(claim, effect, decision) for effect in effects),
        controls=tuple(effect.name for effect in effects if effect.role is Role.CONTROL),
        baselines=_levels(claim, _baselines(claim), scores, seeds),
        arms=_levels(claim, _arm_measures(claim), scores, seeds),
        run_ids=tuple(used),
        commits=tuple(sorted({job.commit for job in used.values() if job.commit})),
        wall_s=round(sum(job.wall_s or 0.0 for job in used.values()), 1),
    )


def _deciding(claim: Claim, effects: Sequence[Effect]) -> Effect:
    """The primary contrast shown for the claim; of several, the weakest link."""
    links = [effect for effect in effects if effect.role is Role.PRIMARY]
    measured = [effect for effect in links if effect.effect is not None]
    if not measured:
        return links[0]
    if claim.kind is Kind.EQUIVALENCE:
        return max(measured, key=lambda effect: abs(effect.effect) / effect.min_effect)
    if claim.kind is Kind.EXACT:
        return max(measured, key=lambda effect: effect.effect if claim.is_upper_bound else -effect.effect)
    return min(measured, key=lambda effect: effect.effect / effect.min_effect)


def _contrast_entry(claim: Claim, effect: Effect, decision: Decision) -> ContrastEntry:
    scale = claim.unit_scale
    return ContrastEntry(
        name=effect.name,
        arm=effect.arm,
        rival=effect.rival,
        role=effect.role,
        effect=_tidy(effect.effect, scale),
        ci95=_interval(claim, effect.ci95),
        ci90=_interval(claim, effect.ci90),
        boot95=_interval(claim, effect.boot95),
        per_seed=tuple(_tidy(value, scale) for value in effect.per_seed),
        seeds=effect.seeds,
        seed_sd=_tidy(effect.seed_sd, scale),
        between_sd=_tidy(effect.between_sd, scale),
        items=effect.items,
        min_effect=_tidy(effect.min_effect, scale),
        state=str(decision.links.get(effect.name) or decision.controls.get(effect.name) or ""),
    )


def _gate_entry(claim: Claim, result: GateResult, scores: Scores) -> GateEntry:
    """In the claim's unit where its contrasts read the gate's metric; else in the metric as recorded."""
    gate, lead = result.gate, result.difference
    metric = scores.metric(gate.arms[0])
    unit, scale = (claim.unit, claim.unit_scale) if metric in _metrics(claim, scores) else (metric, 1.0)
    ends = lead.ci95 if lead is not None else None
    return GateEntry(
        passed=result.is_passed,
        failures=result.failures,
        unit=unit,
        best=result.best,
        best_mean=_tidy(result.best_mean, scale),
        baseline=result.baseline,
        baseline_mean=_tidy(result.baseline_mean, scale),
        effect=_tidy(lead.effect, scale) if lead is not None else None,
        ci95=(_tidy(ends[0], scale), _tidy(ends[1], scale)) if ends is not None else None,
        margin=_tidy(gate.margin, scale),
        ceiling=_tidy(gate.ceiling, scale),
        headroom=_tidy(gate.headroom, scale),
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
            mean=_tidy(float(np.mean(means)), scale) if means else None,
            per_seed=tuple(_tidy(mean, scale) for mean in means),
        )
    return levels


def _interval(claim: Claim, ends: Ends | None) -> Ends | None:
    if ends is None or claim.kind is Kind.EXACT:
        return None
    return _tidy(ends[0], claim.unit_scale), _tidy(ends[1], claim.unit_scale)


def _tidy(value: float | None, scale: float) -> float | None:
    return None if value is None else round(value * scale, DIGITS)
