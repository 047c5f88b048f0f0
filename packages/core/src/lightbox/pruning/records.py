"""What is known of each image once its tower has run, found again by its features when the prompt is read.

A prompt may be read elsewhere than where its images are encoded: `generate` encodes first, and shared images are
encoded once and placed many times. So what a method needs is kept beside the features.
"""

from collections.abc import Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from lightbox.backbones import vision
from lightbox.errors import RequestError
from lightbox.pruning import regions
from lightbox.pruning.layouts import Layout, finding_on_grid
from lightbox.pruning.options import Options
from lightbox.pruning.types import ImageInputs, TokenGrid


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """What a method may ask of one image; see `VisualBatch` for the fields, which are those of this image."""

    grid: TokenGrid
    key: Tensor
    attention: Tensor | None = None
    early_attention: Tensor | None = None
    metric: Tensor | None = None
    finding: Tensor | None = None
    regions: list[list[int]] | None = None
    relevance: Tensor | None = None


class Records:
    """Records by the features that they belong to; forgotten with them."""

    def __init__(self) -> None:
        self._by_image = WeakTensorKeyDictionary()
        self._by_call = WeakTensorKeyDictionary()
        self._last: tuple[list[Tensor], list[ImageRecord]] = ([], [])

    def keep(self, output: Any, records: list[ImageRecord]) -> None:
        """Remember records beside what `get_image_features` returned."""
        features = output.pooler_output
        if isinstance(features, Tensor):
            # one tensor for all images (Gemma 3): whoever takes it apart makes new tensors, which are known by content
            self._by_call[features] = records
            self._last = (list(features.detach()), records)
            return
        output.pooler_output = list(features)
        for image, record in zip(output.pooler_output, records, strict=True):
            self._by_image[image] = record

    def of(self, features: Any) -> tuple[list[Float[Tensor, "p d"]], list[ImageRecord]]:
        """Features as one entry an image, and the record of each.

        Raises:
            RequestError: features of images that were encoded elsewhere.
        """
        if isinstance(features, Tensor):
            if features in self._by_call:
                return list(features), self._by_call[features]
            # two axes: joined anew from one image after the other, all of one length
            length = len(self._last[0][0]) if self._last[0] else len(features)
            images = list(features) if features.ndim == 3 else list(features.split(length))
        else:
            images = list(features)
        return images, [self._by_image[image] if image in self._by_image else self._like(image) for image in images]

    def _like(self, image: Tensor) -> ImageRecord:
        for known, record in zip(*self._last, strict=True):
            if known.shape == image.shape and torch.equal(known, image):
                return record
        raise RequestError(
            f"Image features of shape {tuple(image.shape)} that were not made in this block",
            "A method needs to know where tokens lie and how the tower looked at them",
            "Call get_image_features inside `with prune(...)`, or pass pixel_values",
        )


@torch.no_grad()
def make_records(
    layout: Layout, inputs: ImageInputs, needs: frozenset[str], options: Options, taps: dict[int, Any]
) -> list[ImageRecord]:
    """One record an image, after the tower has run.

    Args:
        layout: of the model's family.
        inputs: of `get_image_features`.
        needs: fields that the method reads.
        options: with the caller's maps.
        taps: by layer, what it made and the rotations that it got.

    Raises:
        RequestError: maps that are not one an image, or with other sizes or values than they may have.
    """
    grids, pixels = layout.grids(inputs), layout.pixels(inputs)
    columns: dict[str, Sequence[Any]] = {
        "grid": grids,
        # bits and not values: a sum of whole numbers is the same in any order
        "key": [own.contiguous().float().view(torch.int32).sum(dtype=torch.int64) for own in pixels],
    }
    scored = {layer: layout.layer_scores(tap, inputs, around) for layer, (tap, around) in taps.items()}
    if needs & {"attention", "metric"}:
        own = scored[layout.feature_layer(inputs)]
        columns |= {"attention": own.attention, "metric": own.metric}
    if "early_attention" in needs:
        columns["early_attention"] = scored[layout.early_layer()].attention
    if "finding" in needs:
        maps = _given("finding_map", options.finding_map, inputs, len(grids))
        for own in maps:
            regions.check_map(own)
        columns["finding"] = [finding_on_grid(own, grid) for own, grid in zip(maps, grids, strict=True)]
        columns["regions"] = [
            regions.tokens_of(own, grid.shown, options.threshold) for own, grid in zip(maps, grids, strict=True)
        ]
    if options.relevance is not None and "relevance" in needs:
        values = _given("relevance", options.relevance, inputs, len(grids))
        for own, grid in zip(values, grids, strict=True):
            if own.shape != (len(grid.patches),):
                raise RequestError(
                    f"relevance of shape {tuple(own.shape)} for an image of {len(grid.patches)} patches",
                    "Each patch has one value",
                    "Give a vector of one value a patch, row by row",
                )
        columns["relevance"] = [own.to(pixels[0].device) for own in values]
    names = list(columns)
    return [ImageRecord(**dict(zip(names, row, strict=True))) for row in zip(*columns.values(), strict=True)]


def layers_for(layout: Layout, needs: frozenset[str], inputs: ImageInputs) -> set[int]:
    """Layers of the tower that a method asks for, as places in its list."""
    wanted = set()
    if needs & {"attention", "metric"}:
        wanted.add(layout.feature_layer(inputs))
    if "early_attention" in needs:
        wanted.add(layout.early_layer())
    return wanted


@contextmanager
def taps_of(layout: Layout, layers: set[int]):
    """Record queries, keys and rotations of layers while the tower runs: layer -> (what it made, its rotations)."""
    if not layers:
        yield {}
        return
    around: dict[int, tuple[Tensor, ...]] = {}

    def record(layer: int) -> Any:
        def hook(_module: Any, _arguments: Any, settings: dict[str, Any]) -> None:
            around[layer] = settings.get("position_embeddings") or ()

        return hook

    with ExitStack() as stack:
        made = stack.enter_context(vision.tapped(layout.blocks, sorted(layers)))
        for layer in layers:
            handle = layout.blocks[layer].register_forward_pre_hook(record(layer), with_kwargs=True)
            stack.callback(handle.remove)
        taps: dict[int, Any] = {}
        yield taps
        taps |= {layer: (made[layer], around.get(layer, ())) for layer in layers}


def _given(name: str, make: Any, inputs: ImageInputs, n_images: int) -> list[Tensor]:
    """What the caller's function gives, one entry an image."""
    values = [torch.as_tensor(own) for own in make(inputs)]
    if len(values) != n_images:
        raise RequestError(
            f"{name} gave {len(values)} entries for {n_images} images", "Each image has its own", "Give one an image"
        )
    for own in values:
        if not bool(((own >= 0) & (own <= 1)).all()):
            raise RequestError(
                f"{name} gave values from {float(own.min()):.3g} to {float(own.max()):.3g}",
                "They are shares in [0, 1], and NaN is none",
                "Pass logits through a sigmoid first",
            )
    return values
