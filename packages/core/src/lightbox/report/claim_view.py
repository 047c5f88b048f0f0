"""What the page shows of a claim beside the numbers of its entry: chip, deciding interval, figures. No torch."""

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

from lightbox.claims.document import ClaimEntry, Document, Level
from lightbox.claims.spec import Kind, Role, Verdict
from lightbox.claims.verdicts import PRESETS_WITHOUT_VERDICT
from lightbox.report import figures
from lightbox.report.numbers import decimals, interval, level

WRAP, SHORT = 36, 70


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
        Chip("inconclusive", "◐", "open", "the interval leaves it open"),
        Chip(
            "not testable", "∅", "plain", "the gate failed: no arm beats the baselines, or the task is solved already"
        ),
    )
}
GATE_STATES = {True: ("passed", "✓", "good"), False: ("failed", "✗", "bad"), None: ("not decided", "…", "wait")}
"""State, mark and tone of a gate."""


@dataclass(frozen=True)
class LevelRow:
    """One row of the table of levels; kind is arm, baseline or oracle."""

    kind: str
    name: str
    title: str
    level: Level


@dataclass(frozen=True)
class ClaimView:
    """A claim and what is made of it.

    Args:
        claim: the entry, whose fields the template formats.
        label: what the claim is called on this page.
        digits: of its effects, after the point.
        chip: its verdict, or how far it is.
        interval: the one that decides, named where it is not the 95 % interval.
        gate: state, mark and tone; without a verdict a gate is not said to have failed, which too few seeds can cause.
        levels: arms, then baselines, then the oracle.
        panel: its part of the forest plot.
        figure: of the levels, with its alternative text; None where no seed has ended.
    """

    claim: ClaimEntry
    label: str
    digits: int
    chip: Chip
    interval: str
    gate: tuple[str, str, str]
    levels: list[LevelRow]
    panel: figures.ForestPanel
    figure: tuple[str, str] | None

    @property
    def anchor(self) -> str:
        """Id of its section."""
        return f"{self.claim.paper}-{self.claim.id}"

    @property
    def is_decided(self) -> bool:
        """True where a verdict was drawn."""
        return self.claim.verdict in CHIPS


def view(claim: ClaimEntry, document: Document, *, label: str, titles: Mapping[str, str]) -> ClaimView:
    """Make a claim ready for the template.

    Args:
        claim: of the document.
        document: for its preset and errors.
        label: what the claim is called on this page.
        titles: a phrase for each arm whose paper is installed.
    """
    digits = decimals(claim.min_effect)
    passed = claim.gate.passed if claim.gate is not None and claim.verdict in CHIPS else None
    return ClaimView(
        claim=claim,
        label=label,
        digits=digits,
        chip=_chip(claim, document),
        interval=_deciding_interval(claim, digits),
        gate=GATE_STATES[passed],
        levels=_level_rows(claim, titles),
        panel=_panel(claim, label),
        figure=_level_figure(claim),
    )


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
    if ended < claim.planned_seeds:
        return Chip(f"running, {progress}", "…", "wait", "drawn once every planned seed has ended")
    return Chip("no verdict", "·", "plain", claim.reason)


def _deciding_interval(claim: ClaimEntry, digits: int) -> str:
    if claim.kind is Kind.EXACT:
        return "exact, no interval"
    if claim.kind is Kind.EQUIVALENCE:
        links = (c for c in claim.contrasts if c.role is Role.PRIMARY and c.effect == claim.effect and c.ci90)
        return next((f"{interval(link.ci90, digits)} at 90 %" for link in links), "")
    return interval(claim.ci95, digits)


def _panel(claim: ClaimEntry, label: str) -> figures.ForestPanel:
    rows = []
    for contrast in claim.contrasts:
        published = contrast.published
        is_drawn = published is not None and published.effect is not None and published.ci95 is not None
        rows.append(
            figures.ForestRow(
                label=textwrap.fill(contrast.name, WRAP),
                role=contrast.role,
                effect=contrast.effect,
                ci95=contrast.ci95,
                per_seed=contrast.per_seed,
                published=(published.effect, *published.ci95) if is_drawn else None,
            )
        )
    statement = textwrap.shorten(claim.statement, SHORT, placeholder=" …")
    band = 0.0 if claim.kind is Kind.EXACT else claim.min_effect
    return figures.ForestPanel(label, statement, claim.unit, band, tuple(rows))


def _level_rows(claim: ClaimEntry, titles: Mapping[str, str]) -> list[LevelRow]:
    """Arms, then sanity baselines, then the oracle, which by construction is at the ceiling."""
    kinds = (("arm", claim.arms), ("baseline", claim.baselines))
    rows = [LevelRow(kind, name, titles.get(name, ""), lv) for kind, levels in kinds for name, lv in levels.items()]
    if claim.gate is not None:
        ceiling = Level("ceiling", claim.gate.ceiling, ())
        rows.append(LevelRow("oracle", "oracle", "the truth itself", ceiling))
    return rows


def _level_figure(claim: ClaimEntry) -> tuple[str, str] | None:
    """Arms and baselines that share the first arm's metric, and the alternative text; None where no seed has ended."""
    metric = next((lv.metric for lv in claim.arms.values()), None)
    groups = [
        figures.Level(name, lv.per_seed, is_baseline=is_baseline)
        for is_baseline, levels in ((False, claim.arms), (True, claim.shown_baselines()))
        for name, lv in levels.items()
        if lv.metric == metric and lv.per_seed
    ]
    if not groups:
        return None
    means = ", ".join(f"{group.label} {level(sum(group.per_seed) / len(group.per_seed))}" for group in groups)
    svg = figures.levels(groups, unit=f"{metric} ({claim.unit})")
    return figures.data_uri(svg), f"Mean {metric} of arms and sanity baselines of {claim.id}: {means}."
