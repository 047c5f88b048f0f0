"""A model with experts, out of models that were trained apart; its controls; and its files.

All that is no expert (attention, norms, tables, head) is the base's. So an expert reproduces the model that it came
from only if the two agree there, and that is checked.
"""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightbox.errors import RequestError
from lightbox.files import write_json
from lightbox.paper.tensor_sets import differing
from lightbox.train.weights import read_tensors, write_tensors
from medplib.experts import PLACES, Mixture, MixtureSettings, TokenRouter
from medplib.routing import Routing

Source = nn.Module | Mapping[str, Tensor]
"""A model as it was trained, adapters merged, or its tensors by name."""
TENSORS, FACTS = "mixture.safetensors", "mixture.json"
BELOW = ".base_layer."
"""In the name of a frozen weight with low-rank additions beside it."""


def add_experts(
    model: nn.Module,
    sources: Mapping[str, Source],
    *,
    layers: str,
    settings: MixtureSettings | None = None,
    shares_weights: bool = False,
) -> nn.Module:
    """Put experts in the place of the feed-forward networks of a model, in place.

    The experts are the sources' own networks, copied. One source under two names makes copies, as MoE-LLaVA. Weights
    under low-rank additions are the base's own, frozen, and shared: an expert then costs its additions alone.

    Args:
        model: whose attention, norms, tables and head stay; its own networks are dropped.
        sources: models of the same class by the name of their expert.
        layers: path of the list of layers, `family.layers[0]`; what is above it is the text model.
        settings: None is the defaults.
        shares_weights: share all weights of the base, which are then to get additions; each source is the base.

    Raises:
        RequestError: a name that is no identifier, layers that are not there or have experts, weights of an expert that
            are missing or of another shape, tensors that belong nowhere, or a source that is another model elsewhere.
    """
    settings, routing = settings or MixtureSettings(), Routing(tuple(sources))
    _check_names(sources, settings)
    stack = _layers_of(model, layers)
    states = {
        name: source.state_dict() if isinstance(source, nn.Module) else source for name, source in sources.items()
    }
    paths = [f"{layers}.{number}.mlp" for number in range(len(stack))]
    for name, state in states.items():
        _check_shared(name, state, model.state_dict(), tuple(f"{path}." for path in paths))
    experts = [
        experts_from(sources, path, layer.mlp, shares_weights=shares_weights)
        for path, layer in zip(paths, stack, strict=True)
    ]
    generator = torch.Generator().manual_seed(settings.seed)
    for number, (layer, own) in enumerate(zip(stack, experts, strict=True)):
        place = next(layer.mlp.parameters())
        router = TokenRouter(_width(layer), tuple(own), generator=generator, is_learned=settings.router == "learned")
        layer.mlp = Mixture(own, router.to(place.device), settings, routing, number)
        layer.self_attn.register_forward_pre_hook(layer.mlp.take_places, with_kwargs=True)
    text_model = model.get_submodule(layers.rpartition(".")[0])
    text_model.register_forward_pre_hook(_hand_on_places, with_kwargs=True)
    return model


def experts_from(
    sources: Mapping[str, Source], path: str, like: nn.Module, *, shares_weights: bool = False
) -> dict[str, nn.Module]:
    """The networks at one path of several models, copied, but for what is shared, see `add_experts`.

    Args:
        sources: by name of the expert.
        path: of the network in each of them.
        like: the base's own network, which says what an expert holds.
        shares_weights: see `add_experts`.

    Raises:
        RequestError: weights that are missing, too many or of another shape, or others under additions.
    """
    experts = {}
    for name, source in sources.items():
        if isinstance(source, nn.Module):  # copied as it is stored, quantised or not
            network = source.get_submodule(path) if _has(source, path) else nn.Module()
            experts[name] = copy.deepcopy(network, _shared(name, network, like, has_all=shares_weights))
            state = experts[name].state_dict()
        else:
            state = {key.removeprefix(f"{path}."): value for key, value in source.items() if key.startswith(f"{path}.")}
        wanted = like.state_dict()
        if odd := differing(state, wanted):
            raise RequestError(
                f"The source of expert '{name}' at {path}: {odd}",
                f"An expert has the weights {', '.join(wanted)} of the base, no more and no fewer",
                "Give the model that was trained, of the base's class and size, with adapters merged",
            )
        if not isinstance(source, nn.Module):
            experts[name] = copy.deepcopy(like)
            experts[name].load_state_dict(dict(state), strict=True)
    return experts


