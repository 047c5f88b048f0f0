"""Methods that drop tokens between layers of the language model: FastV and PyramidDrop, by hooks, one row at a time.

Behind a layer, image tokens that the last token of the prompt looks at least go, and later layers read and cache fewer.
So caches differ in length from layer to layer, which is why there is one row, no padding and no training. The hidden
states that come out are as many as the last stage leaves; kept tokens have the positions that they had.
"""

import inspect
import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Self

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from lightbox.backbones import vision
from lightbox.backbones.families import Family
from lightbox.errors import RequestError
from lightbox.kernels.few_query_scores.op import few_query_scores
from lightbox.pruning import measure
from lightbox.pruning.measure import Report, Timing
from lightbox.pruning.models import held
from lightbox.pruning.options import Request
from lightbox.pruning.selecting import Choice
from lightbox.pruning.types import Selection, TokenGrid

SUPPORTED = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl")
"""Families whose layers have the queries, keys and rotations of Llama; Gemma 3 norms both, and looks over windows."""


class LayerPruning:
    """A language model that drops image tokens between layers; see `pipeline.prune`."""

    def __init__(self, core: nn.Module, family: Family, request: Request) -> None:
        self.core: Any = core
        self.request = request
        self.is_paused = False
        self.last: Choice | None = None
        self.timings: dict[str, Timing] = {}
        self._layers: Any = core.get_submodule(family.layers[0])
        self.stages = _stages(request, family, len(self._layers))
        self._caches: weakref.WeakSet[Cache] = weakref.WeakSet()
        self._places: Tensor | None = None  # image tokens of the prompt that is being read, among those still there
        self._kept: list[Tensor] = []  # per stage that was passed, places that stayed of those before it
        self._tap: dict[str, Tensor] = {}
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            undo.enter_context(held(self.core))
            undo.callback(self.core.register_forward_pre_hook(self._before, with_kwargs=True).remove)
            for place, layer in enumerate(self._layers):
                undo.callback(layer.register_forward_pre_hook(self._layer_hook(place), with_kwargs=True).remove)
            if self.request.name == "fastv":
                attention = self._layers[min(self.stages) - 1].self_attn
                for name in (vision.QUERIES, vision.KEYS):
                    hook = getattr(attention, name).register_forward_hook(self._record(name))
                    undo.callback(hook.remove)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()
        self._places, self._kept, self._tap = None, [], {}

    def report(self) -> Report:
        """What stayed behind the last stage, all images of the prompt as one line, and what was measured."""
        if self.last is None:
            raise RequestError(
                "A report before any image was read", "There is nothing to report", "Call the model inside the block"
            )
        return measure.report(self.request, self.last, self.timings)

    def measure(self, inputs: Mapping[str, Any], *, repeats: int = 5) -> Report:
        """Time the first token, see `pipeline.Pruning.measure`; not compared with random choices."""
        self.timings = measure.time_to_first_token(self, inputs, repeats)
        return self.report()

    # ---- hooks

    def _before(self, core: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._places, self._kept, self._tap = None, [], {}
        if self.is_paused:
            return
        inputs = inspect.signature(core.forward).bind_partial(*args, **kwargs).arguments
        ids = inputs.get("input_ids")
        if ids is None or not bool((ids == core.config.image_token_id).any()):
            return
        self._check(core, inputs, ids)
        self._places = (ids[0] == core.config.image_token_id).nonzero().flatten()
        self._total = len(self._places)
        self.request.budget.of(self._total)
        self._first_places = torch.arange(self._total, device=ids.device)

    def _check(self, core: Any, inputs: Mapping[str, Any], ids: Tensor) -> None:
        if core.training:
            raise RequestError(
                f"method='{self.request.name}' in training",
                "Tokens go between layers, whose states a backward pass reads again",
                "Call model.eval(), or use a method with where='before_llm'",
            )
        mask, cache = inputs.get("attention_mask"), inputs.get("past_key_values")
        is_padded = mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2 or not bool(mask.all()))
        if len(ids) != 1 or is_padded or (cache is not None and cache.get_seq_length() > 0):
            raise RequestError(
                f"{len(ids)} row(s){', padded or with a mask made elsewhere' if is_padded else ''} for "
                f"method='{self.request.name}'",
                "Each row drops other tokens behind each layer, so caches would differ from row to row",
                "Give one whole prompt at a time, or use a method with where='before_llm'",
            )

    def _layer_hook(self, place: int) -> Any:
        def hook(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if self.is_paused:
                return None
            cache = kwargs.get("past_key_values")
            if self._places is None:
                return self._decoding(place, args, kwargs, cache)
            states = args[0]
            if cache is not None:
                self._caches.add(cache)
            for kept in self._kept:
                kwargs = _cut(kwargs, kept)
            if place in self.stages:
                kept = self._stay(layer, place, states, kwargs)
                self._kept.append(kept)
                kwargs = _cut(kwargs, kept)
                states = states[:, kept]
            return (states, *args[1:]), kwargs

        return hook

    def _decoding(self, place: int, args: tuple[Any, ...], kwargs: dict[str, Any], cache: Any) -> Any:
        """A later token: its mask is as long as the first layer's cache, and later layers have shorter ones."""
        mask = kwargs.get("attention_mask")
        if cache is None or cache not in self._caches or mask is None:
            return None
        length = cache.get_seq_length(place) + args[0].shape[1]
        return args, kwargs | {"attention_mask": mask[..., -length:]}

    def _record(self, name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
            if self._places is not None and name not in self._tap:
                self._tap[name] = output

        return hook

    # ---- choosing

    @torch.no_grad()
    def _stay(self, layer: Any, place: int, states: Tensor, kwargs: dict[str, Any]) -> Int[Tensor, " t"]:
        """Which of the tokens that are still there go on, ascending."""
        if self.request.name == "fastv":
            query, key = self._tap[vision.QUERIES], self._tap[vision.KEYS]
        else:  # the layer's own, a little ahead of it, so that no attention weights are needed
            normed = layer.input_layernorm(states)
            query, key = layer.self_attn.q_proj(normed), layer.self_attn.k_proj(normed)
        look = last_look(query, key, kwargs["position_embeddings"], layer.self_attn.head_dim)
        places = self._places
        assert places is not None
        count = self.stages[place](self._total)
        chosen = torch.sort(look[places], descending=True, stable=True).indices[:count].sort().values
        goes = torch.ones(states.shape[1], dtype=torch.bool, device=states.device).index_fill(0, places, False)
        kept = goes.index_fill(0, places[chosen], True).nonzero().flatten()
        self._first_places = self._first_places[chosen]
        self._places = torch.searchsorted(kept, places[chosen])
        if place == max(self.stages):
            self._note()
        return kept

    def _note(self) -> None:
        is_kept = torch.zeros(self._total, dtype=torch.bool).index_fill(0, self._first_places.cpu(), True)
        kept = len(self._first_places)
        nothing = torch.empty(0, 0)
        selection = Selection(self._first_places, [kept])
        grid = TokenGrid.plain(1, self._total)
        self.last = Choice(nothing, [kept], [self._total - kept], is_kept, [grid], selection)


def last_look(
    query: Float[Tensor, "1 t (k e)"], key: Float[Tensor, "1 t (g e)"], around: tuple[Tensor, Tensor], width: int
) -> Float[Tensor, " t"]:
    """How much the last token looks at each one, mean over heads, in float32.

    Args:
        query, key: before rotation, as their linear layers give them; heads may share keys.
        around: cosines and sines of the rotation, 1 t e.
        width: e.
    """
    query, key = (rearrange(side, "b t (k e) -> b k t e", e=width) for side in (query, key))
    query, key = apply_rotary_pos_emb(query, key, *around)
    return few_query_scores(query[:, :, -1:], key, scale=width**-0.5)[0]


def _cut(kwargs: dict[str, Any], kept: Tensor) -> dict[str, Any]:
    """Arguments of a layer for the tokens that are still there."""
    changed: dict[str, Any] = {}
    if kwargs.get("attention_mask") is not None:
        mask = kwargs["attention_mask"]
        changed["attention_mask"] = mask[..., kept, :][..., kept] if mask.ndim == 4 else mask[:, kept]
    if kwargs.get("position_embeddings") is not None:
        changed["position_embeddings"] = tuple(side.index_select(-2, kept) for side in kwargs["position_embeddings"])
    if kwargs.get("position_ids") is not None:
        changed["position_ids"] = kwargs["position_ids"].index_select(-1, kept)
    return kwargs | changed


def _stages(request: Request, family: Family, depth: int) -> dict[int, Any]:
    """Layer before which tokens go -> how many stay, as a function of how many there were.

    FastV (arXiv 2403.06764) has one stage, behind its layer. PyramidDrop (arXiv 2410.17247) has several that each leave
    the same share, so that the last one leaves the budget; the paper's 50, 25 and 12.5 % are a budget of 0.125.

    Raises:
        RequestError: a family, a mode of positions or lengths, or layers that cannot be.
    """
    if family.name not in SUPPORTED:
        raise RequestError(
            f"method='{request.name}' for a {family.name}",
            "Its layers norm queries and keys or look over windows, which this method does not follow",
            "Use a method with where='before_llm'",
        )
    if request.positions != "keep" or request.lengths != "pruned":
        raise RequestError(
            f"method='{request.name}' with positions='{request.positions}' and lengths='{request.lengths}'",
            "Earlier layers have cached all tokens at the positions they had, and later ones return what they kept",
            "Set positions='keep' and lengths='pruned'",
        )
    options = request.options
    if request.name == "fastv":
        layers = (options.layer,)
    elif options.layers is not None:
        layers = options.layers
    else:
        layers = tuple(sorted({depth * quarter // 4 for quarter in (1, 2, 3)} - {0}))
    if not layers or list(layers) != sorted(set(layers)) or not all(0 < layer < depth for layer in layers):
        raise RequestError(
            f"Tokens go behind layer(s) {list(layers)} of {depth}",
            "A layer must stand before, to look at them, and one behind, to save time",
            f"Set {'layer' if request.name == 'fastv' else 'layers'} between 1 and {depth - 1}, rising",
        )
    return {layer: _count(request, (number + 1) / len(layers)) for number, layer in enumerate(layers)}


def _count(request: Request, power: float) -> Any:
    """Tokens that a stage leaves of `total`: the budget's share to a power, exactly the budget at 1."""

    def count(total: int) -> int:
        last = request.budget.of(total)
        return last if power == 1 else max(last, round(total * (last / total) ** power))

    return count
