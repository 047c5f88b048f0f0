"""One folder for what was trained: saved with everything that decides whether it fits, refused where it does not.

`adapter_model.safetensors` (low-rank additions, trained copies of whole modules, rows of new tokens) and
`adapter_config.json` are peft's own format, so plain peft loads the folder too; `manifest.json` is ours. A folder that
plain peft wrote loads as well, with as much checked as it says.
"""

import copy
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from torch import Tensor

from lightbox.adapters import guards, kbit, lora, manifest
from lightbox.adapters.fused import use_fused
from lightbox.adapters.manifest import DTYPES, base_facts, read_adapter, staged_folder, write_manifest
from lightbox.adapters.plain import PREFIX, plain_name, todays_name
from lightbox.adapters.tokens import add_tokens
from lightbox.backbones import loading
from lightbox.backbones.backbone import Backbone
from lightbox.backbones.preflight import TOKENIZERS
from lightbox.backbones.seq2seq import quiet_loading
from lightbox.backbones.weights import digest_of_weights
from lightbox.config import AdapterConfig
from lightbox.errors import RequestError, WorkError
from lightbox.files import to_plain

WEIGHTS = "adapter_model.safetensors"
KIND = "adapter"
_OWN = re.compile(r"\.(?:lora_|token_adapter\.).*|\.[^.]+$")
"""What follows the path of a module in the name of a tensor that belongs to it."""
_log = logging.getLogger(__name__)


def save(
    folder: Path, backbone: Backbone, adapter: AdapterConfig | None = None, *, pruning: Mapping[str, Any] | None = None
) -> Path:
    """Write the trained part of a backbone to a new folder, or replace one that holds an adapter.

    Args:
        folder: appears as a whole at the end.
        backbone: around a model that `lora.add_lora` wrapped.
        adapter: settings that it was wrapped with; None reads them off the model.
        pruning: settings of visual-token pruning that the model was trained under; None for none.

    Raises:
        RequestError: as `wrapped_model`, a folder with other content, or trained rows without a token.
        WorkError: as `wrapped_model`, or a tensor that trains and is not part of the adapter.
    """
    model = wrapped_model(backbone)
    _refuse_lost(model)
    config = copy.deepcopy(model.peft_config[lora.ADAPTER])  # the model goes on training with its own
    tokens = _trained_tokens(config, backbone)
    config.inference_mode = True
    config.base_model_name_or_path, config.revision = backbone.name, backbone.revision or None
    if config.task_type is None:  # what peft's AutoPeftModel opens the base with
        base = type(backbone.core)
        config.auto_mapping = {"base_model_class": base.__name__, "parent_library": base.__module__}
    settings = manifest.settings_of(config.to_dict()) | {"quant": backbone.quant} if adapter is None else adapter
    facts = {"adapter": to_plain(settings), "new_tokens": tokens, "pruning": pruning and {**pruning}}
    with staged_folder(folder, KIND) as staged, quiet_loading():
        save_file(trained_state(model), staged / WEIGHTS, metadata={"format": "pt"})
        config.save_pretrained(str(staged))
        if tokens or isinstance(backbone.core.get_input_embeddings(), ModulesToSaveWrapper):
            backbone.processor.save_pretrained(staged)  # the base's own lacks the tokens
        write_manifest(staged, KIND, base_facts(backbone) | facts)
    return folder


def load_base(folder: Path, **settings: str) -> Backbone:
    """Load the model that an adapter's folder names, stored as in training where the folder says so.

    Args:
        folder: written by `save` or by plain peft.
        settings: of `loading.load`, in the place of what the folder says.

    Raises:
        RequestError: no such model, or a hub id without a full revision.
    """
    record = read_adapter(folder)
    base = record["base"]
    own = {"revision": base["revision"], "quant": record["quant"], "dtype": DTYPES.get(record["dtype"])}
    try:
        return loading.load(base["name"], **{key: value for key, value in own.items() if value} | settings)
    except RequestError as err:
        raise RequestError(
            f"The adapter '{folder}' names the base '{base['name']}'",
            f"That cannot be loaded: {err.given} {err.why}",
            "Load the base yourself and hand it to artifact.load, or correct it in adapter_config.json",
        ) from err


