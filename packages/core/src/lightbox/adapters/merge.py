"""A plain model out of a base and its adapter: dequantised, added in float32, stored in 16 or 32 bit.

Nothing is merged in memory and nothing is quantised again: merging into 4 bit rounds small learned changes away. The
result has no trace of bitsandbytes or peft in it, its tensors are named as in the base's own files, and it loads as any
other weights.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper, TrainableTokensWrapper
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion

from lightbox.adapters import lora
from lightbox.adapters.artifact import wrapped_model
from lightbox.adapters.manifest import base_facts, staged_folder, write_manifest
from lightbox.adapters.plain import dense_weight
from lightbox.backbones.backbone import Backbone
from lightbox.backbones.loading import DTYPES
from lightbox.backbones.preflight import SHARDS
from lightbox.backbones.quantisation import quantised_as
from lightbox.backbones.seq2seq import quiet_loading
from lightbox.config import check_choice
from lightbox.errors import RequestError
from lightbox.files import write_json

KIND = "merged"


def merge_to_16_bit(backbone: Backbone, folder: Path, *, dtype: str = "bf16", max_shard_gib: float = 1.0) -> Path:
    """Write base plus adapter as one model, with processor and configuration.

    Files are made and written one at a time, so beside the model in memory, which is not changed, one file is held.

    Args:
        backbone: around a model with an adapter.
        folder: appears as a whole at the end.
        dtype: bf16, fp16 or fp32, of the stored weights.
        max_shard_gib: largest file; a larger tensor has one to itself.

    Raises:
        RequestError: as `artifact.wrapped_model`, additions that `_with_addition` refuses, tied tables that were
            trained apart, or a folder with other content.
        WorkError: as `artifact.wrapped_model`.
    """
    check_choice("dtype", dtype, tuple(DTYPES))
    model = wrapped_model(backbone)
    with staged_folder(folder, KIND) as staged, quiet_loading():
        write_plain(model, staged, dtype=DTYPES[dtype], max_bytes=int(max_shard_gib * (1 << 30)))
        backbone.processor.save_pretrained(staged)
        write_manifest(staged, KIND, base_facts(backbone) | {"stored_as": dtype})
    return folder


def write_plain(model: PeftModel, folder: Path, *, dtype: torch.dtype, max_bytes: int) -> None:
    """Write configuration and tensors of base plus adapter to a folder."""
    base: Any = model.get_base_model()
    config = copy.deepcopy(base.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # transformers would look for quantised tensors in the merged files
    config.dtype, config.architectures = dtype, [type(base).__name__]
    with torch.device("meta"):
        bare = type(base)(config)  # names and shapes of the plain model, without peft's and bitsandbytes' own
    layout: dict[str, Tensor] = {}
    names: dict[str, str] = {}  # in the file -> in the model
    first: dict[int, str] = {}
    for name, tensor in [*bare.state_dict(keep_vars=True).items(), *_added(base, bare)]:
        if id(tensor) in first:  # a tied table is stored once
            _check_tied(base, name, first[id(tensor)])
            continue
        first[id(tensor)] = name
        stored = next(iter(revert_weight_conversion(base, {name: tensor})))
        names[stored], layout[stored] = name, tensor.to(dtype) if tensor.is_floating_point() else tensor
    config.save_pretrained(folder)
    if getattr(base, "generation_config", None) is not None:
        base.generation_config.save_pretrained(folder)
    plan = split_torch_state_dict_into_shards(layout, max_shard_size=max_bytes)
    for file, inside in plan.filename_to_tensors.items():
        save_file(
            {key: merged_tensor(base, names[key]).to("cpu", layout[key].dtype).contiguous() for key in inside},
            folder / file,
            {"format": "pt"},
        )
    if plan.is_sharded:
        write_json(folder / SHARDS, {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename})


@torch.no_grad()
def merged_tensor(base: nn.Module, name: str) -> Tensor:
    """One tensor of the plain model, by its name there; float32 where an addition was made."""
    path, _, leaf = name.rpartition(".")
    layer: Any = base
    for part in path.split("."):
        layer = getattr(layer, part)
        if isinstance(layer, ModulesToSaveWrapper):
            layer = layer.modules_to_save[lora.ADAPTER]
    layer = layer.token_adapter if isinstance(layer, TrainableTokensWrapper) else layer
    inner: Any = layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
    if leaf != "weight":
        return getattr(inner, leaf)
    if isinstance(layer, TrainableTokensLayer):
        table = inner.weight.float().clone()
        table[layer.token_indices[lora.ADAPTER]] = layer.trainable_tokens_delta[lora.ADAPTER].float()
        return table
    if isinstance(layer, LoraLayer):
        return _with_addition(layer)
    return dense_weight(inner) if quantised_as(inner) != "none" else inner.weight


def _added(base: nn.Module, bare: nn.Module) -> list[tuple[str, Tensor]]:
    """Names of trained tensors that the class does not make itself, such as a router's, with their shapes."""
    wrapped = ((path, module) for path, module in base.named_modules() if isinstance(module, ModulesToSaveWrapper))
    own = bare.state_dict().keys()
    return [
        (f"{path}.{leaf}", tensor.to("meta"))
        for path, module in wrapped
        for leaf, tensor in module.modules_to_save[lora.ADAPTER].state_dict().items()
        if f"{path}.{leaf}" not in own
    ]


def _check_tied(base: nn.Module, name: str, other: str) -> None:
    """Raise `RequestError` where two names of one tensor were given different values by training."""
    is_whole = [isinstance(base.get_submodule(n.rpartition(".")[0]), ModulesToSaveWrapper) for n in (name, other)]
    if any(is_whole) and not torch.equal(merged_tensor(base, name), merged_tensor(base, other)):
        raise RequestError(
            f"{name} and {other} are one tensor in the base, and were trained apart",
            "The merged model would have one of the two in both places",
            "Use the adapter without merging it",
        )


def _with_addition(layer: Any) -> Tensor:
    """W + s B A, with DoRA's rows rescaled to their learned lengths, in float32.

    Raises:
        RequestError: an addition of another form, or to another kind of layer.
    """
    name, base = lora.ADAPTER, layer.get_base_layer()
    is_variant = name in layer.lora_variant and name not in layer.lora_magnitude_vector
    if is_variant or layer.lora_bias.get(name) or not isinstance(base, nn.Linear):
        form = layer.lora_variant[name] if is_variant else "one with a bias" if layer.lora_bias.get(name) else "LoRA"
        raise RequestError(
            f"An addition of this adapter is {form}, on a layer of class {type(base).__name__}",
            "LoRA without a bias and DoRA are merged here, in linear layers",
            "Use the adapter without merging it, or merge it with peft's merge_and_unload",
        )
    a, b = layer.lora_A[name].weight.float(), layer.lora_B[name].weight.float()
    weight = torch.addmm(dense_weight(base), b, a, alpha=layer.scaling[name])
    if name in layer.lora_magnitude_vector:
        lengths = layer.lora_magnitude_vector[name].weight.float()
        # DoRA trains direction and length of each row apart
        weight = weight * (lengths / weight.norm(dim=1)).unsqueeze(1)
    return weight
