"""Four exercises on visual-token pruning: recall, modify, repair, break. `solutions.py` is beside this file.

Fill in the functions. Check your work from the checkout, in under a minute:

    uv run pytest tests/core/pruning/test_pruning_exercises.py -k untouched_or_right

A function that still raises NotImplementedError counts as untouched; any other must be right. None loads a model.
"""

from collections.abc import Sequence

import torch


def keep_far(x: torch.Tensor, count: int) -> list[int]:
    """Recall: which tokens does DivPrune keep?

    Write it from its rule, without `lightbox.kernels`: the first token is the one farthest from its nearest neighbour,
    each next one the one farthest from its nearest kept token. Far is by cosine; the lowest place wins a tie.

    Args:
        x: float (p, d), features of one image; no row is zero.
        count: from 1 to p.

    Returns:
        Places of kept tokens, ascending.
    """
    raise NotImplementedError("exercise 1")


def keep_findings(finding: torch.Tensor, regions: Sequence[Sequence[int]], count: int) -> list[int]:
    """Modify: a top-k that loses no lesion.

    Top-k of a finding map gives one large lesion everything and a small one nothing. Change it so that every region
    keeps its best token, and only what is left of the budget goes to the highest values of the map. Fifteen lines of
    PyTorch are enough. `methods/lesion_safe.py` mixes an even grid in as well; leave that out.

    Args:
        finding: float (p,), in [0, 1]; the lowest place wins a tie.
        regions: for each region the places of the tokens that show it, its best one first; two may share a token. With
            more regions than tokens the first ones are kept.
        count: from 1 to p.

    Returns:
        Places of exactly `count` tokens, ascending.
    """
    raise NotImplementedError("exercise 2")


def positions_after(positions: torch.Tensor, stays: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Repair: where do tokens stand in a pruned prompt of Qwen2-VL, and the next one behind it?

    Qwen2-VL counts each token along time, row and column, and a picture's rows and columns begin where the text before
    it ended. For a new token it does not look back: it takes the number of tokens read so far plus a delta that it
    remembered from the prompt. Tokens that were pruned are not read, so the remembered delta is wrong, and every word
    of the answer slides into the picture. Leave kept tokens where they stood, and correct the delta.

    Args:
        positions: int64 (3, t), of the whole prompt; the last token is text and stays.
        stays: bool (t,), True for tokens that stay.

    Returns:
        Positions of the tokens that stay, (3, t'), and the delta with which the next token stands where it would stand
        behind the whole prompt.
    """
    raise NotImplementedError("exercise 3")


def usual_places(masks: Sequence[torch.Tensor], count: int) -> list[int]:
    """Break: keep nearly every lesion without looking at the image.

    "Share of lesions that keep a token" is what a policy is praised for. Choose the same patches for every image, from
    what you know of other images, so that nearly every lesion keeps one at a tenth of the tokens. What must stand
    beside such a share before it says anything about a policy?

    Args:
        masks: bool (192, 192), of the lesions of other images.
        count: patches to keep, of 24 x 24, row by row, each 8 pixels a side.

    Returns:
        Places of `count` patches, ascending.
    """
    raise NotImplementedError("exercise 4")
