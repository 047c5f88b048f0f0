"""Tokens at random: a serious baseline (UniPruneBench: on LLaVA-1.5-7B six of eight methods lose to it)."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightbox.pruning.methods.ordering import best, with_floor
from lightbox.pruning.types import Selection, VisualBatch


def select(batch: VisualBatch, counts: Sequence[int], options: Any) -> Selection:
    """Keep random tokens; `options.seed` and the image's pixels decide, so a batch changes nothing."""
    device = batch.x.device
    places = torch.cat([torch.arange(size, device=device) for size in batch.counts])
    sizes = torch.tensor(list(batch.counts), device=device)
    keys = batch.keys.to(device).repeat_interleave(sizes, output_size=sum(batch.counts))
    scores = with_floor(hashed(keys ^ hash_int(options.seed), places), batch, counts, options.floor_uniform)
    return Selection(best(scores, batch.counts, counts), counts, scores=scores)


def hash_int(value: int) -> int:
    """Spread a small number over 63 bits."""
    return int(_mixed(torch.tensor(value + 1)).item())


def hashed(keys: Int[Tensor, " T"], places: Int[Tensor, " T"]) -> Float[Tensor, " T"]:
    """A number in [0, 1) for each key and place, the same on every device."""
    return (_mixed(keys + _mixed(places + 1)) & 0xFFFFFF).float() / 2**24


def _mixed(values: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """Xorshift and multiply, twice (the finaliser of SplitMix64, with signed overflow)."""
    values = values * -7046029254386353131  # the odd constant 0x9E3779B97F4A7C15 as int64
    values = (values ^ ((values >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    values = (values ^ ((values >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return values ^ ((values >> 31) & 0x1FFFFFFFF)