def load(
    folder: Path | str,
    backbone: Backbone | None = None,
    *,
    is_trainable: bool = False,
    checkpoint_layers: bool = False,
    allow_quant: bool = False,
) -> Backbone:
    """Put a saved adapter on its base, and check that every tensor arrived bit by bit.

    Tokens that were added in training are added to tokenizer and model where they are missing.

    Args:
        folder: written by `save` or by plain peft.
        backbone: the base as loaded; its model is changed in place. None is `load_base(folder)`.
        is_trainable: continue training; False freezes everything.
        checkpoint_layers: see `kbit.prepare`.
        allow_quant: accept a base that is stored in another way than in training (16 bit in place of NF4). Scores then
            differ a little. Never accepted for a LoftQ start, where the adapter repairs one storage's own error.

    Returns:
        The backbone around the wrapped model, in evaluation mode.

    Raises:
        RequestError: another base or architecture, a merged base, another storage, a tokenizer that has other ids for
            the new tokens, or a folder without an adapter.
        WorkError: a damaged file.
    """
    folder = Path(folder)
    record = read_adapter(folder)
    backbone = load_base(folder) if backbone is None else backbone
    if record["format"] is None:
        _log.warning(
            "%s is of plain peft, which says neither how its base was stored nor what bytes it had: unchecked '%s', %s",
            *(folder, backbone.name, f"quant {backbone.quant}, {backbone.dtype}"),
        )
    else:
        _check_base(folder, record, backbone)
        _check_quant(folder, record, backbone, allow_quant=allow_quant)
        manifest.check_files(folder, record)  # after the fit: a wrong base is the likelier mistake, and cheaper to see
    config = LoraConfig.from_pretrained(str(folder))
    tensors = _placed(folder, load_file(folder / WEIGHTS), backbone)
    _add_tokens(folder, record, backbone)
    _grow(config, tensors, backbone)
    kbit.prepare(backbone.core, backbone.family, checkpoint_layers=checkpoint_layers)
    config.inference_mode = not is_trainable
    config.base_model_name_or_path = None  # peft would compare it with the path of today
    with torch.random.fork_rng():  # the start that is overwritten below is drawn
        model = lora.wrap(backbone.core, config)
    _check_tensors(folder, tensors, model)
    set_peft_model_state_dict(model, dict(tensors), adapter_name=lora.ADAPTER)
    _check_tensors(folder, tensors, model, is_loaded=True)
    if not is_trainable:
        model.requires_grad_(False)
    if record["adapter"].get("use_fused", True):  # last: it replaces the classes of layers that peft has just made
        use_fused(model)
    return backbone.with_model(model.eval())


def wrapped_model(backbone: Backbone) -> PeftModel:
    """The model that peft wrapped, inside any data-parallel wrapper, with base and additions as in training.

    Raises:
        RequestError: where there is none, or additions are merged into a layer's base.
        WorkError: 4-bit weights that were repacked.
    """
    model: Any = backbone.model
    while not isinstance(model, PeftModel):
        if not hasattr(model, "module"):
            raise RequestError(
                f"The model '{backbone.name}' has no adapter",
                "Only what adapters hold is saved or merged here",
                "Train with adapter.kind=lora, or save the whole model with save_pretrained",
            )
        model = model.module
    merged = [name for name, m in model.named_modules() if isinstance(m, BaseTunerLayer) and m.merged]
    if merged:
        raise RequestError(
            f"Adapters are merged into {len(merged)} layers, the first is {merged[0]}",
            "The base's own weights are gone then, and taking a quantised layer apart again is lossy",
            "Keep adapters apart; merge.merge_to_16_bit writes a merged copy to a folder",
        )
    guards.refuse_packed(model)
    return model


