"""Operations that a causal model takes to read a prompt, and to say one more word with what it kept of it."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache


def counted_flops(core: nn.Module, inputs: dict[str, Any]) -> tuple[tuple[int, int], Tensor]:
    """Count, as torch counts matrix products and attention; what is element by element counts nothing.

    Args:
        core: of transformers, with a language head.
        inputs: arguments of its forward, with `attention_mask`.

    Returns:
        Operations of reading the prompt and of one more word; and the logits of the prompt, b t v.
    """
    cache = DynamicCache()
    with FlopCounterMode(display=False) as prefill:
        output = core(**inputs, past_key_values=cache, use_cache=True)
    mask = inputs["attention_mask"]
    longer = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    word = output.logits[:, -1:].argmax(-1)
    with FlopCounterMode(display=False) as decode:
        core(input_ids=word, attention_mask=longer, past_key_values=cache, use_cache=True)
    return (prefill.get_total_flops(), decode.get_total_flops()), output.logits
