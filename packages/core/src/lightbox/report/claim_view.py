"""What the page shows of a claim beside the numbers of its entry: chip, deciding intervals, figures. No torch."""

import textwrap
from dataclasses import dataclass
from functools import cached_property

from lightbox.claims.budget import steps
from lightbox.claims.document import ClaimEntry, ContrastEntry, Document, Level
from lightbox.claims.spec import Claim, Kind, Measure, PaperClaims, Role, Verdict
from lightbox.claims.verdicts import PRESETS_WITHOUT_VERDICT
from lightbox.eval.intervals import t_interval
from lightbox.report import figures
from lightbox.report.numbers import decimals, interval, level, number, signed

WRAP, SHORT = 36, 70
FEWEST_CONDITIONS = 3
"""Under which an arm has to be measured for a figure of conditions."""
ROUNDING = 0.01
"""How far, in the claim's unit, an effect on a curve may lie from the difference of two arms on theirs."""


@dataclass(frozen=True)
class Chip:
    """A verdict or state as a chip; the mark tells it without colour."""

    label: str
    mark: str
    tone: str
    gloss: str


CHIPS = {
    Verdict(chip.label): chip
    for chip in (
        Chip("reproduced", "●", "good", "effect at least the minimum, interval above 0, every control holds"),
        Chip("absent", "○", "plain", "the interval lies inside the minimum effect"),
        Chip("contradicted", "▼", "bad", "the effect has the other sign, interval below 0"),
        Chip("control failed", "◆", "bad", "the effect is there, but a control does as well"),
        Chip("still learning", "◔", "open", "another verdict would hold, but more training moves the effect, or may"),
        Chip("inconclusive", "◐", "open", "the interval leaves it open"),
        Chip("not testable", "∅", "plain", "no arm beats the baselines, the task is solved, or a premise is missing"),
    )
}


class ClaimView:
    """A claim and what is made of it; a figure is drawn when it is first asked for.

    Args:
        claim: the entry, whose fields the template formats.
        document: for its preset and errors.
        label: what the claim is called on this page.
        declared: what its paper declares, which says what its levels are of; None where the paper is not installed.
    """

    def __init__(self, claim: ClaimEntry, document: Document, label: str, declared: PaperClaims | None = None) -> None:
        self.claim, self.label, self._declared = claim, label, declared
        self.anchor = f"{claim.paper}-{claim.id}"
        self.digits = decimals(claim.min_effect, claim.bound)
        self.chip = _chip(claim, document)
        self.links = [(link, self.interval(link)) for link in claim.links]
        self.caveats = [*claim.caveats, *_older(claim)]
        self.panel = _panel(claim, label)
        self.has_own_seeds = any(not curve.is_pilot for curve in claim.by_budget)
        self.turn = turn(claim)
        self.stopped_early = stopped_early(claim, self.digits)

    def interval(self, contrast: ContrastEntry) -> str:
        """The interval that decides a contrast."""
        if self.claim.kind is Kind.EXACT:
            return "exact, no interval"
        ends, percent = self.claim.deciding_interval(contrast)
        return interval(ends, self.digits, percent)

    @cached_property
    def figure(self) -> tuple[str, str] | None:
        """Arms and baselines."""
        return _level_figure(self.claim)

    @cached_property
    def by_kind(self) -> tuple[str, str] | None:
        """Arms by kind of item."""
        return _kind_figure(self.claim, self._declared) if self._declared is not None else None

    @cached_property
    def by_condition(self) -> tuple[str, str] | None:
        """Arms by what they were shown."""
        return _condition_figure(self.claim, self._declared) if self._declared is not None else None

    @cached_property
    def by_budget(self) -> tuple[str, str] | None:
        """Effects and scores by training budget."""
        return _budget_figure(self.claim)

    @property
    def gate_state(self) -> tuple[str, str, str]:
        """State, mark and tone; without a verdict a gate is not said to have failed, which too few seeds can cause."""
        is_decided = self.claim.verdict in CHIPS
        states = {True: ("passed", "✓", "good"), False: ("failed", "✗", "bad")}
        return states[self.claim.gate.passed] if is_decided else ("not decided", "…", "wait")


