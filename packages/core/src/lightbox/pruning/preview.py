"""What budgets would keep of images, before any prompt is read: for looking at a method and for counting lesions."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool
from torch import Tensor

from lightbox.errors import RequestError
from lightbox.pruning import measure
from lightbox.pruning.measure import Report
from lightbox.pruning.methods.table import BEFORE
from lightbox.pruning.options import checked
from lightbox.pruning.pipeline import Pruning, prune
from lightbox.pruning.selecting import choose
from lightbox.pruning.types import ImageInputs


@torch.no_grad()
def preview(model: Any, method: str, inputs: ImageInputs, *, budgets: Sequence[float], **settings: Any) -> list[Report]:
    """Choose under several budgets after one run of the tower, without the language model.

    The choice is that of `prune` for prompts of one image each.

    Args:
        model: as `prune` takes it.
        method: one that chooses before the language model.
        inputs: of the model's `get_image_features`, as `Backbone.read_images` gives them.
        budgets: each as `prune` takes it.
        settings: of the method; see `options.Options`.

    Returns:
        A report for each budget, in their order: what is kept of each image, and nothing about time.

    Raises:
        RequestError: no budget, a method that chooses inside the language model, and as `prune`.
    """
    if not budgets:
        raise RequestError("budgets is empty", "Nothing would be chosen", "Give one or more, for example [0.1, 0.2]")
    requests = [checked(method, budget, "keep", BEFORE, "pruned", settings) for budget in budgets]
    handle = prune(model, method, budgets[0], **settings)
    assert isinstance(handle, Pruning), "methods inside the language model were refused above"
    with handle:
        output = handle.base.get_image_features(**inputs, return_dict=True)
        features, records = handle.records.of(output.pooler_output)
    alone = [[image] for image in range(len(features))]
    return [measure.report(request, choose(request, features, records, alone), {}) for request in requests]


def tokens_on(kept: Bool[Tensor, "h w"], mask: Bool[Tensor, "y x"]) -> int:
    """Count the kept tokens that show a region: those whose patch holds a pixel of it.

    Args:
        kept: True where the token of a patch stayed, as in `Report.kept`.
        mask: True where the region is, at the resolution that the tower reads, whole patches high and wide.

    Raises:
        RequestError: a mask that is not made of whole patches.

    Example:
        >>> mask = torch.zeros(4, 4, dtype=torch.bool)
        >>> mask[0, 1:3] = True
        >>> tokens_on(torch.tensor([[True, False], [True, True]]), mask)
        1
    """
    height, width = kept.shape
    if mask.ndim != 2 or mask.shape[0] % height or mask.shape[1] % width:
        raise RequestError(
            f"A mask of shape {tuple(mask.shape)} over {height} x {width} patches",
            "A patch is a whole number of pixels high and wide",
            "Give the mask at the resolution that the tower reads",
        )
    patch = (mask.shape[0] // height, mask.shape[1] // width)
    shows = F.max_pool2d(mask[None].float(), patch)[0] > 0
    return int((shows & kept).sum())
