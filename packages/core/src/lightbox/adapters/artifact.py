"""One folder for what was trained: saved with everything that decides whether it fits, refused where it does not.

`adapter_model.safetensors` (low-rank additions, the projector's trained copy, rows of new tokens) and
`adapter_config.json` are peft's own format, so plain peft loads the folder too; `manifest.json` is ours.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightbox.adapters import guards, kbit, lora
from lightbox.adapters.fused import use_fused
from lightbox.adapters.manifest import base_facts, check_files, is_merged, read_manifest, staged_folder, write_manifest
from lightbox.backbones.backbone import Backbone
from lightbox.config import AdapterConfig
from lightbox.errors import RequestError, WorkError
from lightbox.files import to_plain

WEIGHTS = "adapter_model.safetensors"
KIND = "adapter"


def save(
    folder: Path,
    backbone: Backbone,
    adapter: AdapterConfig,
    *,
    new_tokens: Mapping[str, int] | None = None,
    pruning: Mapping[str, Any] | None = None,
) -> Path:
    """Write the trained part of a backbone to a new folder, or replace one that holds an adapter.

    Args:
        folder: appears as a whole at the end.
        backbone: around a model that `lora.add_lora` wrapped.
        adapter: settings that it was wrapped with.
        new_tokens: id by token, where rows of new tokens were trained.
        pruning: settings of visual-token pruning that the model was trained under; None for none.

    Raises:
        RequestError: no adapter in the model, adapters merged, a folder with other content, or new tokens that are not
            those whose rows train.
        WorkError: 4-bit weights that were repacked.
    """
    model = wrapped_model(backbone)
    guards.refuse_merged(model)
    guards.refuse_packed(model)
    config = copy.deepcopy(model.peft_config[lora.ADAPTER])  # the model goes on training with its own
    _check_rows(config, new_tokens or {})
    config.inference_mode = True
    config.base_model_name_or_path, config.revision = backbone.name, backbone.revision or None
    facts = {"adapter": to_plain(adapter), "new_tokens": dict(new_tokens or {}), "pruning": pruning and {**pruning}}
    with staged_folder(folder, KIND) as staged:
        save_file(trained_state(model), staged / WEIGHTS, metadata={"format": "pt"})
        config.save_pretrained(str(staged))
        write_manifest(staged, KIND, base_facts(backbone) | facts)
    return folder


def load(
    folder: Path,
    backbone: Backbone,
    *,
    is_trainable: bool = False,
    checkpoint_layers: bool = False,
    allow_quant: bool = False,
) -> Backbone:
    """Put a saved adapter on its base, and check that every tensor arrived bit by bit.

    Args:
        folder: written by `save`.
        backbone: the base as loaded; its model is changed in place.
        is_trainable: continue training; False freezes everything.
        checkpoint_layers: see `kbit.prepare`.
        allow_quant: accept a base that is stored in another way than in training (16 bit in place of NF4). Scores then
            differ a little. Never accepted for a LoftQ start, where the adapter repairs one storage's own error.

    Returns:
        The backbone around the wrapped model, in evaluation mode.

    Raises:
        RequestError: another base, a merged base, another storage, a tokenizer without the new tokens, or a folder
            that is none of ours.
        WorkError: a damaged file.
    """
    record = read_manifest(folder, KIND)
    _check_fit(folder, record, backbone, allow_quant=allow_quant)
    check_files(folder, record)  # after the fit: a wrong base is the likelier mistake, and cheaper to see
    config = LoraConfig.from_pretrained(str(folder))
    config.inference_mode = not is_trainable
    tensors = load_file(folder / WEIGHTS)
    kbit.prepare(backbone.core, backbone.family, checkpoint_layers=checkpoint_layers)
    config.base_model_name_or_path = None  # peft would compare it with the path of today
    with torch.random.fork_rng():  # the start that is overwritten below is drawn
        model = lora.wrap(backbone.core, config)
    set_peft_model_state_dict(model, dict(tensors), adapter_name=lora.ADAPTER)
    _check_arrived(folder, tensors, trained_state(model))
    if not is_trainable:
        model.requires_grad_(False)
    if record["adapter"]["use_fused"]:  # last, since it replaces the classes of layers that peft has just made
        use_fused(model)
    return backbone.with_model(model.eval())


def wrapped_model(backbone: Backbone) -> PeftModel:
    """The model that peft wrapped, inside any data-parallel wrapper.

    Raises:
        RequestError: where there is none.
    """
    model: Any = backbone.model
    while not isinstance(model, PeftModel) and hasattr(model, "module"):
        model = model.module
    if not isinstance(model, PeftModel):
        raise RequestError(
            f"The model '{backbone.name}' has no adapter",
            "Only what adapters hold is saved or merged here",
            "Train with adapter.kind=lora, or save the whole model with save_pretrained",
        )
    return model


def trained_state(model: PeftModel) -> dict[str, Tensor]:
    """Tensors of the adapter under peft's names, on the CPU, each with memory of its own."""
    # "auto" would look the base's configuration up on the hub to find out whether its vocabulary grew
    state = get_peft_model_state_dict(model, adapter_name=lora.ADAPTER, save_embedding_layers=False)
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}


