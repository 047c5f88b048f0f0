"""Figures of the page, each a function from plain data to an SVG or PNG. Matplotlib without pyplot: no global state.

Colours are Okabe and Ito's, told apart with any colour vision; role and arm are also told by marker and line style.
Text is drawn as paths, so that a figure looks the same on every machine, and never parsed as mathematics.
"""

import base64
import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from lightbox.report.numbers import level

INK, SOFT, FAINT, BAND, PLATEAU = "#1f2933", "#6b7680", "#d5dade", "#eceff2", "#f3f8ee"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555", "#8C6D1F")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))  # 7 styles to 8 colours: 56 arms differ
MARKERS = "osD^vPX"
ROLES = {
    "primary": ("s", "#0072B2"),
    "control": ("D", "#D55E00"),
    "premise": ("^", "#009E73"),
    "secondary": ("o", "#6b7680"),
}
KIND_LETTERS = 76
"""That stand side by side below a figure."""
MOST_DRAWN = 128
"""Figures kept in memory: a page is written again after every job, and most of its figures are what they were."""

STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "lightbox",  # the same data give the same bytes
}


@dataclass(frozen=True)
class ForestRow:
    """One contrast, in printed units: `interval` decides it, `published` is the committed effect with its 95 % ends."""

    label: str
    role: str
    effect: float | None
    interval: tuple[float, float] | None = None
    per_seed: tuple[float, ...] = ()
    published: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class ForestPanel:
    """The contrasts of one claim on one axis, with the band of effects too small to count, in printed units."""

    title: str
    subtitle: str
    unit: str
    min_effect: float
    rows: tuple[ForestRow, ...]


@dataclass(frozen=True)
class Level:
    """The mean score of one arm or baseline: one value a seed, in printed units."""

    label: str
    per_seed: tuple[float, ...]
    is_baseline: bool = False


@lru_cache(maxsize=MOST_DRAWN)
def forest(panels: tuple[ForestPanel, ...]) -> str:
    """Effects with their intervals, one panel a claim; a dot a seed, the minimum-effect band shaded. SVG text."""
    heights = [len(panel.rows) + 1.9 for panel in panels]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 0.5 + 0.36 * sum(heights)), layout="constrained")
        figure.get_layout_engine().set(h_pad=0.07)
        axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        limits = _limits_by_unit(panels)
        for axis, panel in zip(axes, panels, strict=True):
            _draw_panel(axis, panel, limits[panel.unit])
        has_published = any(row.published for panel in panels for row in panel.rows)
        legend = {"loc": "outside upper left", "ncols": 6, "fontsize": 8.5, "borderaxespad": 0.9}
        figure.legend(handles=_forest_legend(has_published), **legend)
        return _svg(figure)


@lru_cache(maxsize=MOST_DRAWN)
def levels(groups: tuple[Level, ...], *, unit: str) -> str:
    """Mean score of each arm and sanity baseline, a dot a seed and a bar at the mean. SVG text."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 0.75 + 0.3 * len(groups)), layout="constrained")
        _draw_levels(figure.subplots(), groups, unit)
        return _svg(figure)


@dataclass(frozen=True)
class BudgetLine:
    """A mean by training budget: one point a budget as (budget, mean, low, high), low and high None below 2 seeds."""

    label: str
    points: tuple[tuple[int, float, float | None, float | None], ...]
    is_pilot: bool = True


@lru_cache(maxsize=MOST_DRAWN)
def by_budget(
    effects: tuple[BudgetLine, ...], scores: tuple[BudgetLine, ...], *, units: tuple[str, str, str], min_effect: float
) -> str:
    """Effects, and below them the arms' scores, against the training budget, with 95 % intervals. SVG text.

    Args:
        effects: links and controls.
        scores: of arms.
        units: of an effect, of a score and of the budget.
        min_effect: half the band of effects too small to count.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 5.6), layout="constrained")
        for axis, lines, unit in zip(figure.subplots(2, 1, sharex=True), (effects, scores), units[:2], strict=True):
            _draw_budget_lines(axis, lines, unit)
            axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8.5)
        _name_budgets(axis, (*effects, *scores), units[2])
        _draw_too_small(figure.axes[0], min_effect)
        return _svg(figure)