def _chip(claim: ClaimEntry, document: Document) -> Chip:
    if claim.verdict in CHIPS:
        return CHIPS[claim.verdict]
    if document.preset in PRESETS_WITHOUT_VERDICT:
        return Chip(f"{document.preset}: no verdict", "·", "plain", "this size only exercises the code")
    ended = min((len(contrast.per_seed) for contrast in claim.deciding_contrasts()), default=0)
    failed = sum(error.paper == claim.paper for error in document.errors)
    progress = f"{ended} of {claim.planned_seeds} seeds"
    if ended < claim.planned_seeds and failed:
        return Chip(f"incomplete, {progress}", "!", "bad", f"{failed} jobs failed")
    if ended < claim.planned_seeds and claim.older_source:  # committed, and nothing runs
        gloss = "its published runs lack what the claim asks for today; it has to be run again"
        return Chip(f"to be run again, {progress}", "·", "plain", gloss)
    if ended < claim.planned_seeds:
        return Chip(f"running, {progress}", "…", "wait", "drawn once every planned seed has ended")
    return Chip("no verdict", "·", "plain", claim.reason)


def _older(claim: ClaimEntry) -> list[str]:
    if claim.retrained:
        return [
            f"Made by an earlier source (commit {', '.join(claim.retrained)}). Today's trained one job of each "
            "of its arms again, and every score was the same, as published or as the earlier source gives it on the "
            "same processor."
        ]
    if not claim.older_source:
        return []
    return [f"An older result: its source, settings or data are not today's (commit {', '.join(claim.older_source)})."]


def _panel(claim: ClaimEntry, label: str) -> figures.ForestPanel:
    rows = []
    for contrast in claim.contrasts:
        if contrast.role == Role.SECONDARY and not contrast.rival:
            continue  # a mean and no difference: on the axis of effects it would press them together; the table has it
        published = contrast.published
        earlier = None
        if published is not None and published.effect is not None and published.ci95 is not None:
            earlier = (published.effect, *published.ci95)
        rows.append(
            figures.ForestRow(
                label=textwrap.fill(contrast.name, WRAP),
                role=contrast.role,
                effect=contrast.effect,
                interval=claim.deciding_interval(contrast)[0],
                per_seed=contrast.per_seed,
                published=earlier,
            )
        )
    statement = textwrap.shorten(claim.statement, SHORT, placeholder=" …")
    band = 0.0 if claim.kind is Kind.EXACT else claim.min_effect
    return figures.ForestPanel(label, statement, claim.unit, band, tuple(rows))


def turn(claim: ClaimEntry) -> str:
    """Where the sign of an effect turns with the training budget, in a sentence a link or control; "" where none does.

    An effect turns if it is beyond the minimum on one side, and beyond it on the other at a larger budget; the budgets
    named are those of the last change of sign.
    """
    sentences = []
    for curve in claim.by_budget:
        points = [(point.budget, point.mean) for point in curve.points]
        while points and abs(points[-1][1]) < claim.min_effect:
            points.pop()
        other = [i for i, (_, mean) in enumerate(points) if mean * points[-1][1] < 0]
        if curve.role == "arm" or all(abs(points[i][1]) < claim.min_effect for i in other):
            continue
        (low, _), (high, _) = points[other[-1] : other[-1] + 2]
        seeds = "in the pilot" if curve.is_pilot else "on the verdict's own seeds"
        sentences.append(f"'{curve.name}' turns its sign between {low} and {high} {steps(claim.budget or '')}, {seeds}")
    return "; ".join(sentences)


def budget_words(claim: ClaimEntry) -> str:
    """Training budget, whether the claim is on its plateau there, and where a sign turns."""
    judged = claim.convergence
    if judged is None:
        return "none" if claim.budget == "" else "no pilot"
    state = "on the plateau" if judged.is_on_plateau else "not on the plateau"
    budget = f"{judged.budget} {steps(judged.axis)}" if judged.budget else f"{steps(judged.axis)} not recorded"
    return "; ".join(text for text in (f"{budget}, {state}", turn(claim)) if text)


