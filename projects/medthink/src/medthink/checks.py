"""Requests that cannot work with the weights that they name, refused in a second and without torch."""

import dataclasses

from lightbox.adapters.manifest import MANIFEST
from lightbox.backbones import preflight
from lightbox.config import AdapterConfig
from lightbox.errors import RequestError
from medthink.bases import DTYPES, Base, find_base
from medthink.config import OWN_TOWER, Config
from medthink.room import check_room


def check(cfg: Config) -> None:
    """Refuse what cannot work, before anything is loaded or read in full.

    Raises:
        RequestError: what `preflight.check_request` refuses, a text that cannot fit the context, an adapter where a
            model is needed, a setting that belongs to the paper's T5 beside a vision-language model, or a card that is
            too small.
    """
    if cfg.is_baseline:
        return
    base = find_base(cfg.model.backbone, cfg.model.backbone_revision)
    is_source = cfg.data.source_tokens >= cfg.target_tokens
    preflight.check_request(
        base.name,
        base.revision,
        quant=base.record.get("quant", cfg.adapter.quant),
        max_tokens=max(cfg.data.source_tokens, cfg.target_tokens),
        tokens_key="data.source_tokens" if is_source else "data.target_tokens",
    )
    _check_adapter(cfg, base)
    if base.family is not None:
        check_family(cfg, base)


def check_family(cfg: Config, base: Base) -> None:
    """Refuse settings that are not for the family; for a hub id, once its config.json is here.

    Raises:
        RequestError: see `check`.
    """
    if base.has_own_tower:
        _check_vlm(cfg, base)
    elif cfg.adapter.projector == "lora":
        raise RequestError(
            f"adapter.projector is lora and model.backbone is '{cfg.model.backbone}'",
            "Beside a T5 it is the fusion that joins image and text, which is new and so trained as a whole",
            "Leave adapter.projector out",
        )
    check_room(cfg, base)


def settled(cfg: Config, base: Base) -> Config:
    """The configuration with the model under an adapter in the place of the adapter's folder, stored as in training."""
    model = dataclasses.replace(cfg.model, backbone=base.name, backbone_revision=base.revision)
    if base.adapter is None:
        return dataclasses.replace(cfg, model=model)
    model = dataclasses.replace(model, dtype=DTYPES[base.record["dtype"]])
    return dataclasses.replace(cfg, model=model, adapter=AdapterConfig(**base.record["adapter"]))


def _check_adapter(cfg: Config, base: Base) -> None:
    if base.adapter is None:
        return
    given = f"model.backbone is '{cfg.model.backbone}', an adapter on '{base.name}'"
    if cfg.objective.is_trained:
        raise RequestError(
            f"{given}, and objective.is_trained is true",
            f"A second adapter on top of it could not be told from the first in what is saved ({MANIFEST})",
            f"Train on '{base.name}', or merge the adapter into a model first with lightbox.adapters.merge",
        )
    if cfg.adapter.kind != "none" and cfg.adapter.quant != base.record["quant"]:
        raise RequestError(
            f"{given} stored as {base.record['quant']}, and adapter.quant is {cfg.adapter.quant}",
            "The same adapter gives other numbers on a base that is stored otherwise",
            "Leave adapter.* out: how the base is stored stands in the adapter's manifest",
        )


def _check_vlm(cfg: Config, base: Base) -> None:
    """Refuse what only the paper's T5 has: features, another tower, its dropout, pads in the loss."""
    given = f"model.backbone is '{cfg.model.backbone}', of family {base.family.name}"
    if cfg.model.features or cfg.model.tower != OWN_TOWER:
        key, value = ("features", cfg.model.features) if cfg.model.features else ("tower", cfg.model.tower)
        raise RequestError(
            f"{given}, and model.{key} is '{value}'",
            "It reads images through a tower of its own and would never see that one's features",
            f"Leave model.{key} out, or set model.backbone to a T5",
        )
    if cfg.objective.pads == "official":
        raise RequestError(
            f"{given}, and objective.pads is official",
            "The official code counts pads in a T5's target; a prompt and its answer in one row are followed by none",
            "Set objective.pads=masked, or model.backbone to a T5",
        )
    if cfg.model.dropout_prob > 0:
        raise RequestError(
            f"{given}, and model.dropout_prob is {cfg.model.dropout_prob}",
            "That is the dropout of a T5",
            "Set model.dropout_prob=0 and, against over-fitting, adapter.dropout_prob",
        )