@lru_cache(maxsize=MOST_DRAWN)
def effects_by_budget(
    effects: tuple[BudgetLine, ...],
    *,
    units: tuple[str, str],
    min_effect: float,
    marks: tuple[tuple[int, str], ...] = (),
    plateau: int | None = None,
    width: float = 4.6,
) -> str:
    """Effects against the training budget, with the budgets of published runs. SVG text.

    Args:
        effects: links and controls.
        units: of an effect and of the budget.
        min_effect: half the band of effects too small to count.
        marks: (budget, name) of each published run.
        plateau: budget from which the ground is tinted; None where the pilot shows none.
        width: of the figure, in inches.
    """
    names = list(dict.fromkeys(line.label for line in effects))
    with matplotlib.rc_context(STYLE):
        height = 2.5 + 0.17 * sum(name.count("\n") + 1 for name in names)
        figure = Figure(figsize=(width, height), layout="constrained")
        axis = figure.subplots()
        _draw_budget_lines(axis, effects, units[0])
        _name_budgets(axis, effects, units[1])
        _draw_too_small(axis, min_effect)
        left, right = axis.get_xlim()
        if plateau is not None:
            axis.axvspan(plateau, right, color=PLATEAU, lw=0, zorder=0)
        axis.set_xlim(left, right)
        _mark_budgets(axis, marks, plateau)
        figure.legend(loc="outside lower left", fontsize=8.5, ncols=1)
        return _svg(figure)


def _mark_budgets(axis: Axes, marks: Sequence[tuple[int, str]], plateau: int | None) -> None:
    """Dotted lines at some budgets, named above the axis; names of one budget stand together, neighbours apart."""
    by_budget: dict[int, list[str]] = {}
    for budget, name in marks:
        by_budget.setdefault(budget, []).append(name)
    if plateau is not None:
        by_budget.setdefault(plateau, []).append("plateau →")
    low, high = np.log2(axis.get_xlim())
    for place, (budget, names) in enumerate(sorted(by_budget.items())):
        axis.axvline(budget, color=INK, lw=1, linestyle=(0, (2, 2)))
        is_right = (np.log2(budget) - low) / (high - low) > 0.6
        axis.annotate(
            ", ".join(names), (budget, 1), (0, 3 + 10 * (place % 2)), xycoords=("data", "axes fraction"),
            textcoords="offset points", fontsize=8.5, ha="right" if is_right else "left",
        )  # fmt: skip


@dataclass(frozen=True)
class KindLine:
    """The scores of one arm by kind of item, as (mean, low, high) in printed units; None where it has none.

    low and high are None below 2 seeds.
    """

    label: str
    points: tuple[tuple[float, float | None, float | None] | None, ...]


