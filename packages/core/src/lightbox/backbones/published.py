"""Configurations of published models, as facts, and what makes each of them small. No torch.

`config` holds the values of the repository's config.json that differ from the defaults of transformers 5.23, plus those
that `shrink` changes. `shrink` changes width, depth, vocabulary, positions, image sizes and the ids of special tokens,
and nothing else. `parameters` is the published size in millions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Config = dict[str, Any]
WHOLE = ("rope_parameters",)  # replaced, not merged


@dataclass(frozen=True)
class Published:
    """A published model and its small form.

    Args:
        repository: where the weights are.
        model_class: class of transformers that reads them.
        parameters: millions, as published; None where no source was found.
        config: values of config.json.
        shrink: values of the small form, nested as `config`.
        uncertain: what could not be checked against the repository itself.
        decoding: settings of generation_config.json that would change a greedy answer.
    """

    repository: str
    model_class: str
    parameters: float | None
    config: Config
    shrink: Config
    uncertain: str = ""
    decoding: Config = field(default_factory=dict)


CLIP_L = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
SMALL_VIT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
}
SMALL_CLIP = SMALL_VIT | {"num_hidden_layers": 3, "projection_dim": 32}
SO400M = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 14,
}
SMALL_TEXT = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
MISTRAL = {
    "model_type": "mistral",
    "vocab_size": 32064,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    "sliding_window": None,
}
SMALL_MISTRAL = SMALL_TEXT | {"num_key_value_heads": 2}
LLAVA_IDS = {"image_token_index": 32000, "pad_token_id": 32001}
SMALL_LLAVA_IDS = {"image_token_index": 480, "pad_token_id": 481}
QWEN_IDS = {
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "image_token_id": 151655,
    "video_token_id": 151656,
}
SMALL_QWEN_IDS = {key: value - 151643 + 480 for key, value in QWEN_IDS.items()}
QWEN_TEXT = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "max_window_layers": 28,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [16, 24, 24]},
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}
SMALL_QWEN_TEXT = SMALL_TEXT | {
    "num_key_value_heads": 2,
    "max_window_layers": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [2, 3, 3]},
    "bos_token_id": 480,
    "eos_token_id": 482,
}

LLAVA_15 = Published(
    repository="llava-hf/llava-1.5-7b-hf",
    model_class="LlavaForConditionalGeneration",
    parameters=7063,
    config={
        "model_type": "llava",
        "vision_config": CLIP_L,
        "text_config": {
            "model_type": "llama",
            "vocab_size": 32064,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
        },
        "image_seq_length": 576,
    }
    | LLAVA_IDS,
    shrink={"vision_config": SMALL_CLIP, "text_config": SMALL_TEXT, "image_seq_length": 16} | SMALL_LLAVA_IDS,
)
LLAVA_MED = Published(
    repository="microsoft/llava-med-v1.5-mistral-7b",
    model_class="LlavaForConditionalGeneration",
    parameters=7567,
    config={"model_type": "llava", "vision_config": CLIP_L, "text_config": MISTRAL, "image_seq_length": 576}
    | LLAVA_IDS,
    shrink={"vision_config": SMALL_CLIP, "text_config": SMALL_MISTRAL, "image_seq_length": 16} | SMALL_LLAVA_IDS,
    uncertain="The repository has the older llava_mistral layout; vocabulary and ids here are those of LLaVA 1.6's "
    "conversion, which a conversion of LLaVA-Med is taken to follow.",
)
LLAVA_NEXT = Published(
    repository="llava-hf/llava-v1.6-mistral-7b-hf",
    model_class="LlavaNextForConditionalGeneration",
    parameters=7567,
    config={
        "model_type": "llava_next",
        "vision_config": CLIP_L,
        "text_config": MISTRAL,
        "image_seq_length": 576,
        "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    }
    | LLAVA_IDS,
    shrink={
        "vision_config": SMALL_CLIP,
        "text_config": SMALL_MISTRAL,
        "image_seq_length": 16,
        "image_grid_pinpoints": [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]],
    }
    | SMALL_LLAVA_IDS,
)
QWEN2_VL = Published(
    repository="Qwen/Qwen2-VL-7B-Instruct",
    model_class="Qwen2VLForConditionalGeneration",
    parameters=8291,
    config={
        "model_type": "qwen2_vl",
        "text_config": {"model_type": "qwen2_vl_text", "max_position_embeddings": 32768} | QWEN_TEXT,
        "vision_config": {
            "model_type": "qwen2_vl_vision",
            "depth": 32,
            "embed_dim": 1280,
            "hidden_size": 3584,
            "num_heads": 16,
        },
    }
    | QWEN_IDS,
    shrink={
        "text_config": SMALL_QWEN_TEXT,
        "vision_config": {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2},
    }
    | SMALL_QWEN_IDS,
)
QWEN25_VL = Published(
    repository="Qwen/Qwen2.5-VL-7B-Instruct",
    model_class="Qwen2_5_VLForConditionalGeneration",
    parameters=8292,
    config={
        "model_type": "qwen2_5_vl",
        "text_config": {"model_type": "qwen2_5_vl_text", "max_position_embeddings": 128000} | QWEN_TEXT,
        "vision_config": {
            "model_type": "qwen2_5_vl_vision",
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
            "tokens_per_second": 2,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
    }
    | QWEN_IDS,
    shrink={
        "text_config": SMALL_QWEN_TEXT,
        "vision_config": {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 60,
            "num_heads": 2,
            "out_hidden_size": 64,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
    }
    | SMALL_QWEN_IDS,
    decoding={"do_sample": True, "repetition_penalty": 1.05, "temperature": 1e-6},
    uncertain="lingshu-medical-mllm/Lingshu-7B is taken to have the same configuration: it is fine-tuned from this.",
)
MEDGEMMA = Published(
    repository="google/medgemma-4b-it",
    model_class="Gemma3ForConditionalGeneration",
    parameters=4300,
    config={
        "model_type": "gemma3",
        "boi_token_index": 255999,
        "eoi_token_index": 256000,
        "image_token_index": 262144,
        "mm_tokens_per_image": 256,
        "eos_token_id": [1, 106],
        "text_config": {
            "model_type": "gemma3_text",
            "vocab_size": 262208,
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 34,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "query_pre_attn_scalar": 256,
            "max_position_embeddings": 131072,
            "sliding_window": 1024,
            "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 5 + ["sliding_attention"] * 4,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
            },
        },
        "vision_config": SO400M | {"image_size": 896, "vision_use_head": False},
    },
    shrink={
        "boi_token_index": 478,
        "eoi_token_index": 479,
        "image_token_index": 480,
        "mm_tokens_per_image": 4,
        "eos_token_id": [1, 6],
        "text_config": SMALL_TEXT
        | {
            "num_key_value_heads": 2,
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        "vision_config": SMALL_VIT | {"image_size": 112},
    },
    decoding={"do_sample": True, "top_k": 64, "top_p": 0.95},
    uncertain="The repository is gated; the values are those of google/gemma-3-4b-it, from which it was trained.",
)
FLORENCE_2 = Published(
    repository="florence-community/Florence-2-base",
    model_class="Florence2ForConditionalGeneration",
    parameters=231,
    config={
        "model_type": "florence2",
        "image_token_id": 51289,
        "text_config": {
            "model_type": "bart",
            "vocab_size": 51328,
            "d_model": 768,
            "encoder_layers": 6,
            "decoder_layers": 6,
            "encoder_attention_heads": 12,
            "decoder_attention_heads": 12,
            "encoder_ffn_dim": 3072,
            "decoder_ffn_dim": 3072,
            "max_position_embeddings": 1024,
            "activation_dropout": 0.1,
            "attention_dropout": 0.1,
            "decoder_start_token_id": 2,
        },
        "vision_config": {
            "model_type": "florence_vision",
            "depths": [1, 1, 9, 1],
            "embed_dim": [128, 256, 512, 1024],
            "num_heads": [4, 8, 16, 32],
            "num_groups": [4, 8, 16, 32],
            "window_size": 12,
            "projection_dim": 768,
        },
    },
    shrink={
        "image_token_id": 488,
        "text_config": {
            "vocab_size": 512,
            "d_model": 64,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "decoder_ffn_dim": 128,
            "max_position_embeddings": 512,
        },
        "vision_config": {
            "depths": [1, 1, 2, 1],
            "embed_dim": [8, 16, 32, 64],
            "num_heads": [1, 2, 4, 8],
            "num_groups": [1, 2, 4, 8],
            "window_size": 3,
            "projection_dim": 64,
        },
    },
    decoding={
        "num_beams": 3,
        "no_repeat_ngram_size": 3,
        "early_stopping": True,
        "forced_bos_token_id": 0,
        "forced_eos_token_id": 2,
    },
    uncertain="Vocabulary: 51,289 tokens and the image token, filled up to a multiple of 64, as the conversion script "
    "does. Dropouts and decoding are those of microsoft/Florence-2-base.",
)
UNIFIEDQA_T5 = Published(
    repository="allenai/unifiedqa-t5-base",
    model_class="T5ForConditionalGeneration",
    parameters=222.9,
    config={
        "model_type": "t5",
        "vocab_size": 32128,
        "d_model": 768,
        "d_kv": 64,
        "d_ff": 3072,
        "num_layers": 12,
        "num_decoder_layers": 12,
        "num_heads": 12,
        "decoder_start_token_id": 0,
    },
    shrink={
        "vocab_size": 512,
        "d_model": 64,
        "d_kv": 16,
        "d_ff": 128,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 4,
    },
    uncertain="Taken from t5-base, whose architecture and size the repository has.",
)
CLIP_TOWER = Published("openai/clip-vit-large-patch14-336", "CLIPVisionModel", 303.5, CLIP_L, SMALL_CLIP)
SIGLIP_TOWER = Published(
    "google/siglip-so400m-patch14-384", "SiglipVisionModel", 428.2, SO400M | {"image_size": 384}, SMALL_VIT
)
MEDSIGLIP = Published(
    repository="google/medsiglip-448",
    model_class="SiglipModel",
    parameters=None,
    config={
        "model_type": "siglip",
        "vision_config": SO400M | {"image_size": 448},
        "text_config": {
            "model_type": "siglip_text_model",
            "vocab_size": 32000,
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "max_position_embeddings": 64,
        },
    },
    shrink={
        "vision_config": SMALL_VIT,
        "text_config": {
            "vocab_size": 512,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 16,
        },
    },
    uncertain="The repository is gated; vision and text halves are taken to be those of SigLIP-so400m at 448 px.",
)
DINOV2 = Published(
    repository="facebook/dinov2-base",
    model_class="Dinov2Model",
    parameters=86.6,
    config={
        "model_type": "dinov2",
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 518,
        "patch_size": 14,
    },
    shrink={"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56},
)
RESNET_50 = {
    "model_type": "resnet",
    "embedding_size": 64,
    "hidden_sizes": [256, 512, 1024, 2048],
    "depths": [3, 4, 6, 3],
    "out_features": ["stage4"],
}
DETR = {
    "model_type": "detr",
    "backbone_config": RESNET_50,
    "use_timm_backbone": False,
    "d_model": 256,
    "encoder_layers": 6,
    "decoder_layers": 6,
    "encoder_ffn_dim": 2048,
    "decoder_ffn_dim": 2048,
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 8,
    "num_queries": 100,
}
SMALL_DETR = {
    "backbone_config": {"embedding_size": 8, "hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 1, 1]},
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
}
DETR_50 = Published(
    "facebook/detr-resnet-50 (revision no_timm)",
    "DetrForObjectDetection",
    41.5,
    DETR | {"num_labels": 91},
    SMALL_DETR,
)
DETR_101 = Published(
    "facebook/detr-resnet-101 (revision no_timm)",
    "DetrForObjectDetection",
    60.5,
    DETR | {"num_labels": 91, "backbone_config": RESNET_50 | {"depths": [3, 4, 23, 3]}},
    SMALL_DETR,
)
SAM_VIT_B = Published(
    repository="facebook/sam-vit-base",
    model_class="SamModel",
    parameters=93.7,
    config={
        "model_type": "sam",
        "vision_config": {
            "model_type": "sam_vision_model",
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "output_channels": 256,
            "image_size": 1024,
            "window_size": 14,
            "num_pos_feats": 128,
            "global_attn_indexes": [2, 5, 8, 11],
        },
        "prompt_encoder_config": {"model_type": "sam_prompt_encoder", "hidden_size": 256, "image_size": 1024},
        "mask_decoder_config": {
            "model_type": "sam_mask_decoder",
            "hidden_size": 256,
            "mlp_dim": 2048,
            "iou_head_hidden_dim": 256,
        },
    },
    shrink={
        "vision_config": {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "output_channels": 32,
            "image_size": 128,
            "window_size": 4,
            "num_pos_feats": 16,
            "global_attn_indexes": [1],
        },
        "prompt_encoder_config": {"hidden_size": 32, "image_size": 128},
        "mask_decoder_config": {"hidden_size": 32, "mlp_dim": 64, "iou_head_hidden_dim": 32},
    },
)
SAM2_TINY = Published(
    repository="facebook/sam2.1-hiera-tiny",
    model_class="Sam2Model",
    parameters=None,
    config={
        "model_type": "sam2",
        "vision_config": {
            "model_type": "sam2_vision_model",
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": 96,
                "image_size": [1024, 1024],
                "blocks_per_stage": [1, 2, 7, 2],
                "embed_dim_per_stage": [96, 192, 384, 768],
                "global_attention_blocks": [5, 7, 9],
                "window_size_per_stage": [8, 4, 14, 7],
            },
            "backbone_channel_list": [768, 384, 192, 96],
            "backbone_feature_sizes": [[256, 256], [128, 128], [64, 64]],
            "fpn_hidden_size": 256,
        },
        "prompt_encoder_config": {"model_type": "sam2_prompt_encoder", "hidden_size": 256, "image_size": 1024},
        "mask_decoder_config": {
            "model_type": "sam2_mask_decoder",
            "hidden_size": 256,
            "mlp_dim": 2048,
            "iou_head_hidden_dim": 256,
        },
    },
    shrink={
        "vision_config": {
            "backbone_config": {
                "hidden_size": 8,
                "image_size": [128, 128],
                "blocks_per_stage": [1, 1, 2, 1],
                "embed_dim_per_stage": [8, 16, 32, 64],
                "global_attention_blocks": [3],
                "window_size_per_stage": [8, 4, 4, 2],
            },
            "backbone_channel_list": [64, 32, 16, 8],
            "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
            "fpn_hidden_size": 32,
        },
        "prompt_encoder_config": {"hidden_size": 32, "image_size": 128},
        "mask_decoder_config": {"hidden_size": 32, "mlp_dim": 64, "iou_head_hidden_dim": 32},
    },
    uncertain="The repository's model_type is sam2_video: its file also holds the memory of the video model, which the "
    "image model leaves unread. No size of the image part alone was found.",
)

PUBLISHED = {
    "llava-1.5-7b": LLAVA_15,
    "llava-med": LLAVA_MED,
    "llava-next": LLAVA_NEXT,
    "qwen2-vl-7b": QWEN2_VL,
    "qwen2.5-vl-7b": QWEN25_VL,
    "medgemma-4b": MEDGEMMA,
    "florence-2-base": FLORENCE_2,
    "unifiedqa-t5-base": UNIFIEDQA_T5,
    "clip-vit-l-336": CLIP_TOWER,
    "siglip-so400m": SIGLIP_TOWER,
    "medsiglip-448": MEDSIGLIP,
    "dinov2-base": DINOV2,
    "detr-resnet-50": DETR_50,
    "detr-resnet-101": DETR_101,
    "sam-vit-b": SAM_VIT_B,
    "sam2-hiera-tiny": SAM2_TINY,
}
GENERATORS = tuple(PUBLISHED)[:8]
TOWERS = tuple(PUBLISHED)[8:14]
SEGMENTERS = tuple(PUBLISHED)[14:]


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> Config:
    """A deep copy of nested values with some of them changed."""
    copy = {key: merged(value, {}) if isinstance(value, Mapping) else value for key, value in values.items()}
    for key, value in changes.items():
        is_nested = isinstance(value, Mapping) and key not in WHOLE
        copy[key] = merged(values[key], value) if is_nested else value
    return copy


def shrunk_values(name: str) -> Config:
    """Values of the small form of a published model."""
    return merged(PUBLISHED[name].config, PUBLISHED[name].shrink)
