"""The model that an arm begins with: drawn, of an earlier stage, or put together from two of them."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightbox.backbones.segmenter import load_segmenter
from lightbox.errors import RequestError
from lightbox.paper.drawn_regions import MASK
from lightbox.paper.pixel_items import PixelItem
from lightbox.paper.pixel_vlm import PixelVLM
from lightbox.paper.pixel_vlm_parts import FACTS, weights_of
from lightbox.paper.pretrained import Pretrained
from lightbox.paper.wider_networks import widen_networks
from lightbox.pretrain.modality_llava import write_start
from lightbox.train.precision import make_accelerator, plain_device
from lightbox.train.seeds import seed_everything
from medplib.artifact import load_parts, open_model
from medplib.assembly import add_experts, average_experts, mixtures
from medplib.config import ALIGN, COST, GROUNDING, JOINT, VL, WIDE, Config
from medplib.experts import MixtureSettings
from medplib.routing import centre_routers

BEFORE = {ALIGN: (), COST: (), VL: (ALIGN,), JOINT: (ALIGN,), GROUNDING: (VL,)}
"""Arms whose weights a stage begins from; stage 4 has those of both experts."""


def expert_of(task: str) -> str:
    """Name of the expert that was trained on a task."""
    return GROUNDING if task == MASK else VL


def open_arm(cfg: Config, base: Pretrained, needs: Mapping[str, Path], shown: Sequence[PixelItem] = ()) -> PixelVLM:
    """The model that the arm trains, or scores as it is.

    Args:
        cfg: of the arm.
        base: a saved model is opened as it is, whatever the arm.
        needs: folders of earlier stages by name of their arm.
        shown: answered questions of training, by which new routers are centred; none where no experts are put together.

    Raises:
        RequestError: where an earlier stage is not named or kept no weights.
    """
    saved = base.adapter or Path(base.name)
    if base.adapter is not None and not (saved / FACTS).is_file():
        raise RequestError(
            f"model.backbone is the adapter '{saved}'",
            f"There is no {FACTS} beside it, so it was not trained here, and what masks need is not in it",
            "Name the model of a run of this paper",
        )
    if (saved / FACTS).is_file():
        return _opened(base.under(cfg), str(saved))
    # a real set has masks alone, so stage 3 goes on from where it learnt to draw what it is asked for
    before = BEFORE.get(cfg.objective.method, (VL, GROUNDING)) if cfg.data.is_phantom else (GROUNDING,)
    places = {arm: weights_of(arm, needs) for arm in before}
    if not before:
        return _drawn(cfg) if cfg.model.start_tower else _opened(cfg, base.name)
    if len(before) == 1:
        model = _opened(cfg, str(places[before[0]]))
        if cfg.objective.networks == WIDE:
            widen_networks(model.backbone.core, layers=model.backbone.family.layers[0])
        return model
    model = _put_together(cfg, places)
    if shown and any(True for _ in mixtures(model.backbone.core)):
        centre_routers(model, lambda: model.eval()(model.prepare(shown).to(model.backbone.device)))
    return model


def settings_of(cfg: Config) -> MixtureSettings:
    """How tokens meet experts in the arm."""
    router = "random" if cfg.objective.router == "random" else "learned"
    return MixtureSettings(cfg.model.top_k, cfg.model.expert_weight, router, cfg.run.seed)


def _drawn(cfg: Config) -> PixelVLM:
    """The start of the tiny model, whose projector and new words are drawn from the seed."""
    with tempfile.TemporaryDirectory() as folder:
        return _opened(cfg, str(write_start(Path(folder), seed=cfg.run.seed, tower=cfg.model.start_tower)))


def _put_together(cfg: Config, places: Mapping[str, Path]) -> PixelVLM:
    """One model of two experts, of their copies or their average, or the grounding expert alone."""
    networks = cfg.objective.networks
    grounding = _opened(cfg, str(places[GROUNDING]))
    if networks == "one":
        return grounding
    model = _opened(cfg, str(places[VL]))
    core, layers = model.backbone.core, model.backbone.family.layers[0]
    load_parts(places[GROUNDING], model)  # projector of <SEG> and decoder, which stage 2 leaves alone
    sources = {GROUNDING: core if networks == "copied" else grounding.backbone.core, VL: core}
    if networks == "average":
        average_experts(core, sources, layers=layers)
    else:
        add_experts(core, sources, layers=layers, settings=settings_of(cfg))
    return model


def _opened(cfg: Config, name: str) -> PixelVLM:
    # what is new in a model is drawn from the seed, so arms of a seed begin alike
    seed_everything(cfg.run.seed, cfg.run.threads, device=cfg.run.device)
    device = plain_device(make_accelerator(cfg.run))
    segmenter = load_segmenter(cfg.model.segmenter, cfg.model.segmenter_revision)
    own = cfg.model
    model = open_model(
        name,
        segmenter,
        seg_state=own.seg_state,
        revision=own.backbone_revision if name == own.backbone else "",
        dtype=own.dtype,
        device=str(device),
        attention=own.attention,
        adapter=cfg.adapter,
        checkpoint_layers=cfg.train.checkpoint_layers,
    )
    return model.to(device)
