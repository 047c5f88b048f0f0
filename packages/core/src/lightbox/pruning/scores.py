"""How much a tower looks at each patch, from queries and keys, whatever computes its attention.

Float32 throughout: in bf16 a top-k cut falls into a tie half of the time, and devices then disagree.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lightbox.kernels.attn_colmean.op import attn_colmean
from lightbox.kernels.few_query_scores.op import few_query_scores
from lightbox.pruning.types import offsets


@torch.no_grad()
def class_attention(query: Float[Tensor, "n k s e"], key: Float[Tensor, "n k s e"]) -> Float[Tensor, "n p"]:
    """How much the first token looks at each of the others, mean over heads.

    The softmax runs over all keys, the class token's own included, so a row sums to less than 1 (FasterVLM,
    arXiv 2412.01818).
    """
    return few_query_scores(query[:, :, :1], key, scale=query.shape[-1] ** -0.5, key_range=(1, key.shape[2]))


@torch.no_grad()
def mean_attention(
    query: Float[Tensor, "T k e"], key: Float[Tensor, "T k e"], counts: Sequence[int], *, query_stride: int = 1
) -> Float[Tensor, " T"]:
    """How much all tokens of an image look at each one, mean over heads and queries: column means of attention.

    For towers without a class token (VScan, arXiv 2505.22654).

    Args:
        query, key: after any rotation, images one after the other.
        counts: tokens of each image.
        query_stride: reads every so many queries; an estimate at that fraction of the cost.
    """
    cu = offsets(counts).to(query.device)
    return attn_colmean(query, key, cu, scale=query.shape[-1] ** -0.5, query_stride=query_stride)
