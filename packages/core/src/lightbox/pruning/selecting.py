"""From features and records to what stays: what a method is given, and what its choice means for all tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightbox.pruning.options import Request
from lightbox.pruning.records import ImageRecord
from lightbox.pruning.types import Selection, TokenGrid, VisualBatch, offsets


@dataclass(frozen=True)
class Choice:
    """What stays of the images of a call.

    Args:
        features: K d, of kept tokens, image after image.
        kept_counts: of each image.
        dropped: of each image.
        is_kept: T, over all tokens of all images.
        grids: of each image.
        selection: of the method, over patches of distinct images.
    """

    features: Float[Tensor, "K d"]
    kept_counts: list[int]
    dropped: list[int]
    is_kept: Bool[Tensor, " T"]
    grids: list[TokenGrid]
    selection: Selection


def choose(
    request: Request, features: Sequence[Tensor], records: Sequence[ImageRecord], rows: Sequence[Sequence[int]]
) -> Choice:
    """Let a method choose among the patches of each image.

    Tokens without a patch (newlines of LLaVA-NeXT, a class token) stay only where a budget leaves room for them behind
    all patches: HiRED drops newlines, and a budget of 100 % must drop nothing.

    Args:
        request: with method and budget.
        features: p d of each image, as the language model would read them; images may repeat.
        records: of each image.
        rows: which images each row shows; a row is a group, for methods that look from slice to slice.
    """
    # a row that is sampled several times is chosen from once
    groups: dict[tuple[int, ...], list[int]] = {}
    for row in rows:
        groups.setdefault(tuple(id(records[image]) for image in row), list(row))
    distinct = [image for row in groups.values() for image in row]
    device = features[0].device if features else torch.device("cpu")
    places = [records[image].grid.patches.to(device) for image in distinct]
    sizes = [len(own) for own in places]
    budgets = [request.budget.of(len(features[image])) for image in distinct]
    counts = [min(budget, size) for budget, size in zip(budgets, sizes, strict=True)]
    batch = _batch([features[i][own] for i, own in zip(distinct, places, strict=True)], [records[i] for i in distinct])
    batch = VisualBatch(**{**batch, "groups": _numbered(list(groups.values()))})
    select = request.method.select
    assert select is not None, "methods inside the language model do not come here"
    selection = select(batch, counts, request.options)
    merged = batch.x[selection.idx] if selection.merged is None else selection.merged
    of_key: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
    pieces = list(zip(selection.idx.split(list(selection.counts)), merged.split(list(selection.counts)), strict=True))
    starts = offsets(sizes).tolist()
    number = 0
    for key, row in groups.items():
        of_key[key] = []
        for image in row:
            patch_idx, rows_kept = pieces[number]
            kept = places[number][patch_idx - starts[number]]
            spare = budgets[number] - counts[number]
            if spare:
                others = (~records[image].grid.is_patch).nonzero().flatten()[:spare].to(device)
                kept, order = torch.cat([kept, others]).sort()
                rows_kept = torch.cat([rows_kept, features[image][others]])[order]
            of_key[key].append((kept, rows_kept))
            number += 1
    kept_places: list[Tensor] = []
    kept_features: list[Tensor] = []
    for row in rows:
        for kept, own in of_key[tuple(id(records[image]) for image in row)]:
            kept_places.append(kept)
            kept_features.append(own)
    lengths = [len(image) for image in features]
    flat = torch.cat([own + start for own, start in zip(kept_places, offsets(lengths).tolist()[:-1], strict=True)])
    kept_counts = [len(own) for own in kept_places]
    return Choice(
        features=torch.cat(kept_features),
        kept_counts=kept_counts,
        dropped=[length - kept for length, kept in zip(lengths, kept_counts, strict=True)],
        is_kept=torch.zeros(sum(lengths), dtype=torch.bool, device=device).index_fill_(0, flat, True),
        grids=[record.grid for record in records],
        selection=selection,
    )


def _batch(patches: list[Tensor], records: list[ImageRecord]) -> dict[str, object]:
    """Fields of a `VisualBatch` but its groups."""
    device = patches[0].device
    batch: dict[str, object] = {
        "x": torch.cat(patches),
        "counts": [len(own) for own in patches],
        "grids": [record.grid.shown for record in records],
        "keys": torch.stack([record.key for record in records]),
        "regions": None if records[0].regions is None else [record.regions for record in records],
    }
    for name in ("attention", "early_attention", "metric", "finding", "relevance"):
        if getattr(records[0], name) is not None:
            batch[name] = torch.cat([getattr(record, name).to(device) for record in records])
    return batch


def _numbered(groups: list[list[int]]) -> list[list[int]]:
    """The groups' sizes as places in the order in which their images were listed."""
    starts = offsets([len(row) for row in groups]).tolist()
    return [list(range(start, end)) for start, end in zip(starts[:-1], starts[1:], strict=True)]
