"""`prune`: fewer visual tokens for a model of transformers, while a block lasts.

Before the language model: the model's own `get_image_features` runs, a method chooses, and a hook on the model's
forward hands it fewer features (`mm_encoder_outputs`) and a prompt that is shorter by as many columns. Three hooks and
one attribute of the instance are all that changes, and all of it is gone when the block ends.
"""

import inspect
import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, Self

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from transformers import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling

from lightbox.backbones.families import Family
from lightbox.errors import RequestError
from lightbox.pruning import measure
from lightbox.pruning.inside import LayerPruning
from lightbox.pruning.layouts import LAYOUTS, Layout
from lightbox.pruning.measure import Drift, Report, Timing
from lightbox.pruning.methods.table import BEFORE, INSIDE
from lightbox.pruning.models import check_free, core_of, family_of, held
from lightbox.pruning.options import Request, checked
from lightbox.pruning.positions import following
from lightbox.pruning.prompt import Prompt, shortened
from lightbox.pruning.records import Records, layers_for, make_records, taps_of
from lightbox.pruning.selecting import Choice, choose
from lightbox.pruning.unread import skipped, without_states

PIXELS = ("pixel_values", "image_sizes", "vision_feature_layer", "vision_feature_select_strategy")
"""Arguments that only serve to encode images."""


def prune(
    model: Any,
    method: str = "divprune",
    budget: float = 0.25,
    positions: str = "keep",
    where: str = BEFORE,
    *,
    lengths: str = "pruned",
    **settings: Any,
) -> "Pruning | LayerPruning":
    """Prune a model's visual tokens while a block lasts.

    Works in forward, `generate` and training, at any batch size, with sdpa and eager attention; flash attention was not
    tried. Call the model with its language head: the one inside it runs unpruned.

        with prune(model, method="divprune", budget=0.25) as handle:
            model.generate(**inputs)
        handle.report()

    Args:
        model: of transformers, with its language head; or a `Backbone`, or either inside peft or data parallel.
        method: a name in `methods.table.METHODS`.
        budget: a float is a share of each image's tokens in (0, 1]; an int is a count an image.
        positions: "keep" leaves tokens the positions they had, "compact" and "keep_rank" renumber; see `positions`.
        where: "before_llm", or "inside_llm" for fastv and pyramid_drop, which act through hooks on layers, in
            inference and for one row at a time.
        lengths: of logits and states that the model returns: "pruned", or "original", which puts them where they would
            be without pruning (a dropped token's place shows the state of the last token before it), so that code
            which reads results by place goes on working.
        settings: of methods; see `options.Options`.

    Returns:
        A context that gives itself, with `report` and `measure`.

    Raises:
        RequestError: before anything runs: what `options.checked` refuses, a family that cannot be pruned, a model that
            is being pruned.
    """
    core = core_of(model)
    request = checked(method, budget, positions, where, lengths, settings)
    family = family_of(core)
    check_free(core)
    if request.method.where == INSIDE:
        return LayerPruning(core, family, request)
    return Pruning(core, family, request)


@dataclass(frozen=True)
class Behind:
    """What a cache was filled with, for the tokens that come next.

    Args:
        is_token: b t', of the pruned prompt.
        has_padding: whether any is False.
        following: b, position of the next token.
        text_following: b, the same as `generate` counts it for text.
        length: columns before pruning.
    """

    is_token: Bool[Tensor, "b t"]
    has_padding: bool
    following: Int[Tensor, " b"]
    text_following: Int[Tensor, " b"]
    length: int


