"""The score of one run beside what needs no image: levels, differences, and the sentence that follows. No torch.

All numbers are percent of items, and differences are in points. Every item counts once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from lightbox.eval.item_intervals import FEW_GROUPS, Estimate, mean_estimate
from lightbox.paper.conditions import BLANK, IMAGE, SHUFFLED
from lightbox.report.numbers import interval, level, signed
from lightbox.report.run_items import ANSWER_BASELINES, PARSED, RECALL, RunItems

TITLES = {
    IMAGE: ("image", "the item's own image"),
    BLANK: ("blank", "a grey image"),
    SHUFFLED: ("shuffled", "the image of another item"),
    "question_only": ("question-only", "commonest training answer of the same question text"),
    "majority": ("majority", "commonest training answer of the same kind of question"),
}
"""Condition or baseline -> its name and what it is shown or counts."""
WITHOUT_IMAGE = (BLANK, SHUFFLED, *ANSWER_BASELINES)
SHOWN = {BLANK: "with a blank image", SHUFFLED: "with another item's image"}
MOST_KINDS = 12


@dataclass(frozen=True)
class Level:
    """A row of the table of scores; without `has_items` only the mean is known, and there is no interval.

    `parsed` is the percentage of answers that could be read, `recall` the mean token recall of open answers in percent;
    None where it does not apply.
    """

    name: str
    title: str
    note: str
    estimate: Estimate
    parsed: float | None = None
    recall: float | None = None
    has_items: bool = True

    @property
    def needs_no_image(self) -> bool:
        """True for what a model has to beat to have looked."""
        return self.name in WITHOUT_IMAGE


@dataclass(frozen=True)
class Lead:
    """The score with the image minus that of a rival without; `estimate` is None where items cannot be paired.

    `is_alike` is True where both are right on the very same items.
    """

    rival: Level
    effect: float
    estimate: Estimate | None
    is_alike: bool = False

    @property
    def is_above(self) -> bool:
        """True where the whole interval of the difference is above 0."""
        return self.estimate is not None and self.estimate.interval is not None and self.estimate.interval[0] > 0

    @property
    def says(self) -> str:
        """What the interval says, in words."""
        if self.is_alike:
            return "no item differs"
        if self.estimate is None or self.estimate.interval is None:
            return "no interval"
        if self.is_above:
            return "above"
        return "below" if self.estimate.interval[1] < 0 else "the interval holds 0"


@dataclass(frozen=True)
class KindRow:
    """Scores on the questions of one kind, in the order of the levels; None where a level has no items of it."""

    kind: str
    n_items: int
    cells: tuple[Estimate | None, ...]


def levels(items: RunItems) -> list[Level]:
    """Each condition of the run, then the baselines, as far as they are known."""
    rows = [_condition_level(items, name) for name in items.conditions]
    for name in ANSWER_BASELINES:
        values = item_values(items, name)
        mean = items.card.get("baselines", {}).get(name)
        if name == items.run.config.get("objective", {}).get("method"):
            continue  # it is the run itself
        if values:
            rows.append(Level(name, *TITLES[name], _estimate(items, values)))
        elif mean is not None:
            n_items = len(items.correct[items.main])
            rows.append(
                Level(name, *TITLES[name], Estimate(100 * float(mean), None, n_items, n_items), has_items=False)
            )
    return rows


def leads(items: RunItems, rows: Sequence[Level]) -> list[Lead]:
    """The score with the image minus each that needs none, the highest rival first; [] where no image was shown."""
    if not items.looked:
        return []
    own = items.correct[IMAGE]
    mean = 100 * _mean(own)
    differences = []
    for rival in sorted((row for row in rows if row.needs_no_image), key=lambda row: -row.estimate.mean):
        other = item_values(items, rival.name)
        paired = {item: value - other[item] for item, value in own.items() if item in other}
        estimate = _estimate(items, paired, is_share=False) if paired else None
        effect = estimate.mean if estimate else mean - rival.estimate.mean
        differences.append(Lead(rival, effect, estimate, is_alike=bool(paired) and not any(paired.values())))
    return differences


def conclusion(items: RunItems, beside: Sequence[Lead]) -> str:
    """What the score shows about the use of the image, in one or two sentences."""
    if items.is_baseline:
        return "This arm counts training answers. It looks at no image; every trained arm is to be read beside it."
    if not items.looked:
        return f"The run was not scored with images; its first condition is {items.main}."
    if not beside:
        return "Nothing that needs no image was scored beside it, so the score does not show that the image was used."
    best = beside[0]
    said = f"{signed(best.effect, 1)} points against {best.rival.title}, the best of what needs no image"
    if best.estimate is None:
        said += f"; no interval can be given, because of {best.rival.title} only the mean is known"
    elif best.estimate.interval is None:
        said += "; there is no interval"
    else:
        said += f" (95 % interval {interval(best.estimate.interval, 1)})"
    unknown = [TITLES[name][0] for name in WITHOUT_IMAGE if name not in {lead.rival.name for lead in beside}]
    tail = f" What {' and '.join(unknown)} would give is not known here." if unknown else ""
    if best.is_above:
        return f"The image helped: {said}.{tail}"
    return f"The score does not show that the image was used: {said}.{_other_images(beside)}{tail}"


def _other_images(beside: Sequence[Lead]) -> str:
    """What the model does with other images in place of the right one, where that is clear."""
    own = [lead for lead in beside if lead.rival.name in SHOWN]
    ways = " and ".join(SHOWN[lead.rival.name] for lead in own)
    if own and all(lead.is_alike for lead in own):
        return f" Not one item turns right or wrong {ways}."
    if own and all(lead.is_above for lead in own):
        return (
            f" The same model is worse {ways}, so it does read the image; over what needs none, that gains nothing "
            "that can be shown."
        )
    return ""


def interval_note(items: RunItems, rows: Sequence[Level]) -> str:
    """Which intervals these are, and what they leave out."""
    first = rows[0].estimate
    unit = "images" if items.samples else "items"
    counted = f"{first.n_groups} images of {first.n_items} items" if items.samples else f"{first.n_items} items"
    text = f"Intervals: 95 %, percentile, from {counted} drawn again with replacement; exact where all items are alike."
    if not items.samples:
        text += " Which item shows which image is not known here, so they are too narrow where items share images."
    if first.n_groups < FEW_GROUPS:
        text += f" With fewer than {FEW_GROUPS} {unit} they are too narrow."
    return f"{text} They hold for this one training: another seed may differ by more."


def kind_rows(items: RunItems, rows: Sequence[Level]) -> list[KindRow]:
    """Scores by question kind, the most frequent kind first; [] where all are of one kind."""
    by_kind: dict[str, list[str]] = {}
    for item in items.correct[items.main]:
        by_kind.setdefault(items.kinds.get(item, ""), []).append(item)
    if len(by_kind) < 2:
        return []
    named = sorted(by_kind.items(), key=lambda pair: (-len(pair[1]), pair[0]))
    return [
        KindRow(kind or "not named", len(members), tuple(group_estimate(items, row.name, members) for row in rows))
        for kind, members in named
    ]


def group_estimate(items: RunItems, name: str, members: Sequence[str]) -> Estimate | None:
    """Score of a condition or baseline on some items; None where it has none of them."""
    values = item_values(items, name)
    chosen = {item: values[item] for item in members if item in values}
    return _estimate(items, chosen) if chosen else None


def item_values(items: RunItems, name: str) -> Mapping[str, float]:
    """Right or wrong by item, of a condition or of a baseline on the same items; empty where it is not known."""
    if name in items.correct:
        return items.correct[name]
    guesses = items.guesses.get(name, {})
    return {item: float(guesses[item].is_right) for item in items.correct[items.main] if item in guesses}


def cell(estimate: Estimate | None) -> str:
    """A level in percent with one decimal."""
    return level(None) if estimate is None else f"{estimate.mean:.1f}"


def _condition_level(items: RunItems, name: str) -> Level:
    title, note = TITLES.get(name, (name.replace("_", " "), ""))
    if items.is_baseline:
        title, note = TITLES.get(items.run.config["objective"]["method"], (title, note))
    by_metric = {metric: items.values[metric].get(name) for metric in (PARSED, RECALL)}
    means = {metric: 100 * _mean(values) if values else None for metric, values in by_metric.items()}
    return Level(name, title, note, _estimate(items, items.correct[name]), means[PARSED], means[RECALL])


def _estimate(items: RunItems, values: Mapping[str, float], *, is_share: bool = True) -> Estimate:
    estimate = mean_estimate(list(values.values()), items.groups(list(values)), is_share=is_share)
    ends = estimate.interval
    percent = None if ends is None else (100 * ends[0], 100 * ends[1])
    return Estimate(100 * estimate.mean, percent, estimate.n_items, estimate.n_groups)


def _mean(values: Mapping[str, float]) -> float:
    return fmean(values.values())
