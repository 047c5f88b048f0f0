"""Do the verdict rules keep their promises? Simulated experiments, decided by the real rules. No torch.

A simulated experiment draws d_s, the mean paired difference of each seed, and hands it to `effect_of`, `judge_gate` and
`decide`, as a real one does. Scores are right or wrong: an item's difference is -1, 0 or 1, and two arms disagree on a
quarter of the items, so its standard deviation is 0.5. A seed's own effect is normal around the true one.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from lightbox.claims.budget import Convergence, convergence
from lightbox.claims.document import load
from lightbox.claims.gate import judge_gate
from lightbox.claims.spec import Claim, Contrast, Gate, Kind, Measure, Role, Verdict, difference
from lightbox.claims.statistics import Effect, effect_of
from lightbox.claims.verdicts import decide

DISAGREEMENT = 0.25  # share of items on which two arms differ
BASELINE_MEAN = 0.5
LEAD = 0.2  # of a trained arm over the strongest baseline
CONTROL_EFFECT = 0.1  # of the arm over its control, where the control is planted to hold

PILOT_SEEDS, PILOT_ITEMS = 3, 500
LADDER = np.array([0.125, 0.25, 0.5, 1.0])  # budgets of the pilot, as shares of its last
RUN = 4  # the third of them, where the last is 8

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
        verdict, (low, high) = decide_one([primary[row], control[row]], lead[row], items=world.items)
        verdicts[str(verdict)] += 1
        covered += low <= world.effect <= high
    return Tally(world, experiments, dict(verdicts), covered)


def draw_differences(
    world: World, effect: float | np.ndarray, experiments: int, rng: np.random.Generator
) -> np.ndarray:
    """d_s of each experiment and seed, experiments x seeds: the mean of `items` differences of -1, 0 or 1.

    `effect` is one number, or one a row.
    """
    own = rng.normal(effect, world.seed_sd, size=(experiments, world.seeds))
    apart = np.maximum(DISAGREEMENT, np.abs(effect))  # a large effect needs enough items to differ on
    gain = np.clip((apart + own) / 2, 0, apart)
    counts = rng.multinomial(world.items, np.stack([gain, apart - gain, 1 - apart + 0 * gain], axis=-1))
    return (counts[..., 0] - counts[..., 1]) / world.items


def decide_one(
    own: Sequence[np.ndarray],
    lead: np.ndarray,
    *,
    items: int,
    claim: Claim = CLAIM,
    judged: Convergence | None = None,
) -> tuple[Verdict, tuple[float, float]]:
    """Decide one experiment from the d_s of its contrasts and of the gate; its verdict and primary interval."""
    effects = [_effect(contrast, d, items) for contrast, d in zip(claim.contrasts, own, strict=True)]
    ahead = effect_of(LEAD_CONTRAST, lead, seeds=range(lead.size), items=items, min_effect=CLAIM.gate.margin)
    best, baseline = ("arm", BASELINE_MEAN + ahead.effect), ("majority", BASELINE_MEAN)
    gate = judge_gate(CLAIM.gate, ahead, best=best, baseline=baseline)
    return decide(claim, effects, gate, planned_seeds=lead.size, convergence=judged).verdict, effects[0].ci95


def _effect(contrast: Contrast, d: np.ndarray, items: int) -> Effect:
    return effect_of(contrast, d, seeds=range(d.size), items=items, min_effect=CLAIM.min_effect)


@dataclass(frozen=True)
class Course:
    """How an effect goes with the training budget, in many experiments that each have a pilot.

    Args:
        name: for the table.
        effects: true effect of each experiment (rows) at the four budgets of the pilot; the run's is the third.
        has_control: True adds a control that is at `CONTROL_EFFECT` at every budget.
    """

    name: str
    effects: np.ndarray
    has_control: bool = True


def crossing(experiments: int, *, seed: int = 0) -> Course:
    """Two arms that learn as top - gap exp(-budget / tau); the better one is slower, and the sign turns late.

    It turns between 300 and 1,200 steps, and the pilot ends at the last doubling before that or earlier.
    """
    rng = np.random.default_rng(seed)
    rows = []
    while len(rows) < experiments:
        lead, gap, tau = rng.uniform(0.03, 0.12), rng.uniform(0.15, 0.35), rng.uniform(50, 400)
        slower = tau * rng.uniform(1.2, 4)
        at = partial(_exponentials, lead=lead, gap=gap, tau=tau, slower=slower)
        budgets = np.geomspace(20, 6000, 400)
        below = budgets[at(budgets) < 0]
        if below.size and 300 <= below[-1] <= 1200 and at(budgets).min() < -CLAIM.min_effect:
            rows.append(at(below[-1] / 2 ** rng.uniform(0, 1) * LADDER))
    return Course("two arms that cross", np.array(rows), has_control=False)


def _exponentials(budget: np.ndarray, *, lead: float, gap: float, tau: float, slower: float) -> np.ndarray:
    return lead - (gap + lead) * np.exp(-budget / slower) + gap * np.exp(-budget / tau)


def late(experiments: int, *, seed: int = 0) -> Course:
    """An arm that gets 8 points ahead late, as a sigmoid of the log budget; the pilot ends before it is half-way."""
    rng = np.random.default_rng(seed)
    ends, width = rng.uniform(0, 1, (experiments, 1)), rng.uniform(0.15, 0.4, (experiments, 1))
    return Course("an arm that learns late", 0.08 / (1 + np.exp((np.log(2) * ends - np.log(LADDER)) / width)), False)


def flat(effect: float, experiments: int) -> Course:
    """The same effect at every budget."""
    return Course(f"{effect * 100:+g} points at every budget", np.full((experiments, 4), effect))


def simulate_course(course: Course, world: World, *, seed: int = 0) -> Tally:
    """Run and decide experiments whose effect depends on the budget, each with a pilot of its own.

    Args:
        course: what is true.
        world: seeds, items and seed SD of the run; a pilot has `PILOT_SEEDS` seeds of `PILOT_ITEMS` items, whose own
            effects are drawn anew at every budget.
        seed: of the random numbers.
    """
    rng, count = np.random.default_rng(seed), len(course.effects)
    claim = CLAIM if course.has_control else replace(CLAIM, contrasts=CLAIM.contrasts[:1])
    small = replace(world, seeds=PILOT_SEEDS, items=PILOT_ITEMS)
    true = [course.effects, np.full_like(course.effects, CONTROL_EFFECT)][: len(claim.contrasts)]
    runs = [draw_differences(world, of[:, 2:3], count, rng) for of in true]
    pilots = [[draw_differences(small, of[:, [k]], count, rng) for k in range(4)] for of in true]
    lead = draw_differences(world, LEAD, count, rng)
    verdicts: Counter[str] = Counter()
    for row in range(count):
        ladders = {
            contrast.name: {int(b): _effect(contrast, pilot[k][row], small.items) for k, b in enumerate(8 * LADDER)}
            for contrast, pilot in zip(claim.contrasts, pilots, strict=True)
        }
        judged = convergence(claim, ladders, RUN)
        own = [run[row] for run in runs]
        verdicts[str(decide_one(own, lead[row], items=world.items, claim=claim, judged=judged)[0])] += 1
    return Tally(world, count, dict(verdicts), 0)


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
