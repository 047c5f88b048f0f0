"""Low-rank additions to a frozen base, by peft: where they go, how they start, and in which dtype they are kept.

Implements W x + s B A x with s = alpha / r, or alpha / sqrt(r) (rsLoRA); with DoRA the sum's rows are rescaled to a
learned length. Additions, copies of trained modules and rows of new tokens are float32 in a 16-bit model: they are
small, and updates below 1/256 of a weight would be lost in bf16.
"""

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightbox.adapters import starts
from lightbox.backbones.families import Family
from lightbox.backbones.quantisation import part_of, quantised_as
from lightbox.config import LANGUAGE, AdapterConfig
from lightbox.errors import RequestError

ADAPTER = "default"


def add_lora(
    model: PreTrainedModel,
    family: Family,
    adapter: AdapterConfig,
    *,
    new_token_ids: Sequence[int] = (),
    batches: Iterable[Mapping[str, Tensor]] | None = None,
) -> PeftModel:
    """Wrap a base so that only additions, the projector where asked, and rows of new tokens train.

    Module names of the base stay as they are below `base_model.model`. Draws A from torch's generator.

    Args:
        model: as loaded, moved to its device and prepared with `kbit.prepare`; it is changed in place.
        family: names of its parts.
        adapter: of kind lora.
        new_token_ids: rows of the token table, and of the head, to train; see `tokens.add_tokens`.
        batches: inputs of the model, for adapter.init=eva; at least one, read several times.

    Raises:
        RequestError: a target pattern that matches nothing or anything but linear layers of the language model, a
            projector without linear layers, what `whole_modules` refuses, a start that lacks what it needs.
    """
    pattern = target_pattern(model, family, adapter)
    saved = [family.projector] if adapter.projector == "full" and family.projector else []
    saved += whole_modules(model, family, adapter)
    # asked of the tensors: configs of wrapped models say it in several places
    is_tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    tables = [family.embeddings] if is_tied else [family.embeddings, family.head]  # peft follows a tie itself
    config = LoraConfig(
        r=adapter.r,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout_prob,
        use_rslora=adapter.use_rslora,
        use_dora=adapter.use_dora,
        target_modules=pattern,
        modules_to_save=saved or None,
        trainable_token_indices={table: list(new_token_ids) for table in tables} if new_token_ids else None,
        bias="none",  # a trained bias would be outside the additions that are saved, merged and switched off
    )
    directions = starts.eva_directions(model, pattern, adapter.r, batches) if adapter.init == "eva" else {}
    wrapped = wrap(model, config)
    if adapter.init == "eva":
        starts.start_from_directions(wrapped, directions, ADAPTER)
    if adapter.init == "loftq":
        starts.start_from_error(wrapped, ADAPTER)
    return wrapped


