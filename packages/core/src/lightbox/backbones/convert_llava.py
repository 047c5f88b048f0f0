"""A LLaVA in the layout of its authors' code (LLaVA-1.5, LLaVA-Med) -> a folder that transformers reads.

Tensors keep their values and get other names, file by file, so that one file is in memory at a time. Two tokens are
new: `<image>`, whose place vision tokens take, and `<pad>`. Their rows in the token table and in the head, and those
that fill the table up to a multiple of 64, are the mean of the old ones: a mean is never the largest logit, so greedy
answers stay what they are.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoTokenizer,
    CLIPVisionConfig,
    GenerationConfig,
    LlavaConfig,
    LlavaImageProcessor,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from lightbox.backbones import preflight
from lightbox.backbones.preflight import SHARDS
from lightbox.backbones.seq2seq import quiet_loading
from lightbox.backbones.weights import CONFIG
from lightbox.errors import RequestError

RENAMED = (
    ("model.mm_projector.0.", "multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "multi_modal_projector.linear_2."),
    ("model.vision_tower.vision_tower.", "vision_tower."),
    ("lm_head.", "language_model.lm_head."),
    ("model.", "language_model.model."),
)
"""Beginnings of tensor names, ours after theirs; the first that fits counts."""
COMPUTED = ("rotary_emb.inv_freq", "position_ids")
"""Ends of names of tensors that old files hold and classes compute."""
TABLES = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")
NEEDED = (*TABLES, "multi_modal_projector.linear_1.weight", "multi_modal_projector.linear_2.weight")
TOWER = "vision_tower.vision_model."
TOWER_PARTS = ("embeddings.", "pre_layrnorm.", "encoder.", "post_layernorm.")
CLIP_HEAD_WIDTH = 64  # all towers of OpenAI; shapes of tensors do not tell how many heads share them
TEMPLATES = {
    "llama": None,  # LLaVA-1.5's own prompt is what a backbone writes without a template
    "mistral": "{% for message in messages %}{% if message['role'] == 'user' %}[INST] "
    "{% for part in message['content'] %}{{ '<image>\n' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    " [/INST]{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{{ eos_token }}"
    "{% endif %}{% endfor %}",
}
TEXT_KEYS = (  # what the source leaves out has the default of transformers, as in the authors' code
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
FULL_TABLE = 64  # transformers fills its conversions up to 64 too: round sizes multiply faster
Part = tuple[Path, Callable[[str], str]]
"""A file, and what gives its tensors their new names."""


class Converted(NamedTuple):
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
    config = _read_config(source)
    files: list[Part] = [(path, _renamed) for path in sorted(source.glob("*.safetensors"))]
    shapes = {name: shape for part in files for name, shape in _shapes_of(*part).items()}
    missing = sorted(set(NEEDED) - shapes.keys())
    if missing:  # the authors' code can save table, head or projector apart
        raise RequestError(
            f"Source '{source}' lacks {', '.join(missing)}",
            "It holds part of a model, such as an adapter or a projector",
            "Merge it with its base in the authors' code first",
        )
    has_tower = any(name.startswith(TOWER) for name in shapes)
    if tower is not None and not has_tower:
        files += [(path, _renamed_of_tower) for path in sorted(tower.glob("*.safetensors"))]
    vision = _vision_config(shapes if has_tower else None, tower, config)
    with quiet_loading():
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    tokenizer.add_tokens([IMAGE, PAD], special_tokens=True)
    tokenizer.pad_token = PAD
    rows = -(-max(len(tokenizer), shapes[TABLES[0]][0]) // FULL_TABLE) * FULL_TABLE

    # under another name until it is whole: half a model would load in part
    sizes: dict[str, int] = {}
    places: dict[str, str] = {}
    staging = dest.with_name(f".{dest.name}.{os.getpid()}")
    try:
        staging.mkdir(parents=True)
        for place, part in enumerate(files, start=1):
            file = f"model-{place:05d}-of-{len(files):05d}.safetensors"
            counts = _write_part(part, staging / file, rows)
            sizes |= counts
            places |= dict.fromkeys(counts, file)
        index = {"metadata": {}, "weight_map": places}
        (staging / SHARDS).write_text(json.dumps(index, indent=1), encoding="utf-8")
        with quiet_loading():
            _write_configs(staging, config, vision, tokenizer, rows)
        os.replace(staging, dest)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Converted(dest, len(files), len(sizes), sum(sizes.values()))


def _write_part(part: Part, dest: Path, rows: int) -> dict[str, int]:
    """One file with its new names; returns how many numbers are in each tensor."""
    path, rename = part
    with safe_open(path, "pt") as file:
        tensors = {new: file.get_tensor(name) for name in file.keys() if (new := rename(name))}
    for name in tensors.keys() & set(TABLES):
        table = tensors[name]
        mean = table.float().mean(dim=0, keepdim=True).to(table.dtype)
        tensors[name] = torch.cat([table, mean.expand(rows - len(table), -1)])
    save_file(tensors, dest, metadata={"format": "pt"})
    return {name: tensor.numel() for name, tensor in tensors.items()}


def _write_configs(
    folder: Path, config: dict[str, Any], vision: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, rows: int
) -> None:
    body = preflight.original_body(config)
    text = {key: config[key] for key in TEXT_KEYS if config.get(key) is not None}
    # "patch" is patches without the class token
    strategy = "default" if config.get("mm_vision_select_feature", "patch") == "patch" else "full"
    pad_id = tokenizer.convert_tokens_to_ids(PAD)
    config_out = LlavaConfig(
        vision_config=vision,
        text_config=AutoConfig.for_model(body, **text, vocab_size=rows, pad_token_id=pad_id),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(vision.image_size // vision.patch_size) ** 2 + (strategy == "full"),
        vision_feature_layer=config.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy=strategy,
    )
    config_out.architectures = ["LlavaForConditionalGeneration"]
    config_out.save_pretrained(folder)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": pad_id}
    GenerationConfig(**ids).save_pretrained(folder)
    images = LlavaImageProcessor(
        # LLaVA-1.5 fills an image up to a square where LLaVA crops it
        do_pad=config.get("image_aspect_ratio") == "pad",
        size={"shortest_edge": vision.image_size},
        crop_size={"height": vision.image_size, "width": vision.image_size},
    )
    LlavaProcessor(
        images,
        tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1,  # the class token of CLIP
        chat_template=TEMPLATES[body],
    ).save_pretrained(folder)


def _renamed(name: str) -> str:
    """Our name of a tensor of the source; "" for one that the class computes.

    Raises:
        RequestError: a name that is not in the layout.

    Example:
        >>> _renamed("model.layers.0.mlp.up_proj.weight")
        'language_model.model.layers.0.mlp.up_proj.weight'
    """
    if name.endswith(COMPUTED):
        return ""
    our_name = next((new + name.removeprefix(old) for old, new in RENAMED if name.startswith(old)), "")
    if not our_name:
        raise RequestError(
            f"Tensor '{name}'", "It is not part of LLaVA-1.5's layout", "Leave files of other models out of the folder"
        )
    return our_name


def _renamed_of_tower(name: str) -> str:
    """Our name of a tensor of a CLIP tower saved alone or with its text model; "" for what is not the tower."""
    bare = name.removeprefix("vision_model.")
    return TOWER + bare if bare.startswith(TOWER_PARTS) and not name.endswith(COMPUTED) else ""


def _read_config(source: Path) -> dict[str, Any]:
    """config.json of the source.

    Raises:
        RequestError: where it is no LLaVA-1.5 in its authors' layout, or its files are not whole.
    """
    request = f"Source '{source}'"
    if not (source / CONFIG).is_file():
        raise RequestError(request, f"The folder holds no {CONFIG}", "Name the folder of the model")
    config = json.loads((source / CONFIG).read_text(encoding="utf-8"))
    if not preflight.original_body(config) or "mm_vision_tower" not in config:
        raise RequestError(
            f"{request}, of model_type '{config.get('model_type')}'",
            f"Only {', '.join(preflight.ORIGINAL_LLAVA)} are in that layout",
            "Load it as it is, if transformers has its class",
        )
    if not any(source.glob("*.safetensors")):
        raise RequestError(
            request,
            "The folder holds no safetensors, and unpickling can run any code",
            "Convert its .bin files first, each with 'lightbox data convert'",
        )
    preflight.check_files(source, request)
    expected = {
        "mm_projector_type": ("mlp2x_gelu",),
        "mm_vision_select_feature": ("patch", "cls_patch"),
        "mm_patch_merge_type": ("flat", None),
        "mm_use_im_start_end": (False, None),
        "tune_mm_vision_resampler": (False, None),
    }
    for key, values in expected.items():
        value = config.get(key, values[0])
        if value not in values:
            raise RequestError(
                f"{request}: {key} is {value}",
                "That is not LLaVA-1.5, and its tensors would mean something else there",
                "Use a version of it that transformers has itself",
            )
    return config


def _shapes_of(path: Path, rename: Callable[[str], str]) -> dict[str, tuple[int, ...]]:
    """Shapes of a file's tensors under their new names, without reading the tensors."""
    with safe_open(path, "pt") as file:
        return {new: tuple(file.get_slice(name).get_shape()) for name in file.keys() if (new := rename(name))}


