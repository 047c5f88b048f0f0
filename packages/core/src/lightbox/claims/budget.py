"""Is a claim on its plateau? Rows of the pilot -> effects by training budget -> the rule. No torch.

A contrast *moves* from one budget to a later one if its effect comes nearer to zero, or crosses it, by the minimum
effect m or more; one that lies within m moves if it changes by m in any direction. A growing effect may go on growing.
A claim is on its plateau at a budget if the pilot goes to twice that, and no link, control or premise moves from there
to any later budget of the pilot. Where a preset also runs half its budget on the verdict's own seeds, nothing may move
from there either. The declared budget is the smallest on the plateau.

That rule reads means, and a pilot of few seeds misses movements: of simulated arms that cross after the pilot ends
(`benchmarks/verdict_engine.py`, page `docs/power.md`), up to three in ten kept "contradicted" under it alone. So a
negative verdict (absent, control failed, contradicted) stands only where the pilot rules the movement out: for the
contrasts it rests on, the 95 % interval of each movement, its standard deviation pooled over the doublings of the
ladder, stays under m. Then at most 2.5 % keep it. The price is that three seeds seldom rule anything out, so that most
true negative effects come out still learning too; and no rule on one doubling sees a turn that begins with less than m.

A row of the pilot speaks for a run of the same source and settings (`settings_digest`), or of one that counts as the
same (`claims.same_source`).
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lightbox.claims.same_source import Made, SameSources, load_same_sources
from lightbox.claims.spec import Claim, Contrast, Measure, PaperClaims, Role, at_budget
from lightbox.claims.statistics import Effect, effect_of
from lightbox.errors import RequestError
from lightbox.eval.intervals import t_quantile
from lightbox.files import digest, replace_text
from lightbox.runs.key import effective

FILE = "budget.csv"
FEWEST = 4
LEVEL = 0.975
ROUNDING = 1e-12
FREE = ("run.seed", "run.device", "run.threads", "optim.lr", "data.eval_split", "data.n_test")
"""Config keys, beside the budget, in which a pilot may differ from the run that it speaks for."""

Ladder = Mapping[int, Effect]
"""Effects of one contrast by budget, ascending."""


@dataclass(frozen=True)
class PilotRow:
    """Mean of one measure on one job of the pilot.

    Args:
        arm, seed: of the job; budget: its value of the axis, 0 for an arm whose scores no budget changes.
        metric, condition, where: what was measured, written out; mean: of its `items` validation items.
        lr: learning rate, "" where nothing is trained.
        key, commit, source, settings: of the job.
    """

    arm: str
    seed: int
    budget: int
    metric: str
    condition: str
    where: str
    mean: float
    items: int
    lr: str
    key: str
    commit: str
    source: str
    settings: str

    @property
    def place(self) -> tuple[str, int, int, str, str, str]:
        """What the row is about; a newer row about it takes its place."""
        return self.arm, self.seed, self.budget, self.metric, self.condition, self.where


COLUMNS = [column.name for column in fields(PilotRow)]


class Origin(Made, Protocol):
    """What a job says of itself for its pilot: its training budget, and how it was made (`settings_digest`)."""

    @property
    def budget(self) -> int | None: ...


@dataclass(frozen=True)
class Pilot:
    """The pilot of a paper: its file, the rows in it, what the paper declares, and which sources count as one."""

    path: Path
    rows: tuple[PilotRow, ...]
    claims: PaperClaims
    same: SameSources = SameSources()


@dataclass(frozen=True)
class Convergence:
    """Whether a claim is on its plateau at the budget of a run.

    Args:
        axis: config leaf that is the budget; budget: its value in the run, 0 where that is not recorded.
        plateau: smallest budget on the plateau in the pilot; None where there is none.
        is_on_plateau: at `budget`; reason: why not, "" where it is.
        unsettled: links and controls whose movement the pilot does not rule out: no negative verdict rests on them.
    """

    axis: str
    budget: int
    plateau: int | None = None
    is_on_plateau: bool = False
    reason: str = ""
    unsettled: tuple[str, ...] = ()

    def summary(self) -> str:
        """The budget, and whether the claim is on its plateau there, in one line."""
        at = f"{self.budget} {steps(self.axis)}"
        if not self.is_on_plateau:
            begins = f"; the plateau begins at {self.plateau}" if self.plateau else ""
            return f"{at}, not on the plateau: {self.reason}{begins}"
        open_ = f"; no negative verdict can rest on: {', '.join(self.unsettled)}" if self.unsettled else ""
        return f"{at}, on the plateau{open_}"


def steps(axis: str) -> str:
    """The unit of a budget axis, for sentences.

    Example:
        >>> steps("optim.max_steps")
        'steps'
    """
    return axis.rpartition(".")[2].removeprefix("max_")


def settings_digest(config: Mapping[str, Any], inputs: Mapping[str, str], axis: str) -> str:
    """Digest of what a run and the pilot that speaks for it must share: configuration, data and weights."""
    shared = {key: text for key, text in effective(config).items() if key not in (*FREE, axis)}
    return digest([shared, {name: text for name, text in inputs.items() if name != "device"}])[:20]


def load_pilot(root: Path, claims: PaperClaims) -> Pilot:
    """The pilot of a paper under a folder of results; without a file it has no rows.

    Raises:
        RequestError: where the file, or that of sources that count as one, holds something else.
    """
    path = root / claims.paper / FILE
    return Pilot(path, tuple(read_rows(path)), claims, load_same_sources(root, claims.paper))


def read_rows(path: Path) -> list[PilotRow]:
    """Rows of a pilot's file; [] where there is none.

    Raises:
        RequestError: where the file holds something else, or two rows about the same.
    """
    if not path.exists():
        return []
    rows: dict[tuple, PilotRow] = {}
    try:
        for cells in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")), strict=True):
            numbers = {"seed": int(cells["seed"]), "budget": int(cells["budget"]), "items": int(cells["items"])}
            row = PilotRow(**{name: cells[name] for name in COLUMNS} | numbers | {"mean": float(cells["mean"])})
            if row.place in rows or None in cells.values() or not np.isfinite(row.mean):
                raise ValueError("a cell is missing, its mean is no number, or an earlier row is about the same")
            rows[row.place] = row
    except (KeyError, TypeError, ValueError, csv.Error) as err:
        raise RequestError(
            f"The pilot is {path}",
            f"Line {len(rows) + 2} is no row of it ({type(err).__name__}: {err})",
            "Restore the file from git, or delete it and run the pilot again",
        ) from err
    return list(rows.values())


def merge_rows(path: Path, new: Sequence[PilotRow]) -> None:
    """Add rows to a pilot's file; one about the same arm, seed, budget and measure is replaced."""
    rows = {row.place: row for row in (*read_rows(path), *new)}
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(rows[place]) for place in sorted(rows))
    replace_text(path, buffer.getvalue())


