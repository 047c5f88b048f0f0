"""Which tensors each of the four stages trains, and the proof that these and no others changed.

Stage 1 aligns pictures with words, 2 makes the visual-language expert, 3 the grounding expert, 4 the mixture of both.
Differs from the released scripts in that stage 2 trains the region adapter, which they left as drawn until stage 4.
"""

import re
from collections.abc import Mapping, Sequence

from torch import nn

from lightbox.backbones.families import Family
from lightbox.config import check_choice
from lightbox.errors import RequestError
from lightbox.paper import trained_tensors
from lightbox.paper.pixel_vlm_parts import own_name
from medplib.experts import Mixture

STAGES = {
    "align": ("projector",),
    "vl": ("projector", "tables", "norms", "attention", "networks", "region_adapter"),
    "grounding": ("networks", "seg_projector", "mask_decoder"),
    "mixture": ("router", "networks", "queries_values", "tables", "seg_projector", "mask_decoder", "region_adapter"),
    "joint": (
        *("projector", "tables", "norms", "attention", "networks", "region_adapter"),
        *("seg_projector", "mask_decoder"),
    ),
}
"""Groups by stage; joint, a control, is all of stages 2 and 3 at once. Stage 3 leaves attention, tables and norms
alone, so that both experts read the same states."""


def group_patterns(family: Family) -> dict[str, str]:
    """A regular expression of tensor names by group, matched as a whole; names are `own_name`s of a `PixelVLM`."""
    projector, tables = re.escape(family.projector), f"{re.escape(family.embeddings)}|{re.escape(family.head)}"
    layer = rf"vlm\.{re.escape(family.layers[0])}\.\d+"
    return {
        "projector": rf"vlm\.{projector}\..+",
        "tables": rf"vlm\.(?:{tables})\..+",  # one of them where the two are tied
        "norms": rf"{layer}\.(?:input|post_attention)_layernorm\..+",
        "attention": rf"{layer}\.self_attn\.[qkvo]_proj\..+",
        "queries_values": rf"{layer}\.self_attn\.[qv]_proj\..+",
        "networks": rf"{layer}\.mlp\.(?:experts\.\w+\.)?(?:gate|up|down)_proj\..+",
        "router": rf"{layer}\.mlp\.router\..+",
        "region_adapter": r"region_adapter\..+",
        "seg_projector": r"seg_projector\..+",
        # what makes three masks, and estimates of their overlap and of an object (SAM 2), has no part in the loss of
        # one mask; SAM 2's conv_s0 and conv_s1 are applied where a picture is embedded, once
        "mask_decoder": r"sam\.mask_decoder\."
        r"(?!iou_prediction_head|pred_obj_score_head|conv_s[01]|output_hypernetworks_mlps\.[1-9]).+",
    }


def train_stage(model: nn.Module, stage: str, family: Family, *, but_not: Sequence[str] = ()) -> dict[str, list[str]]:
    """Let a stage's groups train and nothing else.

    Args:
        model: a `PixelVLM`.
        stage: a key of `STAGES`.
        family: of its backbone.
        but_not: groups of the stage that stay as they are, such as a random router.

    Returns:
        Names of the tensors that train, by group.

    Raises:
        RequestError: an unknown stage, a group that is none of it, or what `choose_trainable` refuses.
    """
    check_choice("stage", stage, tuple(STAGES))
    if odd := [group for group in but_not if group not in STAGES[stage]]:
        raise RequestError(
            f"Stage {stage} without {odd[0]}", f"It trains {', '.join(STAGES[stage])}", "Leave out one of them"
        )
    patterns = group_patterns(family)
    return choose_trainable(model, {group: patterns[group] for group in STAGES[stage] if group not in but_not})


def choose_trainable(model: nn.Module, patterns: Mapping[str, str]) -> dict[str, list[str]]:
    """Let tensors of a `PixelVLM` train by expressions about their `own_name`s; see `trained_tensors.train_only`.

    Raises:
        RequestError: as there; a router that is a control is refused.
    """
    controls = [
        id(parameter)
        for module in model.modules()
        if isinstance(module, Mixture) and module.settings.router == "random"
        for parameter in module.router.parameters()
    ]
    return trained_tensors.train_only(model, patterns, name_of=own_name, fixed=controls)


def fingerprints(model: nn.Module) -> dict[str, str]:
    """sha256 of every tensor by its `own_name`, buffers included."""
    return trained_tensors.fingerprints(model, name_of=own_name)
