"""MedPLIB's released weights, as its own code saves them -> folders that `open_model` and `load_segmenter` open.

Names are those of ShawnHuang497/MedPLIB with low-rank additions merged: a LLaVA whose networks are DeepSpeed's
mixtures, `text_hidden_fcs`, `region_fea_adapter`, and a SAM-Med2D as `visual_model`. No released weights were seen
here. Experts have the order of its script for stage 4, which names the weights of stage 3 first.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightbox.backbones import preflight, weights
from lightbox.backbones.convert_llava import COMPUTED, convert_llava
from lightbox.backbones.convert_sam import NO_MASK, write_sam
from lightbox.errors import RequestError
from lightbox.files import write_json
from lightbox.paper import pixel_vlm_parts
from lightbox.paper.pixel_items import TAGS
from lightbox.paper.pixel_vlm import SEG_NORM
from lightbox.paper.tensor_sets import differing
from lightbox.train.weights import read_tensors, write_tensors
from medplib import assembly
from medplib.config import GROUNDING, VL
from medplib.experts import MixtureSettings

MODEL_TYPE = "medplib_moe_llama"
EXPERTS = (GROUNDING, VL)
"""In the order of their numbers."""
LAYERS = "model.language_model.layers"
MODEL, SEGMENTER = "model", "segmenter"
LLAVA = re.compile(
    r"lm_head\.|model\.(embed_tokens|norm|mm_projector|vision_tower\.vision_tower)\."
    r"|model\.layers\.\d+\.(self_attn|input_layernorm|post_attention_layernorm)\.(?!.*lora_)"
)
SAM = "model.visual_model."
NETWORK = re.compile(r"model\.layers\.(\d+)\.mlp\.deepspeed_moe\.experts\.deepspeed_experts\.(\d+)\.(\w+\.weight)")
ROUTER = re.compile(r"model\.layers\.(\d+)\.mlp\.deepspeed_moe\.gate\.wg\.weight")
PARTS = {"model.text_hidden_fcs.0.": "seg_projector.", "model.region_fea_adapter.": "region_adapter."}
TEMPLATE = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the human's questions. {% for turn in messages %}"
    "{{ {'assistant': 'ASSISTANT: ', 'user': 'USER: '}.get(turn['role'], '') }}{% for part in turn['content'] %}"
    "{{ '<im_start><image><im_end>\n' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{{ eos_token if turn['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""The prompt of its training; its evaluation says "user" for "human"."""


def convert_medplib(source: Path, dest: Path, *, tower: Path | None = None) -> Path:
    """Write a released MedPLIB as a folder with `model` and `segmenter`; experts and routers are in memory at once.

    Args:
        source: folder with config.json, safetensors and the tokenizer.
        dest: new folder.
        tower: folder of the CLIP tower as transformers saves it, where `source` does not hold the tower.

    Raises:
        RequestError: another layout, tensors that are missing, too many or of another shape, what `convert_llava` and
            `write_sam` refuse, or `dest` exists.
    """
    if dest.exists():
        raise RequestError(f"Destination '{dest}'", "It exists already", "Name a new folder")
    config, files = _read_config(source)
    # under another name until it is whole: half a model would load in part
    staging = dest.with_name(f".{dest.name}.{os.getpid()}")
    plain = staging / "llava"
    try:
        plain.mkdir(parents=True)
        own: dict[str, Tensor] = {}
        sam: dict[str, Tensor] = {}
        for file in files:
            llava: dict[str, Tensor] = {}
            for name, tensor in _tensors_of(file):
                if LLAVA.match(name):
                    llava[name] = tensor
                elif name.startswith(SAM):
                    sam[name.removeprefix(SAM)] = tensor
                else:
                    own |= _renamed(name, tensor)
                    match = NETWORK.fullmatch(name)
                    if match and int(match[2]) == 0:  # what a reader without experts has as networks
                        llava[f"model.layers.{match[1]}.mlp.{match[3]}"] = tensor
            if llava:
                save_file(llava, plain / file.name, metadata={"format": "pt"})
        request = f"Source '{source}'"
        write_sam(sam, staging / SEGMENTER, request=f"{request}, {SAM}*")
        _check(own, config, sam[NO_MASK].shape[1], request)
        _write_llava(source, plain, staging / MODEL, config, tower)
        _write_own(own, staging / MODEL, staging / SEGMENTER, config)
        shutil.rmtree(plain)
        os.replace(staging, dest)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return dest


def _read_config(source: Path) -> tuple[dict[str, Any], list[Path]]:
    """config.json of the source, and its files."""
    request = f"Source '{source}'"
    if not (source / weights.CONFIG).is_file():
        raise RequestError(request, f"The folder holds no {weights.CONFIG}", "Name the folder of the model")
    config = json.loads((source / weights.CONFIG).read_text(encoding="utf-8"))
    if config.get("model_type") != MODEL_TYPE or "mm_hidden_size" not in config:
        raise RequestError(
            f"{request}, of model_type '{config.get('model_type')}'",
            f"MedPLIB's mixture is a {MODEL_TYPE} with a mm_hidden_size; its earlier stages have one network",
            "Name the folder of stage 4, with low-rank additions merged",
        )
    files = sorted(source.glob("*.safetensors"))
    if not files:
        raise RequestError(
            request,
            "The folder holds no safetensors, and unpickling can run any code",
            "Convert its .bin files first, each with 'lightbox data convert'",
        )
    preflight.check_files(source, request)
    return config, files