def stopped_early(claim: ClaimEntry, digits: int) -> str:
    """What each link would come to if each of its arms stopped at its own best budget of the pilot; "" without one.

    That is what early stopping on validation items would give. It decides nothing. Only budgets that both arms have,
    with as many seeds as any, can be compared. A link that is no difference of two arms, such as a fitted slope, is
    left out: its own curve tells.
    """
    curves = {curve.name: {p.budget: p for p in curve.points} for curve in claim.by_budget if curve.is_pilot}
    most = max((point.seeds for points in curves.values() for point in points.values()), default=0)
    sentences = []
    for link in claim.links:
        if not {link.name, link.arm, link.rival} <= curves.keys():
            continue
        own, arm, rival = (curves[name] for name in (link.name, link.arm, link.rival))
        shared = [b for b in own if b in arm and b in rival and min(arm[b].seeds, rival[b].seeds) == most]
        if not shared or any(abs(arm[b].mean - rival[b].mean - own[b].mean) > ROUNDING for b in shared):
            continue
        best, other = (max((points[b] for b in shared), key=lambda point: point.mean) for points in (arm, rival))
        at = f"{link.arm} at {best.budget}, {link.rival} at {other.budget} {steps(claim.budget or '')}"
        sentences.append(f"'{link.name}' {signed(best.mean - other.mean, digits)} {claim.unit}, {at}")
    return "; ".join(sentences)


def budget_lines(claim: ClaimEntry, *, is_arm: bool) -> tuple[figures.BudgetLine, ...]:
    """Scores of arms by training budget, or effects of links and controls."""
    return tuple(
        figures.BudgetLine(
            textwrap.fill(curve.name, WRAP),
            tuple((point.budget, point.mean, *(point.ci95 or (None, None))) for point in curve.points),
            curve.is_pilot,
        )
        for curve in claim.by_budget
        if curve.points and (curve.role == "arm") == is_arm
    )


def budget_alt(claim: ClaimEntry) -> str:
    """What a figure of effects against budget shows, for a reader who hears the page."""
    lines = budget_lines(claim, is_arm=False)
    texts = (f"{e.label} {', '.join(f'{level(mean)} at {b}' for b, mean, *_ in e.points)}" for e in lines)
    return f"Effect of {claim.id} against training budget: {'; '.join(texts)}."


def _budget_figure(claim: ClaimEntry) -> tuple[str, str] | None:
    """Effects and scores by training budget, and the alternative text; None where nothing was measured."""
    effects, scores = (budget_lines(claim, is_arm=is_arm) for is_arm in (False, True))
    if not effects:
        return None
    units, alt = (f"effect ({claim.unit})", f"score ({claim.unit})", claim.budget or ""), budget_alt(claim)
    return figures.data_uri(figures.by_budget(effects, scores, units=units, min_effect=claim.min_effect)), alt


def _level_figure(claim: ClaimEntry) -> tuple[str, str] | None:
    """Arms and baselines that share the first arm's metric, and the alternative text; None where no seed has ended."""
    metric = next((lv.metric for lv in claim.arms.values()), None)
    groups = [
        figures.Level(name, lv.per_seed, is_baseline=is_baseline)
        for is_baseline, levels in ((False, claim.shown_arms()), (True, claim.shown_baselines()))
        for name, lv in levels.items()
        if lv.metric == metric and lv.per_seed
    ]
    if not groups:
        return None
    means = ", ".join(f"{group.label} {level(sum(group.per_seed) / len(group.per_seed))}" for group in groups)
    svg = figures.levels(tuple(groups), unit=f"{metric} ({claim.unit})")
    return figures.data_uri(svg), f"Mean {metric} of arms and sanity baselines of {claim.id}: {means}."


