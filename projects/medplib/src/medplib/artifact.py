"""What MedPLIB adds to its two models, in one folder: projector of `<SEG>`, region adapter, mask decoder, routers.

Adapters of the language model are in their own folder (`lightbox.adapters.artifact`), experts in theirs (`assembly`).
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightbox.backbones.loading import load
from lightbox.backbones.segmenter import Segmenter
from lightbox.backbones.seq2seq import quiet_loading
from lightbox.errors import RequestError
from lightbox.files import write_json
from lightbox.paper.pixel_rows import add_tags
from lightbox.paper.pixel_vlm import PixelVLM
from lightbox.paper.tensor_sets import differing
from lightbox.train.weights import read_tensors, write_tensors
from medplib.assembly import FACTS as EXPERTS
from medplib.assembly import load_experts, mixtures, save_experts
from medplib.stages import own_name

TENSORS, FACTS = "pixel_vlm.safetensors", "pixel_vlm.json"
PARTS = r"(?:seg_projector|region_adapter|sam\.mask_decoder)\..+|vlm\..+\.mlp\.router\..+"


def parts_of(model: PixelVLM) -> dict[str, Tensor]:
    """The tensors that are saved, by their own names, as they lie in the model."""
    return {
        own_name(name): tensor for name, tensor in model.state_dict().items() if re.fullmatch(PARTS, own_name(name))
    }


def save_parts(folder: Path, model: PixelVLM) -> Path:
    """Write the parts of a model to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / TENSORS, parts_of(model))
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
    saved, parts = read_tensors(folder / TENSORS), parts_of(model)
    if odd := differing(saved, parts):
        raise RequestError(
            f"The parts of '{folder}': {odd}",
            "They belong to another model: experts come before their routers, and widths must agree",
            "Make the model as it was in training",
        )
    for name, tensor in parts.items():
        tensor.copy_(saved[name])
    return model


def save_model(folder: Path, model: PixelVLM) -> Path:
    """Write a whole model: a directory that any LLaVA loads, what is added to it, and experts where it has them.

    Under experts that directory has the networks of the first of them, which `open_model` puts aside again.
    """
    core = model.backbone.core
    state = dict(core.state_dict())
    for path, mixture in mixtures(core):
        first = next(iter(mixture.experts))
        own = {key.removeprefix(f"experts.{first}."): value for key, value in mixture.state_dict().items()}
        state = {key: value for key, value in state.items() if not key.startswith(f"{path}.")}
        state |= {f"{path}.{key}": value for key, value in own.items() if not key.startswith(("experts.", "router."))}
    with quiet_loading():
        core.save_pretrained(folder, state_dict=state)
        model.backbone.processor.save_pretrained(folder)
    if any(True for _ in mixtures(core)):
        save_experts(folder, core)
    return save_parts(folder, model)


def open_model(
    folder: str | Path, segmenter: Segmenter, *, seg_state: str = "predict", revision: str = "", **settings: Any
) -> PixelVLM:
    """Open what `save_model` wrote, or a vision-language model, to which tags, projector and adapter are then new.

    What is new is drawn from torch's generator.

    Args:
        folder: or a hub id with its revision.
        segmenter: of the training.
        seg_state: see `PixelVLM`.
        revision: of a hub id.
        settings: of `loading.load`: device, dtype, attention.

    Raises:
        RequestError: what loading and `load_parts` refuse.
    """
    backbone = load(str(folder), revision, **settings)
    add_tags(backbone)
    if (Path(folder) / EXPERTS).is_file():
        load_experts(Path(folder), backbone.core)
    model = PixelVLM(backbone, segmenter, seg_state=seg_state)
    if (Path(folder) / FACTS).is_file():
        load_parts(Path(folder), model)
    return model
