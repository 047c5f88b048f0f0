"""Layers of a tower whose output nothing reads: left out while images are encoded inside a block.

LLaVA reads the layer before the last, and transformers computes the last one all the same: one of CLIP-L's 24, one of
four in the tower that `bench pruning` times.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

ABOVE = ("last_hidden_state",)
"""What a tower gives that such layers would have changed."""


@contextmanager
def skipped(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Let layers hand on what they get.

    Args:
        blocks: layers that take states first and return states alone. One whose `forward` was replaced by somebody else
            runs as it is.
    """
    own = [block for block in blocks if "forward" not in vars(block)]
    for block in own:
        block.forward = _unchanged
    try:
        yield
    finally:
        for block in own:
            del block.forward


def without_states(output: Any) -> Any:
    """What `get_image_features` returned, without the states that were not computed to the end."""
    return type(output)(**{name: value for name, value in output.items() if name not in ABOVE})


def _unchanged(hidden_states: Any, *_: Any, **__: Any) -> Any:
    return hidden_states