@lru_cache(maxsize=MOST_DRAWN)
def by_kind(kinds: tuple[str, ...], lines: tuple[KindLine, ...], *, unit: str, is_ordered: bool) -> str:
    """Scores of arms by kind of item, with 95 % intervals where there are any. SVG text.

    Args:
        kinds: from left to right.
        lines: arms, each with a point a kind; what stands at one kind is moved a little apart.
        unit: of the scores.
        is_ordered: whether the order of kinds means something, such as a size, so that points may be joined.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 3.4), layout="constrained")
        axis = figure.subplots()
        for place, line in enumerate(lines):
            shift = 0.07 * (place - (len(lines) - 1) / 2)
            points = [(at + shift, *own) for at, own in enumerate(line.points) if own is not None]
            style = {"color": arm_colour(place), "marker": _cycle(MARKERS, place)}
            style["linestyle"] = _cycle(LINES, place) if is_ordered else "none"
            axis.plot([own[0] for own in points], [own[1] for own in points], lw=1.6, ms=5.5, label=line.label, **style)
            for at, _, low, high in points:
                if low is not None:
                    axis.plot([at, at], [low, high], color=arm_colour(place), lw=1.2, alpha=0.6)
        axis.set_xticks(range(len(kinds)), [_broken(kind, KIND_LETTERS // len(kinds)) for kind in kinds], color=INK)
        axis.set_xlim(-0.5, len(kinds) - 0.5)
        axis.set_ylabel(unit)
        axis.grid(axis="y", color=BAND)
        axis.set_axisbelow(True)
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8.5, handlelength=3)
        return _svg(figure)


def curves(by_metric: Mapping[str, Mapping[str, Sequence[Sequence[tuple[int, float]]]]], *, columns: int = 2) -> str:
    """Learning curves, one panel a metric: a thin line a seed and a thick mean line an arm. SVG text.

    Args:
        by_metric: metric, then arm, then one curve a seed as (step, value); at least one metric.
        columns: panels side by side, at most.
    """
    arms = list(dict.fromkeys(arm for by_arm in by_metric.values() for arm in by_arm))
    columns = min(columns, len(by_metric))
    rows = -(-len(by_metric) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 0.4 + 2.5 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis, (metric, by_arm) in zip(axes, by_metric.items(), strict=False):
            _draw_curves(axis, by_arm, arms)
            axis.set_title(metric)
            axis.set_xlabel("optimiser step")
        for axis in axes[len(by_metric) :]:
            axis.set_visible(False)
        handles = [Line2D([], [], color=arm_colour(i), linestyle=_cycle(LINES, i), lw=2) for i in range(len(arms))]
        figure.legend(handles, arms, loc="outside upper left", ncols=min(5, len(arms)), fontsize=8.5)
        return _svg(figure)


@dataclass(frozen=True)
class ComparisonPanel:
    """Groups of runs of one paper: `rows` are their paired differences from the `reference`, on the metric's scale."""

    title: str
    metric: str
    reference: str
    groups: tuple[Level, ...]
    rows: tuple[ForestRow, ...]


def comparison(panels: Sequence[ComparisonPanel]) -> bytes:
    """Of each paper the levels of groups of runs, and below them their paired differences. PNG bytes."""
    heights = []
    for panel in panels:
        heights += [0.3 * len(panel.groups) + 0.9] + [0.36 * len(panel.rows) + 0.9] * bool(panel.rows)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, sum(heights)), layout="constrained", dpi=130)
        axes = iter(figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0])
        for panel in panels:
            axis = next(axes)
            _draw_levels(axis, panel.groups, panel.metric)
            axis.set_title(panel.title if len(panels) > 1 else "", fontweight="bold")
            if panel.rows:
                named = f"from {panel.reference}"
                differences = ForestPanel("Paired difference", named, panel.metric, 0.0, panel.rows)
                _draw_panel(next(axes), differences, _limits_by_unit([differences])[panel.metric])
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue()


def data_uri(svg: str) -> str:
    """An SVG as the source of an image: no script in it can run, and its ids cannot meet those of another figure."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode('utf-8')).decode('ascii')}"


def arm_colour(index: int) -> str:
    """Colour of the arm at this place in the page's list of arms."""
    return _cycle(COLOURS, index)


def _draw_panel(axis: Axes, panel: ForestPanel, limits: tuple[float, float]) -> None:
    if panel.min_effect:
        axis.axvspan(-panel.min_effect, panel.min_effect, color=BAND, lw=0)
    axis.axvline(0, color=SOFT, lw=0.8)
    for place, row in enumerate(panel.rows):
        _draw_row(axis, row, place)
    title = axis.set_title(panel.title, fontweight="bold")
    beside = {"xycoords": title, "textcoords": "offset points", "va": "center", "annotation_clip": False}
    axis.annotate(panel.subtitle, (1, 0.5), (9, 0), color=SOFT, **beside)
    axis.set_yticks(range(len(panel.rows)), [row.label for row in panel.rows], color=INK)
    axis.set_ylim(len(panel.rows) - 0.45, -0.6)
    axis.set_xlim(*limits)
    axis.spines["left"].set_visible(False)
    _name_axis(axis, panel.unit)


