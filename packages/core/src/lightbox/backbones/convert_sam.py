"""A SAM or a SAM-Med2D in the layout of its authors' code -> a folder that `load_segmenter` opens.

Tensors keep their values and get other names; sizes are read from their shapes. Layouts: facebookresearch/
segment-anything and OpenGVLab/SAM-Med2D. What a checkpoint holds beside its model (SAM-Med2D's: its optimiser) is left.
"""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from transformers import SamConfig, SamImageProcessor, SamModel, SamProcessor

from lightbox.backbones.matching import check_tensors
from lightbox.backbones.sam_adapters import AdaptedSamConfig, AdaptedSamModel
from lightbox.backbones.seq2seq import quiet_loading
from lightbox.errors import RequestError
from lightbox.readers.convert import load_pickle

GRID = "image_encoder.pos_embed"
PATCHES = "image_encoder.patch_embed.proj.weight"
DISTANCES = "image_encoder.blocks.0.attn.rel_pos_h"
NETWORK = "image_encoder.blocks.0.mlp.lin1.weight"
NECK = "image_encoder.neck.0.weight"
PLACES = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
NO_MASK = "prompt_encoder.no_mask_embed.weight"
COARSE = "prompt_encoder.mask_downscaling.3.weight"
DECODER_NETWORK = "mask_decoder.transformer.layers.0.mlp.lin1.weight"
DECODER_QUERIES = "mask_decoder.transformer.layers.0.cross_attn_token_to_image.q_proj.weight"
MASKS = "mask_decoder.mask_tokens.weight"
OVERLAPS = "mask_decoder.iou_prediction_head.layers.0.weight"
SIZED = {
    **dict.fromkeys((GRID, PATCHES, NECK, COARSE), 4),
    **dict.fromkeys((DISTANCES, NETWORK, PLACES, NO_MASK, DECODER_NETWORK, DECODER_QUERIES, MASKS, OVERLAPS), 2),
}
"""Tensors whose shapes tell sizes, and how many axes each has."""
RENAMED = (
    (re.escape(PLACES), "shared_image_embedding.positional_embedding"),
    (r"image_encoder\.patch_embed\.proj\.", "vision_encoder.patch_embed.projection."),
    (r"image_encoder\.blocks\.(\d+)\.norm(\d)\.", r"vision_encoder.layers.\1.layer_norm\2."),
    (r"image_encoder\.blocks\.(\d+)\.Adapter\.", r"vision_encoder.layers.\1.mlp.adapter."),
    (r"image_encoder\.blocks\.", "vision_encoder.layers."),
    (r"image_encoder\.neck\.0\.", "vision_encoder.neck.conv1."),
    (r"image_encoder\.neck\.1\.", "vision_encoder.neck.layer_norm1."),
    (r"image_encoder\.neck\.2\.", "vision_encoder.neck.conv2."),
    (r"image_encoder\.neck\.3\.", "vision_encoder.neck.layer_norm2."),
    (r"image_encoder\.", "vision_encoder."),
    (r"prompt_encoder\.point_embeddings\.", "prompt_encoder.point_embed."),
    (r"prompt_encoder\.mask_downscaling\.0\.", "prompt_encoder.mask_embed.conv1."),
    (r"prompt_encoder\.mask_downscaling\.1\.", "prompt_encoder.mask_embed.layer_norm1."),
    (r"prompt_encoder\.mask_downscaling\.3\.", "prompt_encoder.mask_embed.conv2."),
    (r"prompt_encoder\.mask_downscaling\.4\.", "prompt_encoder.mask_embed.layer_norm2."),
    (r"prompt_encoder\.mask_downscaling\.6\.", "prompt_encoder.mask_embed.conv3."),
    (r"mask_decoder\.transformer\.layers\.(\d+)\.norm(\d)\.", r"mask_decoder.transformer.layers.\1.layer_norm\2."),
    (r"mask_decoder\.transformer\.norm_final_attn\.", "mask_decoder.transformer.layer_norm_final_attn."),
    (r"mask_decoder\.output_upscaling\.0\.", "mask_decoder.upscale_conv1."),
    (r"mask_decoder\.output_upscaling\.1\.", "mask_decoder.upscale_layer_norm."),
    (r"mask_decoder\.output_upscaling\.3\.", "mask_decoder.upscale_conv2."),
    # three layers in all published files
    (r"mask_decoder\.(output_hypernetworks_mlps\.\d+|iou_prediction_head)\.layers\.0\.", r"mask_decoder.\1.proj_in."),
    (r"mask_decoder\.(output_hypernetworks_mlps\.\d+|iou_prediction_head)\.layers\.1\.", r"mask_decoder.\1.layers.0."),
    (r"mask_decoder\.(output_hypernetworks_mlps\.\d+|iou_prediction_head)\.layers\.2\.", r"mask_decoder.\1.proj_out."),
)
"""Patterns of beginnings of tensor names, ours after theirs; the first that fits counts."""
WINDOW = 14  # of layers that see a part of the grid; without such layers it means nothing
DECODER_HEADS = 8  # all published files; shapes of tensors do not tell how many heads share them
DECODER_EPS = 1e-5  # transformers' default is 1e-6, which is not what the decoders were trained with
OPTIMISER = ("torch.optim.adam.Adam", "collections.defaultdict", "__builtin__.dict", "builtins.dict")
"""Classes that a checkpoint of SAM-Med2D holds beside its tensors; their objects are not made."""


