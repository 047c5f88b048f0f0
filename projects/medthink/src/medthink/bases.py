"""What `model.backbone` may be, checked in a second and without torch: a T5, or a model that has a tower of its own."""

from lightbox.backbones import preflight
from lightbox.backbones.families import Family
from lightbox.errors import RequestError
from medthink.config import OWN_TOWER, Config, family_of_backbone


def check(cfg: Config) -> Family | None:
    """Refuse what the weights cannot do, before they are loaded; None for a hub id, whose files are not here yet.

    Raises:
        RequestError: what `preflight.check_request` refuses, a text that cannot fit the context, or a setting that
            belongs to the paper's T5 beside a vision-language model.
    """
    if cfg.is_baseline:
        return None
    preflight.check_request(
        cfg.model.backbone,
        cfg.model.backbone_revision,
        quant=cfg.adapter.quant,
        max_tokens=max(cfg.data.source_tokens, cfg.target_tokens),
        tokens_key="data.source_tokens" if cfg.data.source_tokens >= cfg.target_tokens else "data.target_tokens",
    )
    family = family_of_backbone(cfg)
    if family is not None and family.has_vision:
        check_vlm(cfg, family)
    return family


def check_vlm(cfg: Config, family: Family) -> None:
    """Refuse what only the paper's T5 has.

    Raises:
        RequestError: features, another tower, dropout of T5, or pads in the loss.
    """
    given = f"model.backbone is '{cfg.model.backbone}', of family {family.name}"
    if cfg.model.features or cfg.model.tower != OWN_TOWER:
        key = "model.features" if cfg.model.features else "model.tower"
        raise RequestError(
            f"{given}, and {key} is '{getattr(cfg.model, key.removeprefix('model.'))}'",
            "It reads images through a tower of its own, and would never see that one's",
            f"Leave {key} out, or set model.backbone to a T5",
        )
    if cfg.objective.pads == "official":
        raise RequestError(
            f"{given}, and objective.pads is official",
            "The official code counts pads of a T5's target; here a target is followed by nothing",
            "Set objective.pads=masked, or model.backbone to a T5",
        )
    if cfg.model.dropout_prob > 0:
        raise RequestError(
            f"{given}, and model.dropout_prob is {cfg.model.dropout_prob}",
            "That is the dropout of a T5",
            "Set model.dropout_prob=0 and, to resist over-fitting, adapter.dropout_prob",
        )