def _draw_row(axis: Axes, row: ForestRow, place: int) -> None:
    marker, colour = ROLES.get(row.role, ROLES["secondary"])
    if row.effect is None:
        axis.text(0, place, "  no seed has ended", va="center", color=SOFT, fontsize=8.5, style="italic")
        return
    if row.published is not None:
        effect, low, high = row.published
        axis.plot([low, high], [place + 0.3] * 2, color=SOFT, lw=1, linestyle=(0, (2, 1.5)))
        axis.plot(effect, place + 0.3, "|", color=SOFT, ms=7)
    axis.plot(row.per_seed, [place - 0.26] * len(row.per_seed), "o", color=colour, ms=3.2, alpha=0.45, mew=0)
    if row.interval is not None:
        axis.plot(row.interval, [place] * 2, color=colour, lw=2.2, solid_capstyle="butt")
    fill = colour if row.role == "primary" else "white"
    axis.plot(row.effect, place, marker, color=colour, mfc=fill, mew=1.6, ms=7.5 if row.role == "primary" else 6.5)


def _limits_by_unit(panels: Sequence[ForestPanel]) -> dict[str, tuple[float, float]]:
    """One x range a unit, so that claims in the same unit can be compared by eye."""
    limits = {}
    for unit in dict.fromkeys(panel.unit for panel in panels):
        values = [0.0]
        for panel in (p for p in panels if p.unit == unit):
            values += [-panel.min_effect, panel.min_effect]
            for row in panel.rows:
                values += [*row.per_seed, *(row.interval or ()), *(row.published or ())]
        low, high = min(values), max(values)
        margin = 0.06 * (high - low) or 1.0
        limits[unit] = low - margin, high + margin
    return limits


def _forest_legend(has_published: bool) -> list[Line2D | Patch]:
    handles: list[Line2D | Patch] = []
    for role, (marker, colour) in ROLES.items():
        fill = colour if role == "primary" else "white"
        handles.append(Line2D([], [], color=colour, marker=marker, mfc=fill, mew=1.6, ms=6.5, lw=2, label=role))
    handles.append(Line2D([], [], color=SOFT, marker="o", ms=3.2, lw=0, alpha=0.6, label="one seed"))
    handles.append(Patch(color=BAND, label="too small to count"))
    if has_published:
        dashes = (0, (2, 1.5))
        handles.append(Line2D([], [], color=SOFT, marker="|", ms=7, lw=1, linestyle=dashes, label="published run"))
    return handles


def _draw_levels(axis: Axes, groups: Sequence[Level], unit: str) -> None:
    for place, group in enumerate(groups):
        colour = SOFT if group.is_baseline else COLOURS[0]
        marker = "o" if not group.is_baseline else "D"
        values = np.asarray(group.per_seed, dtype=np.float64)
        axis.plot(values, [place] * values.size, marker, color=colour, ms=4.5, alpha=0.5, mew=0)
        if values.size:
            axis.plot([values.mean()] * 2, [place - 0.3, place + 0.3], color=colour, lw=2.4, solid_capstyle="butt")
            axis.annotate(
                level(values.mean()), (values.max(), place), (7, 0), textcoords="offset points", va="center",
                color=colour, fontsize=8.5,
            )  # fmt: skip
    axis.set_yticks(range(len(groups)), [group.label for group in groups], color=INK)
    axis.set_ylim(len(groups) - 0.4, -0.6)
    axis.margins(x=0.09)
    axis.grid(axis="x", color=BAND)
    axis.set_axisbelow(True)
    axis.spines["left"].set_visible(False)
    _name_axis(axis, unit)


