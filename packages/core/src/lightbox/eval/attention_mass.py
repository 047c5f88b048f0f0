"""How much of a model's attention goes to an image, and how much of that to a region of it.

With a(l, h, q, k) what query q gives key k in head h of layer l, V the tokens of an image, w_k the fraction of token k
that lies inside a region, each for the queries of one text and averaged over heads and queries:

| measure | formula |
|---|---|
| allocation | A_l = mean over h, q of sum over V of a |
| per key | A_l (keys that q sees) / |V|: 1 is what attention spread evenly gives |
| in region | R_l = sum over V of w_k a / sum over V of a |
| enrichment | E_l = R_l / mean over V of w: 1 is chance |

The ViTAR paper compares what its model attends to before and after it looks again and gives no formula (its reviews ask
for one); these are ours. Attention is no explanation by itself: what is hidden must matter, too.
"""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightbox.errors import RequestError


@dataclass(frozen=True)
class AttentionMass:
    """The measures of the module, by layer."""

    allocation: Float[Tensor, " l"]
    per_key: Float[Tensor, " l"]
    in_region: Float[Tensor, " l"]
    enrichment: Float[Tensor, " l"]

    def late(self) -> dict[str, float]:
        """Means over the later half of the layers, by name."""
        layers = len(self.allocation)
        return {name: float(getattr(self, name)[layers // 2 :].mean()) for name in self.__dataclass_fields__}


def attention_mass(
    attention: Float[Tensor, "l h t t"],
    queries: Bool[Tensor, " t"],
    places: Int[Tensor, " m"],
    weights: Float[Tensor, " m"],
) -> AttentionMass:
    """Measure one image in one row.

    Args:
        attention: of a causal model, rows sum to 1.
        queries: True at the tokens whose attention is read, all behind the image.
        places: of the image's tokens.
        weights: fraction of each of them that lies inside the region, in [0, 1].

    Raises:
        RequestError: no query, no token of the image in front of a query, or a region that covers nothing.

    Example:
        >>> import torch
        >>> even = torch.tril(torch.ones(1, 1, 4, 4)) / torch.arange(1, 5)[:, None]
        >>> last = torch.tensor([False, False, False, True])
        >>> mass = attention_mass(even, last, torch.tensor([0, 1]), torch.tensor([1.0, 0.0]))
        >>> [round(float(value), 3) for value in (mass.allocation, mass.per_key, mass.in_region, mass.enrichment)]
        [0.5, 1.0, 0.5, 1.0]
    """
    rows = queries.nonzero()[:, 0]
    if not len(rows) or not len(places) or int(rows.min()) <= int(places.max()) or float(weights.sum()) <= 0:
        raise RequestError(
            f"{len(rows)} queries, {len(places)} tokens of an image, of which a region covers {float(weights.sum()):g}",
            "Attention to a region is read at tokens behind an image of which it covers something",
            "Name queries behind the image, and a region inside it",
        )
    seen = attention[:, :, rows][..., places].double()  # l h q m
    total = seen.sum(dim=-1)
    inside = (seen * weights.double()).sum(dim=-1)
    per_key = total * (rows + 1) / len(places)
    # a query that gives the image nothing has no share of it, and counts as looking anywhere
    chance = float(weights.double().mean())
    share = (inside / total.clamp(min=1e-12)).where(total > 1e-12, chance)
    means = [own.mean(dim=(1, 2)).float() for own in (total, per_key, share)]
    return AttentionMass(*means, enrichment=means[2] / chance)
