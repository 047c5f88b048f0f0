"""One claim as an entry of `results.json`: effects, gate, baselines, verdict, in the claim's printed unit. No torch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lightbox.claims.gate import GateResult, gate_result
from lightbox.claims.jobs import seeds_of
from lightbox.claims.spec import Claim, Kind, Measure, Role
from lightbox.claims.statistics import Effect, ScoresByArmSeed, complete_seeds, contrast_effect, label, measured
from lightbox.claims.verdicts import Decision, decide

DIGITS = 8


def claim_entry(
    claim: Claim, preset: str, scores: ScoresByArmSeed, cards: Mapping[tuple[str, int], Mapping[str, Any]]
) -> dict[str, Any]:
    """Decide one claim on the scores there are and write it down.

    Args:
        claim: what is claimed.
        preset: size preset, which says how many seeds are planned.
        scores: tables by (arm, seed); where some are missing, effects rest on the seeds that are complete.
        cards: `job.json` by (arm, seed), for keys, commits and times.

    Raises:
        RequestError: where the test set is smaller than the claim needs.
        WorkError: where scores do not pair.
    """
    seeds = seeds_of(claim, preset)
    effects = [contrast_effect(c, scores, seeds=seeds, min_effect=claim.min_effect) for c in claim.contrasts]
    gate = gate_result(claim.gate, scores, seeds=seeds) if claim.gate is not None else None
    decision = decide(claim, effects, gate, planned_seeds=len(seeds), preset=preset)
    top, scale = _deciding(claim, effects), claim.unit_scale
    used = {pair: card for pair, card in cards.items() if pair[0] in claim.arms and pair[1] in seeds}
    return {
        "paper": claim.paper,
        "id": claim.id,
        "kind": str(claim.kind),
        "statement": claim.statement,
        "location": claim.location,
        "paper_numbers": claim.paper_numbers,
        "note": claim.note,
        "is_primary": claim.is_primary,
        "verdict": str(decision.verdict),
        "reason": decision.reason,
        "effect": _tidy(top.effect, scale),
        "ci95": _interval(claim, top.ci95),
        "unit": claim.unit,
        "min_effect": _tidy(top.min_effect, scale),
        "bound": _tidy(claim.bound, scale),
        "seeds": list(top.seeds),
        "planned_seeds": len(seeds),
        "items": top.items,
        "gate": _gate_entry(claim, gate),
        "contrasts": [_contrast_entry(claim, effect, decision) for effect in effects],
        "controls": [effect.name for effect in effects if effect.role is Role.CONTROL],
        "baselines": _levels(claim, _baselines(claim), scores, seeds),
        "arms": _levels(claim, _arm_measures(claim), scores, seeds),
        "run_ids": list(dict.fromkeys(card["key"] for card in used.values())),
        "commits": sorted({card["commit"] for card in used.values()}),
        "wall_s": round(sum({card["key"]: card["wall_s"] for card in used.values()}.values()), 1),
    }


def with_published(entry: dict[str, Any], published: Mapping[str, Any] | None) -> dict[str, Any]:
    """Put the committed effect and whether the two intervals overlap beside each effect; None where there is none."""
    earlier = {contrast["name"]: contrast for contrast in published["contrasts"]} if published else {}
    contrasts = [c | {"published": _beside(c, earlier.get(c["name"]))} for c in entry["contrasts"]]
    return entry | {"contrasts": contrasts, "published": _beside(entry, published)}


def _beside(ours: Mapping[str, Any], theirs: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if theirs is None:
        return None
    kept = {name: theirs.get(name) for name in ("effect", "ci95", "verdict", "commits") if name in theirs}
    if ours["effect"] is None or theirs["effect"] is None:
        return kept | {"agrees": None}
    ends = [entry["ci95"] or [entry["effect"]] * 2 for entry in (ours, theirs)]
    return kept | {"agrees": ends[0][0] <= ends[1][1] and ends[1][0] <= ends[0][1]}


def _deciding(claim: Claim, effects: Sequence[Effect]) -> Effect:
    """The primary contrast shown for the claim; of several, the weakest link."""
    links = [effect for effect in effects if effect.role is Role.PRIMARY]
    known = [effect for effect in links if effect.effect is not None]
    if not known:
        return links[0]
    if claim.kind is Kind.EQUIVALENCE:
        return max(known, key=lambda effect: abs(effect.effect) / effect.min_effect)
    if claim.kind is Kind.EXACT:
        return max(known, key=lambda effect: effect.effect if claim.is_upper_bound else -effect.effect)
    return min(known, key=lambda effect: effect.effect / effect.min_effect)


def _contrast_entry(claim: Claim, effect: Effect, decision: Decision) -> dict[str, Any]:
    scale = claim.unit_scale
    return {
        "name": effect.name,
        "arm": effect.arm,
        "rival": effect.rival,
        "role": str(effect.role),
        "effect": _tidy(effect.effect, scale),
        "ci95": _interval(claim, effect.ci95),
        "ci90": _interval(claim, effect.ci90),
        "boot95": _interval(claim, effect.boot95),
        "per_seed": [_tidy(value, scale) for value in effect.per_seed],
        "seeds": list(effect.seeds),
        "seed_sd": _tidy(effect.seed_sd, scale),
        "between_sd": _tidy(effect.between_sd, scale),
        "items": effect.items,
        "min_effect": _tidy(effect.min_effect, scale),
        "state": str(decision.links.get(effect.name) or decision.controls.get(effect.name) or ""),
    }


def _gate_entry(claim: Claim, gate: GateResult | None) -> dict[str, Any] | None:
    if gate is None:
        return None
    unit, scale = _gate_unit(claim)
    lead = gate.difference
    ends = lead.ci95 if lead is not None else None
    return {
        "passed": gate.is_passed,
        "failures": list(gate.failures),
        "unit": unit,
        "best": gate.best,
        "best_mean": _tidy(gate.best_mean, scale),
        "baseline": gate.baseline,
        "baseline_mean": _tidy(gate.baseline_mean, scale),
        "effect": _tidy(lead.effect, scale) if lead is not None else None,
        "ci95": [_tidy(end, scale) for end in ends] if ends else None,
        "margin": _tidy(gate.gate.margin, scale),
        "ceiling": _tidy(gate.gate.ceiling, scale),
        "headroom": _tidy(gate.gate.headroom, scale),
    }


def _gate_unit(claim: Claim) -> tuple[str, float]:
    """The claim's unit where its contrasts use the gate's metric; else the metric as recorded."""
    metric = claim.gate.arms[0].metric
    is_shared = any(m.metric == metric for contrast in claim.contrasts for _, m in contrast.terms)
    return (claim.unit, claim.unit_scale) if is_shared else (metric, 1.0)


def _baselines(claim: Claim) -> list[Measure]:
    """The gate's baselines; one declared for "{best}" is read from each candidate, so that all are printed."""
    if claim.gate is None:
        return []
    every = []
    for m in claim.gate.baselines:
        arms = [arm.arm for arm in claim.gate.arms] if m.arm == "{best}" else [m.arm]
        every += [Measure(arm, m.metric, m.where) for arm in arms]
    return list(dict.fromkeys(every))


