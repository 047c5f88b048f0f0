"""Do the verdict rules keep their promises? Simulated experiments, decided by the real rules. No torch.

A simulated experiment draws d_s, the mean paired difference of each seed, and hands it to `effect_of`, `judge_gate` and
`decide`, as a real one does. Scores are right or wrong: an item's difference is -1, 0 or 1, and two arms disagree on a
quarter of the items, so its standard deviation is 0.5. A seed's own effect is normal around the true one.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lightbox.claims.document import load
from lightbox.claims.gate import judge_gate
from lightbox.claims.spec import Claim, Gate, Kind, Measure, Role, Verdict, difference
from lightbox.claims.statistics import effect_of
from lightbox.claims.verdicts import decide

DISAGREEMENT = 0.25  # share of items on which two arms differ
BASELINE_MEAN = 0.5
LEAD = 0.2  # of a trained arm over the strongest baseline
CONTROL_EFFECT = 0.1  # of the arm over its control, where the control is planted to hold

MEASURES = {name: Measure(name) for name in ("arm", "rival", "control", "majority")}
CLAIM = Claim(
    paper="simulation",
    id="S1",
    kind=Kind.DIRECTIONAL,
    statement="The arm is better than its rival",
    location="nowhere",
    paper_numbers="not found",
    contrasts=(
        difference("arm minus rival", MEASURES["arm"], MEASURES["rival"]),
        difference("arm minus control", MEASURES["arm"], MEASURES["control"], Role.CONTROL),
    ),
    gate=Gate(arms=(MEASURES["arm"],), baselines=(MEASURES["majority"],)),
)
LEAD_CONTRAST = difference("lead", MEASURES["arm"], MEASURES["majority"], Role.SECONDARY)


@dataclass(frozen=True)
class World:
    """A true state of affairs and the size of the experiment that looks at it.

    Args:
        seeds: seeds an experiment.
        items: test items a seed.
        seed_sd: standard deviation of a seed's own effect, as a fraction (0.02 = 2 points).
        effect: true effect of arm over rival. `control_effect`: of arm over control. `lead`: over the baseline.
    """

    seeds: int
    items: int
    seed_sd: float
    effect: float = 0.0
    control_effect: float = CONTROL_EFFECT
    lead: float = LEAD


@dataclass(frozen=True)
class Tally:
    """How experiments in one world came out: verdicts by name, and how often the interval held the true effect."""

    world: World
    experiments: int
    verdicts: dict[str, int]
    covered: int

    def share(self, verdict: Verdict) -> float:
        """Share of experiments with a verdict, in [0, 1]."""
        return self.verdicts.get(str(verdict), 0) / self.experiments

    @property
    def coverage(self) -> float:
        """Share of 95 % intervals of the primary contrast that hold the true effect, in [0, 1]."""
        return self.covered / self.experiments


def simulate(world: World, *, experiments: int, seed: int = 0) -> Tally:
    """Run and decide many experiments in one world; the same arguments give the same tally.

    Args:
        world: what is true.
        experiments: how many, at least 1; about 0.2 ms each.
        seed: of the random numbers.
    """
    rng = np.random.default_rng(seed)
    primary, control, lead = (
        draw_differences(world, true, experiments, rng) for true in (world.effect, world.control_effect, world.lead)
    )
    verdicts: Counter[str] = Counter()
    covered = 0
    for row in range(experiments):
        verdict, (low, high) = decide_one(primary[row], control[row], lead[row], items=world.items)
        verdicts[str(verdict)] += 1
        covered += low <= world.effect <= high
    return Tally(world, experiments, dict(verdicts), covered)


def draw_differences(world: World, effect: float, experiments: int, rng: np.random.Generator) -> np.ndarray:
    """d_s of each experiment and seed, experiments x seeds: the mean of `items` differences of -1, 0 or 1."""
    own = rng.normal(effect, world.seed_sd, size=(experiments, world.seeds))
    apart = max(DISAGREEMENT, abs(effect))  # a large effect needs enough items to differ on
    gain = np.clip((apart + own) / 2, 0, apart)
    counts = rng.multinomial(world.items, np.stack([gain, apart - gain, np.full_like(gain, 1 - apart)], axis=-1))
    return (counts[..., 0] - counts[..., 1]) / world.items


def decide_one(
    primary: np.ndarray, control: np.ndarray, lead: np.ndarray, *, items: int
) -> tuple[Verdict, tuple[float, float]]:
    """Decide one experiment from the d_s of its contrasts and of the gate; its verdict and primary interval."""
    seeds = range(primary.size)
    effects = [
        effect_of(contrast, d, seeds=seeds, items=items, min_effect=CLAIM.min_effect)
        for contrast, d in zip(CLAIM.contrasts, (primary, control), strict=True)
    ]
    ahead = effect_of(LEAD_CONTRAST, lead, seeds=seeds, items=items, min_effect=CLAIM.gate.margin)
    best, baseline = ("arm", BASELINE_MEAN + ahead.effect), ("majority", BASELINE_MEAN)
    gate = judge_gate(CLAIM.gate, ahead, best=best, baseline=baseline)
    return decide(CLAIM, effects, gate, planned_seeds=primary.size).verdict, effects[0].ci95


def power_table(
    effects: Sequence[float],
    seed_sds: Sequence[float],
    *,
    seeds: Sequence[int] = (5, 8),
    items: Sequence[int] = (500, 2000),
    experiments: int = 500,
) -> list[Tally]:
    """Tallies for each size and seed SD, and within it each true effect.

    Args:
        effects: true effects, as fractions.
        seed_sds: between-seed SDs, as fractions; `pilot_sds` reads them from results.
        seeds: seeds an experiment.
        items: test items a seed.
        experiments: per cell.
    """
    cells = itertools.product(seeds, items, seed_sds, effects)
    return [simulate(World(*cell), experiments=experiments, seed=place) for place, cell in enumerate(cells)]


def pilot_sds(path: Path) -> dict[str, float]:
    """Between-seed SD, as a fraction, of each primary contrast of a `results.json` whose unit is points.

    Raises:
        RequestError: where the file is no results document.
    """
    return {
        f"{claim.paper} {claim.id}, {contrast.name}": contrast.between_sd / 100
        for claim in load(path).claims
        for contrast in claim.contrasts
        if claim.unit == "points" and contrast.role is Role.PRIMARY and contrast.between_sd is not None
    }
