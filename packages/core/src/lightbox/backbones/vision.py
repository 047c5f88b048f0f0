"""What a vision tower gives, before the projector and inside: features that can be cached, pruned or looked at."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from lightbox.errors import RequestError

QUERIES, KEYS, BOTH = "q_proj", "k_proj", "qkv"
"""Last names of the linear layers of attention in towers; the third makes queries, keys and values in one."""


@dataclass(frozen=True)
class LayerTaps:
    """What one layer of a tower made, one entry an image; s is p with the class token before it, where there is one.

    LLaVA-NeXT cuts an image into n tiles, and every entry has them as its first axis.

    Args:
        outputs: p c.
        queries, keys: k s e, before any rotation (Qwen's towers rotate both); empty for towers whose attention is not
            between patches (Florence-2).
    """

    outputs: list[Float[Tensor, "*n p c"]]
    queries: list[Float[Tensor, "*n k s e"]] = field(default_factory=list)
    keys: list[Float[Tensor, "*n k s e"]] = field(default_factory=list)


@dataclass(frozen=True)
class VisionFeatures:
    """What a tower makes of images, as its projector reads it; one entry an image, since counts may differ.

    Args:
        patches: p c, row by row. LLaVA-NeXT: n p c, the whole image and then its tiles. Qwen: p m c, where the m
            patches of a token stand together and p counts tokens.
        grids: rows and columns of the image's tokens in the language model.
        sizes: height and width of the images in pixels, for families that pack by them, else None.
        taps: by layer, as asked for.
        has_class_token: whether `taps` has one.
    """

    patches: list[Tensor]
    grids: list[tuple[int, int]]
    sizes: Tensor | None = None
    taps: dict[int, LayerTaps] = field(default_factory=dict)
    has_class_token: bool = False

    def class_attention(self, layer: int) -> list[Float[Tensor, "*n p"]]:
        """How far the class token looks at each patch in a layer that was tapped: the mean over heads, in [0, 1].

        The class token's look at itself is left out and nothing is scaled up for it, so a row sums to less than 1.

        Raises:
            RequestError: a tower without a class token, or a layer that was not tapped.
        """
        if not self.has_class_token or layer not in self.taps:
            raise RequestError(
                f"Attention of the class token in layer {layer}",
                f"Tapped are {list(self.taps)}" if self.has_class_token else "This tower has no class token",
                "Name the layer in tower(images, layers=...)"
                if self.has_class_token
                else "Use the mean attention of all patches",
            )
        taps = self.taps[layer]
        scores = [
            (query[..., :1, :].float() @ key.float().transpose(-2, -1) / query.shape[-1] ** 0.5)[..., 0, :]
            for query, key in zip(taps.queries, taps.keys, strict=True)
        ]
        return [score.softmax(dim=-1)[..., 1:].mean(dim=-2) for score in scores]


def blocks_of(tower: nn.Module) -> nn.ModuleList:
    """The list of a tower's layers: towers call it layers, blocks or layer, and the longest list is the one meant."""
    return max((part for part in tower.modules() if isinstance(part, nn.ModuleList)), key=len)


@contextmanager
def tapped(blocks: nn.ModuleList, layers: Sequence[int]) -> Iterator[dict[int, dict[str, Tensor]]]:
    """Record what layers of a tower make while it runs.

    Args:
        blocks: the layers.
        layers: places in them, negative from the end.

    Yields:
        Place, as asked for -> "output" and, where there are such linear layers, `QUERIES` and `KEYS`, or `BOTH`; filled
        by the forward. The hooks are gone afterwards.

    Raises:
        RequestError: a place outside the list.
    """
    outside = [layer for layer in layers if not -len(blocks) <= layer < len(blocks)]
    if outside:
        raise RequestError(
            f"Layers {outside} of a tower with {len(blocks)} layers",
            f"Places go from 0 to {len(blocks) - 1}, or from -{len(blocks)} to -1",
            "Name layers that are there",
        )
    taps: dict[int, dict[str, Tensor]] = {layer: {} for layer in layers}

    def record(layer: int, name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            taps[layer][name] = output if isinstance(output, Tensor) else output[0]

        return hook

    handles = []
    for layer in layers:
        handles.append(blocks[layer].register_forward_hook(record(layer, "output")))
        for path, module in blocks[layer].named_modules():
            name = path.rpartition(".")[2]
            if name in (QUERIES, KEYS, BOTH):
                handles.append(module.register_forward_hook(record(layer, name)))
    try:
        yield taps
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def read_by(module: nn.Module) -> Iterator[list[Tensor]]:
    """Record what a module reads, one entry a call."""
    inputs: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _module, arguments: inputs.append(arguments[0]))
    try:
        yield inputs
    finally:
        handle.remove()
