"""What a mixture costs beside a single expert: operations counted, rows that enter experts, and what copies change."""

import copy
from collections.abc import Sequence

import torch

from lightbox.eval.routing_table import EVERY
from lightbox.paper.counted_flops import counted_flops
from lightbox.paper.padded_experts import padded_rows
from lightbox.paper.pixel_items import PixelItem
from lightbox.paper.pixel_vlm import PixelVLM
from medplib.assembly import add_experts, mixtures
from medplib.experts import MixtureSettings
from medplib.routing import counted

OFFICIAL = {"rows_official_train": 1.5, "rows_official_eval": 2.0}
"""Capacity factors of the released scripts: every expert computes so many rows, filled with zeros."""
NAMES = ("grounding", "vl")


@torch.no_grad()
def measure_cost(model: PixelVLM, items: Sequence[PixelItem], settings: MixtureSettings) -> dict[str, float]:
    """Compare a model with two copies of its own networks as experts, one question at a time.

    What is computed does not depend on how well the weights are trained, so those of the start serve.

    Args:
        model: dense; it is left as it is.
        items: questions.
        settings: of the mixture.

    Returns:
        The worst ratio or difference over the questions, by name, see `scores.METRICS`.
    """
    dense, layers = model.backbone.core, model.backbone.family.layers[0]
    mixture = add_experts(copy.deepcopy(dense), dict.fromkeys(NAMES, dense), layers=layers, settings=settings)
    n_mixtures = sum(1 for _ in mixtures(mixture))
    worst: dict[str, float] = {}
    for item in items:
        inputs = model.language_inputs(model.prepare([item]).to(model.backbone.device))
        own_flops, own_logits = counted_flops(dense, inputs)
        with counted(mixture) as table:
            flops, logits = counted_flops(mixture, inputs)
        tokens = n_mixtures * (int(inputs["attention_mask"].sum()) + 1)  # and the one more word
        by_layer: dict[int, list[int]] = {}
        for (layer, over, _, _), n in table.rows.items():
            by_layer.setdefault(layer, []).append(n)
            assert over == EVERY
        seen = {
            "flops_prefill": flops[0] / own_flops[0],
            "flops_decode": flops[1] / own_flops[1],
            "rows": sum(table.rows.values()) / tokens,
            "copied_gap": float((logits - own_logits).abs().max() / own_logits.abs().max()),
        }
        for name, factor in OFFICIAL.items():
            padded = sum(padded_rows(counts, factor=factor).entering for counts in by_layer.values())
            seen[name] = padded / sum(table.rows.values())
        worst = {name: max(value, worst.get(name, value)) for name, value in seen.items()}
    return worst
