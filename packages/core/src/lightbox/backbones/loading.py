"""`load`: a name of weights -> a backbone. Local directory first, the hub only when asked; safetensors only."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import hf_hub_download
from transformers import AutoProcessor, AutoTokenizer

from lightbox.backbones import preflight, quantisation, weights
from lightbox.backbones.attention import choose
from lightbox.backbones.backbone import DTYPES, Backbone
from lightbox.backbones.families import Family
from lightbox.backbones.florence2 import Florence2Backbone
from lightbox.backbones.gemma3 import Gemma3Backbone
from lightbox.backbones.llava import LlavaBackbone, LlavaNextBackbone
from lightbox.backbones.matching import check_tensors, check_tokenizer
from lightbox.backbones.qwen_vl import Qwen2VlBackbone, Qwen25VlBackbone
from lightbox.backbones.seq2seq import quiet_loading
from lightbox.backbones.t5 import T5Backbone
from lightbox.config import check_choice
from lightbox.errors import RequestError

CLASSES: dict[str, type[Backbone]] = {
    "llava": LlavaBackbone,
    "llava_next": LlavaNextBackbone,
    "qwen2_vl": Qwen2VlBackbone,
    "qwen2_5_vl": Qwen25VlBackbone,
    "gemma3": Gemma3Backbone,
    "florence2": Florence2Backbone,
    "t5": T5Backbone,
}
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
) -> Backbone:
    """Load a model and its processor, in evaluation mode.

    Args:
        name: see `weights.locate`.
        revision: full commit hash of a hub id.
        quant: none, nf4 or int8; quantised weights are frozen.
        dtype: fp32, bf16 or fp16, of weights that are not quantised, whatever the file holds.
        device: cpu, cuda or cuda:N; the whole model is placed there, or loading fails.
        attention: auto, sdpa, xformers, flash or eager; see `attention.choose`.

    Raises:
        RequestError: what `preflight.check_request` refuses, no such device, a hub that does not answer, weights that
            do not fit their config, or a tokenizer that does not fit the model.
        WorkError: layers that are quantised otherwise than `quant` asks.
    """
    check_choice("dtype", dtype, tuple(DTYPES))
    _check_device(device)
    family = preflight.check_request(name, revision, quant=quant)
    place = weights.locate(name, revision=revision)
    request = f"model.backbone is '{name}'"
    shared = {"revision": place.revision} if place.revision else {}
    with _hub_errors(place, request), quiet_loading():
        if family is None:
            config = _hub_config(place)
            family = preflight.check_config(config, name=name)
        choice = choose(attention, device=device, dtype=dtype, model_type=family.name)
        processor_class = AutoProcessor if family.has_vision else AutoTokenizer
        processor = processor_class.from_pretrained(place.source, trust_remote_code=False, **shared)
        model, loading_info = getattr(transformers, family.model_class).from_pretrained(
            place.source,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=DTYPES[dtype],
            output_loading_info=True,
            attn_implementation=choice.implementation,
            ignore_mismatched_sizes=True,  # named and refused below
            **_placement(quant, family, dtype, device),
            **shared,
        )
    # more is accepted with a warning: files also hold heads of other tasks and position tables
    unread = check_tensors(loading_info, family.model_class, request, may_hold_more=True)
    if unread:
        _log.warning("%s: %d tensors of its file are not read, such as %s", request, len(unread), unread[0])
    quantisation.settle(model, family, quant)
    backbone = CLASSES[family.name](
        model.eval(),
        processor,
        family,
        attention=choice,
        name=name,
        revision=revision,
        quant=quant,
        dtype=DTYPES[dtype],
    )
    check_tokenizer(len(backbone.tokenizer), backbone.part(family.embeddings).num_embeddings, request)
    return backbone


def family_on_hub(name: str, revision: str) -> Family:
    """The family of a hub id, from its config.json, which is fetched; nothing else is.

    Raises:
        RequestError: a hub that does not answer, or what `preflight.check_config` refuses.
    """
    place = weights.locate(name, revision=revision)
    with _hub_errors(place, f"model.backbone is '{name}'"):
        return preflight.check_config(_hub_config(place), name=name)


def _placement(quant: str, family: Family, dtype: str, device: str) -> dict[str, Any]:
    """One device for all: "auto" would spread a model over host memory and call that success."""
    settings = quantisation.settings_for(quant, family, dtype=DTYPES[dtype], device=device)
    return settings or ({} if device == "cpu" else {"device_map": {"": device}})


def _check_device(device: str) -> None:
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise RequestError(f"The device is '{device}'", "Models run on cpu, cuda or cuda:N", "Name one of them")
    if device != "cpu" and not torch.cuda.is_available():
        raise RequestError(f"The device is '{device}'", "torch finds no CUDA device on this machine", "Use cpu")


@contextmanager
def _hub_errors(place: weights.Place, request: str) -> Iterator[None]:
    try:
        yield
    except OSError as err:  # transformers and the hub client raise OSError for all of these
        if place.folder is not None:
            raise
        raise RequestError(
            f"{request} at revision {place.revision}",
            f"The hub did not give its files ({type(err).__name__}): no network, no such commit, no access, or no "
            "safetensors",
            f"Fetch the repository into a folder and set that folder instead of '{place.source}'",
        ) from err


def _hub_config(place: weights.Place) -> Mapping[str, Any]:
    path = hf_hub_download(place.source, weights.CONFIG, revision=place.revision)
    return json.loads(Path(path).read_text(encoding="utf-8"))