def average_experts(model: nn.Module, sources: Mapping[str, Source], *, layers: str) -> nn.Module:
    """A control without a router: each feed-forward network becomes the mean of the sources', in place.

    Raises:
        RequestError: as `experts_from`.
    """
    for number, layer in enumerate(_layers_of(model, layers)):
        own = [e.state_dict() for e in experts_from(sources, f"{layers}.{number}.mlp", layer.mlp).values()]
        layer.mlp.load_state_dict({key: torch.stack([s[key] for s in own]).mean(0) for key in own[0]})
    return model


def mixtures(model: nn.Module) -> Iterator[tuple[str, Mixture]]:
    """Paths and mixtures of a model, in order of its layers."""
    return ((path, module) for path, module in model.named_modules() if isinstance(module, Mixture))


def save_experts(folder: Path, model: nn.Module) -> Path:
    """Write experts and routers of a model to a folder: with the base's own files, all that it takes to make it again.

    What an adapter trains on top of them, routers included, is in the adapter's folder (`lightbox.adapters.artifact`).
    Of experts that share the base's weights below their additions only names and settings are written.

    Raises:
        RequestError: a model without experts, or with additions on weights that they do not share.
    """
    parts = dict(mixtures(model))
    if not parts:
        raise RequestError("A model without experts", "There is nothing to save", "Call add_experts first")
    state = {f"{path}.{key}": value for path, part in parts.items() for key, value in part.state_dict().items()}
    wrapped = [key for key in state if BELOW in key or ".modules_to_save." in key]
    first = next(iter(parts.values()))
    # by memory: with DoRA on a CPU a forward pass puts other objects around it
    below = [p.data_ptr() for name, p in first.experts.named_parameters(remove_duplicate=False) if BELOW in name]
    is_adapted = len(below) == len(first.experts) * len({*below}) > 0
    if wrapped and not is_adapted:
        raise RequestError(
            f"The experts hold an adapter, at {wrapped[0]}, on weights of their own",
            "Saved with it they would no longer be experts of the base",
            "Save experts before adapters are added, and the adapter with artifact.save",
        )
    folder.mkdir(parents=True, exist_ok=True)
    if not is_adapted:
        write_tensors(folder / TENSORS, state)
    layers = next(iter(parts)).rpartition(".mlp")[0].rpartition(".")[0]
    facts = {"experts": first.routing.names, "layers": layers, "is_adapted": is_adapted}
    write_json(folder / FACTS, facts | {"settings": vars(first.settings)})
    return folder


def load_experts(folder: Path, model: nn.Module) -> nn.Module:
    """Put saved experts and routers into their base, in place.

    Raises:
        RequestError: a folder without experts, or what `add_experts` refuses.
    """
    if not (folder / FACTS).is_file():
        raise RequestError(
            f"'{folder}'", f"There is no {FACTS}, so it holds no experts", "Name a folder of save_experts"
        )
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    layers, settings = facts["layers"], MixtureSettings(**facts["settings"])
    if facts.get("is_adapted"):
        own = dict.fromkeys(facts["experts"], model)
        return add_experts(model, own, layers=layers, settings=settings, shares_weights=True)
    saved = read_tensors(folder / TENSORS)
    sources: dict[str, Source] = {
        name: {
            key.replace(f".experts.{name}.", "."): value for key, value in saved.items() if f".experts.{name}." in key
        }
        for name in facts["experts"]
    }
    add_experts(model, sources, layers=layers, settings=settings)
    for path, part in mixtures(model):
        own = f"{path}.router."
        router = {key.removeprefix(own): value for key, value in saved.items() if key.startswith(own)}
        if odd := differing(router, part.router.state_dict()):
            raise RequestError(f"The router of '{folder}' at {path}: {odd}", "It has a row an expert", "Save it again")
        part.router.load_state_dict(router)
    return model


