"""Starts of low-rank additions other than "no change": from data (EVA), or from the error of quantisation (LoftQ).

EVA's directions are found by peft. LoftQ is written here: peft's function computes on CUDA only, leaves out the scale
s of the additions, so that with s = 2 the error grows instead of shrinking, and looks tensors up by names that older
checkpoints do not have.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.config import EvaConfig
from peft.tuners.lora.eva import get_eva_state_dict
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from lightbox.adapters.plain import dense_weight, plain_name, todays_name
from lightbox.backbones.quantisation import quantised_as
from lightbox.errors import RequestError


def eva_directions(
    model: PreTrainedModel, pattern: str, r: int, batches: Iterable[Mapping[str, Tensor]] | None
) -> dict[str, Tensor]:
    """The r main directions of the inputs of each target layer, r in, from incremental SVD over batches.

    Every layer gets rank r (peft's rho = 1), so the adapter's size is the one that was asked for.

    Args:
        model: a base without adapters.
        pattern: names of the target layers.
        r: rank; each batch must hold at least as many tokens.
        batches: inputs of the model; padding is left out.

    Raises:
        RequestError: without batches, or where one holds fewer than r tokens.
    """
    batch_list = [{**batch} for batch in batches or ()]
    fewest = min((int(_masks(batch)[0].sum()) for batch in batch_list), default=0)
    if fewest < r:
        raise RequestError(
            f"adapter.init is eva, adapter.r is {r}, and the smallest batch for it has {fewest} tokens",
            "EVA takes r directions out of the inputs that the layers see, so each batch needs r tokens or more",
            "Give larger batches, lower adapter.r, or set adapter.init=default",
        )
    eva = EvaConfig(rho=1.0, use_label_mask=False)
    config = LoraConfig(r=r, target_modules=pattern, init_lora_weights="eva", eva_config=eva)
    readers = {"prepare_model_inputs_fn": _masks, "prepare_layer_inputs_fn": _real_rows}
    return get_eva_state_dict(model, batch_list, config, **readers, show_progress_bar=False)


@torch.no_grad()
def start_from_directions(model: PeftModel, directions: Mapping[str, Tensor], adapter: str) -> None:
    """Put EVA's directions into A; B stays 0, so nothing changes at the start."""
    for name, layer in _lora_layers(model):
        layer.lora_A[adapter].weight.copy_(directions[plain_name(name)])


@torch.no_grad()
def start_from_error(model: PeftModel, adapter: str) -> None:
    """LoftQ, one iteration: s B A is the best rank-r approximation of W - Q, by singular values.

    With W - Q = U S V^T, A = sqrt(S_r) V_r^T and B = U_r sqrt(S_r) / s. W is read from the files of the base, one layer
    at a time.

    Raises:
        RequestError: where the files of the base are not here.
    """
    places = _places_of(model.get_base_model())
    for name, layer in _lora_layers(model):
        if quantised_as(layer.get_base_layer()) != "nf4":
            continue  # a projector in 16 bit has no error to start from
        name, r, scale = plain_name(name), layer.r[adapter], layer.scaling[adapter]
        file, key = places[f"{name}.weight"]
        with safe_open(file, framework="pt") as tensors:
            whole = tensors.get_tensor(key)  # from the file: the loaded base holds Q only
        stored = dense_weight(layer.get_base_layer())
        error = whole.to(stored) - stored
        left, values, right = torch.linalg.svd(error, full_matrices=False)
        root = values[:r].sqrt()  # half to either side, so that A and B begin at one scale
        layer.lora_A[adapter].weight.copy_(root[:, None] * right[:r])
        layer.lora_B[adapter].weight.copy_(left[:, :r] * root / scale)  # divided by s, since the layer multiplies by it


def _places_of(base: PreTrainedModel) -> dict[str, tuple[Path, str]]:
    """Name of a parameter -> file and name in it, by the renaming that transformers applies at load."""
    name = base.config._name_or_path
    folder = Path(name)
    if not folder.is_dir():
        revision = getattr(base.config, "_commit_hash", None)
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True)) if name else Path()
    files = sorted(folder.glob("*.safetensors")) if name else []
    if not files:
        raise RequestError(
            f"adapter.init is loftq and the base is '{name}'",
            "LoftQ compares quantised weights with those in the base's safetensors files, and none are there",
            "Load the base from a directory, or set adapter.init=default",
        )
    renamed = todays_name(base)  # older files name their tensors otherwise than the loaded model
    places: dict[str, tuple[Path, str]] = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            places |= {renamed(key): (file, key) for key in tensors.keys()}
    return places


def _lora_layers(model: PeftModel) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]


def _masks(batch: Mapping[str, Tensor], config: LoraConfig | None = None) -> list[Tensor]:
    """Which positions are text, b t: of the prompt, and of what a decoder reads."""
    sides = [side for side in ("", "decoder_") if f"{side}input_ids" in batch]
    whole = {side: torch.ones_like(batch[f"{side}input_ids"]) for side in sides}
    return [batch.get(f"{side}attention_mask", whole[side]).bool() for side in sides]


def _real_rows(inputs: tuple[Tensor, ...], masks: list[Tensor], name: str) -> Tensor:
    """Rows n d of a layer's input without padding; what fits no mask is taken whole."""
    hidden = inputs[0]
    for mask in masks:
        if hidden.shape[:2] == mask.shape:
            return hidden[mask]
    return hidden.flatten(0, -2)
