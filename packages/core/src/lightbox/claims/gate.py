"""The gate: can the claim be tested at all, or is its best arm no better than a sanity baseline, or at the ceiling?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lightbox.claims.spec import BEST, Gate, Measure, Role, difference
from lightbox.claims.statistics import Effect, Scores, contrast_effect

ROUNDING = 1e-12  # means of 0/1 scores miss a declared decimal by this much at most


@dataclass(frozen=True)
class GateResult:
    """What the gate saw, in the metric's recorded unit.

    Args:
        is_passed: False where a condition fails; None where no seed is complete yet.
        failures: one sentence a failed condition.
        best: label of the arm with the highest mean; baseline: label of the strongest baseline.
        best_mean: its mean over seeds; None without seeds. `baseline_mean` likewise.
        difference: best minus baseline, paired; None without seeds.
        arms: mean of each candidate arm, by label. `baselines` likewise.
    """

    gate: Gate
    is_passed: bool | None
    failures: tuple[str, ...]
    best: str
    best_mean: float | None
    baseline: str
    baseline_mean: float | None
    difference: Effect | None
    arms: dict[str, float]
    baselines: dict[str, float]


def gate_result(gate: Gate, scores: Scores, *, seeds: Sequence[int]) -> GateResult:
    """Evaluate a gate on the seeds that have the scores of all its arms.

    The best arm is the candidate with the highest mean over seeds, the first one in a tie; a baseline declared for
    "{best}" is read from it. The strongest baseline is the one with the highest mean.

    Raises:
        WorkError: where the arms and baselines do not pair (see `statistics`).
    """
    ready = scores.complete_seeds((m.arm for m in (*gate.arms, *gate.baselines) if m.arm != BEST), seeds)
    if not ready:
        return GateResult(gate, None, (), "", None, "", None, None, {}, {})
    best, arms = _highest(gate.arms, scores, ready)
    rivals = [replace(m, arm=best.arm) if m.arm == BEST else m for m in gate.baselines]
    baseline, baselines = _highest(rivals, scores, ready)
    contrast = difference("best arm minus strongest baseline", best, baseline, Role.SECONDARY)
    lead = contrast_effect(contrast, scores, seeds=ready, min_effect=gate.margin, bootstrap=False)
    return judge_gate(gate, lead, best=best.label, arms=arms, baseline=baseline.label, baselines=baselines)


def judge_gate(
    gate: Gate, lead: Effect, *, best: str, arms: dict[str, float], baseline: str, baselines: dict[str, float]
) -> GateResult:
    """Decide a gate from the lead of the best arm over the strongest baseline; the simulation uses it too.

    Args:
        gate: margin, ceiling and headroom.
        lead: best minus strongest baseline; below 2 seeds it has no interval and the interval fails.
        best: label of the best arm, a key of `arms`; baseline: label of the strongest baseline, a key of `baselines`.
        arms: mean of each candidate, by label.
        baselines: mean of each baseline, by label.
    """
    failures = []
    if lead.effect < gate.margin - ROUNDING:
        failures.append(f"{best} leads {baseline} by {lead.effect:.4g}, under the margin {gate.margin:g}")
    if lead.ci95 is None or lead.ci95[0] <= 0:
        failures.append(f"the interval of the lead of {best} over {baseline} is not above 0")
    if arms[best] > gate.ceiling - gate.headroom + ROUNDING:
        failures.append(f"{best} is at {arms[best]:.4g}, within {gate.headroom:g} of the ceiling {gate.ceiling:g}")
    means = arms[best], baselines[baseline]
    return GateResult(gate, not failures, tuple(failures), best, means[0], baseline, means[1], lead, arms, baselines)


def _highest(measures: Sequence[Measure], scores: Scores, seeds: Sequence[int]) -> tuple[Measure, dict[str, float]]:
    """The measure with the highest mean over seeds (first in a tie), and every mean by label."""
    means = [np.mean(scores.means(m, seeds)) for m in measures]
    by_label = {m.label: float(mean) for m, mean in zip(measures, means, strict=True)}
    return measures[int(np.argmax(means))], by_label
