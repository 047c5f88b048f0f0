"""The layout in which LLaVA's authors save LLaVA-1.5 and LLaVA-Med: what is read of it, and what is refused."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import AutoConfig, CLIPVisionConfig, PreTrainedConfig

from lightbox.backbones import preflight
from lightbox.backbones.weights import CONFIG
from lightbox.errors import RequestError

BODIES = {
    "llava_llama": "llama",
    "llava_mistral": "mistral",
    "LlavaLlamaForCausalLM": "llama",
    "LlavaMistralForCausalLM": "mistral",
}
"""model_type or class in the source's config.json -> model_type of its language model."""
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
CLIP_HEAD_WIDTH = 64


def renamed(name: str) -> str:
    """Our name of a tensor of the source; "" for one that the class computes.

    Raises:
        RequestError: a name that is not in the layout.

    Example:
        >>> renamed("model.layers.0.mlp.up_proj.weight")
        'language_model.model.layers.0.mlp.up_proj.weight'
    """
    if name.endswith(COMPUTED):
        return ""
    found = next((new + name.removeprefix(old) for old, new in RENAMED if name.startswith(old)), "")
    if not found:
        raise RequestError(
            f"Tensor '{name}'", "It is not part of LLaVA-1.5's layout", "Leave files of other models out of the folder"
        )
    return found


def renamed_of_tower(name: str) -> str:
    """Our name of a tensor of a CLIP tower saved alone or with its text model; "" for what is not the tower."""
    bare = name.removeprefix("vision_model.")
    return TOWER + bare if bare.startswith(TOWER_PARTS) and not name.endswith(COMPUTED) else ""


def read_config(source: Path) -> dict[str, Any]:
    """config.json of the source.

    Raises:
        RequestError: where it is no LLaVA-1.5 in its authors' layout, or its files are not whole.
    """
    given = f"Source '{source}'"
    if not (source / CONFIG).is_file():
        raise RequestError(given, f"The folder holds no {CONFIG}", "Name the folder of the model")
    config = json.loads((source / CONFIG).read_text(encoding="utf-8"))
    if body_of(config) == "" or "mm_vision_tower" not in config:
        raise RequestError(
            f"{given}, of model_type '{config.get('model_type')}'",
            f"Only {', '.join(BODIES)} are in that layout",
            "Load it as it is, if transformers has its class",
        )
    if not any(source.glob("*.safetensors")):
        raise RequestError(
            given,
            "The folder holds no safetensors, and unpickling can run any code",
            "Convert its .bin files first, each with 'lightbox data convert'",
        )
    preflight.check_files(source, given)
    wanted = {
        "mm_projector_type": ("mlp2x_gelu",),
        "mm_vision_select_feature": ("patch", "cls_patch"),
        "mm_patch_merge_type": ("flat", None),
        "mm_use_im_start_end": (False, None),
        "tune_mm_vision_resampler": (False, None),
    }
    for key, values in wanted.items():
        have = config.get(key, values[0])
        if have not in values:
            raise RequestError(
                f"{given}: {key} is {have}",
                "That is not LLaVA-1.5, and its tensors would mean something else there",
                "Use a version of it that transformers has itself",
            )
    return config


def body_of(config: Mapping[str, Any]) -> str:
    """model_type of the language model; "" where the layout is another one."""
    names = [*(config.get("architectures") or ()), config.get("model_type", "")]
    return next((BODIES[name] for name in names if name in BODIES), "")


def shapes_of(path: Path, rename: Callable[[str], str]) -> dict[str, tuple[int, ...]]:
    """Shapes of a file's tensors under their new names, without reading the tensors."""
    with safe_open(path, "pt") as file:
        names = {name: rename(name) for name in file.keys()}
        return {new: tuple(file.get_slice(name).get_shape()) for name, new in names.items() if new}


def vision_config(
    shapes: Mapping[str, tuple[int, ...]] | None, tower: Path | None, config: Mapping[str, Any]
) -> PreTrainedConfig:
    """The tower's configuration: from its folder, or from the shapes of its tensors.

    Raises:
        RequestError: neither, or another tower than CLIP.
    """
    if tower is not None and (tower / CONFIG).is_file():
        found = AutoConfig.from_pretrained(tower, trust_remote_code=False)
        vision = getattr(found, "vision_config", found)
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


def check_names(names: Iterable[str], source: Path) -> None:
    """Refuse a source without its token table, head or projector, which the authors' code can also save apart.

    Raises:
        RequestError: with the names that are missing.
    """
    missing = sorted(set(NEEDED) - set(names))
    if missing:
        raise RequestError(
            f"Source '{source}' lacks {', '.join(missing)}",
            "It holds part of a model, such as an adapter or a projector",
            "Merge it with its base in the authors' code first",
        )
