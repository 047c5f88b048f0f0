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
        gate: as declared.
        is_passed: False where a condition fails; None where no seed is complete yet.
        failures: one sentence a failed condition.
        best: label of the arm with the highest mean; `best_mean` is None without seeds.
        baseline: label of the strongest baseline; `baseline_mean` likewise.
        difference: best minus baseline, paired; None without seeds.
    """

    gate: Gate
    is_passed: bool | None
    failures: tuple[str, ...] = ()
    best: str = ""
    best_mean: float | None = None
    baseline: str = ""
    baseline_mean: float | None = None
    difference: Effect | None = None


def gate_result(gate: Gate, scores: Scores, *, seeds: Sequence[int]) -> GateResult:
    """Evaluate a gate on the seeds that have the scores of all its arms.

    The best arm is the candidate with the highest mean over seeds, the first one in a tie; a baseline declared for
    "{best}" is read from it. The strongest baseline is the one with the highest mean.

    Raises:
        WorkError: where the arms and baselines do not pair (see `statistics`).
    """
    ready = scores.complete_seeds((m.arm for m in (*gate.arms, *gate.baselines) if m.arm != BEST), seeds)
    if not ready:
        return GateResult(gate, None)
    best = _highest(gate.arms, scores, ready)
    baseline = _highest([replace(m, arm=best[0].arm) if m.arm == BEST else m for m in gate.baselines], scores, ready)
    contrast = difference("best arm minus strongest baseline", best[0], baseline[0], Role.SECONDARY)
    lead = contrast_effect(contrast, scores, seeds=ready, min_effect=gate.margin, bootstrap=False)
    return judge_gate(gate, lead, best=(best[0].label, best[1]), baseline=(baseline[0].label, baseline[1]))


def judge_gate(gate: Gate, lead: Effect, *, best: tuple[str, float], baseline: tuple[str, float]) -> GateResult:
    """Decide a gate from the lead of the best arm over the strongest baseline; the simulation uses it too.

    Args:
        gate: margin, ceiling and headroom.
        lead: best minus strongest baseline; below 2 seeds it has no interval and the interval fails.
        best: label and mean of the best arm; baseline: of the strongest baseline.
    """
    (name, mean), (rival, rival_mean) = best, baseline
    failures = []
    if lead.effect < gate.margin - ROUNDING:
        failures.append(f"{name} leads {rival} by {lead.effect:.4g}, under the margin {gate.margin:g}")
    if lead.ci95 is None or lead.ci95[0] <= 0:
        failures.append(f"the interval of the lead of {name} over {rival} is not above 0")
    if mean > gate.ceiling - gate.headroom + ROUNDING:
        failures.append(f"{name} is at {mean:.4g}, within {gate.headroom:g} of the ceiling {gate.ceiling:g}")
    return GateResult(gate, not failures, tuple(failures), name, mean, rival, rival_mean, lead)


def _highest(measures: Sequence[Measure], scores: Scores, seeds: Sequence[int]) -> tuple[Measure, float]:
    """The measure with the highest mean over seeds (first in a tie), and that mean."""
    means = [float(np.mean(scores.means(m, seeds))) for m in measures]
    return measures[int(np.argmax(means))], max(means)