def _arm_measures(claim: Claim) -> list[Measure]:
    named = [m for contrast in claim.contrasts for _, m in contrast.terms]
    return list(dict.fromkeys([*named, *(claim.gate.arms if claim.gate is not None else ())]))


def _levels(claim: Claim, measures: Sequence[Measure], scores: ScoresByArmSeed, seeds: Sequence[int]) -> dict[str, Any]:
    """Mean of each measure, and per seed, by label; the metric is named where a label has several."""
    labels = [label(m) for m in measures]
    levels = {}
    for name, m in zip(labels, measures, strict=True):
        ready = complete_seeds([m.arm], scores, seeds=seeds)
        means = [float(measured(m, scores[m.arm, seed], seed=seed)[1].mean()) for seed in ready]
        scale = claim.unit_scale if any(m.metric == t.metric for c in claim.contrasts for _, t in c.terms) else 1.0
        levels[name if labels.count(name) == 1 else f"{name} {m.metric}"] = {
            "metric": m.metric,
            "mean": _tidy(float(np.mean(means)), scale) if means else None,
            "per_seed": [_tidy(mean, scale) for mean in means],
        }
    return levels


def _interval(claim: Claim, ends: tuple[float, float] | None) -> list[float] | None:
    if ends is None or claim.kind is Kind.EXACT:
        return None
    return [_tidy(end, claim.unit_scale) for end in ends]


def _tidy(value: float | None, scale: float) -> float | None:
    return None if value is None else round(value * scale, DIGITS)
