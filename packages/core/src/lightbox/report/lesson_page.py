"""The page of a lesson, drawn again while arms train: losses, what one seed gives, other seeds beside it. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Template

from lightbox.claims.budget import Ladder, steps
from lightbox.claims.document import ClaimEntry
from lightbox.claims.lesson import FIRST_SEED, ITEMS, LAST_SEED, LOSS, Lesson, Outcome, Progress
from lightbox.files import replace_text
from lightbox.report import figures, numbers
from lightbox.report.page import template_of

PAGE = "report.html"


@dataclass(frozen=True)
class ArmRow:
    """An arm in the table of trainings, in words."""

    name: str
    title: str
    step: str
    loss: str
    state: str


@dataclass(frozen=True)
class PublishedRow:
    """What is published of the link and its claim at one preset, in words."""

    preset: str
    seeds: int
    budget: str
    effect: str
    verdict: str


def write_lesson(
    path: Path,
    lesson: Lesson,
    arms: Mapping[str, Progress],
    outcomes: Sequence[Outcome],
    *,
    pilot: tuple[Ladder, str],
    published: Mapping[str, ClaimEntry],
    is_running: bool,
) -> None:
    """Write the page.

    Args:
        path: the HTML file, replaced as a whole.
        lesson: what is trained.
        arms: how far each arm has come.
        outcomes: of this seed and of seeds before it, oldest first; those of the lesson's budget share the table.
        pilot: effects of the link by budget, and why there are none.
        published: committed entries of the claim by preset.
        is_running: whether the page shall load itself again.
    """
    claim = lesson.claim
    digits = numbers.decimals(claim.min_effect * claim.unit_scale)
    own = [outcome for outcome in outcomes if outcome.levels.keys() == outcomes[-1].levels.keys()]
    taken = {outcome.seed for outcome in own} | {lesson.seed}
    text = _template().render(
        paper=lesson.paper.claims,
        claim=claim,
        lesson=lesson,
        steps=steps(claim.budget),
        state="training" if is_running else "done",
        is_running=is_running,
        n_items=ITEMS,
        arms=_arm_rows(lesson, arms),
        curves=_curve_figure(arms),
        own=own,
        sentence=_sentence(own, claim.unit, digits) if own else "",
        digits=digits,
        next_seed=next((seed for seed in range(FIRST_SEED, LAST_SEED + 1) if seed not in taken), LAST_SEED),
        budgets=_budget_figure(lesson, own, pilot[0]),
        pilot_seeds=max((len(effect.seeds) for effect in pilot[0].values()), default=0),
        no_pilot=pilot[1],
        minimum=numbers.number(claim.min_effect * claim.unit_scale),
        published=[_published_row(lesson, preset, entry) for preset, entry in published.items()],
        none_sign=numbers.NONE,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, text)


def _arm_rows(lesson: Lesson, arms: Mapping[str, Progress]) -> list[ArmRow]:
    rows = []
    for name, arm in arms.items():
        state = "scored" if arm.is_done else "training" if arm.step < arm.of else "scoring" if arm.of else "waiting"
        step = f"{arm.step} of {arm.of}" if arm.of else numbers.NONE
        loss = numbers.number(arm.curve[-1][1] if arm.curve else None)
        rows.append(ArmRow(name, lesson.paper.claims.arms[name].title, step, loss, state))
    return rows


def _sentence(own: Sequence[Outcome], unit: str, digits: int) -> str:
    last = own[-1]
    text = f"{numbers.signed(last.effect, digits)} {unit} on {last.items} items of seed {last.seed}."
    effects = [outcome.effect for outcome in own]
    if len(own) > 1:
        low, high = (numbers.signed(end, digits) for end in (min(effects), max(effects)))
        text += f" Your {len(own)} runs lie between {low} and {high}."
    return text


def _curve_figure(arms: Mapping[str, Progress]) -> tuple[str, str] | None:
    drawn = {name: [list(arm.curve)] for name, arm in arms.items() if arm.curve}
    if not drawn:
        return None
    last = ", ".join(f"{name} {numbers.number(curves[0][-1][1])}" for name, curves in drawn.items())
    svg = figures.curves({LOSS: drawn}, columns=1)
    return figures.data_uri(svg), f"Training loss of each arm by step; last: {last}."


def _budget_figure(lesson: Lesson, own: Sequence[Outcome], ladder: Ladder) -> tuple[str, str] | None:
    """Effect by budget: the pilot, and every own seed as a mark; None where there is neither."""
    scale, name = lesson.claim.unit_scale, lesson.link.name
    points = tuple(
        (budget, scale * effect.effect, *((scale * e for e in effect.ci95) if effect.ci95 else (None, None)))
        for budget, effect in ladder.items()
        if effect.effect is not None
    )
    lines = [figures.BudgetLine(name, points)] if points else []
    lines += [
        figures.BudgetLine(f"seed {outcome.seed}", ((outcome.budget, outcome.effect, None, None),), is_pilot=False)
        for outcome in own
    ]
    if not lines:
        return None
    svg = figures.effects_by_budget(
        tuple(lines),
        units=(f"effect ({lesson.claim.unit})", lesson.claim.budget),
        min_effect=scale * lesson.claim.min_effect,
        width=9.2,
    )
    said = [f"{numbers.level(mean)} at {budget}" for budget, mean, *_ in points]
    yours = [f"{numbers.level(outcome.effect)} at {outcome.budget} with seed {outcome.seed}" for outcome in own]
    alt = f"{name} against training budget. Pilot: {', '.join(said) or 'none'}. Yours: {', '.join(yours) or 'none'}."
    return figures.data_uri(svg), alt


def _published_row(lesson: Lesson, preset: str, entry: ClaimEntry) -> PublishedRow:
    contrast = next((c for c in entry.contrasts if c.name == lesson.link.name), entry.deciding)
    ends, percent = entry.deciding_interval(contrast)
    digits = numbers.decimals(entry.min_effect, entry.bound)
    effect = f"{numbers.signed(contrast.effect, digits)} {numbers.interval(ends, digits, percent)}"
    budget = numbers.NONE if entry.convergence is None else str(entry.convergence.budget)
    return PublishedRow(preset, len(contrast.per_seed), budget, effect, entry.withdrawn or str(entry.verdict))


@cache
def _template() -> Template:
    return template_of("lesson.html.j2")
