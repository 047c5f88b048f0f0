"""A random SAM 2 of 347,689 parameters, written by save_pretrained as a model of images or, as published, of videos."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    Sam2Config,
    Sam2ImageProcessor,
    Sam2Model,
    Sam2Processor,
    Sam2VideoConfig,
    Sam2VideoModel,
    Sam2VideoProcessor,
    Sam2VideoVideoProcessor,
)

from lightbox.backbones.seq2seq import quiet_loading

SIDE, WIDTH = 128, 32
"""Pixels of its square, and width of its prompts."""


def save_sam2(folder: Path, *, is_video: bool = False, seed: int = 0) -> Path:
    """Write one whose weights are spread so that masks follow prompts and images.

    Args:
        folder: receives weights, config and preprocessing.
        is_video: with the memory of the video model, whose image part has other weights than the image model's.
        seed: of the weights.
    """
    with torch.random.fork_rng(), quiet_loading():
        torch.manual_seed(seed)
        model = (
            Sam2VideoModel(Sam2VideoConfig(**_parts(), **_memory())) if is_video else Sam2Model(Sam2Config(**_parts()))
        )
        for parameter in model.parameters():
            if parameter.ndim > 1:
                fan_in = parameter[0].numel() if parameter.ndim > 2 else parameter.shape[-1]
                torch.nn.init.normal_(parameter, std=max(fan_in, 1) ** -0.5)
        model.save_pretrained(folder)
        images = Sam2ImageProcessor(
            size={"height": SIDE, "width": SIDE}, mask_size={"height": SIDE // 4, "width": SIDE // 4}
        )
        videos = Sam2VideoVideoProcessor(size={"height": SIDE, "width": SIDE})
        (Sam2VideoProcessor(images, videos) if is_video else Sam2Processor(images)).save_pretrained(folder)
    return folder


def _parts() -> dict[str, Any]:
    widths = [16, 32, 64, 128]
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": widths[0],
        "image_size": [SIDE, SIDE],
        "window_positional_embedding_background_size": [4, 4],
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": widths,
        "num_attention_heads_per_stage": [1, 2, 4, 8],
        "window_size_per_stage": [4, 2, 4, 2],
        "global_attention_blocks": [3],
    }
    vision = {
        "model_type": "sam2_vision_model",
        "backbone_config": backbone,
        "backbone_channel_list": widths[::-1],
        "backbone_feature_sizes": [[SIDE // stride] * 2 for stride in (4, 8, 16)],
        "fpn_hidden_size": WIDTH,
    }
    return {
        "vision_config": vision,
        "prompt_encoder_config": {"hidden_size": WIDTH, "image_size": SIDE, "patch_size": 16},
        "mask_decoder_config": {
            "hidden_size": WIDTH,
            "mlp_dim": 64,
            "num_attention_heads": 4,
            "iou_head_hidden_dim": WIDTH,
        },
    }


def _memory() -> dict[str, Any]:
    widths = ("memory_attention_hidden_size", "memory_encoder_hidden_size", "mask_downsampler_embed_dim")
    return dict.fromkeys((*widths, "memory_fuser_embed_dim"), WIDTH) | {
        "image_size": SIDE,
        "memory_attention_num_layers": 1,
        "memory_attention_feed_forward_hidden_size": 64,
        "memory_attention_rope_feat_sizes": [SIDE // 16] * 2,
        "memory_encoder_output_channels": 16,
        "memory_fuser_intermediate_dim": 64,
    }
