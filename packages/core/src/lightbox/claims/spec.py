"""What a paper claims, as data: arms, measures, contrasts, gate, claim. No torch; written before the model is.

An *arm* is a named list of Hydra overrides. A *measure* reads one per-item score column of one arm under one condition;
which column and condition those are where it names none, the paper declares.
A *contrast* is a weighted sum of measures, paired item by item within a seed: a plain difference has weights +1, -1; a
slope or a difference of differences has others.
"""

from dataclasses import dataclass, field
from enum import StrEnum

PHANTOM, REAL = "phantom", "real"
BEST = "{best}"  # in place of an arm: whichever candidate of the gate has the highest mean


class Kind(StrEnum):
    """How a claim is decided (DESIGN section 5)."""

    DIRECTIONAL = "directional"
    CHAIN = "chain"
    PATTERN = "pattern"
    EQUIVALENCE = "equivalence"
    EXACT = "exact"


class Role(StrEnum):
    """What a contrast does for its claim: decides or guards it, must hold for a test, or is shown beside it."""

    PRIMARY = "primary"
    CONTROL = "control"
    PREMISE = "premise"
    SECONDARY = "secondary"


class Verdict(StrEnum):
    """The possible outcomes, in order of test (DESIGN section 5); NONE is a run too small for a verdict."""

    NOT_TESTABLE = "not testable"
    ABSENT = "absent"
    REPRODUCED = "reproduced"
    CONTROL_FAILED = "control failed"
    CONTRADICTED = "contradicted"
    STILL_LEARNING = "still learning"
    INCONCLUSIVE = "inconclusive"
    NONE = "no verdict"


@dataclass(frozen=True)
class Arm:
    """One training or evaluation condition.

    Args:
        name: short, unique in the paper.
        title: a phrase for tables.
        overrides: Hydra overrides that make the arm differ; nothing else may.
        needs: arms of the same seed whose finished job directories this arm reads.
        is_trained: False for evaluation-only arms and baselines.
        rate_of: takes the tuned learning rate of this arm, "" has its own: doses of one arm share a rate.
        tuned_under: condition of the scores that choose its rate; "" is the paper's.
    """

    name: str
    title: str
    overrides: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    is_trained: bool = True
    rate_of: str = ""
    tuned_under: str = ""


def at_budget(arm: str, budget: int) -> str:
    """Name of an arm at another budget than the preset's; 0 is the arm itself."""
    return f"{arm}@{budget}" if budget else arm


def base_arm(name: str) -> tuple[str, int]:
    """Undo `at_budget`: the arm and the budget, 0 for the preset's own."""
    arm, _, budget = name.partition("@")
    return arm, int(budget or 0)


