"""Random T5, LLaVA and vision towers of a few thousand parameters, written by save_pretrained as real ones are."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MistralConfig,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

from lightbox.backbones.seq2seq import quiet_loading

SPECIAL = ("<pad>", "</s>", "<unk>", "<extra_id_0>")
TEMPLATE_WORDS = tuple("question options answer solution the is a b : ( ) . ? that part of image in yes no".split())
TOWERS = {
    "clip": (CLIPVisionConfig, CLIPVisionModel, 1, "CLIPImageProcessor"),
    "siglip": (SiglipVisionConfig, SiglipVisionModel, 0, "SiglipImageProcessor"),
    "vit": (ViTConfig, ViTModel, 1, "ViTImageProcessor"),
    "dinov2": (Dinov2Config, Dinov2Model, 1, "BitImageProcessor"),
}
"""Family -> config class, model class, leading tokens that are no patches, image processor."""


def save_t5(folder: Path, words: Iterable[str], *, width: int = 32, layers: int = 1, seed: int = 0) -> Path:
    """Write a random T5 with a word-level, lower-casing tokenizer of `words`."""
    vocabulary = [*SPECIAL, *sorted({*TEMPLATE_WORDS, *words})]
    core = Tokenizer(models.WordLevel({word: place for place, word in enumerate(vocabulary)}, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<extra_id_0>"],
    )
    config = T5Config(
        vocab_size=len(vocabulary),
        d_model=width,
        d_kv=width // 2,
        d_ff=2 * width,
        num_layers=layers,
        num_heads=2,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    torch.manual_seed(seed)
    with quiet_loading():
        T5ForConditionalGeneration(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def save_tower(folder: Path, family: str = "clip", *, width: int = 32, image_px: int = 64, seed: int = 0) -> Path:
    """Write a random vision tower of a family of `TOWERS`, patch 8, with its preprocessor settings."""
    config_class, model_class, _, processor = TOWERS[family]
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": image_px, "patch_size": 8}
    mlp = {"mlp_ratio": 2} if family == "dinov2" else {"intermediate_size": 2 * width}
    torch.manual_seed(seed)
    with quiet_loading():
        model_class(config_class(hidden_size=width, **sizes, **mlp)).save_pretrained(folder)
    square = {"height": image_px, "width": image_px}
    settings = {"image_processor_type": processor, "size": square, "crop_size": square}
    settings |= {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that needs no training: one token a byte, `<s>` in front, and `<image>` as one token."""
    special = ["<pad>", "<s>", "</s>", "<image>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={token: place for place, token in enumerate([*special, *alphabet])}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )


def save_llava(
    folder: Path,
    *,
    body: str = "llama",
    template: str | None = None,
    width: int = 32,
    layers: int = 2,
    image_px: int = 32,
    seed: int = 0,
) -> Path:
    """Write a random LLaVA-1.5 with a CLIP tower of patch 8, two tower layers and a tokenizer of bytes.

    Args:
        folder: where to.
        body: "llama" or "mistral", the language model.
        template: chat template of the processor; None saves none.
        width: of tower and language model.
        layers: of the language model.
        image_px: side of the square that images are resized to; a patch is a token.
        seed: of the weights.
    """
    tokenizer = byte_tokenizer()
    sizes = {"hidden_size": width, "num_attention_heads": 2, "intermediate_size": 2 * width}
    text = {
        **sizes,
        "num_hidden_layers": layers,
        "num_key_value_heads": 1,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**sizes, num_hidden_layers=3, image_size=image_px, patch_size=8),
        text_config={"llama": LlamaConfig, "mistral": MistralConfig}[body](**text),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(image_px // 8) ** 2,
    )
    square = {"height": image_px, "width": image_px}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size=square, crop_size=square),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    torch.manual_seed(seed)
    with quiet_loading():
        LlavaForConditionalGeneration(config).save_pretrained(folder)
        processor.save_pretrained(folder)
    return folder
