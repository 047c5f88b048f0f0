"""What a `PixelVLM` adds to its two models, in one file: projector of `<SEG>`, region adapter, mask decoder, and more.

Adapters of the language model are in files of their own (`lightbox.adapters.artifact`).
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lightbox.adapters.plain import plain_name
from lightbox.errors import RequestError
from lightbox.files import write_json
from lightbox.paper.pixel_vlm import PixelVLM
from lightbox.paper.tensor_sets import differing
from lightbox.runs.folders import MODEL
from lightbox.train.weights import read_tensors, write_tensors

TENSORS, FACTS = "pixel_vlm.safetensors", "pixel_vlm.json"
PARTS = r"(?:seg_projector|region_adapter|sam\.mask_decoder)\..+"


def own_name(name: str) -> str:
    """A tensor's name in a `PixelVLM`, whatever peft wrapped around its module."""
    return f"vlm.{plain_name(name.removeprefix('vlm.'))}" if name.startswith("vlm.") else name


def parts_of(model: PixelVLM, *, more: str = "") -> dict[str, Tensor]:
    """The tensors that are saved, by their own names, as they lie in the model.

    Args:
        model: any.
        more: regular expression of further names, matched as a whole, such as those of a paper's routers.
    """
    pattern = f"{PARTS}|{more}" if more else PARTS
    named = ((own_name(name), tensor) for name, tensor in model.state_dict().items())
    return {name: tensor for name, tensor in named if re.fullmatch(pattern, name)}


def save_parts(folder: Path, model: PixelVLM, *, more: str = "") -> Path:
    """Write the parts of a model to a folder; `more` as in `parts_of`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / TENSORS, parts_of(model, more=more))
    write_json(folder / FACTS, {"seg_state": model.seg_state, "segmenter": model.segmenter.digest})
    return folder


@torch.no_grad()
def load_parts(folder: Path, model: PixelVLM, *, more: str = "") -> PixelVLM:
    """Put saved parts into a model of the same backbone and segmenter, in place; `more` as in `parts_of`.

    Raises:
        RequestError: a folder without parts, another segmenter or way to read states, or tensors that are missing, too
            many or of another shape.
    """
    if not (folder / FACTS).is_file():
        raise RequestError(f"'{folder}'", f"There is no {FACTS} in it", "Name a folder of save_parts")
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    for what, own in (("seg_state", model.seg_state), ("segmenter", model.segmenter.digest)):
        if facts[what] != own:
            raise RequestError(
                f"The parts of '{folder}' were trained with {what} {facts[what]}",
                f"This model has {own}, which gives them other input",
                "Make the model as it was in training",
            )
    saved, parts = read_tensors(folder / TENSORS), parts_of(model, more=more)
    if odd := differing(saved, parts):
        raise RequestError(
            f"The parts of '{folder}': {odd}",
            "They belong to another model: experts come before their routers, and widths must agree",
            "Make the model as it was in training",
        )
    for name, tensor in parts.items():
        tensor.copy_(saved[name])
    return model


def weights_of(arm: str, needs: Mapping[str, Path]) -> Path:
    """Folder of the weights that an earlier arm left.

    Raises:
        RequestError: where its folder is not named, or holds no weights.
    """
    folder = needs.get(arm)
    if folder is None or not (folder / MODEL / FACTS).is_file():
        raise RequestError(
            f"Arm '{arm}' is needed and its folder is '{folder or 'not given'}'",
            "Each stage begins from the weights that an earlier one left",
            f"Run experiment={arm} first and name its folder as needs=[FOLDER]",
        )
    return folder / MODEL
