"""Who goes where in a mixture: shares of tokens by layer, as the card of a run has them, as a figure. No torch."""

from collections.abc import Mapping
from typing import Any

from lightbox.report import figures
from lightbox.report.numbers import level, number

ROUTING = "routing"
"""Of the card: by what is counted over (task, token type), `shares[layer][group][expert]` and `bits[layer]`."""


def routing_figure(card: Mapping[str, Any]) -> tuple[str, str] | None:
    """For each task and type of token, the share that the first expert takes in each layer, in percent.

    Args:
        card: of a run; experts are in the order of its shares.

    Returns:
        The figure and its alternative text, which also says what task and type tell about the expert, in bits; None for
        a run that has no such shares.
    """
    by_line: dict[str, dict[str, float]] = {}
    expert, bits = "", []
    for over, facts in card.get(ROUTING, {}).items():
        for layer, groups in facts["shares"].items():
            for group, shares in groups.items():
                expert = expert or next(iter(shares))
                by_line.setdefault(f"{over}: {group}", {})[layer] = 100 * shares[expert]
        own = ", ".join(f"{number(value)} in layer {layer}" for layer, value in facts["bits"].items())
        bits.append(f"{over} tells {own} bits about the expert")
    if not by_line:
        return None
    layers = sorted({layer for own in by_line.values() for layer in own}, key=int)
    lines = tuple(
        figures.KindLine(name, tuple((own[k], None, None) if k in own else None for k in layers))
        for name, own in by_line.items()
    )
    said = (
        f"{name} {', '.join(f'{level(own[k])} in layer {k}' for k in layers if k in own)}"
        for name, own in by_line.items()
    )
    unit = f"tokens that go to {expert}, %"
    svg = figures.by_kind(tuple(f"layer {k}" for k in layers), lines, unit=unit, is_ordered=True)
    return figures.data_uri(svg), f"Share of {unit}: {'; '.join(said)}. {'; '.join(bits)}."