class ConvertedSam(NamedTuple):
    """What was written."""

    folder: Path
    tensors: int
    parameters: int
    image_px: int
    has_adapters: bool


def convert_sam(source: Path, dest: Path, *, image_px: int | None = None) -> ConvertedSam:
    """Write a `.pth` as a folder with weights, config and preprocessing.

    Args:
        source: the file: tensors by name, or a checkpoint that has them as "model".
        dest: new folder.
        image_px: see `write_sam`.

    Raises:
        RequestError: as `load_pickle` and `write_sam`.
    """
    value = load_pickle(source, ignored=OPTIMISER)
    tensors = value.get("model", value) if isinstance(value, dict) else value
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise RequestError(
            f"File '{source}'", "It holds no tensors by name, at the top or as 'model'", "Name the file of a SAM"
        )
    return write_sam(tensors, dest, request=f"File '{source}'", image_px=image_px)


def write_sam(tensors: Mapping[str, Tensor], dest: Path, *, request: str, image_px: int | None = None) -> ConvertedSam:
    """Write the tensors of a SAM under their official names as a folder.

    Its images are then shrunk and filled up at the right and bottom, as SAM has it. The authors of SAM-Med2D stretch
    theirs to a square, and those of MedPLIB fill up on both sides.

    Args:
        tensors: by name, of any precision, which is kept.
        dest: new folder.
        request: what was asked for, for messages.
        image_px: side of the square that the encoder sees; tables of positions are then interpolated as in SAM-Med2D's
            code. None is the side that the tensors were trained with.

    Raises:
        RequestError: another layout, tensors that are missing, too many or of odd shapes, a side that is not whole
            patches, or `dest` exists.
    """
    if dest.exists():
        raise RequestError(f"Destination '{dest}'", "It exists already", "Name a new folder")
    odd = [name for name, axes in SIZED.items() if name not in tensors or tensors[name].ndim != axes]
    if odd:
        raise RequestError(
            f"{request} lacks {', '.join(odd)}, or holds another shape there",
            "It is no SAM in its authors' layout, or a part of one",
            "Name a whole SAM",
        )
    has_adapters = any(".Adapter." in name for name in tensors)
    tensors = _resized(tensors, image_px, request, is_even=has_adapters)
    config_class, model_class = (AdaptedSamConfig, AdaptedSamModel) if has_adapters else (SamConfig, SamModel)
    sizes = _sizes(tensors)
    config = config_class(**sizes)
    with quiet_loading(), torch.device("meta"):
        wanted = model_class(config).state_dict()
    wanted.pop("prompt_encoder.shared_embedding.positional_embedding")  # tied to that of images
    own = {_renamed(name): tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    shared = own.keys() & wanted.keys()
    difference = {
        "missing_keys": wanted.keys() - own.keys(),
        "unexpected_keys": own.keys() - wanted.keys(),
        "mismatched_keys": [name for name in shared if own[name].shape != wanted[name].shape],
    }
    check_tensors(difference, model_class.__name__, request)

    side = sizes["vision_config"]["image_size"]
    # under another name until it is whole: half a model would load in part
    staging = dest.with_name(f".{dest.name}.{os.getpid()}")
    try:
        staging.mkdir(parents=True)
        save_file(own, staging / "model.safetensors", metadata={"format": "pt"})
        config.architectures = [model_class.__name__]
        config.save_pretrained(staging)
        square = {"height": side, "width": side}
        SamProcessor(SamImageProcessor(size={"longest_edge": side}, pad_size=square)).save_pretrained(staging)
        os.replace(staging, dest)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return ConvertedSam(dest, len(own), sum(tensor.numel() for tensor in own.values()), side, has_adapters)


def _renamed(name: str) -> str:
    """Our name of a tensor of the source, or the same where both layouts agree.

    Example:
        >>> _renamed("image_encoder.blocks.3.Adapter.spatial.0.weight")
        'vision_encoder.layers.3.mlp.adapter.spatial.0.weight'
    """
    for old, new in RENAMED:
        renamed, n = re.subn(rf"^{old}", new, name)
        if n:
            return renamed
    return name


def _resized(tensors: Mapping[str, Tensor], image_px: int | None, request: str, *, is_even: bool) -> dict[str, Tensor]:
    """Tensors for images of another side: positions of the grid, and of distances in layers that see all of it."""
    grid, patch = tensors[GRID].shape[1], tensors[PATCHES].shape[-1]
    side = (image_px or grid * patch) // patch
    if image_px is not None and (image_px <= 0 or image_px % patch) or (is_even and side % 2):
        raise RequestError(
            f"{request}, for images of {image_px or grid * patch} px",
            f"Its patches are {patch} px wide" + (", and adapters halve their grid" if is_even else ""),
            f"Give a multiple of {patch * (1 + is_even)} as --image-px",
        )
    if side == grid:
        return dict(tensors)
    resized = {
        GRID: F.interpolate(tensors[GRID].permute(0, 3, 1, 2), (side, side), mode="bilinear").permute(0, 2, 3, 1)
    }
    for name, tensor in tensors.items():
        if ".rel_pos_" in name and len(tensor) == 2 * grid - 1:
            resized[name] = F.interpolate(tensor.T[None], 2 * side - 1, mode="linear")[0].T
    return {**tensors, **resized}


def _sizes(tensors: Mapping[str, Tensor]) -> dict[str, dict]:
    """Sizes of the three parts, from the shapes of their tensors."""
    _, grid, _, width = tensors[GRID].shape
    patch, prompt = tensors[PATCHES].shape[-1], tensors[NO_MASK].shape[1]
    layers = _count(tensors, r"image_encoder\.blocks\.(\d+)\.")
    distances = [len(tensors.get(f"image_encoder.blocks.{layer}.attn.rel_pos_h", ())) for layer in range(layers)]
    everywhere = [layer for layer, n in enumerate(distances) if n == 2 * grid - 1]
    windows = {(n + 1) // 2 for n in distances if n != 2 * grid - 1}
    image = {"image_size": grid * patch, "patch_size": patch}
    vision = {
        "hidden_size": width,
        "mlp_dim": len(tensors[NETWORK]),
        "num_hidden_layers": layers,
        "num_attention_heads": width // tensors[DISTANCES].shape[1],
        "output_channels": len(tensors[NECK]),
        "num_pos_feats": tensors[PLACES].shape[1],
        "window_size": max(windows, default=WINDOW),
        "global_attn_indexes": everywhere,
    }
    decoder = {
        "hidden_size": prompt,
        "num_hidden_layers": _count(tensors, r"mask_decoder\.transformer\.layers\.(\d+)\."),
        "num_attention_heads": DECODER_HEADS,
        "mlp_dim": len(tensors[DECODER_NETWORK]),
        "attention_downsample_rate": prompt // len(tensors[DECODER_QUERIES]),
        "num_multimask_outputs": len(tensors[MASKS]) - 1,
        "iou_head_hidden_dim": len(tensors[OVERLAPS]),
        "layer_norm_eps": DECODER_EPS,
    }
    prompts = {"hidden_size": prompt, "mask_input_channels": len(tensors[COARSE])}
    return {
        "vision_config": image | vision,
        "prompt_encoder_config": image | prompts,
        "mask_decoder_config": decoder,
    }


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    return len({match[1] for name in tensors if (match := re.match(pattern, name))})
