"""Weights that are loaded: a model, an adapter on its base, a checkpoint in training. With torch."""

import logging
import random
from pathlib import Path

import torch

from lightbox.adapters import artifact
from lightbox.adapters.attach import attach
from lightbox.backbones.loading import load
from lightbox.config import AdapterConfig
from lightbox.errors import LightboxError, RequestError
from lightbox.paper.pretrained import find_pretrained
from lightbox.testing.shrunk import save_shrunk
from lightbox.testing.spoiled.inputs import Kind, Look, digest_of
from lightbox.testing.spoiled.weights_kinds import weight_changes, weights_form
from lightbox.testing.tiny_models import save_t5
from lightbox.testing.training import fit_tagger, make_tagger
from lightbox.train import checkpoint


def _write_model(folder: Path, rng: random.Random) -> None:
    save_t5(folder, ["nodule", "mass"], seed=rng.randrange(99))


def _look_at_model(folder: Path) -> Look:
    base = find_pretrained(str(folder))
    backbone = load(str(folder))
    assert base.family is not None
    return Look(digest_of(base.family.name, *_tensors(backbone.core), _words(backbone.tokenizer)))


def _tensors(model: torch.nn.Module) -> list[str]:
    return [f"{name} {tensor.double().sum().item()}" for name, tensor in sorted(model.state_dict().items())]


def _words(tokenizer: object) -> str:
    return repr(tokenizer("is there a nodule ? yes no", add_special_tokens=True)["input_ids"])  # type: ignore[operator]


def _write_adapter(folder: Path, rng: random.Random) -> None:
    base = folder / "base"
    save_shrunk("llava-1.5-7b", base)
    settings = AdapterConfig(kind="lora", r=2, alpha=4.0)
    torch.manual_seed(rng.randrange(99))
    artifact.save(folder / "adapter", attach(load(str(base)), settings), settings)


def _look_at_adapter(folder: Path) -> Look:
    for file in ("adapter/manifest.json", "adapter/adapter_config.json"):  # which hold the base's place
        path = folder / file
        if path.is_file() and path.read_bytes().isascii():
            path.write_text(path.read_text().replace(_sound_of(folder), str(folder)))
    find_pretrained(str(folder / "adapter"))
    backbone = artifact.load(folder / "adapter")
    return Look(digest_of(*_tensors(backbone.core)))


def _sound_of(folder: Path) -> str:
    return str(folder).replace("spoiled", "sound")


def _write_checkpoint(folder: Path, rng: random.Random) -> None:
    logging.getLogger("lightbox").setLevel(logging.ERROR)
    fit_tagger(folder / "run", seed=rng.randrange(99), save_every_steps=4)


def _look_at_checkpoint(folder: Path) -> Look:
    place = folder / "run" / "checkpoints"
    newest = checkpoint.latest(place)
    if newest is None:
        raise RequestError(f"{place}", "No checkpoint verifies", "Training begins anew, which it says")
    model = make_tagger()
    optimizer = torch.optim.AdamW(model.parameters())
    said = "" if newest.name == "step-00000012" else f"continued from {newest.name}"
    try:
        state = checkpoint.load(newest, model, optimizer)
    except LightboxError as err:
        if "groups" not in str(err):
            raise
        state = None
    return Look(digest_of(newest.name, *_tensors(model), state and state.step), said)


MODEL = Kind(_write_model, _look_at_model, weight_changes, weights_form, variants=3)
ADAPTER = Kind(_write_adapter, _look_at_adapter, weight_changes, weights_form, variants=1)
CHECKPOINT = Kind(_write_checkpoint, _look_at_checkpoint, weight_changes, variants=1, has_digests=True)