def written(where: Sequence[tuple[str, str]]) -> str:
    """Further columns of a measure with their values, as a cell of the file."""
    return "; ".join(f"{column}={value}" for column, value in where)


def deciding(claim: Claim) -> list[Contrast]:
    """Links, controls and premises."""
    return [contrast for contrast in claim.contrasts if contrast.role is not Role.SECONDARY]


def at(contrast: Contrast, budget: int, claims: PaperClaims) -> Contrast:
    """The contrast at another budget than the preset's; arms that no budget changes stay."""
    terms = [
        (w, replace(m, arm=at_budget(m.arm, budget)) if m.arm in claims.budgeted else m) for w, m in contrast.terms
    ]
    return replace(contrast, terms=tuple(terms))


def levels(contrasts: Sequence[Contrast]) -> list[Contrast]:
    """What contrasts compare, each measure as a contrast of its own: its label, with the metric where that has several.

    Example:
        >>> from lightbox.claims.spec import difference
        >>> contrast = difference("gain", Measure("vl", "region"), Measure("vl", "chance"))
        >>> [one.name for one in levels([contrast])]
        ['vl region', 'vl chance']
    """
    measures = list(dict.fromkeys(m for contrast in contrasts for _, m in contrast.terms))
    labels = [m.label for m in measures]
    names = [m.label if labels.count(m.label) == 1 else f"{m.label} {m.metric}".rstrip() for m in measures]
    return [Contrast(name, ((1.0, m),), Role.SECONDARY) for name, m in zip(names, measures, strict=True)]


