"""What MedPLIB adds to its two models, in one folder: projector of `<SEG>`, region adapter, mask decoder, routers.

Adapters of the language model are in their own folder (`lightbox.adapters.artifact`), experts in theirs (`assembly`).
"""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightbox.errors import RequestError
from lightbox.files import write_json
from medplib.model import PixelVLM
from medplib.stages import own_name

TENSORS, FACTS = "pixel_vlm.safetensors", "pixel_vlm.json"
PARTS = r"(?:seg_projector|region_adapter|sam\.mask_decoder)\..+|vlm\..+\.mlp\.router\..+"
SHOWN = 3


def parts_of(model: PixelVLM) -> dict[str, Tensor]:
    """The tensors that are saved, by their own names, as they lie in the model."""
    return {
        own_name(name): tensor for name, tensor in model.state_dict().items() if re.fullmatch(PARTS, own_name(name))
    }


def save_parts(folder: Path, model: PixelVLM) -> Path:
    """Write the parts of a model to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in parts_of(model).items()}
    save_file(tensors, folder / TENSORS, {"format": "pt"})
    write_json(folder / FACTS, {"seg_state": model.seg_state, "segmenter": model.segmenter.digest})
    return folder


@torch.no_grad()
def load_parts(folder: Path, model: PixelVLM) -> PixelVLM:
    """Put saved parts into a model of the same backbone and segmenter, in place.

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
    saved, parts = load_file(folder / TENSORS), parts_of(model)
    odd = {
        "missing": parts.keys() - saved.keys(),
        "unexpected": saved.keys() - parts.keys(),
        "of another shape": {name for name in parts.keys() & saved.keys() if parts[name].shape != saved[name].shape},
    }
    if any(odd.values()):
        raise RequestError(
            f"The parts of '{folder}': "
            + "; ".join(f"{what} {', '.join(sorted(names)[:SHOWN])}" for what, names in odd.items() if names),
            "They belong to another model: experts come before their routers, and widths must agree",
            "Make the model as it was in training",
        )
    for name, tensor in parts.items():
        tensor.copy_(saved[name])
    return model