def wrap(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """Add an adapter by its peft configuration, with everything that trains kept in float32.

    Peft widens its own matrices only; trained copies of whole modules (a projector) are widened here, and read and give
    the dtype of the base.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that will go
        wrapped = get_peft_model(model, config, adapter_name=ADAPTER, autocast_adapter_dtype=True)
    # peft hooks the table of a checkpointed model for gradients that `kbit` needs none of, at several values a row
    model.disable_input_require_grads()
    for module in wrapped.modules():
        if isinstance(module, ModulesToSaveWrapper):
            copied = module.modules_to_save[ADAPTER]
            outside = next(copied.parameters()).dtype
            if outside not in (torch.float32, torch.float64):
                copied.float()
                copied.register_forward_pre_hook(_widen_inputs, with_kwargs=True)
                copied.register_forward_hook(partial(_narrow_output, outside))
    return wrapped


def target_pattern(model: nn.Module, family: Family, adapter: AdapterConfig) -> str:
    """The regular expression of module names, matched as a whole, that get additions.

    `adapter.targets=language` means the linear layers of the language model's layers, by their full path, since a
    tower has layers of the same names. A tower is trained as a whole (adapter.kind=none) or not at all.

    Raises:
        RequestError: see `add_lora`.
    """
    layers = "|".join(re.escape(path) for path in family.layers)
    linears = "|".join(re.escape(name) for name in family.linears)
    # by path: a tower has layers of the same names, and adapting it is another experiment
    language = rf"(?:{layers})\.\d+\.(?:.+\.)?(?:{linears})"
    if adapter.targets != LANGUAGE:
        _check_pattern(model, family, adapter.targets)
        language = adapter.targets
    whole = "|".join(re.escape(path) for path in whole_modules(model, family, adapter))
    if whole:  # what trains as a whole needs no additions
        language = rf"(?!(?:{whole})(?:\.|$))(?:{language})"
    if adapter.projector == "frozen":
        return language
    inside = _linears_below(model, family.projector)
    if not family.projector or (adapter.projector == "lora" and not inside):
        raise RequestError(
            f"adapter.projector is {adapter.projector} and the model is a {family.name}",
            "It has no projector" if not family.projector else "Its projector has no linear layer to add to",
            "Set adapter.projector=frozen" + (", or full to train it as a whole" if family.projector else ""),
        )
    if adapter.projector == "full":
        return language
    return "|".join([f"(?:{language})", *(re.escape(name) for name in inside)])


def whole_modules(model: nn.Module, family: Family, adapter: AdapterConfig) -> list[str]:
    """Paths of the modules that `adapter.modules` names, the outermost where one lies in another.

    Raises:
        RequestError: a pattern that names no module, or one that cannot be copied and trained: quantised, without
            parameters, a list, or table, head or projector, which have settings of their own.
    """
    paths: list[str] = []
    for pattern in adapter.modules:
        request = f"adapter.modules has '{pattern}'"
        do = "Add the module to the model before adapters, or correct the path"
        modules = _matched(model, pattern, family, request=request, do=do)
        for name, module in modules.items():
            parts = (part for part in (family.embeddings, family.head, family.projector) if part)
            if isinstance(module, nn.ModuleList | nn.ModuleDict):
                why = "a list of modules, which is never called itself"
            elif next(module.parameters(), None) is None:
                why = "which has no parameters"
            elif any(quantised_as(inner) != "none" for inner in module.modules()):
                why = "which is stored in 4 or 8 bit and cannot train"
            elif any(f"{part}.".startswith(f"{name}.") or name.startswith(f"{part}.") for part in parts):
                why = "and the projector, token table and head have settings of their own"
            else:
                continue
            raise RequestError(request, f"It matches {name}, {why}", "Name other modules")
        paths += modules
    return sorted({name for name in paths if not any(name.startswith(other + ".") for other in paths)})


def _matched(model: nn.Module, pattern: str, family: Family, *, request: str, do: str) -> dict[str, nn.Module]:
    try:
        expression = re.compile(pattern)
    except re.error as err:
        raise RequestError(request, f"It is no regular expression: {err}", do) from err
    modules = {name: module for name, module in model.named_modules() if name and expression.fullmatch(name)}
    if not modules:
        # an example from this very model helps more than a rule
        first = next(name for name in _linears_below(model, family.layers[0]))
        raise RequestError(request, f"It matches no module as a whole; names look like {first}", do)
    return modules


def _check_pattern(model: nn.Module, family: Family, pattern: str) -> None:
    request = f"adapter.targets is '{pattern}'"
    prefix = re.escape(family.language + "." if family.language else "")
    example = f"{prefix}.*\\.({'|'.join(family.linears[:2])})"
    do = f"Set adapter.targets={LANGUAGE}, or to a pattern such as '{example}'"
    modules = _matched(model, pattern, family, request=request, do=do)
    for name, module in modules.items():
        part = part_of(name, family)
        if part == "vision":
            why, do = "the vision tower, which stays frozen and runs without gradient", f"Begin it with '{prefix}'"
        elif part == "projector":
            why, do = "the projector, which has a setting of its own", "Set adapter.projector=lora, and leave it out"
        elif part == "head" or not name.startswith(family.layers):
            why, do = "a module outside the layers of the language model", f"Write one such as '{example}'"
        elif not isinstance(module, nn.Linear):
            why, do = f"a {type(module).__name__}, and additions are to linear layers", f"End it as '{example}'"
        else:
            continue
        raise RequestError(request, f"It matches {name}, {why}", do)


def _linears_below(model: nn.Module, path: str) -> list[str]:
    return [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and name.startswith(path + ".")]


def _widen_inputs(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    return tuple(_as(torch.float32, a) for a in args), {key: _as(torch.float32, a) for key, a in kwargs.items()}


def _narrow_output(dtype: torch.dtype, module: nn.Module, args: tuple, output: Any) -> Any:
    return tuple(_as(dtype, o) for o in output) if isinstance(output, tuple) else _as(dtype, output)


def _as(dtype: torch.dtype, value: Any) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