class Pruning:
    """A model being pruned; see `prune`."""

    def __init__(self, core: nn.Module, family: Family, request: Request) -> None:
        self.core: Any = core
        self.base: Any = core.get_submodule("model")
        self.request = request
        self.layout: Layout = LAYOUTS[family.name](core, family.vision)
        self.records = Records()
        self.is_paused = False
        self.last: Choice | None = None
        self.timings: dict[str, Timing] = {}
        self.drift: Drift | None = None
        self._behind: weakref.WeakKeyDictionary[Cache, Behind] = weakref.WeakKeyDictionary()
        self._prompt: Prompt | None = None
        self._undo = ExitStack()
        self._image_token: int = self.core.config.image_token_id

    # ---- entering and leaving

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            undo.enter_context(held(self.core))
            self._encode = self.base.get_image_features
            self._signature = inspect.signature(self._encode)
            # a function and not a bound method: `generate` reads the arguments' names off it
            self.base.get_image_features = wraps(self._encode)(partial(Pruning._encode_and_note, self))
            undo.callback(delattr, self.base, "get_image_features")
            if hasattr(self.base, "rope_deltas"):
                undo.callback(setattr, self.base, "rope_deltas", self.base.rope_deltas)
            for handle in (
                self.core.register_forward_pre_hook(self._before, with_kwargs=True),
                self.core.register_forward_hook(self._after, with_kwargs=True),
                self.base.register_forward_hook(self._in_place),
            ):
                undo.callback(handle.remove)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()
        self._behind.clear()
        self._prompt = None

    # ---- what a user asks

    def report(self) -> Report:
        """What was kept of the images of the last call, and what was measured.

        Raises:
            RequestError: nothing was pruned yet.
        """
        if self.last is None:
            raise RequestError(
                "A report before any image was read", "There is nothing to report", "Call the model inside the block"
            )
        return measure.report(self.request, self.last, self.timings, self.drift)

    def measure(self, inputs: Mapping[str, Any], *, repeats: int = 5, draws: int = 5) -> Report:
        """Time the first token of a prompt, with its tower, pruned and unpruned by turns, and report.

        The report warns where the method is no faster, and where it moves the next token's probabilities no less than
        tokens drawn at random do. That needs no answers, and speaks of these prompts alone.

        Args:
            inputs: of the model's forward, without labels.
            repeats: of each, after one of each to warm up; the median counts.
            draws: random choices to compare with, at least 0; 0 compares with none.
        """
        if draws < 0:
            raise RequestError(f"draws is {draws}", "It counts random choices", "Set draws to 0 or more")
        self.drift = measure.drift_beside_random(self, inputs, draws) if draws else None
        self.timings = measure.time_to_first_token(self, inputs, repeats)
        return self.report()

    # ---- hooks

    def _encode_and_note(self, *args: Any, **kwargs: Any) -> Any:
        """In the place of the instance's `get_image_features`."""
        if self.is_paused:
            return self._encode(*args, **kwargs)
        bound = self._signature.bind(*args, **kwargs).arguments
        inputs = {name: value for name, value in bound.items() if name != "kwargs"} | bound.get("kwargs", {})
        needs = self.request.method.needs
        read = layers_for(self.layout, needs, inputs)
        # whoever asks for states gets them all
        unread = [] if inputs.get("output_hidden_states") else self.layout.unread(inputs, above=max(read, default=-1))
        with taps_of(self.layout, read) as taps, skipped(unread):
            output = self._encode(*args, **kwargs)
        output = without_states(output) if unread else output
        self.records.keep(output, make_records(self.layout, inputs, needs, self.request.options, taps))
        return output

    def _before(self, core: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before the model's forward: shorten the prompt, or go on behind one that was shortened."""
        self._prompt = None
        if self.is_paused:
            return None
        inputs = inspect.signature(core.forward).bind_partial(*args, **kwargs).arguments
        inputs = {name: value for name, value in inputs.items() if name != "kwargs"} | inputs.get("kwargs", {})
        encoded = dict(inputs.get("mm_encoder_outputs") or {})
        has_images = inputs.get("pixel_values") is not None or encoded.get("image") is not None
        if inputs.get("pixel_values_videos") is not None or encoded.get("video") is not None:
            raise RequestError(
                "A video", "Its frames are one block of tokens, which no method here reads", "Give its frames as images"
            )
        cache = inputs.get("past_key_values")
        behind = self._behind.get(cache) if cache is not None else None
        if has_images and cache is not None and cache.get_seq_length() > 0:
            raise RequestError(
                "New images behind a filled cache",
                "Gaps in their positions would be taken for the ends of texts",
                "Give the whole conversation without a cache",
            )
        if behind is not None and cache.get_seq_length() > 0:
            return (), self._continued(inputs, behind, cache)
        if not has_images:
            return None
        return (), self._pruned(inputs, encoded)

    def _pruned(self, inputs: dict[str, Any], encoded: dict[str, Any]) -> dict[str, Any]:
        if isinstance(inputs.get("logits_to_keep"), Tensor) and self.request.lengths == "pruned":
            raise RequestError(
                "logits_to_keep is a tensor of places",
                "They are places of the whole prompt, and logits are those of the pruned one",
                "Set lengths='original' in prune(), or pass a number, which counts from the end",
            )
        image_output = encoded.get("image")
        if image_output is None:
            names = self._signature.parameters
            own = {name: value for name, value in inputs.items() if name in names and value is not None}
            image_output = self.base.get_image_features(**own, return_dict=True)
        features, records = self.records.of(image_output.pooler_output)
        is_image = self._image_places(inputs)
        rows = images_by_row([len(image) for image in features], is_image.sum(dim=1).tolist())
        choice = choose(self.request, features, records, rows)
        self.last = choice
        prompt = shortened(
            inputs,
            self._positions(inputs, is_image),
            is_image,
            choice.is_kept,
            mode=self.request.positions,
            pad_id=self._pad_id(),
            n_dropped=[sum(choice.dropped[image] for image in row) for row in rows],
        )
        self._prompt = prompt
        kept: Any = list(choice.features.split(choice.kept_counts))
        kept = torch.cat(kept) if isinstance(image_output.pooler_output, Tensor) else kept
        encoded["image"] = BaseModelOutputWithPooling(pooler_output=kept)
        rest = {name: value for name, value in inputs.items() if name not in PIXELS}
        return rest | prompt.inputs | {"mm_encoder_outputs": encoded}

    def _after(self, _core: Any, _args: Any, _kwargs: Any, output: Any) -> None:
        """Behind the model's forward: remember what the cache holds."""
        prompt = self._prompt
        if prompt is None:
            return
        positions = prompt.inputs["position_ids"]
        values = output.values() if isinstance(output, dict) else output
        for cache in values:
            if isinstance(cache, Cache):
                text = positions[0] if positions.ndim == 3 and len(positions) == 4 else positions
                self._behind[cache] = Behind(
                    prompt.is_token,
                    not bool(prompt.is_token.all()),
                    prompt.following,
                    following(text, prompt.is_token),
                    prompt.length,
                )
        if getattr(self.base, "rope_deltas", None) is not None:
            # a next token stands at the number of tokens before it plus this, and there are fewer now
            n_tokens = prompt.is_token.sum(dim=1)
            self.base.rope_deltas = (prompt.following - n_tokens)[:, None].to(self.base.rope_deltas)

    def _in_place(self, _base: Any, _args: Any, output: Any) -> Any:
        """Behind the model without its head: states at their old places, where that was asked for."""
        if self._prompt is None or self.request.lengths == "pruned":
            return None
        states = output[0]
        rank = self._prompt.rank
        whole = states.gather(1, rank[..., None].expand(-1, -1, states.shape[-1]))
        if isinstance(output, tuple):
            return (whole, *output[1:])
        output.last_hidden_state = whole
        return output

    # ---- inside

    def _continued(self, inputs: dict[str, Any], behind: Behind, cache: Cache) -> dict[str, Any]:
        """Arguments for tokens behind a shortened prompt: its mask, and the positions that come next."""
        ids = inputs.get("input_ids")
        ids = inputs["inputs_embeds"] if ids is None else ids
        seen = cache.get_seq_length() - behind.is_token.shape[1]
        if seen < 0 or len(ids) != len(behind.is_token):
            raise RequestError(
                f"A cache of {cache.get_seq_length()} tokens and {len(ids)} rows behind a pruned prompt of "
                f"{behind.is_token.shape[1]} and {len(behind.is_token)}",
                "It was cut or divided, and what is left of the prompt is not known (assisted decoding does so)",
                "Generate without an assistant, and keep a cache whole",
            )
        inputs = self._without_known(inputs, behind, ids.shape[1], seen)
        ids = inputs["input_ids"] if inputs.get("input_ids") is not None else inputs["inputs_embeds"]
        if inputs.get("input_ids") is not None and ids.shape[1] > 1 and bool((ids == self._image_token).any()):
            raise RequestError(
                "Image tokens behind a pruned prompt, without images",
                "A cache holds the images already, in fewer tokens than the prompt has",
                "Pass the new tokens only",
            )
        new, device = ids.shape[1], behind.is_token.device
        tail = torch.ones(len(ids), seen + new, dtype=torch.long, device=device)
        mask = inputs.get("attention_mask")
        if mask is not None:
            tail = self._tail(mask, behind, seen + new)
        changed: dict[str, Any] = {}
        if mask is not None or behind.has_padding:
            changed["attention_mask"] = torch.cat([behind.is_token.to(tail.dtype), tail], dim=1)
        positions = behind.following[:, None] + tail.long().cumsum(dim=1)[:, seen:] - 1
        has_axes = hasattr(self.base, "rope_deltas")
        changed["position_ids"] = positions.expand(3, -1, -1) if has_axes else positions
        return inputs | changed

    def _without_known(self, inputs: dict[str, Any], behind: Behind, new: int, seen: int) -> dict[str, Any]:
        """Without tokens that the cache holds: `generate` cuts by the cache's length, which is shorter here."""
        cut, positions = behind.length - behind.is_token.shape[1], inputs.get("position_ids")
        if cut == 0 or new == 1 or positions is None:
            return inputs
        text = positions[0] if positions.ndim == 3 else positions
        early = (behind.text_following + seen - text[:, 0].expand(len(behind.is_token))).tolist()
        if not any(early):
            return inputs
        if set(early) != {cut} or new <= cut:
            raise RequestError(
                f"Tokens at positions {text[:, 0].tolist()} behind a prompt that goes on at "
                f"{(behind.text_following + seen).tolist()}",
                "They are neither the next ones nor a whole conversation without padding",
                "Pass the new tokens only",
            )
        names = ("input_ids", "token_type_ids", "mm_token_type_ids", "labels")
        return inputs | {name: inputs[name][:, cut:] for name in names if inputs.get(name) is not None}

    def _tail(self, mask: Any, behind: Behind, length: int) -> Tensor:
        """The part of a mask that stands behind the prompt."""
        if isinstance(mask, Tensor) and mask.ndim == 2:
            for before in (behind.length, behind.is_token.shape[1]):
                if mask.shape[1] == before + length:
                    return mask[:, before:]
        shape = tuple(mask.shape) if isinstance(mask, Tensor) else "a dictionary"
        raise RequestError(
            f"attention_mask is {shape} for {length} tokens behind a prompt of {behind.length}, pruned to "
            f"{behind.is_token.shape[1]}",
            "It covers neither of the two (a static cache makes masks of its own)",
            "Generate with the default cache, and pass a mask over the prompt and what follows",
        )

    def _image_places(self, inputs: dict[str, Any]) -> Bool[Tensor, "b t"]:
        ids = inputs.get("input_ids")
        if ids is not None:
            return ids == self._image_token
        embeddings = inputs["inputs_embeds"]
        token = torch.tensor(self._image_token, device=embeddings.device)
        return (embeddings == self.base.get_input_embeddings()(token)).all(dim=-1)

    def _positions(self, inputs: dict[str, Any], is_image: Tensor) -> Tensor:
        """Positions of the whole prompt, as the model itself would give them."""
        positions = inputs.get("position_ids")
        if positions is None and hasattr(self.base, "compute_3d_position_ids"):
            rows, length = is_image.shape
            positions = self.base.compute_3d_position_ids(
                input_ids=inputs.get("input_ids"),
                image_grid_thw=inputs.get("image_grid_thw"),
                video_grid_thw=None,
                inputs_embeds=torch.empty(rows, length, 0, device=is_image.device),
                attention_mask=inputs.get("attention_mask"),
                past_key_values=None,
                mm_token_type_ids=inputs.get("mm_token_type_ids"),
            )
        if positions is None:
            positions = torch.arange(is_image.shape[1], device=is_image.device)[None]
        return positions

    def _pad_id(self) -> int:
        """An id for columns that nothing reads; any but the image's, which features are written over."""
        return 0 if self._image_token != 0 else 1


def images_by_row(lengths: list[int], places: list[int]) -> list[list[int]]:
    """Which images each row shows, in order.

    Args:
        lengths: tokens of each image.
        places: image tokens of each row.

    Raises:
        RequestError: rows whose places are not those of whole images.

    Example:
        >>> images_by_row([4, 4, 6], [8, 0, 6])
        [[0, 1], [], [2]]
    """
    rows, image = [], 0
    for room in places:
        row = []
        while room > 0 and image < len(lengths):
            row.append(image)
            room -= lengths[image]
            image += 1
        rows.append(row)
        if room != 0:
            break
    else:
        if image == len(lengths):
            return rows
    raise RequestError(
        f"Images of {lengths} tokens for rows with {places} image tokens",
        "Each image fills its own places, and all places belong to images (a prompt must be read in one piece)",
        "Give every row the images of its prompt, in order, and no prefill_chunk_size",
    )
