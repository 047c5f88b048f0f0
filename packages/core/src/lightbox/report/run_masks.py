"""Masks of one run: the Dice of what is there, by modality and class, as a figure. No torch."""

from statistics import fmean

from lightbox.paper.drawn_regions import Asked
from lightbox.report import figures
from lightbox.report.numbers import level
from lightbox.report.run_items import DICE, RunItems


def mask_figure(items: RunItems) -> tuple[str, str] | None:
    """Each modality and, below it, its classes: a dot an item and a bar at the mean, in percent.

    Returns:
        The figure and its alternative text; None for a run without scores of masks, or where it is not known what the
        items asked for.
    """
    by_class: dict[str, dict[str, list[float]]] = {}
    for item, dice in items.values.get(DICE, {}).get(items.main, {}).items():
        record = items.samples[item].record if item in items.samples else None
        if isinstance(record, Asked):
            by_class.setdefault(record.modality, {}).setdefault(record.name, []).append(100 * dice)
    groups = []
    for modality, classes in sorted(by_class.items()):
        every = [value for own in classes.values() for value in own]
        groups.append(figures.Level(f"{modality} ({len(every)})", tuple(every)))
        groups += [
            figures.Level(f"{name} ({len(own)})", tuple(own), is_baseline=True) for name, own in sorted(classes.items())
        ]
    if not groups:
        return None
    means = "; ".join(f"{group.label}: {level(fmean(group.per_seed))}" for group in groups)
    svg = figures.levels(tuple(groups), unit="Dice of what is there, %")
    return figures.data_uri(svg), f"Dice by modality, and by class in it. {means}."