def trained_state(model: PeftModel) -> dict[str, Tensor]:
    """Tensors of the adapter under peft's names, on the CPU, each with memory of its own."""
    # "auto" would look the base's configuration up on the hub to find out whether its vocabulary grew
    state = get_peft_model_state_dict(model, adapter_name=lora.ADAPTER, save_embedding_layers=False)
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}


def _refuse_lost(model: PeftModel) -> None:
    """Raise `WorkError` naming tensors that train and are not part of the adapter: whoever loads it would lack them."""
    state = get_peft_model_state_dict(model, adapter_name=lora.ADAPTER, save_embedding_layers=False)
    places = {tensor.data_ptr() for tensor in state.values()}  # by memory: names differ, and tied tensors have several
    trained = ((name, tensor) for name, tensor in model.named_parameters() if tensor.requires_grad)
    lost = [plain_name(name) for name, tensor in trained if tensor.data_ptr() not in places]
    if lost:
        raise WorkError(
            f"{len(lost)} tensors train and are not part of the adapter: {', '.join(lost[: guards.SHOWN])}",
            "They would not be in the file, and what was learned in them would be lost without a word",
            "Name their modules in adapter.modules, or freeze them before training",
        )


def _trained_tokens(config: LoraConfig, backbone: Backbone) -> dict[str, int]:
    """Token -> its row, for rows that train: who loads the adapter must find each under its token."""
    tables: Any = config.trainable_token_indices or {}
    rows = sorted(set(tables) if isinstance(tables, list) else {row for ids in tables.values() for row in ids})
    tokens = backbone.tokenizer.convert_ids_to_tokens(rows)
    if None in tokens or len(set(tokens)) < len(rows):
        raise RequestError(
            f"Rows {rows} of the token table were trained, and their tokens are {tokens}",
            "Who loads the adapter must find each trained row under its token",
            "Add the tokens with tokens.add_tokens before adapters",
        )
    return dict(zip(tokens, rows, strict=True))


def _placed(folder: Path, tensors: dict[str, Tensor], backbone: Backbone) -> dict[str, Tensor]:
    """Tensors by today's names of the base's modules, which transformers once called otherwise in several families.

    Raises:
        RequestError: for modules that the base lacks.
    """
    modules = dict(backbone.core.named_modules())
    renamed, placed, missing = todays_name(backbone.core), {}, []
    for name, tensor in tensors.items():
        plain = name.removeprefix(PREFIX)
        if _path(plain) not in modules:
            plain = renamed(plain)
        if _path(plain) not in modules:
            missing.append(_path(plain))
        placed[PREFIX + plain] = tensor
    if missing:
        raise RequestError(
            f"{len(missing)} of {len(tensors)} tensors of the adapter '{folder}' are for modules such as {missing[0]}, "
            f"which '{backbone.name}' lacks",
            f"It belongs to another architecture than a {backbone.family.name}, or to modules that were added to it",
            "Load the base that it was trained on, add its modules, and hand it to artifact.load",
        )
    return placed


def _path(name: str) -> str:
    return _OWN.sub("", name.replace(".base_layer", ""))


def _add_tokens(folder: Path, record: dict[str, Any], backbone: Backbone) -> None:
    """Add the tokens that the adapter was trained with, from the tokenizer beside it or else its manifest."""
    beside, vocabulary = folder / TOKENIZERS[0], backbone.tokenizer.get_vocab()
    if beside.is_file():
        entries = json.loads(beside.read_text(encoding="utf-8"))["added_tokens"]
    else:
        entries = [{"id": row, "content": token} for token, row in record["new_tokens"].items()]
    entries.sort(key=lambda entry: entry["id"])
    rows = {entry["content"]: entry.pop("id") for entry in entries}
    fresh = [AddedToken(**entry) for entry in entries if entry["content"] not in vocabulary]
    ids = vocabulary | {token.content: len(backbone.tokenizer) + place for place, token in enumerate(fresh)}
    wrong = [token for token, row in rows.items() if ids[token] != row]
    if wrong:
        raise RequestError(
            f"The adapter '{folder}' was trained with {wrong[0]!r} as token {rows[wrong[0]]}",
            f"The tokenizer of '{backbone.name}' has {ids[wrong[0]]} for it",
            "Load the base with its own tokenizer; tokens that were added in training are added here",
        )
    add_tokens(backbone.core, backbone.tokenizer, fresh)


