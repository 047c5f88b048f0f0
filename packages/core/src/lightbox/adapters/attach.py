"""A loaded backbone -> one that trains as `adapter.*` says: everything that must happen, in the order it must."""

import logging
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from lightbox.adapters import guards, kbit, lora
from lightbox.adapters.fused import use_fused
from lightbox.backbones.backbone import Backbone
from lightbox.config import AdapterConfig

_log = logging.getLogger(__name__)


def attach(
    backbone: Backbone,
    adapter: AdapterConfig,
    *,
    checkpoint_layers: bool = False,
    new_token_ids: Sequence[int] = (),
    batches: Iterable[Mapping[str, Tensor]] | None = None,
) -> Backbone:
    """Freeze the base, add what trains, check it and log it by name and count.

    Args:
        backbone: as loaded, on its device; its model is changed in place.
        adapter: settings; with kind=none all goes on training.
        checkpoint_layers: see `kbit.prepare`.
        new_token_ids, batches: see `lora.add_lora`.

    Raises:
        RequestError, WorkError: as `lora.add_lora`, `guards.check_trainable` and `guards.check_no_bulk_fp32`.
    """
    if adapter.kind == "none":
        if checkpoint_layers:
            kbit.checkpoint_language(backbone.core, backbone.family)
        return backbone
    # before additions: it freezes every parameter there is
    kbit.prepare(backbone.core, backbone.family, checkpoint_layers=checkpoint_layers)
    model = lora.add_lora(backbone.core, backbone.family, adapter, new_token_ids=new_token_ids, batches=batches)
    if adapter.use_fused:
        for reason, layers in use_fused(model).items():
            _log.info("linear layers with additions: %d %s", layers, reason)
    guards.check_trainable(model, backbone.family, adapter, has_new_tokens=bool(new_token_ids))
    # at the end, because wrapping is where frozen tensors get widened
    guards.check_no_bulk_fp32(model, backbone.dtype)
    for line in guards.trainable_lines(model, backbone.family):
        _log.info("%s", line)
    return backbone.with_model(model)