def _vision_config(
    shapes: Mapping[str, tuple[int, ...]] | None, tower: Path | None, config: Mapping[str, Any]
) -> PreTrainedConfig:
    """The tower's configuration: from its folder, or from the shapes of its tensors.

    Raises:
        RequestError: neither, or another tower than CLIP.
    """
    if tower is not None and (tower / CONFIG).is_file():
        tower_config = AutoConfig.from_pretrained(tower, trust_remote_code=False)
        vision = getattr(tower_config, "vision_config", tower_config)
        if vision.model_type == "clip_vision_model":
            return vision
        raise RequestError(
            f"Tower '{tower}' is a {vision.model_type}", "LLaVA-1.5 reads a CLIP tower", "Name a CLIP folder"
        )
    if shapes is None:
        raise RequestError(
            f"A source without its tower, '{config['mm_vision_tower']}'",
            "Images would be read by random weights",
            "Fetch that tower into a folder and name it with --tower",
        )
    width, _, patch, _ = shapes[f"{TOWER}embeddings.patch_embedding.weight"]
    positions = shapes[f"{TOWER}embeddings.position_embedding.weight"][0]
    layers = {name.split(".")[4] for name in shapes if name.startswith(f"{TOWER}encoder.layers.")}
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=shapes[f"{TOWER}encoder.layers.0.mlp.fc1.weight"][0],
        num_hidden_layers=len(layers),
        num_attention_heads=width // CLIP_HEAD_WIDTH,
        patch_size=patch,
        image_size=round((positions - 1) ** 0.5) * patch,
    )
