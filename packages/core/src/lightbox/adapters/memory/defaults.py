"""Values that a config.json leaves out: the defaults of transformers 5.23, of what the memory model reads."""

from typing import Any

_LLAMA = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "max_position_embeddings": 2048,
}
_MISTRAL = _LLAMA | {"intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072}
_QWEN2 = _LLAMA | {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
}
_QWEN_VL_TEXT = _LLAMA | {
    "vocab_size": 152064,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
}
_GEMMA3 = {key: value for key, value in _LLAMA.items() if key != "hidden_act"} | {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "max_position_embeddings": 131072,
}
_VIT = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "attention_dropout": 0.0,
}
_QWEN_VIT = {
    "depth": 32,
    "hidden_size": 3584,
    "num_heads": 16,
    "in_channels": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "mistral": _MISTRAL,
    "qwen2": _QWEN2,
    "qwen2_vl_text": _QWEN_VL_TEXT,
    "qwen2_5_vl_text": _QWEN_VL_TEXT,
    "gemma3_text": _GEMMA3,
    "clip_vision_model": _VIT,
    "siglip_vision_model": _VIT | {"patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "vision_use_head": True},
    "qwen2_vl_vision": _QWEN_VIT | {"embed_dim": 1280, "mlp_ratio": 4, "hidden_act": "quick_gelu"},
    "qwen2_5_vl_vision": _QWEN_VIT
    | {
        "intermediate_size": 3420,
        "hidden_act": "silu",
        "window_size": 112,
        "out_hidden_size": 3584,
        "fullatt_block_indexes": (7, 15, 23, 31),
    },
    "bart": {
        "vocab_size": 50265,
        "d_model": 1024,
        "encoder_layers": 12,
        "decoder_layers": 12,
        "encoder_ffn_dim": 4096,
        "decoder_ffn_dim": 4096,
        "encoder_attention_heads": 16,
        "decoder_attention_heads": 16,
        "activation_function": "gelu",
        "max_position_embeddings": 1024,
        "dropout": 0.1,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
    },
    "florence_vision": {
        "in_channels": 3,
        "depths": (1, 1, 9, 1),
        "patch_size": (7, 3, 3, 3),
        "patch_stride": (4, 2, 2, 2),
        "patch_padding": (3, 1, 1, 1),
        "patch_prenorm": (False, True, True, True),
        "embed_dim": (128, 256, 512, 1024),
        "num_heads": (4, 8, 16, 32),
        "num_groups": (4, 8, 16, 32),
        "window_size": 12,
        "drop_path_rate": 0.1,
        "mlp_ratio": 4.0,
        "qkv_bias": True,
        "activation_function": "gelu",
        "projection_dim": 1024,
        "max_position_embeddings": 50,
    },
    "llava": {
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "multimodal_projector_bias": True,
    },
    "gemma3": {"mm_tokens_per_image": 256},
    "t5": {
        "vocab_size": 32128,
        "d_model": 512,
        "d_kv": 64,
        "d_ff": 2048,
        "num_layers": 6,
        "num_decoder_layers": None,
        "num_heads": 8,
        "relative_attention_num_buckets": 32,
        "dropout_rate": 0.1,
        "feed_forward_proj": "relu",
    },
}
"""model_type -> the values used here."""
DEFAULTS["llava_next"] = DEFAULTS["llava"]
DEFAULTS |= {"qwen2_vl": {}, "qwen2_5_vl": {}, "florence2": {}}
PARTS = {
    "llava": ("llama", "clip_vision_model"),
    "llava_next": ("llama", "clip_vision_model"),
    "qwen2_vl": ("qwen2_vl_text", "qwen2_vl_vision"),
    "qwen2_5_vl": ("qwen2_5_vl_text", "qwen2_5_vl_vision"),
    "gemma3": ("gemma3_text", "siglip_vision_model"),
    "florence2": ("bart", "florence_vision"),
}
"""model_type -> model types of its text and vision part where the file does not say."""
OLD_NAMES = {"qwen2_vl": "qwen2_vl_vision", "qwen2_5_vl": "qwen2_5_vl_vision", "gemma3": "gemma3_text"}
"""model_type of a part in older files -> its name now."""
