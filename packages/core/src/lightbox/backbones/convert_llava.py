"""A LLaVA in the layout of its authors' code (LLaVA-1.5, LLaVA-Med) -> a folder that transformers reads.

Tensors keep their values and get other names, file by file, so that one file is in memory at a time. Two tokens are
new: `<image>`, whose place vision tokens take, and `<pad>`. Their rows in the token table and in the head, and those
that fill the table up to a multiple of 64, are the mean of the old ones: a mean is never the largest logit, so greedy
answers stay what they are.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    LlavaConfig,
    LlavaImageProcessor,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from lightbox.backbones import original_llava
from lightbox.backbones.preflight import SHARDS
from lightbox.backbones.seq2seq import quiet_loading
from lightbox.errors import RequestError

TEMPLATES = {
    "llama": None,  # LLaVA-1.5's own prompt is what a backbone writes without a template
    "mistral": "{% for message in messages %}{% if message['role'] == 'user' %}[INST] "
    "{% for part in message['content'] %}{{ '<image>\n' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    " [/INST]{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{{ eos_token }}"
    "{% endif %}{% endfor %}",
}
TEXT_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "sliding_window",
    "hidden_act",
    "bos_token_id",
    "eos_token_id",
)
IMAGE, PAD = "<image>", "<pad>"
FULL_TABLE = 64
Part = tuple[Path, Callable[[str], str]]
"""A file, and what gives its tensors their new names."""


@dataclass(frozen=True)
class Converted:
    """What was written."""

    folder: Path
    files: int
    tensors: int
    parameters: int


def convert_llava(source: Path, dest: Path, *, tower: Path | None = None) -> Converted:
    """Write a LLaVA-1.5 as `LlavaForConditionalGeneration`, with its processor.

    Args:
        source: folder with config.json, safetensors and the tokenizer, as the authors' code saves them.
        dest: new folder.
        tower: folder of the CLIP tower as transformers saves it, where `source` does not hold the tower.

    Raises:
        RequestError: another layout, a projector or tiles that LLaVA-1.5 does not have, no tower, or `dest` exists.
    """
    if dest.exists():
        raise RequestError(f"Destination '{dest}'", "It exists already", "Name a new folder")
    config = original_llava.read_config(source)
    files: list[Part] = [(path, original_llava.renamed) for path in sorted(source.glob("*.safetensors"))]
    shapes = {name: shape for part in files for name, shape in original_llava.shapes_of(*part).items()}
    original_llava.check_names(shapes, source)
    has_tower = any(name.startswith(original_llava.TOWER) for name in shapes)
    if tower is not None and not has_tower:
        files += [(path, original_llava.renamed_of_tower) for path in sorted(tower.glob("*.safetensors"))]
    vision = original_llava.vision_config(shapes if has_tower else None, tower, config)
    with quiet_loading():
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    tokenizer.add_tokens([IMAGE, PAD], special_tokens=True)
    tokenizer.pad_token = PAD
    rows = -(-max(len(tokenizer), shapes[original_llava.TABLES[0]][0]) // FULL_TABLE) * FULL_TABLE

    staging = dest.with_name(f".{dest.name}.{os.getpid()}")
    try:
        staging.mkdir(parents=True)
        written = [
            _write_part(part, staging / f"model-{place:05d}-of-{len(files):05d}.safetensors", rows)
            for place, part in enumerate(files, start=1)
        ]
        _write_index(staging, written)
        with quiet_loading():
            _write_configs(staging, config, vision, tokenizer, rows)
        os.replace(staging, dest)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    sizes = [size for part in written for size in part.values()]
    return Converted(dest, len(files), len(sizes), sum(sizes))


def _write_part(part: Part, dest: Path, rows: int) -> dict[str, int]:
    """One file with its new names; returns how many numbers are in each tensor."""
    path, rename = part
    tensors: dict[str, Tensor] = {}
    with safe_open(path, "pt") as file:
        for name in file.keys():
            new = rename(name)
            if new:
                tensor = file.get_tensor(name)
                tensors[new] = _with_rows(tensor, rows) if new in original_llava.TABLES else tensor
    save_file(tensors, dest, metadata={"format": "pt"})
    return {name: tensor.numel() for name, tensor in tensors.items()}


def _with_rows(table: Tensor, rows: int) -> Tensor:
    mean = table.float().mean(dim=0, keepdim=True).to(table.dtype)
    return torch.cat([table, mean.expand(rows - len(table), -1)])


def _write_index(folder: Path, parts: list[dict[str, int]]) -> None:
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    names = {name: file for file, part in zip(files, parts, strict=True) for name in part}
    index = {"metadata": {}, "weight_map": names}
    (folder / SHARDS).write_text(json.dumps(index, indent=1), encoding="utf-8")


def _write_configs(
    folder: Path, config: dict[str, Any], vision: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, rows: int
) -> None:
    body = original_llava.body_of(config)
    text = {key: config[key] for key in TEXT_KEYS if config.get(key) is not None}
    drops_first = config.get("mm_vision_select_feature", "patch") == "patch"
    strategy = "default" if drops_first else "full"
    pad_id = tokenizer.convert_tokens_to_ids(PAD)
    made = LlavaConfig(
        vision_config=vision,
        text_config=AutoConfig.for_model(body, **text, vocab_size=rows, pad_token_id=pad_id),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(vision.image_size // vision.patch_size) ** 2 + (not drops_first),
        vision_feature_layer=config.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy=strategy,
    )
    made.architectures = ["LlavaForConditionalGeneration"]
    made.save_pretrained(folder)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": pad_id}
    GenerationConfig(**ids).save_pretrained(folder)
    square = {"height": vision.image_size, "width": vision.image_size}
    images = LlavaImageProcessor(
        do_pad=config.get("image_aspect_ratio") == "pad",
        size={"shortest_edge": vision.image_size},
        crop_size=square,
    )
    LlavaProcessor(
        images,
        tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1,
        chat_template=TEMPLATES[body],
    ).save_pretrained(folder)