def _hand_on_places(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    """Before the text model: add the places of its tokens in the batch, read row by row, to its arguments.

    Without a mask, or where nothing is padding, there are none to add. A step with a cache reads the last columns.
    """
    mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        raise RequestError(
            f"attention_mask is a {type(mask).__name__} of shape {tuple(getattr(mask, 'shape', ()))}",
            "Experts must know which tokens are padding, and only a mask of rows and columns says so",
            "Give one of shape (rows, columns), and use no static cache",
        )
    states = kwargs.get("inputs_embeds")
    ids = kwargs.get("input_ids", args[0] if args else None)
    is_token = mask[:, -(ids if states is None else states).shape[1] :].flatten().bool()
    places = is_token.nonzero()[:, 0]
    return None if len(places) == len(is_token) else (args, kwargs | {PLACES: places})


def _layers_of(model: nn.Module, layers: str) -> Sequence[Any]:
    if not _has(model, layers):
        raise RequestError(
            f"layers is '{layers}'", f"A {type(model).__name__} has no such part", "Give family.layers[0]"
        )
    stack: Any = model.get_submodule(layers)
    if any(isinstance(layer.mlp, Mixture) for layer in stack):
        raise RequestError("A model with experts", "Its layers have them already", "Begin with the plain model")
    return stack


def _shared(name: str, network: nn.Module, like: nn.Module, *, has_all: bool) -> dict[int, Any]:
    """What a copy of a source's network shares with the base's own: weights by the ids of the source's.

    Raises:
        RequestError: weights below additions that the base does not have, which these additions were not trained on.
    """
    own, states = dict(like.named_parameters()), like.state_dict()
    odd = [
        key  # scales of 4-bit weights too
        for key, value in network.state_dict().items()
        if (has_all or BELOW in key) and (key not in states or not torch.equal(value, states[key]))
    ]
    if odd:
        raise RequestError(
            f"The source of expert '{name}' has its additions on other weights than the base, at {odd[0]}",
            "The same additions on other weights are another network",
            "Train both stages on one base, stored alike",
        )
    return {id(value): own[key] for key, value in network.named_parameters() if has_all or BELOW in key}


def _has(model: nn.Module, path: str) -> bool:
    return path in dict(model.named_modules())


def _width(layer: Any) -> int:
    return layer.post_attention_layernorm.weight.shape[0]


def _check_names(sources: Mapping[str, Source], settings: MixtureSettings) -> None:
    odd = [name for name in sources if not name.isidentifier()]
    if odd or len(sources) < max(2, settings.top_k):
        raise RequestError(
            f"The experts are {list(sources)}, {settings.top_k} for a token",
            f"{odd[0]!r} cannot name a module" if odd else "A mixture has two or more, and as many as a token meets",
            "Name them as variables are named" if odd else "Give more sources",
        )


def _check_shared(name: str, state: Mapping[str, Tensor], base: Mapping[str, Tensor], own: tuple[str, ...]) -> None:
    """Refuse a source whose tensors outside the experts are not the base's: its expert would be fed other states."""
    others = [key for key in state if not key.startswith(own)]
    odd = [key for key in others if key not in base or not torch.equal(state[key].to(base[key]), base[key])]
    if odd:
        raise RequestError(
            f"{len(odd)} tensors of the source of expert '{name}' outside the experts, such as {odd[0]}",
            "The model that gets the experts has others, so this expert would read other states than in training",
            "Train nothing else in that stage, or take that stage as the base",
        )