def _tensors_of(file: Path) -> Iterator[tuple[str, Tensor]]:
    with safe_open(file, "pt") as opened:
        for name in opened.keys():
            if not name.endswith(COMPUTED):
                yield name, opened.get_tensor(name)


def _renamed(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """A tensor of experts, routers, projector or region adapter by our names; others keep theirs, and are refused."""
    if match := NETWORK.fullmatch(name):
        return {f"{LAYERS}.{match[1]}.mlp.experts.{_expert(int(match[2]))}.{match[3]}": tensor}
    if match := ROUTER.fullmatch(name):
        return {f"{LAYERS}.{match[1]}.mlp.router.rows.{_expert(n)}": row.clone() for n, row in enumerate(tensor)}
    for old, new in PARTS.items():
        if name.startswith(old):
            return {new + name.removeprefix(old): tensor}
    return {name: tensor}


def _expert(number: int) -> str:
    return EXPERTS[number] if number < len(EXPERTS) else f"expert_{number}"


def _check(own: dict[str, Tensor], config: dict[str, Any], prompt: int, request: str) -> None:
    """Refuse all that is not each layer's two experts and router, the projector of `<SEG>` and the region adapter."""
    width, hidden = config["hidden_size"], config["intermediate_size"]
    networks = {"gate_proj": (hidden, width), "up_proj": (hidden, width), "down_proj": (width, hidden)}
    shapes: dict[str, tuple[int, ...]] = {
        "seg_projector.0.weight": (width, width),
        "seg_projector.0.bias": (width,),
        "seg_projector.2.weight": (prompt, width),
        "seg_projector.2.bias": (prompt,),
        "region_adapter.weight": (width, config["mm_hidden_size"]),
        "region_adapter.bias": (width,),
    }
    for layer in range(config["num_hidden_layers"]):
        for name in EXPERTS:
            shapes[f"{LAYERS}.{layer}.mlp.router.rows.{name}"] = (width,)
            for part, shape in networks.items():
                shapes[f"{LAYERS}.{layer}.mlp.experts.{name}.{part}.weight"] = shape
    if odd := differing(own, {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}):
        raise RequestError(
            f"{request}: {odd}",
            f"Each layer has the experts {' and '.join(EXPERTS)} and a router; there is nothing else but LLaVA and SAM",
            "Name the folder of a whole stage 4, with low-rank additions merged",
        )


def _write_llava(source: Path, plain: Path, dest: Path, config: dict[str, Any], tower: Path | None) -> None:
    """What any LLaVA is, with its first expert as networks; its tags are words, so that an answer keeps them."""
    for file in source.iterdir():
        if file.suffix in (".json", ".model") and file.name not in (weights.CONFIG, preflight.SHARDS):
            shutil.copyfile(file, plain / file.name)
    # its marks around an image are in the prompt here, and its own loader's padding is that of `pixel_rows.shown`
    write_json(plain / weights.CONFIG, config | {"model_type": "llava_llama", "mm_use_im_start_end": False})
    convert_llava(plain, dest, tower=tower)
    (dest / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    written = json.loads((dest / weights.CONFIG).read_text(encoding="utf-8"))
    write_json(dest / weights.CONFIG, written | {SEG_NORM: False})
    tokenizer = json.loads((dest / "tokenizer.json").read_text(encoding="utf-8"))
    for token in tokenizer["added_tokens"]:
        token["special"] &= token["content"] not in TAGS
    write_json(dest / "tokenizer.json", tokenizer)


def _write_own(own: dict[str, Tensor], model: Path, segmenter: Path, config: dict[str, Any]) -> None:
    """Experts and routers as `assembly.save_experts` writes them, parts as `pixel_vlm_parts.save_parts` does."""
    mixture = {name: tensor for name, tensor in own.items() if name.startswith(LAYERS)}
    write_tensors(model / assembly.TENSORS, mixture)
    settings = MixtureSettings(top_k=(config.get("moe") or {}).get("top_k_experts") or 1, weight="prob")
    facts = {"experts": EXPERTS, "layers": LAYERS, "is_adapted": False}
    write_json(model / assembly.FACTS, facts | {"settings": vars(settings)})
    parts = {f"vlm.{name}": tensor for name, tensor in mixture.items() if ".router." in name}
    parts |= {name: tensor for name, tensor in own.items() if name not in mixture}
    for name, tensor in read_tensors(segmenter / "model.safetensors").items():
        if name.startswith("mask_decoder."):
            parts[f"sam.{name}"] = tensor
    write_tensors(model / pixel_vlm_parts.TENSORS, parts)
    digest = weights.digest_of(str(segmenter), key="DEST")
    write_json(model / pixel_vlm_parts.FACTS, {"seg_state": "predict", "segmenter": digest})
