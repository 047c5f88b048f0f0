"""A plain model out of a base and its adapter: dequantised, added in float32, stored in 16 or 32 bit.

Nothing is merged in memory and nothing is quantised again: merging into 4 bit rounds small learned changes away. The
result has no trace of bitsandbytes or peft in it and loads as any other weights.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper, TrainableTokensWrapper
from safetensors.torch import save_file
from torch import Tensor, nn

from lightbox.adapters import guards, lora
from lightbox.adapters.artifact import wrapped_model
from lightbox.adapters.manifest import base_facts, staged_folder, write_manifest
from lightbox.adapters.plain import dense_weight
from lightbox.backbones.backbone import Backbone
from lightbox.backbones.loading import DTYPES
from lightbox.backbones.preflight import SHARDS
from lightbox.backbones.quantisation import quantised_as
from lightbox.backbones.seq2seq import quiet_loading
from lightbox.config import check_choice
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
        RequestError: no adapter, adapters merged already, or a folder with other content.
        WorkError: 4-bit weights that were repacked.
    """
    check_choice("dtype", dtype, tuple(DTYPES))
    model = wrapped_model(backbone)
    guards.refuse_merged(model)
    guards.refuse_packed(model)
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
    seen: set[int] = set()
    for name, tensor in bare.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:  # a tied table is stored once
            seen.add(id(tensor))
            layout[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    config.save_pretrained(folder)
    if getattr(base, "generation_config", None) is not None:
        base.generation_config.save_pretrained(folder)
    plan = split_torch_state_dict_into_shards(layout, max_shard_size=max_bytes)
    for file, names in plan.filename_to_tensors.items():
        save_file(
            {name: merged_tensor(base, name).to("cpu", layout[name].dtype).contiguous() for name in names},
            folder / file,
            {"format": "pt"},
        )
    if plan.is_sharded:
        write_json(folder / SHARDS, {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename})


@torch.no_grad()
def merged_tensor(base: nn.Module, name: str) -> Tensor:
    """One tensor of the plain model, by its name there; float32 where an addition was made."""
    path, _, leaf = name.rpartition(".")
    owner: Any = base
    for part in path.split("."):
        owner = _trained(getattr(owner, part))
    if isinstance(owner, TrainableTokensWrapper):
        return _with_new_rows(owner.token_adapter, leaf)
    if isinstance(owner, LoraLayer):
        return _with_addition(owner) if leaf == "weight" else getattr(owner.get_base_layer(), leaf)
    if leaf == "weight" and quantised_as(owner) != "none":
        return dense_weight(owner)
    return getattr(owner, leaf)


def _trained(module: Any) -> Any:
    return module.modules_to_save[lora.ADAPTER] if isinstance(module, ModulesToSaveWrapper) else module


def _with_addition(layer: Any) -> Tensor:
    """W + s B A, with DoRA's rows rescaled to their learned lengths, in float32."""
    name = lora.ADAPTER
    a, b = layer.lora_A[name].weight.float(), layer.lora_B[name].weight.float()
    weight = torch.addmm(dense_weight(layer.get_base_layer()), b, a, alpha=layer.scaling[name])
    if name in layer.lora_magnitude_vector:
        lengths = layer.lora_magnitude_vector[name].weight.float()
        # DoRA trains direction and length of each row apart
        weight = weight * (lengths / weight.norm(dim=1)).unsqueeze(1)
    return weight


def _with_new_rows(tokens: Any, leaf: str) -> Tensor:
    base = tokens.get_base_layer()
    if leaf != "weight":
        return getattr(base, leaf)
    table = base.weight.detach().float().clone()
    table[tokens.token_indices[lora.ADAPTER]] = tokens.trainable_tokens_delta[lora.ADAPTER].float()
    return table