def pilot_ladders(
    claim: Claim, contrasts: Sequence[Contrast], pilot: Pilot, origins: Mapping[str, Origin]
) -> dict[str, Ladder]:
    """Effects of some contrasts by budget, as the pilot measured them.

    Args:
        claim: whose contrasts they are.
        contrasts: which.
        pilot: of its paper.
        origins: a job of each arm of the run that the pilot shall speak for.

    Raises:
        RequestError: where an arm has no rows, or none of the run's configuration and source; where learning rates mix;
            where there are fewer than `FEWEST` budgets; where the terms of a contrast have other items.
    """
    arms = dict.fromkeys(m.arm for contrast in contrasts for _, m in contrast.terms)
    means = {row.place: row for arm in arms for row in _rows_of(arm, claim, pilot, origins[arm])}
    budgets = sorted({row.budget for row in means.values()} - {0})
    if len(budgets) < FEWEST:
        names = ", ".join(map(str, budgets))
        raise _refusal(claim, pilot, f"Its ladder is {names}, and a plateau is judged from {FEWEST} budgets or more")
    ladders = {c.name: {b: _pilot_effect(c, b, means, claim, pilot) for b in budgets} for c in contrasts}
    return {name: {b: effect for b, effect in ladder.items() if effect.seeds} for name, ladder in ladders.items()}


def _rows_of(arm: str, claim: Claim, pilot: Pilot, origin: Origin) -> list[PilotRow]:
    rows = [row for row in pilot.rows if row.arm == arm]
    if not rows:
        raise _refusal(claim, pilot, f"It holds no row of arm '{arm}'" if pilot.rows else "There is no such file")
    own = [row for row in rows if pilot.same.count_as_one(arm, row, origin)]
    if not own:
        is_configured_so = any(row.settings == origin.settings for row in rows)
        what = "made by another source" if is_configured_so else "made with another configuration"
        raise _refusal(claim, pilot, f"Its rows of arm '{arm}' were {what} than the run's")
    rows = own
    if len(rates := {row.lr for row in rows}) > 1:
        raise _refusal(claim, pilot, f"Its rows of arm '{arm}' mix the learning rates {', '.join(sorted(rates))}")
    return rows


def _pilot_effect(
    contrast: Contrast, budget: int, means: Mapping[tuple, PilotRow], claim: Claim, pilot: Pilot
) -> Effect:
    """Effect of one contrast at one budget; its seeds are those with every term."""
    seeds = sorted({row.seed for row in means.values()})
    terms = {seed: [means.get(place_of(m, seed, budget, pilot.claims)) for _, m in contrast.terms] for seed in seeds}
    rows = {seed: [row for row in found if row is not None] for seed, found in terms.items() if None not in found}
    for seed, found in rows.items():
        if contrast.is_paired and len({row.items for row in found}) > 1:
            counts = ", ".join(f"{row.arm} {row.items}" for row in found)
            raise _refusal(claim, pilot, f"'{contrast.name}' pairs unequal numbers of items at seed {seed}: {counts}")
    weights = [weight for weight, _ in contrast.terms]
    return effect_of(
        contrast,
        [sum(w * row.mean for w, row in zip(weights, found, strict=True)) for found in rows.values()],
        seeds=tuple(rows),
        items=min((found[0].items for found in rows.values()), default=0),
        min_effect=claim.min_effect,
    )


def place_of(measure: Measure, seed: int, budget: int, claims: PaperClaims) -> tuple[str, int, int, str, str, str]:
    """`PilotRow.place` of a measure."""
    own = budget if measure.arm in claims.budgeted else 0
    metric, condition = measure.metric or claims.headline, measure.condition or claims.condition
    return measure.arm, seed, own, metric, condition, written(measure.where)


def _refusal(claim: Claim, pilot: Pilot, why: str, ladder: str = "") -> RequestError:
    do = f"Run `python -m lightbox.claims.pilot {claim.paper} --claims {claim.id}`{ladder}"
    name = Path(*pilot.path.parts[-3:])  # a document that quotes it shall not name a folder of this machine
    return RequestError(f"The pilot of {claim.id} is {name}", why, do)


def judge(
    claim: Claim, run: int, pilot: Pilot, origins: Mapping[str, Origin], own: Mapping[str, Ladder] | None = None
) -> tuple[Convergence, dict[str, Ladder]]:
    """Apply the rules of this module to a run.

    Args:
        claim: with a budget.
        run: budget of the run.
        pilot: of its paper.
        origins: a job of each arm of the run.
        own: effects on the verdict's own seeds by budget; None where the preset runs its own budget alone.

    Returns:
        The judgement, and the pilot's ladders of links and controls. A pilot that does not speak for the run has none,
        and why is the reason of the judgement.
    """
    try:
        ladders = pilot_ladders(claim, deciding(claim), pilot, origins)
        if any(run not in ladder or 2 * run not in ladder for ladder in ladders.values()):
            why = f"The run trains for {run} {steps(claim.budget)}, and it needs that budget and {2 * run}"
            raise _refusal(claim, pilot, why, " with both on its ladder (--budgets)")
    except RequestError as err:
        return Convergence(claim.budget, run, reason=f"no pilot: {err}"), {}
    judged = convergence(claim, ladders, run)
    if own is not None and judged.is_on_plateau:
        reason = own_movement(claim, {name: own.get(name, {}) for name in ladders}, run)
        judged = replace(judged, is_on_plateau=not reason, reason=reason)
    return judged, ladders


