"""Where in an image attention goes, token by token; `attention_mass` is how much of it goes to a region."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightbox.errors import RequestError


def attention_map(
    attention: Float[Tensor, "l h t t"],
    queries: Bool[Tensor, " t"],
    places: Int[Tensor, " m"],
    grid: tuple[int, int],
) -> Float[Tensor, "y x"]:
    """What each token of an image gets of the attention to that image, by an even share: its mean is 1.

    Each query's attention to the image is a share of its own, also where it hardly looks there; means are over heads,
    queries, and the later half of the layers. So the mean of this map over a region, by how much of each token lies
    inside, is the enrichment that `AttentionMass.late` gives.

    Args:
        attention: of a causal model, rows sum to 1.
        queries: True at the tokens whose attention is read, all behind the image.
        places: of the image's tokens.
        grid: rows and columns of the image's tokens, row by row.

    Raises:
        RequestError: no query, or another number of tokens than the grid has.

    Example:
        >>> import torch
        >>> even = torch.tril(torch.ones(1, 1, 5, 5)) / torch.arange(1, 6)[:, None]
        >>> last = torch.tensor([False, False, False, False, True])
        >>> attention_map(even, last, torch.arange(4), (2, 2)).tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """
    rows = queries.nonzero()[:, 0]
    if not len(rows) or not len(places) or grid[0] * grid[1] != len(places):
        raise RequestError(
            f"{len(rows)} queries, {len(places)} tokens of an image of {grid[0]} x {grid[1]}",
            "A map has one number a token of the image, read at tokens behind it",
            "Name queries behind the image, and the rows and columns of its tokens",
        )
    late = attention[attention.shape[0] // 2 :, :, rows][..., places].double()  # l h q m
    total = late.sum(dim=-1, keepdim=True)
    # a query that gives the image nothing counts as looking anywhere, as in `attention_mass`
    shares = torch.where(total > 1e-12, late / total.clamp(min=1e-12), 1 / len(places))
    return (shares.mean(dim=(0, 1, 2)) * len(places)).float().reshape(grid)
