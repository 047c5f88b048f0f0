"""What is trained of a pretrained model: everything, or additions to a frozen base, as `adapter.*` asks."""

import logging
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightbox.adapters import guards, kbit
from lightbox.adapters.lora import add_lora
from lightbox.backbones.families import Family
from lightbox.config import AdapterConfig
from medthink.config import Config

Batches = Callable[[], Iterable[Mapping[str, Tensor]]]
_log = logging.getLogger(__name__)


def adapted(
    cfg: Config,
    model: PreTrainedModel,
    family: Family,
    adapter: AdapterConfig,
    *,
    dtype: torch.dtype,
    batches: Batches | None = None,
) -> PreTrainedModel:
    """The model as it will train: itself, or wrapped with additions and everything else frozen.

    Says by name and count what trains, and checks that it is what the settings ask for.

    Args:
        cfg: `train.*` decides what is computed again in the backward pass.
        model: as loaded, on the device of the run; changed in place.
        family: names of its parts.
        adapter: what is added; of kind none, every parameter trains.
        dtype: of frozen weights that are not quantised.
        batches: gives the model's inputs for adapter.init=eva.
    """
    if adapter.kind == "none":
        if cfg.train.checkpoint_layers:
            kbit.checkpoint_language(model, family)
        return model
    kbit.prepare(model, family, checkpoint_layers=cfg.train.checkpoint_layers)
    seen = batches() if adapter.init == "eva" and batches is not None else None
    wrapped = add_lora(model, family, adapter, batches=seen)
    guards.check_trainable(wrapped, family, adapter)
    guards.check_no_bulk_fp32(wrapped, dtype)
    for line in guards.trainable_lines(wrapped, family):
        _log.info("%s", line)
    return wrapped
