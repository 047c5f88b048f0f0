"""MedPLIB's model in files: a directory that any LLaVA loads, or an adapter's; experts; and what is beside them."""

from functools import partial
from pathlib import Path
from typing import Any

from peft import PeftModel

from lightbox.adapters import artifact as adapters
from lightbox.adapters.attach import attach
from lightbox.adapters.manifest import MANIFEST
from lightbox.backbones.loading import load
from lightbox.backbones.segmenter import Segmenter
from lightbox.backbones.seq2seq import quiet_loading
from lightbox.backbones.weights import CONFIG
from lightbox.config import AdapterConfig
from lightbox.errors import RequestError
from lightbox.paper import pixel_vlm_parts
from lightbox.paper.low_rank_stages import check_handed_on
from lightbox.paper.pixel_rows import add_tags, tag_ids
from lightbox.paper.pixel_vlm import PixelVLM
from lightbox.paper.pixel_vlm_parts import FACTS
from medplib.assembly import FACTS as EXPERTS
from medplib.assembly import load_experts, mixtures, save_experts

ROUTERS = r"vlm\..+\.mlp\.router\..+"
save_parts = partial(pixel_vlm_parts.save_parts, more=ROUTERS)
load_parts = partial(pixel_vlm_parts.load_parts, more=ROUTERS)


def save_model(folder: Path, model: PixelVLM, adapter: AdapterConfig | None = None) -> Path:
    """Write a whole model: a directory that any LLaVA loads, what is added to it, and experts where it has them.

    Under experts that directory has the networks of the first of them, which `open_model` puts aside again. Of a model
    with low-rank additions these are written in its place, and the base's name; `adapter` is then their settings.
    """
    backbone, core = model.backbone, model.backbone.core
    if isinstance(backbone.model, PeftModel):
        rows = [row for _, mixture in mixtures(core) for row in mixture.router.parameters() if row.requires_grad]
        for row in rows:  # saved with the parts; an adapter refuses what trains and is none of it
            row.requires_grad_(False)
        adapters.save(folder, backbone, adapter)
        for row in rows:
            row.requires_grad_(True)
    else:
        state = dict(core.state_dict())
        for path, mixture in mixtures(core):
            first = next(iter(mixture.experts))
            own = {key.removeprefix(f"experts.{first}."): value for key, value in mixture.state_dict().items()}
            plain = {
                f"{path}.{key}": value for key, value in own.items() if not key.startswith(("experts.", "router."))
            }
            state = {key: value for key, value in state.items() if not key.startswith(f"{path}.")} | plain
        with quiet_loading():
            core.save_pretrained(folder, state_dict=state)
            backbone.processor.save_pretrained(folder)
    if any(True for _ in mixtures(core)):
        save_experts(folder, core)
    return save_parts(folder, model)


def open_model(
    folder: str | Path,
    segmenter: Segmenter,
    *,
    seg_state: str = "predict",
    revision: str = "",
    adapter: AdapterConfig | None = None,
    checkpoint_layers: bool = False,
    **settings: Any,
) -> PixelVLM:
    """Open what `save_model` wrote, or a vision-language model, to which tags, projector and adapter are then new.

    What is new is drawn from torch's generator.

    Args:
        folder: or a hub id with its revision.
        segmenter: of the training.
        seg_state: see `PixelVLM`.
        revision: of a hub id.
        adapter: of kind lora: how a model without low-rank additions is stored, and gets them.
        checkpoint_layers: see `kbit.prepare`.
        settings: of `loading.load`: device, dtype, attention.

    Raises:
        RequestError: what loading, `attach` and `load_parts` refuse, or other additions than `adapter` says.
    """
    adapter, place = adapter or AdapterConfig(), Path(folder)
    is_saved = (place / MANIFEST).is_file() and not (place / CONFIG).is_file()  # a merged adapter is a whole model
    if is_saved:
        check_handed_on(place, adapter, settings.get("dtype"))
        backbone = adapters.load_base(place, **settings)
    elif adapter.kind != "none" and (place / EXPERTS).is_file():
        raise RequestError(
            f"'{folder}' holds experts that were trained whole, and adapter.kind is {adapter.kind}",
            "Additions to them could not be saved: experts with additions share the weights below",
            "Set adapter.kind=none",
        )
    else:
        backbone = load(str(folder), revision, quant=adapter.quant, **settings)
    add_tags(backbone)
    if (place / EXPERTS).is_file():
        load_experts(place, backbone.core)  # before the additions, which are to theirs too
    if is_saved:
        backbone = adapters.load(place, backbone, is_trainable=True, checkpoint_layers=checkpoint_layers)
    else:
        tags = sorted(tag_ids(backbone).values())
        backbone = attach(backbone, adapter, checkpoint_layers=checkpoint_layers, new_token_ids=tags)
    model = PixelVLM(backbone, segmenter, seg_state=seg_state)
    if (place / FACTS).is_file():
        load_parts(place, model)
    return model
