"""Weights as they are looked at before anything is loaded: a model, a tiny one with a card, an adapter. No torch.

Nothing is loaded.
"""

import json
import random
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import patch

import numpy as np
from safetensors.numpy import save_file

from lightbox.adapters.manifest import check_files, read_adapter
from lightbox.backbones import weights
from lightbox.files import file_sha256
from lightbox.paper.pretrained import find_pretrained
from lightbox.paths import shared_data
from lightbox.testing.spoiled.documents import FIELD_CHANGES
from lightbox.testing.spoiled.entries import Change, Damage
from lightbox.testing.spoiled.inputs import Kind, Look, digest_of
from lightbox.testing.spoiled.single_images import OF_FILES
from lightbox.testing.spoiled.trial import keeps_form

TINY = "t5"
ODD_SHAPES = ([10**6, 10**6], [10**12], [0], [-1], [], [1, 2, 3, 4, 5, 6, 7], [2**63])


def _header(rng: random.Random, file: Path) -> Damage | None:
    """Another name, shape, type or place of one tensor in the header of a safetensors file."""
    content = file.read_bytes()
    (size,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + size])
    name = rng.choice(sorted(name for name in header if name != "__metadata__"))
    what = rng.choice(("shape", "dtype", "data_offsets", "name", "gone", "twice"))
    facts = header[name]
    if what == "shape":
        facts["shape"] = rng.choice((*ODD_SHAPES, facts["shape"][::-1]))
    elif what == "dtype":
        facts["dtype"] = rng.choice(("F64", "I8", "BOOL", "F99", "BF16"))
    elif what == "data_offsets":
        facts["data_offsets"] = rng.choice(([0, 10**15], [-1, 4], [4, 0], [0, 0]))
    elif what == "name":
        header[rng.choice(("x", name + ".x", "", "../" + name))] = header.pop(name)
    elif what == "gone":
        del header[name]
    else:
        header[name + "2"] = facts
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])
    return Damage(f"{what} of {name}")


def _header_size(rng: random.Random, file: Path) -> Damage:
    content = bytearray(file.read_bytes())
    struct.pack_into("<Q", content, 0, rng.choice((0, 1, 10**12, 2**64 - 1, len(content))))
    file.write_bytes(content)
    return Damage("another length of the header")


def _other_weights(_: random.Random, file: Path) -> Damage:
    file.write_bytes((shared_data() / "weights" / "tower" / "model.safetensors").read_bytes())
    return Damage("the weights of another model")


def _other_values(rng: random.Random, file: Path) -> Damage | None:
    """Values of a config.json that are numbers, made huge, negative or of another kind."""
    record = json.loads(file.read_text(encoding="utf-8"))
    keys = sorted(key for key, value in record.items() if isinstance(value, int | float) and value is not None)
    if not isinstance(record, dict) or not keys:
        return None
    key = rng.choice(keys)
    value = rng.choice((0, -1, 10**6, 10**12, 1.5, "8", None, [8]))
    record[key] = value
    file.write_text(json.dumps(record), encoding="utf-8")
    return Damage(f"{key} is {value}", None)


SAFETENSORS: dict[str, Change] = {f"header {turn}": _header for turn in range(4)} | {
    "length of header": _header_size,
    "other weights": _other_weights,
}


def weight_changes(file: Path) -> Mapping[str, Change]:
    """What a file among weights can suffer."""
    if file.suffix == ".safetensors":
        return OF_FILES | SAFETENSORS
    if file.suffix != ".json":
        return OF_FILES
    return OF_FILES | FIELD_CHANGES | {f"number {turn}": _other_values for turn in range(4)}


def weights_form(sound: Path, spoiled: Path) -> bool:
    """Other numbers in tensors of the same names and shapes, or other values of the same keys and types in JSON."""
    one, other = sound.read_bytes(), spoiled.read_bytes()
    if sound.suffix != ".safetensors":
        return keeps_form(sound, spoiled)
    (size,) = struct.unpack_from("<Q", one)
    return len(one) == len(other) and one[: 8 + size] == other[: 8 + size]


def write_model(folder: Path, rng: random.Random) -> None:
    """A tiny model of `shared_data` as a folder that anybody could have, without its card."""
    name = rng.choice(("t5", "llava", "florence2", "qwen2_5_vl"))
    shutil.copytree(shared_data() / "weights" / name, folder / "model", ignore=shutil.ignore_patterns(weights.CARD))


def _look_at_model(folder: Path) -> Look:
    """Its family is what a configuration is checked against; the digest of its files names it in every run."""
    base = find_pretrained(str(folder / "model"))
    assert base.family is not None
    return Look(base.family.name, base.digest())


def _write_tiny(folder: Path, _: random.Random) -> None:
    shutil.copytree(shared_data() / "weights" / TINY, folder / "shared_data" / "weights" / TINY)


def _look_at_tiny(folder: Path) -> Look:
    with patch.object(weights, "shared_data", lambda: folder / "shared_data"):
        weights.locate(f"tiny/{TINY}")
        find_pretrained(f"tiny/{TINY}")
        return Look(weights.digest_of(f"tiny/{TINY}"))


def _write_adapter(folder: Path, rng: random.Random) -> None:
    """A LoRA on tiny/llava, as `artifact.save` writes one, or as plain peft does."""
    own = folder / "adapter"
    own.mkdir()
    values = np.random.default_rng(rng.randrange(99)).random((2, 8), np.float32)
    save_file({"base_model.model.x.lora_A.weight": values}, own / "adapter_model.safetensors")
    peft = {"peft_type": "LORA", "base_model_name_or_path": "tiny/llava", "revision": None, "r": 2, "lora_alpha": 4}
    peft |= {"lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj"], "modules_to_save": None}
    (own / "adapter_config.json").write_text(json.dumps(peft))
    if rng.random() < 0.5:
        return
    files = {path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in sorted(own.iterdir())}
    base = {"name": "tiny/llava", "revision": "", "digest": "0" * 64, "family": "llava"}
    settings = {"kind": "lora", "r": 2, "alpha": 4.0, "quant": "none"}
    record = {"format": 2, "kind": "adapter", "base": base, "quant": "none", "dtype": "float32", "new_tokens": {}}
    (own / "manifest.json").write_text(json.dumps(record | {"adapter": settings, "files": files}))


def _look_at_adapter(folder: Path) -> Look:
    base = find_pretrained(str(folder / "adapter"))
    base.digest()
    record = read_adapter(folder / "adapter")
    check_files(folder / "adapter", record)
    return Look(digest_of(base.name, record["adapter"]))


MODEL = Kind(write_model, _look_at_model, weight_changes, weights_form, variants=4)
CARDED = Kind(_write_tiny, _look_at_tiny, weight_changes, variants=1, has_digests=True)
ADAPTER = Kind(_write_adapter, _look_at_adapter, weight_changes, weights_form, variants=4)
