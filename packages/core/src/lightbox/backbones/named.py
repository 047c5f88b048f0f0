"""Configurations by name: published models, tiny ones, and folders with a config.json. No torch."""

import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightbox.backbones.published import PUBLISHED, merged
from lightbox.errors import RequestError
from lightbox.paths import shared_data

TINY, CONFIG = "tiny/", "config.json"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+$")
_T5_LARGE = {"d_model": 1024, "d_ff": 4096, "num_layers": 24, "num_decoder_layers": 24, "num_heads": 16}
_FLORENCE_LARGE = {
    "text_config": {
        "d_model": 1024,
        "encoder_layers": 12,
        "decoder_layers": 12,
        "encoder_attention_heads": 16,
        "decoder_attention_heads": 16,
        "encoder_ffn_dim": 4096,
        "decoder_ffn_dim": 4096,
    },
    "vision_config": {
        "embed_dim": [256, 512, 1024, 2048],
        "num_heads": [8, 16, 32, 64],
        "num_groups": [8, 16, 32, 64],
        "projection_dim": 1024,
    },
}
NAMED: dict[str, Mapping[str, Any]] = {
    "llava-1.5-7b": PUBLISHED["llava-1.5-7b"].config,
    "llava-med-7b": PUBLISHED["llava-med"].config,
    "llava-next-7b": PUBLISHED["llava-next"].config,
    "qwen2-vl-7b": PUBLISHED["qwen2-vl-7b"].config,
    "qwen2.5-vl-7b": PUBLISHED["qwen2.5-vl-7b"].config,
    "lingshu-7b": PUBLISHED["qwen2.5-vl-7b"].config,
    "medgemma-4b": PUBLISHED["medgemma-4b"].config,
    "florence-2-base": PUBLISHED["florence-2-base"].config,
    "florence-2-large": merged(PUBLISHED["florence-2-base"].config, _FLORENCE_LARGE),
    "unifiedqa-t5-base": PUBLISHED["unifiedqa-t5-base"].config,
    "unifiedqa-t5-large": merged(PUBLISHED["unifiedqa-t5-base"].config, _T5_LARGE),
}
"""Name -> values of config.json, of models that need not be on this machine."""


def config_of(name: str, *, key: str = "--model") -> Mapping[str, Any]:
    """Find a configuration.

    Args:
        name: a key of `NAMED`, "tiny/llava", or a folder that holds a config.json; weights are not needed.
        key: option or config key that gave the name, for messages.

    Raises:
        RequestError: no such name or folder, or a hub id, whose config.json is not on this machine.
    """
    if name in NAMED:
        return NAMED[name]
    folder = shared_data() / "weights" / name.removeprefix(TINY) if name.startswith(TINY) else Path(name).expanduser()
    if (folder / CONFIG).is_file():
        return json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    request = f"{key} is '{name}'"
    if folder.is_dir():
        raise RequestError(request, f"That folder holds no {CONFIG}", "Name a folder that save_pretrained wrote")
    if _HUB_ID.match(name) and not name.startswith(TINY):
        raise RequestError(
            request,
            f"Nothing is fetched here, and the {CONFIG} of a hub id is not on this machine",
            f"Fetch that one file into a folder and name the folder, or take one of {', '.join(NAMED)}",
        )
    near = difflib.get_close_matches(name, NAMED, n=1)
    hint = f"Did you mean {near[0]}?" if near else f"Set {key} to one of them, to tiny/NAME or to a folder"
    raise RequestError(request, f"There is no such folder, and the models known by name are {', '.join(NAMED)}", hint)