def _check_arrived(folder: Path, saved: Mapping[str, Tensor], loaded: Mapping[str, Tensor]) -> None:
    odd = sorted(saved.keys() ^ loaded.keys())
    odd += [n for n in saved.keys() & loaded.keys() if not torch.equal(saved[n], loaded[n])]
    if odd:
        raise WorkError(
            f"{len(odd)} tensors of '{folder}' are not in the model as saved, the first is {odd[0]}",
            "The adapter's description and its tensors do not belong together",
            "Save the adapter again with this version",
        )


def _check_fit(folder: Path, record: dict[str, Any], backbone: Backbone, *, allow_quant: bool = False) -> None:
    """Refuse a base that an adapter was not trained on.

    Args:
        folder: of the adapter, for messages.
        record: its manifest.
        backbone: the base.
        allow_quant: see `load`.

    Raises:
        RequestError: another base, a merged one, another storage, or a tokenizer without the new tokens.
    """
    _check_base(folder, record, backbone)
    _check_quant(folder, record, backbone, allow_quant=allow_quant)
    _check_tokens(folder, record, backbone)


def _check_rows(config: LoraConfig, new_tokens: Mapping[str, int]) -> None:
    """Raise `RequestError` unless the rows that train are those of the new tokens."""
    tables: Any = config.trainable_token_indices or {}
    rows = sorted({row for ids in tables.values() for row in ids})
    if rows != sorted(new_tokens.values()):
        raise RequestError(
            f"The new tokens have ids {sorted(new_tokens.values())}, and rows {rows} were trained",
            "Who loads the adapter must find each trained row under its token",
            "Hand in what tokens.add_tokens returned",
        )


def _check_base(folder: Path, record: dict[str, Any], backbone: Backbone) -> None:
    base = record["base"]
    if base["digest"] == backbone.digest:  # the digest decides and not the name: folders move, and names are used again
        return
    place = Path(backbone.name)
    if place.is_dir() and is_merged(place):
        why = "That base is already merged with an adapter, so this one would be added to something it never saw"
    else:
        why = f"It was trained on '{base['name']}' ({_short(base['digest'])}), a {base['family']}"
    raise RequestError(
        f"The adapter '{folder}' and the base '{backbone.name}' ({_short(backbone.digest)})",
        why,
        f"Load '{base['name']}'" + (f" at revision {base['revision']}" if base["revision"] else "") + " as the base",
    )


def _check_quant(folder: Path, record: dict[str, Any], backbone: Backbone, *, allow_quant: bool) -> None:
    if record["quant"] == backbone.quant:
        return
    # LoftQ starts from W - Q, so W + s B A without that Q is another model
    is_loftq = record["adapter"]["init"] == "loftq"
    if allow_quant and not is_loftq:
        return
    raise RequestError(
        f"The adapter '{folder}' was trained on a base stored as {record['quant']}, and this one is {backbone.quant}",
        "Its LoftQ start is the error of that storage" if is_loftq else "The same adapter gives other numbers on it",
        f"Load the base with adapter.quant={record['quant']}" + ("" if is_loftq else ", or give allow_quant=True"),
    )


def _check_tokens(folder: Path, record: dict[str, Any], backbone: Backbone) -> None:
    vocabulary = backbone.tokenizer.get_vocab()
    in_order = sorted(record["new_tokens"].items(), key=lambda pair: pair[1])  # by id, as they must be added again
    wrong = [token for token, row in in_order if vocabulary.get(token) != row]
    if wrong:
        token, count = wrong[0], len(record["new_tokens"])
        row = record["new_tokens"][token]
        raise RequestError(
            f"The adapter '{folder}' was trained with {count} new tokens, such as {token!r} as {row}",
            f"The tokenizer of '{backbone.name}' has {vocabulary.get(token, 'no id')} for it",
            "Add the tokens of its manifest.json with tokens.add_tokens, by rising id, before the adapter is loaded",
        )


def _short(digest: str) -> str:
    return digest if digest.startswith("hub:") else digest[:12]