def _grow(config: LoraConfig, tensors: Mapping[str, Tensor], backbone: Backbone) -> None:
    """Give table and head the rows that whole ones in the file have, and let them be part of the adapter."""
    whole = [path for path in (backbone.family.embeddings, backbone.family.head) if f"{PREFIX}{path}.weight" in tensors]
    if not whole:
        return
    rows = len(tensors[f"{PREFIX}{whole[0]}.weight"])
    if rows != len(backbone.core.get_input_embeddings().weight):
        backbone.core.resize_token_embeddings(rows, mean_resizing=False)
    # peft saves a table that was resized and not trained too, and forgets in its description that it did
    named = config.modules_to_save or []
    config.modules_to_save = [*named, *(path for path in whole if not any(path.endswith(name) for name in named))]


def _check_tensors(folder: Path, saved: Mapping[str, Tensor], model: PeftModel, *, is_loaded: bool = False) -> None:
    """Compare names and shapes of a file with the model, and values once they are loaded."""
    whole = model.state_dict()
    beside = [name for name in saved.keys() & whole if ".base_layer." in name]  # peft saves a table with its addition
    own = {name: whole[name].cpu() for name in beside} | trained_state(model)
    odd = sorted(saved.keys() ^ own.keys())
    reshaped = [name for name in saved if not odd and saved[name].shape != own[name].shape]
    if reshaped:
        shapes = f"{tuple(saved[reshaped[0]].shape)}, and the base needs {tuple(own[reshaped[0]].shape)}"
        raise RequestError(
            f"{reshaped[0]} of the adapter '{folder}' is {shapes}",
            "It was trained on a model of another size",
            "Load the base that it was trained on",
        )
    if is_loaded:
        odd = [name for name, tensor in saved.items() if not torch.equal(tensor.to(own[name]), own[name])]
    if odd:
        raise WorkError(
            f"{len(odd)} tensors of '{folder}' are not in the model as saved, the first is {odd[0]}",
            "The adapter's description and its tensors do not belong together",
            "Save the adapter again with this version",
        )


def _check_base(folder: Path, record: dict[str, Any], backbone: Backbone) -> None:
    base = record["base"]
    # manifests of format 1 have the digest of every file that is read with the base
    own = backbone.digest if record["format"] == 1 else digest_of_weights(backbone.name, revision=backbone.revision)
    if base["digest"] == own:  # the digest decides and not the name: folders move, and names are used again
        return
    if (Path(backbone.name) / manifest.MANIFEST).is_file():
        why = "That base is already merged with an adapter, so this one would be added to something it never saw"
    else:
        why = f"It was trained on '{base['name']}' ({_short(base['digest'])}), a {base['family']}"
    raise RequestError(
        f"The adapter '{folder}' and the base '{backbone.name}' ({_short(own)})",
        why,
        f"Load '{base['name']}'" + (f" at revision {base['revision']}" if base["revision"] else "") + " as the base",
    )


def _check_quant(folder: Path, record: dict[str, Any], backbone: Backbone, *, allow_quant: bool) -> None:
    if record["quant"] == backbone.quant:
        return
    # LoftQ starts from W - Q, so W + s B A without that Q is another model
    is_loftq = record["adapter"].get("init") == "loftq"
    if allow_quant and not is_loftq:
        return
    raise RequestError(
        f"The adapter '{folder}' was trained on a base stored as {record['quant']}, and this one is {backbone.quant}",
        "Its LoftQ start is the error of that storage" if is_loftq else "The same adapter gives other numbers on it",
        f"Load the base with adapter.quant={record['quant']}" + ("" if is_loftq else ", or give allow_quant=True"),
    )


def _short(digest: str) -> str:
    return digest if digest.startswith("hub:") else digest[:12]
