"""Six exercises on ViTAR: recall (three), modify (two), break. Fill in the functions; `solutions.py` is beside them.

Check your work from the checkout, in under a minute:

    uv run pytest tests/vitar/test_exercises.py -k untouched_or_right

A function that still raises NotImplementedError counts as untouched; any other must be right. None trains a model.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from lightbox.records import Box
from vitar.rewards import Result


def earned(turns: Sequence[str], truth: str) -> float:
    """Recall: what does an episode earn by ViTAR's code? Write it by hand, without `vitar.rewards`.

    Each turn that could be carried out is paid for, an answer too, and the first right answer is paid for once more.
    Which mistakes cost nothing?

    Args:
        turns: in order; "box" for a box that was drawn, wherever it lies, "error" for what could not be read or drawn,
            anything else is an answer, and ends the episode.
        truth: the true answer.

    Returns:
        The return; at most 1.4 in two turns.
    """
    raise NotImplementedError("exercise 1")


def advantages(rewards: Sequence[float], group: int) -> list[float]:
    """Recall: how much better is each episode than its group? Write it by hand, without torch.

    The distance from the group's mean in sample standard deviations, with 1e-6 beside the deviation. Groups whose
    episodes all earn the same get exactly 0: why does the formula alone not do?

    Args:
        rewards: the episodes of a prompt stand in a row.
        group: episodes a prompt, >= 2; divides their number.

    Returns:
        One each, in order.
    """
    raise NotImplementedError("exercise 2")


def enrichment(attention: np.ndarray, coverage: np.ndarray) -> float:
    """Recall: how many times as much attention goes to a region as chance would give it?

    Attention that leaves the image for words counts for nothing here; only how it is spread inside the image does.

    Args:
        attention: (n,), of one query to each token of an image, >= 0, not all 0; it may sum to less than 1.
        coverage: (n,), fraction of each token that lies inside the region, in [0, 1], not all 0.

    Returns:
        1 where attention is spread evenly over the image.
    """
    raise NotImplementedError("exercise 3")


def paid_for_overlap(result: Result, least: float) -> float:
    """Modify: ViTAR's return, variant A, but a box is paid for only where it lies near the finding.

    What would a policy do that has learnt under A, and what under this? What if no true box is known? Use
    `vitar.rewards`; an episode whose boxes overlap the true ones by less than `least` gets nothing for any of its acts.

    Args:
        result: of an episode.
        least: overlap, in (0, 1].

    Returns:
        The return.
    """
    raise NotImplementedError("exercise 4")


def mirrored_mark(image: Image.Image, box: Box, view_px: int) -> Image.Image:
    """Modify: a control for claim V1, beside the random box: the mark at the mirrored place.

    Left and right look alike in a chest, so a mark there is as plausible as the policy's own. What would it mean if a
    policy that learnt from true places answered as well with it? Use `lightbox.paper.image_regions`.

    Args:
        image: the original.
        box: that the policy chose.
        view_px: longer side of what is shown.

    Returns:
        The view of the whole image with the mirrored box outlined as `observe` outlines, and nothing else changed.
    """
    raise NotImplementedError("exercise 5")


def taught_to_act(group: int) -> list[Result]:
    """Break: a group that teaches a policy to draw boxes, although none of them is near anything and nobody is right.

    By variant A, give episodes about one question, so that exactly those that drew a box have an advantage above 0.
    What does this say about an act rate that rises in training?

    Args:
        group: number of episodes, >= 2.

    Returns:
        One result an episode, all of the same truth and true boxes.
    """
    raise NotImplementedError("exercise 6")