def _name_axis(axis: Axes, unit: str) -> None:
    if max(map(abs, axis.get_xlim())) < 1e-3:  # the factor of all ticks would stand on the name
        axis.xaxis.set_major_formatter("{x:g}")
    axis.set_xlabel(unit, loc="right")


def _draw_curves(axis: Axes, by_arm: Mapping[str, Sequence[Sequence[tuple[int, float]]]], arms: Sequence[str]) -> None:
    for arm, seeds in by_arm.items():
        place = arms.index(arm)
        for points in seeds:
            steps, values = np.asarray(points, dtype=np.float64).reshape(-1, 2).T
            axis.plot(steps, values, color=arm_colour(place), lw=0.7, alpha=0.3)
        steps, mean = _mean_curve(seeds)
        axis.plot(steps, mean, color=arm_colour(place), lw=2, linestyle=_cycle(LINES, place))
    axis.grid(color=BAND)
    axis.set_axisbelow(True)


def _draw_budget_lines(axis: Axes, lines: Sequence[BudgetLine], unit: str) -> None:
    names = list(dict.fromkeys(line.label for line in lines))
    for line in lines:
        _draw_budget_line(axis, line, names.index(line.label))
    axis.set_xscale("log", base=2)
    axis.set_ylabel(unit)
    axis.grid(color=BAND)
    axis.set_axisbelow(True)


def _name_budgets(axis: Axes, lines: Sequence[BudgetLine], name: str) -> None:
    budgets = sorted({point[0] for line in lines for point in line.points})
    axis.set_xticks(budgets, [str(budget) for budget in budgets])
    axis.minorticks_off()
    axis.set_xlabel(name)


def _draw_too_small(axis: Axes, min_effect: float) -> None:
    axis.axhspan(-min_effect, min_effect, color=BAND, lw=0)
    axis.axhline(0, color=SOFT, lw=0.8)


def _draw_budget_line(axis: Axes, line: BudgetLine, place: int) -> None:
    budgets, means, lows, highs = zip(*line.points, strict=True)
    shift = 2 ** (0.02 * place)  # intervals at one budget stand side by side
    label = line.label if line.is_pilot else f"{line.label} (own seeds)"
    style = {"color": arm_colour(place), "marker": _cycle(MARKERS, place), "ms": 5}
    style |= {"linestyle": "-" if line.is_pilot else "--", "mfc": arm_colour(place) if line.is_pilot else "white"}
    axis.plot([budget * shift for budget in budgets], means, lw=1.6, label=label, **style)
    for budget, low, high in zip(budgets, lows, highs, strict=True):
        if low is not None:
            axis.plot([budget * shift] * 2, [low, high], color=arm_colour(place), lw=1.2, alpha=0.6)


def _mean_curve(seeds: Sequence[Sequence[tuple[int, float]]]) -> tuple[list[int], list[float]]:
    """Mean over seeds at the steps that every seed has; non-finite values break the line."""
    tables = [dict(points) for points in seeds]
    shared = sorted(set.intersection(*(set(table) for table in tables))) if tables else []
    return shared, [float(np.mean([table[step] for table in tables])) for step in shared]


def _broken(text: str, letters: int) -> str:
    """A text in lines of about as many letters, broken at spaces and behind underscores."""
    lines = (textwrap.fill(line.replace("_", "_ "), letters, break_long_words=False) for line in text.splitlines())
    return "\n".join(lines).replace("_ ", "_")


def _cycle(choices: Sequence, index: int):
    return choices[index % len(choices)]


def _svg(figure: Figure) -> str:
    figure.get_layout_engine().execute(figure)
    figure.set_layout_engine("none")
    for axis in figure.axes:  # the layout solver is exact to about 1e-13 only, and ids are digests of all digits
        axis.set_position([round(number, 5) for number in axis.get_position().bounds])
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})  # draws once, savefig twice
    return buffer.getvalue()