@dataclass(frozen=True)
class Measure:
    """A per-item score column of one arm.

    Args:
        arm: its name.
        metric: the column; "" is the paper's headline.
        condition: the rows; "" are those of the paper's default condition.
        where: further columns of the rows with the value each must have, such as ("kind", "count").
    """

    arm: str
    metric: str = ""
    condition: str = ""
    where: tuple[tuple[str, str], ...] = ()

    @property
    def label(self) -> str:
        """Name for tables: the arm, with the condition and the values where they are not the paper's default."""
        narrowed = [part for part in (self.condition, *(value for _, value in self.where)) if part]
        return f"{self.arm} [{', '.join(narrowed)}]" if narrowed else self.arm


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of measures, paired item by item.

    `role` says what it does for the claim. `terms` are (weight, measure). `min_effect` None takes the claim's. Where
    `is_paired` is False, the terms hold other items, such as images of another lesion size, and means are combined.
    """

    name: str
    terms: tuple[tuple[float, Measure], ...]
    role: Role = Role.PRIMARY
    min_effect: float | None = None
    is_paired: bool = True

    @property
    def arm(self) -> str:
        """Name of the first arm with a positive weight."""
        return next(m.arm for w, m in self.terms if w > 0)

    @property
    def rival(self) -> str:
        """Name of the first arm with a negative weight, or "" where there is none."""
        return next((m.arm for w, m in self.terms if w < 0), "")


def difference(name: str, arm: Measure | str, rival: Measure | str, role: Role = Role.PRIMARY) -> Contrast:
    """`arm` minus `rival`, the usual contrast."""
    arm, rival = (Measure(m) if isinstance(m, str) else m for m in (arm, rival))
    return Contrast(name, ((1.0, arm), (-1.0, rival)), role)


@dataclass(frozen=True)
class Gate:
    """Can the claim be tested at all? The best arm must beat the strongest baseline and stay under the ceiling.

    Args:
        arms: candidate measures, oracles excluded; the best mean is "the best arm".
        baselines: sanity baselines (majority, question-only, blank image, shuffled image). A baseline whose arm is
            "{best}" is read from the best arm.
        margin: by how much the best arm must beat the strongest baseline (units of the metric as recorded).
        ceiling: the metric's maximum.
        headroom: how far under the ceiling the best arm must stay.
    """

    arms: tuple[Measure, ...]
    baselines: tuple[Measure, ...]
    margin: float = 0.05
    ceiling: float = 1.0
    headroom: float = 0.02


@dataclass(frozen=True)
class Claim:
    """One claim of a paper and the experiment that decides it.

    `statement` is ours, in one sentence. `location` says where the paper makes it. `paper_numbers` are the paper's own
    values, or "not found". `min_effect` is in the metric's recorded unit (0.02 = 2 points of accuracy); for kind
    equivalence it is the margin. `unit_scale` and `unit` say how numbers are printed (100, "points"). `presets` lists
    the size presets that run it, `seeds` how many seeds each takes. `bound` is for kind exact: the number must be at
    least the bound, or at most where `is_upper_bound`. `min_items` is the fewest items a seed a verdict may rest on.
    `caveats` are what a reader of the verdict must know, one sentence each, such as what is true by construction.
    `images` is PHANTOM or REAL, and says what the verdict is about.
    `budget` is the config leaf that says how long the arms train, "" where the claim has no training budget. Its value
    is the preset's, or what `budget_by_preset` says; `ladder` says, by preset, at which shares of it the verdict's own
    seeds run too.
    """

    paper: str
    id: str
    kind: Kind
    statement: str
    location: str
    paper_numbers: str
    contrasts: tuple[Contrast, ...]
    gate: Gate | None
    min_effect: float = 0.02
    unit: str = "points"
    unit_scale: float = 100.0
    is_primary: bool = False
    presets: tuple[str, ...] = ("smoke", "full")
    note: str = ""
    bound: float | None = None
    seeds: dict[str, int] = field(default_factory=lambda: {"smoke": 1, "quick": 5, "full": 5})
    is_upper_bound: bool = False
    min_items: int = 100
    caveats: tuple[str, ...] = ()
    images: str = PHANTOM
    budget: str = "optim.max_steps"
    budget_by_preset: dict[str, int] = field(default_factory=dict)
    ladder: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def by_role(self, role: Role) -> tuple[Contrast, ...]:
        """Contrasts of one role, in the order declared."""
        return tuple(c for c in self.contrasts if c.role is role)

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of every arm that a contrast or the gate reads, each once, in order; "{best}" left out."""
        measures = [m for c in self.contrasts for _, m in c.terms]
        if self.gate is not None:
            measures += [*self.gate.arms, *self.gate.baselines]
        return tuple(dict.fromkeys(m.arm for m in measures if m.arm != BEST))

    def reads(self, arm: str) -> bool:
        """True where a contrast or the gate reads the arm, at whatever budget."""
        return base_arm(arm)[0] in self.arms


@dataclass(frozen=True)
class PaperClaims:
    """What `<paper>.claims.PAPER` holds: arms by name, claims in order, and what a run of the paper is judged by.

    Args:
        paper: its name; title and arxiv: the article's; arxiv is "" where there is none.
        arms: by name; they are what `experiment=NAME` means.
        claims: in the order they are shown.
        headline: metric column that is shown for a run and read by a measure that names none; more is better.
        condition: under which a run is judged, and which a measure reads that names none.
        default_arm: what `experiment` is where nobody says.
        balanced_by: column of the scores whose groups weigh alike in every mean, such as "kind": an effect then is not
            that of the commonest question; "" weighs items alike.
        tuning: metric columns, more is better; the first that an arm has chooses its learning rate. () is the headline.
    """

    paper: str
    title: str
    arxiv: str
    arms: dict[str, Arm]
    claims: tuple[Claim, ...]
    headline: str
    condition: str
    default_arm: str
    tuning: tuple[str, ...] = ()
    balanced_by: str = ""

    @property
    def budget(self) -> str:
        """The budget axis of its claims, of which a paper has one; "" where no claim has any."""
        return next((claim.budget for claim in self.claims if claim.budget), "")

    @property
    def budgeted(self) -> frozenset[str]:
        """Arms whose scores depend on the training budget: trained ones, and those that need one."""

        def depends(name: str) -> bool:
            return self.arms[name].is_trained or any(depends(need) for need in self.arms[name].needs)

        return frozenset(name for name in self.arms if depends(name))

    def claim(self, claim_id: str) -> Claim | None:
        """The claim with this id, or None."""
        return next((c for c in self.claims if c.id == claim_id), None)
