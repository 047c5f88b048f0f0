"""Models with random weights from a configuration alone, and batches that fit them: memory does not depend on values.

A model is laid out without memory first and filled module by module; a quantised layer is drawn and quantised before
the next one is drawn, so a 7B model in NF4 never needs more than itself and one layer.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel
from transformers.integrations.bitsandbytes import replace_with_bnb_linear

from lightbox.adapters.memory.request import Request
from lightbox.backbones import quantisation
from lightbox.backbones.backbone import Backbone
from lightbox.backbones.families import Family, family_of
from lightbox.backbones.loading import DTYPES
from lightbox.backbones.rows import IGNORED, VlmBatch
from lightbox.backbones.seq2seq import quiet_loading
from lightbox.backbones.sizes import text_of, vision_of, whole

SPREAD = 0.02
_NO_PROCESSOR = SimpleNamespace(tokenizer=SimpleNamespace(pad_token="<pad>"))


def build(
    config: Mapping[str, Any], *, quant: str, dtype: str, device: str, attention: str = "sdpa", seed: int = 0
) -> Backbone:
    """A backbone that computes losses and has no processor, so it prepares and generates nothing.

    Args:
        config: values of config.json.
        quant: none, nf4 or int8.
        dtype: fp32, bf16 or fp16.
        device: cpu or cuda; meta for a model that has sizes and no content.
        attention: sdpa or eager.
        seed: of the weights.
    """
    family = family_of(config, name="a random model")
    torch.manual_seed(seed)
    with quiet_loading():
        settings = AutoConfig.for_model(**config, attn_implementation=attention)
        with torch.device("meta"):
            model = getattr(transformers, family.model_class)(settings).to(DTYPES[dtype])
        for name, module in model.named_modules():
            if dtype == "fp16" and name.rpartition(".")[2] in (model._keep_in_fp32_modules or ()):
                module.float()  # as transformers does where it loads
        if quant != "none":
            _lay_out_quantised(model, family, quant, dtype)
        _fill(model, torch.device(device), DTYPES[dtype])
    quantisation.settle(model, family, quant)
    facts = {"attention": None, "name": "random", "revision": "", "quant": quant, "dtype": DTYPES[dtype]}
    return Backbone(model.eval(), _NO_PROCESSOR, family, **facts)


def _lay_out_quantised(model: PreTrainedModel, family: Family, quant: str, dtype: str) -> None:
    settings = quantisation.settings_for(quant, family, dtype=DTYPES[dtype], device="meta")
    skipped = [*family.kept_in_16_bit, *(model._keep_in_fp32_modules or ())]
    replace_with_bnb_linear(model, skipped, settings["quantization_config"])
    model.is_quantized, model.is_loaded_in_4bit, model.is_loaded_in_8bit = True, quant == "nf4", quant == "int8"


def _fill(model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> None:
    """Give every tensor memory and values; tables and norms are then set as the model's own code sets them."""
    for module in model.modules():
        is_packed = quantisation.quantised_as(module) != "none"
        for name, parameter in list(module.named_parameters(recurse=False)):
            if is_packed and name == "weight":
                _set_packed(module, parameter, device, dtype)
            else:
                data = torch.empty(parameter.shape, dtype=parameter.dtype, device=device).normal_(std=SPREAD)
                setattr(module, name, nn.Parameter(data, requires_grad=not is_packed))
        for name, buffer in list(module.named_buffers(recurse=False)):
            module._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype, device=device)
    model.tie_weights()
    model.initialize_weights()


def _set_packed(module: Any, parameter: Any, device: torch.device, dtype: torch.dtype) -> None:
    """Draw one matrix, quantise it on its way to the device, and mark it as filled."""
    # 8-bit weights are quantised on their way from host memory only
    source = device if hasattr(parameter, "quant_type") or device.type == "meta" else torch.device("cpu")
    drawn = torch.empty(parameter.shape, dtype=dtype, device=source).normal_(std=SPREAD)
    names = ("compress_statistics", "quant_type", "quant_storage", "blocksize", "has_fp16_weights")
    storage_settings = {name: getattr(parameter, name) for name in names if hasattr(parameter, name)}
    packed = type(parameter)(drawn, requires_grad=False, **storage_settings)
    # asked to move to meta, it would stay as it is
    module.weight = packed._quantize(device) if device.type == "meta" else packed.to(device)
    module.weight._is_hf_initialized = True
    if device.type == "meta" and hasattr(module, "state"):
        module.state.threshold = 0.0  # outliers are looked for in content
    if hasattr(parameter, "quant_type"):
        module.quant_state = module.weight.quant_state


def make_batch(backbone: Backbone, request: Request, *, seed: int = 0) -> VlmBatch:
    """Random rows of a request: image tokens first, then words, of which the last carry the loss.

    With padding the last row is an eighth shorter than the others.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = whole(request.config) if backbone.family.name == "t5" else text_of(request.config)
    rows, length, end, visual = request.batch, request.row_tokens, request.supervised, request.row_images.visual
    special = backbone.image_token_id or sizes.vocab_size
    # ids of special tokens are the last ones, but for tiny models, where they are the first
    low, high = (10, special - 10) if special > sizes.vocab_size // 2 else (special + 10, sizes.vocab_size)

    def words(count: int) -> Tensor:
        return torch.randint(low, high, (rows, count), generator=generator)

    ids, mask = words(length), torch.ones(rows, length, dtype=torch.long)
    if request.has_padding:
        mask[-1, length - max(1, length // 8) :] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if backbone.family.is_encoder_decoder:
        inputs["decoder_input_ids"], labels = words(end), words(end)
    else:
        labels = torch.full_like(ids, IGNORED)
        for row, count in enumerate(mask.sum(dim=1).tolist()):
            labels[row, count - end : count] = ids[row, count - end : count]
    if visual:
        start = 0 if backbone.family.is_encoder_decoder else 1
        ids[:, start : start + visual] = backbone.image_token_id
        inputs |= _images(backbone, request, ids, generator)
    return VlmBatch(inputs, labels).to(backbone.device)


def _images(backbone: Backbone, request: Request, ids: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Pixels of random images and what a processor says of them."""
    name, shape, rows, images = backbone.family.name, vision_of(request.config), request.batch, request.row_images
    is_image = (ids == backbone.image_token_id).long()

    def noise(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(backbone.dtype)

    if name.startswith("qwen"):
        each = images.patches // images.tiles
        high = max(n for n in range(2, int(each**0.5) + 1, 2) if each % n == 0 and each // n % 2 == 0)
        grid = torch.tensor([[1, high, each // high]] * (rows * images.tiles))
        width = shape.in_channels * shape.temporal_patch_size * shape.patch_size**2
        return {
            "pixel_values": noise(rows * images.patches, width),
            "image_grid_thw": grid,
            "mm_token_type_ids": is_image,
        }
    if name == "llava_next":
        side = shape.image_size
        sizes = torch.tensor([[2 * side, 2 * side]] * rows)
        return {"pixel_values": noise(rows, images.tiles, 3, side, side), "image_sizes": sizes}
    side = images.image_px or shape.image_size
    inputs = {"pixel_values": noise(rows * images.tiles, 3, side, side)}
    return inputs | {"token_type_ids": is_image} if name == "gemma3" else inputs