def own_movement(claim: Claim, own: Mapping[str, Ladder], run: int) -> str:
    """What moves from half the budget of a run on the verdict's own seeds; "" where nothing does."""
    half = run // 2
    if any(half not in ladder or ladder[half].seeds != ladder[run].seeds for ladder in own.values()):
        return f"half the budget of {run} {steps(claim.budget)} has not ended on every seed"
    last = {name: {half: ladder[half], run: ladder[run]} for name, ladder in own.items()}
    moved = "; ".join(movements(claim, last, half))
    return moved and f"on the verdict's own seeds {moved}"


def convergence(claim: Claim, ladders: Mapping[str, Ladder], budget: int) -> Convergence:
    """Whether a claim is on its plateau at a budget of the pilot."""
    budgets = sorted(set.intersection(*(set(ladder) for ladder in ladders.values())))
    plateau = next((b for b in budgets if 2 * b in budgets and not movements(claim, ladders, b)), None)
    premises = {contrast.name for contrast in claim.by_role(Role.PREMISE)}  # no verdict rests on the sign of one
    unsettled = [
        name for name, ladder in ladders.items() if name not in premises and moving(ladder, budget, slack=True)
    ]
    moved = movements(claim, ladders, budget)
    return Convergence(claim.budget, budget, plateau, not moved, "; ".join(moved), tuple(unsettled))


def movements(claim: Claim, ladders: Mapping[str, Ladder], budget: int) -> list[str]:
    """One sentence for each contrast that moves from a budget to a later one; [] on the plateau."""
    sentences = []
    for name, ladder in ladders.items():
        if later := moving(ladder, budget):
            before, after = (_mean(ladder[b], ladder[b].seeds) * claim.unit_scale for b in (budget, later))
            change = f"from {before:+.1f} to {after:+.1f} {claim.unit}"
            sentences.append(f"'{name}' moves {change} between {budget} and {later} {steps(claim.budget)}")
    return sentences


def moving(ladder: Ladder, budget: int, *, slack: bool = False) -> int | None:
    """The first later budget to which a contrast moves, None where it stays.

    Args:
        ladder: effects of one contrast.
        budget: where from.
        slack: True adds the half-width of its interval to each movement, and so asks which one is not ruled out.
    """
    if budget not in ladder:
        return None
    start = ladder[budget]
    spread = movement_spread(ladder) if slack else 0.0
    for later in (b for b in ladder if b > budget):
        shared = [seed for seed in start.seeds if seed in ladder[later].seeds]
        before, after = (_mean(effect, shared) for effect in (start, ladder[later]))
        is_within = abs(before) < start.min_effect - ROUNDING
        away = abs(after - before) if is_within else np.sign(before) * (before - after)
        if not shared or away + spread / len(shared) ** 0.5 >= start.min_effect - ROUNDING:
            return later
    return None


def movement_spread(ladder: Ladder) -> float:
    """Half-width of the 95 % interval of the movement of one seed, its SD pooled over the ladder's doublings.

    Over n seeds the interval of a movement is narrower by the root of n. Infinite where no doubling has two seeds.
    """
    squares, degrees = 0.0, 0
    for first, second in zip(list(ladder.values()), list(ladder.values())[1:], strict=False):
        a, b = (dict(zip(effect.seeds, effect.per_seed, strict=True)) for effect in (first, second))
        moved = np.array([b[seed] - a[seed] for seed in a if seed in b])
        if moved.size > 1:
            squares, degrees = squares + moved.var() * moved.size, degrees + moved.size - 1
    return t_quantile(LEVEL, degrees) * float(np.sqrt(squares / degrees)) if degrees else float("inf")


def _mean(effect: Effect, seeds: Sequence[int]) -> float:
    own = dict(zip(effect.seeds, effect.per_seed, strict=True))
    return float(np.mean([own[seed] for seed in seeds])) if seeds else 0.0
