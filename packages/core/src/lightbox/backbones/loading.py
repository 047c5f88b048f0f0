"""`load`: a name of weights -> a backbone. Local directory first, the hub only when asked; safetensors only."""

import logging
from typing import Any

import torch
import transformers
from transformers import AutoProcessor, AutoTokenizer

from lightbox.backbones import weights
from lightbox.backbones.backbone import Backbone
from lightbox.backbones.families import Family, family_of
from lightbox.backbones.llava import LlavaBackbone
from lightbox.backbones.seq2seq import quiet_loading
from lightbox.backbones.t5 import T5Backbone
from lightbox.errors import RequestError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CLASSES: dict[str, type[Backbone]] = {"llava": LlavaBackbone, "t5": T5Backbone}
"""Name of a family -> what wraps it."""
_log = logging.getLogger(__name__)


def load(
    name: str,
    revision: str = "",
    *,
    quant: str = "none",
    dtype: str = "fp32",
    device: str = "cpu",
    attention: str = "auto",
    key: str = "model.backbone",
) -> Backbone:
    """Load a model and its processor, in evaluation mode.

    Args:
        name: see `weights.locate`.
        revision: full commit hash of a hub id.
        quant: none, nf4 or int8; quantised weights are frozen.
        dtype: fp32, bf16 or fp16, of weights that are not quantised, whatever the file holds.
        device: cpu, cuda or cuda:N; the whole model is placed there.
        attention: auto, sdpa, xformers, flash or eager; see `attention.choose`.
        key: config key that gave the name, for messages.

    Raises:
        RequestError: not there, not of a known family, without safetensors, weights that do not fit their config, or a
            tokenizer that does not fit the model.
    """
    place = weights.locate(name, revision=revision, key=key)
    config = weights.read_config(name, revision=revision, key=key) or {}
    family = family_of(config, name=name, key=key)
    shared: dict[str, Any] = {"trust_remote_code": False}
    if place.revision:
        shared["revision"] = place.revision
    with quiet_loading():
        reader = AutoProcessor if family.has_vision else AutoTokenizer
        processor = reader.from_pretrained(place.source, **shared)
        model, found = getattr(transformers, family.model_class).from_pretrained(
            place.source,
            use_safetensors=True,
            dtype=DTYPES[dtype],
            output_loading_info=True,
            device_map={"": device} if device != "cpu" else None,
            **shared,
        )
    _check_weights(found, family, f"{key} is '{name}'")
    return CLASSES[family.name](
        model.eval(),
        processor,
        family,
        attention=None,
        name=name,
        revision=revision,
        digest=weights.digest_of(name, revision=revision, key=key),
        quant=quant,
        dtype=DTYPES[dtype],
    )


def _check_weights(found: dict[str, Any], family: Family, given: str) -> None:
    lists = {
        "missing": sorted(found["missing_keys"]),
        "of another shape": sorted(str(key) for key in found["mismatched_keys"]),
    }
    if any(lists.values()):
        raise RequestError(
            f"{given}, read as {family.model_class}",
            "Its tensors do not fit; " + "; ".join(f"{title}: {', '.join(n) or 'none'}" for title, n in lists.items()),
            "Use weights of that architecture",
        )
    if found["unexpected_keys"]:
        names = ", ".join(sorted(found["unexpected_keys"])[:5])
        _log.warning("%s: %d tensors of its file are not read, such as %s", given, len(found["unexpected_keys"]), names)
