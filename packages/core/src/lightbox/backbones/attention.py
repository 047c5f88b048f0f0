"""What computes attention: one function chooses, and xformers is registered with transformers here and nowhere else.

Every choice gives the same numbers up to rounding. They differ in memory (`eager` keeps the whole score matrix) and in
what they can run on.
"""

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from lightbox.config import check_choice
from lightbox.errors import RequestError

ATTENTIONS = ("auto", "sdpa", "xformers", "flash", "eager")
ALIGNMENT = 8
"""xformers wants the width of a head and the start of a row of a bias at multiples: 16 bytes in half precision."""
PACKAGES = {"flash": "flash-attn", "xformers": "xformers"}
"""What needs a package of its own, and a GPU."""
NO_FLASH = {
    "gemma3": "Flash attention reads causal masks only, and image tokens of Gemma 3 see each other in both directions; "
    "it would drop that without a word",
    "t5": "Flash attention takes no bias, and T5 adds its relative positions as one",
    "florence2": "Flash attention takes heads up to 256 wide, and Florence-2's tower attends between channels, with "
    "heads as wide as the image has patches",
}
"""Families that flash attention computes wrongly or not at all."""


@dataclass(frozen=True)
class AttentionChoice:
    """What computes attention in a run, for its card: sdpa, xformers, flash or eager, and why, as a phrase."""

    name: str
    reason: str

    @property
    def implementation(self) -> str:
        """The name that transformers knows it by (`attn_implementation`)."""
        return "flash_attention_2" if self.name == "flash" else self.name


def choose(requested: str, *, device: str, dtype: str, model_type: str) -> AttentionChoice:
    """Settle what computes attention, before anything is loaded; registers xformers where that is the choice.

    `auto` takes flash where it is installed and right for the model, else torch's own attention. xformers and eager
    are taken on request only: the first is not faster than torch's own since that has the same kernels, the second
    keeps the whole score matrix.

    Args:
        requested: auto, sdpa, xformers, flash or eager.
        device: cpu, cuda or cuda:N.
        dtype: fp32, bf16 or fp16.
        model_type: of config.json.

    Raises:
        RequestError: an unknown name, or one that cannot run here or for this model.
    """
    check_choice("model.attention", requested, ATTENTIONS)
    why = _obstacle("flash" if requested == "auto" else requested, device, dtype, model_type)
    if requested == "auto":
        if why:
            return AttentionChoice("sdpa", f"auto: torch's own attention. No flash attention: {why}")
        return AttentionChoice("flash", "auto: flash attention is installed and skips padding")
    if why:
        raise RequestError(
            f"model.attention is {requested} for a {model_type} in {dtype} on {device}",
            why,
            "Set model.attention=sdpa, or auto",
        )
    if requested == "xformers":
        register_xformers()
    return AttentionChoice(requested, "as requested")


def register_xformers() -> None:
    """Make `xformers` a name that transformers takes, with the masks of its `sdpa`. Needs no xformers yet."""
    AttentionInterface.register("xformers", xformers_attention)
    # under a name without a mask function transformers makes no mask at all, and padding would be seen
    AttentionMaskInterface.register("xformers", sdpa_mask)


def xformers_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Memory-efficient attention with the signature that transformers calls.

    Args:
        module: the attention layer; says whether it is causal where `is_causal` is None.
        query: b k t e.
        key: b k/g s e for g query heads a key head.
        value: as `key`.
        attention_mask: None, or b 1 t s (or b k t s): True where a query may look, or a number to add to the score.
        dropout: of attention weights, in [0, 1).
        scaling: of scores; None is 1 / sqrt(e).
        is_causal: whether a missing mask means that a query looks at no later key.
        position_bias: 1 k t s or b k t s, added to the scores (T5).
        kwargs: what other implementations read.

    Returns:
        b t k e, and None for the weights, which are never there.

    Raises:
        RequestError: a model that caps its scores, which xformers cannot.
    """
    if kwargs.get("softcap") is not None:
        raise RequestError(
            "xformers attention for a model with capped scores", "It cannot cap them", "Set model.attention=eager"
        )
    wants_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    # a single query stands behind all keys of its cache
    is_causal = wants_causal and attention_mask is None and query.shape[2] > 1
    if is_causal:  # keys beyond the queries are the empty end of a cache of fixed length
        key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
    groups = query.shape[1] // key.shape[1]
    bias: Any = None
    if attention_mask is not None or position_bias is not None:
        bias = _tensor_bias(query, key.shape[2], attention_mask, position_bias, is_causal=is_causal)
    elif is_causal:
        bias = _operators().LowerTriangularMask()
    width = query.shape[-1]
    query, key, value = (F.pad(part, (0, -width % ALIGNMENT)) for part in (query, key, value))  # zeros add nothing
    mixed = _operators().memory_efficient_attention(
        rearrange(query, "b k t e -> b t k e"),
        repeat(key, "b k s e -> b s (k g) e", g=groups),
        repeat(value, "b k s e -> b s (k g) e", g=groups),
        attn_bias=bias,
        p=dropout,
        scale=width**-0.5 if scaling is None else scaling,
    )
    return mixed[..., :width].contiguous(), None  # models view it as b t (k e)


def _tensor_bias(
    query: Tensor, n_keys: int, mask: Tensor | None, position_bias: Tensor | None, *, is_causal: bool
) -> Tensor:
    """Mask and position bias as one tensor b k t s in the query's dtype, its rows aligned as xformers wants them.

    A hidden place gets the lowest finite number, not minus infinity: a query that sees nothing (padding) then gives
    the mean of the values and not NaN, as in transformers' eager form.
    """
    b, k, t, _ = query.shape
    lowest = torch.finfo(query.dtype).min
    bias = query.new_zeros((1, 1, t, n_keys)) if position_bias is None else position_bias.to(query.dtype)
    if is_causal:
        places = torch.arange(n_keys, device=query.device)
        mask = (places[:t, None] >= places)[None, None]
    if mask is not None:
        added = (bias + mask).clamp(min=lowest) if mask.dtype != torch.bool else torch.where(mask, bias, lowest)
        bias = added.to(query.dtype)
    roomy = F.pad(bias, (0, -n_keys % ALIGNMENT)).contiguous()
    return roomy[..., :n_keys].expand(b, k, t, n_keys)  # heads share one copy where they have one mask


def _obstacle(name: str, device: str, dtype: str, model_type: str) -> str:
    """Why flash attention or xformers cannot be used; "" where it can, and for torch's own."""
    if name not in PACKAGES:
        return ""
    if not device.startswith("cuda"):
        return f"It has no operator for the CPU, and the device is {device}"
    if name == "flash" and dtype == "fp32":
        return "It computes in 16 bits, and the model is in fp32"
    if name == "flash" and model_type in NO_FLASH:
        return NO_FLASH[model_type]
    # asked without importing: a broken build fails at import, and "auto" must not
    if importlib.util.find_spec(PACKAGES[name].replace("-", "_")) is None:
        return f"The package {PACKAGES[name]} is not installed"
    return ""


def _operators() -> Any:
    """xformers' operators; imported where they are first used, as they are heavy and optional."""
    return importlib.import_module("xformers.ops")
