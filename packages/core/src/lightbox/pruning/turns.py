"""Pruning over several turns, each with images of its own: what a cache holds of earlier turns goes on from there.

A conversation is counted in two ways. Whoever writes it counts whole: ids, mask and positions have a column for every
token of every image. The cache counts what was read. So `generate`, which leaves out as many columns as the cache is
long, passes some again that were read or dropped; here they are cut off, and the new turn's images are pruned behind
them. What was read of each row stands beside its cache, and follows when rows leave or are repeated.
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import Cache

from lightbox.backbones.episodes import beside, put_beside
from lightbox.errors import RequestError
from lightbox.pruning.models import family_of
from lightbox.pruning.pipeline import Pruning
from lightbox.pruning.positions import following


@dataclass(frozen=True)
class Read:
    """What a cache was filled with up to the end of a prompt.

    Args:
        is_token: b t', whether the cache's column is a token.
        following: b, position of the next token.
        length: columns that it had whole.
    """

    is_token: Bool[Tensor, "b t"]
    following: Int[Tensor, " b"]
    length: int

    def of_rows(self, index: list[int]) -> Self:
        """The same of some rows, or of rows that are repeated."""
        return type(self)(self.is_token[index], self.following[index], self.length)


def over_turns(block: Any) -> Any:
    """The block of `prune` as one that conversations of several turns can be held in, in evaluation and training.

    Args:
        block: of `prune`, not entered; anything else is given back as it is.

    Raises:
        RequestError: renumbered positions, since those of a later turn are counted in the whole conversation.
    """
    if not isinstance(block, Pruning):
        return block
    if block.request.positions != "keep":
        raise RequestError(
            f"positions is '{block.request.positions}' over several turns",
            "A later turn stands behind the whole of the earlier ones, and theirs would have moved",
            "Set positions to keep",
        )
    return TurnPruning(block.core, family_of(block.core), block.request)


class TurnPruning(Pruning):
    """A model being pruned in each turn of conversations; made by `over_turns`."""

    _before_prompt: Read | None = None
    """What the cache holds in front of the prompt that is being read."""

    def _before(self, core: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before the model's forward: see `Pruning`; behind a cache, prune the new turn."""
        self._before_prompt = None
        cache = kwargs.get("past_key_values")
        if self.is_paused or cache is None or cache.get_seq_length() == 0:
            return super()._before(core, args, kwargs)
        self._prompt = None
        ids, length = kwargs.get("input_ids"), cache.get_seq_length()
        if args or ids is None:
            raise RequestError(
                "Embeddings or unnamed arguments behind a filled cache",
                "What is new is told by ids, and images by the places of their tokens",
                "Pass input_ids by name",
            )
        read = beside(cache)
        mask = self._mask_of_all(kwargs, ids, length if read is None else length + read.length - read.is_token.shape[1])
        if read is None:  # a first turn without images was read whole
            read = Read(mask[:, :length].bool(), mask[:, :length].sum(dim=1), length)
        return (), self._behind_turns(kwargs, read, ids, mask, seen=length - read.is_token.shape[1])

    def _mask_of_all(self, inputs: dict[str, Any], ids: Tensor, length: int) -> Int[Tensor, "b t"]:
        """The mask of the whole conversation; `generate` passes none where it would hide nothing.

        Args:
            inputs: of the forward.
            ids: that are passed.
            length: of what was read, counted whole.
        """
        mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
        if isinstance(mask, Tensor) and mask.ndim == 2:
            return mask
        if mask is None and positions is None:
            return ids.new_ones(len(ids), length + ids.shape[1])
        if mask is None and (positions.ndim == 2 or len(positions) == 4):
            text = positions if positions.ndim == 2 else positions[0]
            return ids.new_ones(len(ids), int(text[0, -1]) + 1)
        raise RequestError(
            "Neither a mask of shape (batch, tokens) nor positions of text behind a filled cache",
            "How many tokens are new is counted from the whole (a static cache makes masks of its own)",
            "Pass attention_mask over the whole conversation",
        )

    def _behind_turns(
        self, inputs: dict[str, Any], read: Read, ids: Tensor, mask: Tensor, *, seen: int
    ) -> dict[str, Any]:
        """Arguments for what is new behind a cache, whose last `seen` columns were chosen since the last prompt."""
        new = mask.shape[1] - read.length - seen
        again = ids.shape[1] - new
        if (
            len(ids) != len(read.is_token)
            or seen < 0
            or new < 1
            or again not in (0, read.length - read.is_token.shape[1])
        ):
            raise RequestError(
                f"ids of shape {tuple(ids.shape)} and a mask of {tuple(mask.shape)} behind a cache of "
                f"{len(read.is_token)} rows and {read.is_token.shape[1] + seen} tokens, read of {read.length + seen}",
                "They are neither what is new nor what `generate` leaves of a whole conversation",
                "Use `generate` or `Backbone.continued`, and change a cache's rows by `some_rows`",
            )
        tail = mask[:, read.length :]
        names = ("input_ids", "token_type_ids", "mm_token_type_ids")
        inputs = inputs | {name: inputs[name][:, -new:] for name in names if inputs.get(name) is not None}
        whole = inputs.get("position_ids")
        positions = (
            read.following[:, None] + tail.long().cumsum(dim=1)[:, seen:] - 1 if whole is None else whole[..., -new:]
        )
        inputs |= {"position_ids": positions, "attention_mask": tail[:, seen:]}
        encoded = dict(inputs.get("mm_encoder_outputs") or {})
        if inputs.get("pixel_values") is not None or encoded.get("image") is not None:
            if whole is None and hasattr(self.base, "rope_deltas"):
                raise RequestError(
                    "Images of a later turn without position_ids",
                    "This family places an image's tokens by row and column, counted over the whole conversation",
                    "Pass them, as `Backbone.continued` does",
                )
            self._before_prompt = Read(
                torch.cat([read.is_token, tail[:, :seen].bool()], dim=1), read.following, read.length + seen
            )
            inputs = self._pruned(inputs, encoded)
        elif whole is None and hasattr(self.base, "rope_deltas"):
            inputs["position_ids"] = positions.expand(3, -1, -1)
        masks = [read.is_token.to(mask.dtype), tail[:, :seen], inputs["attention_mask"].to(mask.dtype)]
        return inputs | {"attention_mask": torch.cat(masks, dim=1)}

    def _after(self, _core: Any, _args: Any, _kwargs: Any, output: Any) -> None:
        """Behind the model's forward: what the cache holds now stands beside it."""
        prompt, before = self._prompt, self._before_prompt
        if prompt is None:
            return
        is_token, length = prompt.is_token, prompt.length
        if before is not None:
            is_token, length = torch.cat([before.is_token, is_token], dim=1), before.length + length
        positions = prompt.inputs["position_ids"]
        read = Read(is_token, following(positions, prompt.is_token), length)
        for cache in output.values() if isinstance(output, dict) else output:
            if isinstance(cache, Cache):
                put_beside(cache, read)