def _kind_figure(entry: ClaimEntry, declared: PaperClaims) -> tuple[str, str] | None:
    """Arms by kind of item, for a claim whose contrasts ask for kinds, and the alternative text; None for others.

    Kinds stand in the order in which they are asked for, or rise with another metric that is asked for of each, such as
    the size of a finding, which then stands below them, and points are joined.
    """
    claim = declared.claim(entry.id)
    if claim is None:
        return None
    measured = {
        measure: own
        for measure in _by_kind(claim)
        if measure.condition in ("", declared.condition) and (own := _level_of(entry, measure, declared.headline))
    }
    scores = {(m.arm, m.where[0][1]): own for m, own in measured.items() if own.metric == declared.headline}
    kinds = list(dict.fromkeys(kind for _, kind in scores))
    if len(kinds) < 2:
        return None
    beside = {m.where[0][1]: own for m, own in measured.items() if own.metric != declared.headline}
    means = {kind: own.mean / claim.unit_scale for kind, own in beside.items() if own.mean is not None}
    names = {own.metric for own in beside.values()}
    ticks = {kind: kind for kind in kinds}
    is_ordered = len(names) == 1 and means.keys() >= set(kinds)
    if is_ordered:
        kinds.sort(key=lambda kind: means[kind])
        ticks = {kind: f"{kind}\n{next(iter(names))} {number(means[kind])}" for kind in kinds}
    lines = [
        figures.KindLine(arm, tuple(_point(scores.get((arm, kind))) for kind in kinds))
        for arm in dict.fromkeys(arm for arm, _ in scores)
    ]
    unit = f"{declared.headline} ({entry.unit})"
    said = (
        f"{line.label} {', '.join(f'{level(own[0])} on {k}' for k, own in zip(kinds, line.points, strict=True) if own)}"
        for line in lines
    )
    svg = figures.by_kind(tuple(ticks[kind] for kind in kinds), tuple(lines), unit=unit, is_ordered=is_ordered)
    return figures.data_uri(svg), f"Mean {declared.headline} of the arms of {entry.id} by kind: {'; '.join(said)}."


def _condition_figure(entry: ClaimEntry, declared: PaperClaims) -> tuple[str, str] | None:
    """Arms by what they were shown, for a claim that asks for one under several conditions; None for others.

    A line is an arm in one metric; conditions stand in the order in which they are asked for.

    Returns:
        The figure and its alternative text.
    """
    claim = declared.claim(entry.id)
    by_line: dict[tuple[str, str], dict[str, Level]] = {}
    for measure in _measures(claim) if claim is not None else ():
        own = None if measure.where else _level_of(entry, measure, declared.headline)
        if own is not None:
            by_line.setdefault((measure.arm, own.metric), {})[measure.condition or declared.condition] = own
    by_line = {line: own for line, own in by_line.items() if len(own) >= FEWEST_CONDITIONS}
    if not by_line:
        return None
    conditions = list(dict.fromkeys(condition for own in by_line.values() for condition in own))
    metrics = list(dict.fromkeys(metric for _, metric in by_line))
    lines = [
        figures.KindLine(
            arm if len(metrics) == 1 else f"{arm}, {metric.replace('_', ' ')}",
            tuple(_point(own.get(condition)) for condition in conditions),
        )
        for (arm, metric), own in by_line.items()
    ]
    names = [condition.replace("_", " ") for condition in conditions]
    said = (
        f"{line.label} {', '.join(f'{level(own[0])} {k}' for k, own in zip(names, line.points, strict=True) if own)}"
        for line in lines
    )
    unit = f"{metrics[0].replace('_', ' ')} ({entry.unit})" if len(metrics) == 1 else entry.unit
    svg = figures.by_kind(tuple(names), tuple(lines), unit=unit, is_ordered=False)
    return figures.data_uri(svg), f"Arms of {entry.id} by what they were shown: {'; '.join(said)}."


def _measures(claim: Claim) -> list[Measure]:
    """Measures of a claim, in the order declared."""
    return list(dict.fromkeys(measure for contrast in claim.contrasts for _, measure in contrast.terms))


def _by_kind(claim: Claim) -> list[Measure]:
    """Measures of a claim that are narrowed to one kind, in the order declared."""
    return [m for m in _measures(claim) if len(m.where) == 1 and m.where[0][0] == "kind"]


def _level_of(entry: ClaimEntry, measure: Measure, headline: str) -> Level | None:
    """The level of a measure, which is named with its metric where a label has several; None where no seed has it."""
    metric = measure.metric or headline
    for name in (measure.label, f"{measure.label} {metric}"):
        own = entry.arms.get(name)
        if own is not None and own.metric == metric and own.per_seed:
            return own
    return None


def _point(own: Level | None) -> tuple[float, float | None, float | None] | None:
    if own is None or own.mean is None:
        return None
    if len(own.per_seed) < 2:
        return own.mean, None, None
    low, high = t_interval(own.per_seed)
    return own.mean, float(low), float(high)
