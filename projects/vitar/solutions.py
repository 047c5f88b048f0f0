"""Solutions to `exercises.py`. Try first: each takes less than fifteen lines."""

import statistics
from collections.abc import Sequence

import numpy as np
from PIL import Image

from lightbox.paper.image_regions import marked, view
from lightbox.paper.image_tools import MARK_PX
from lightbox.records import Box
from vitar.rewards import VARIANTS, Result, reward, terms_of


def earned(turns: Sequence[str], truth: str) -> float:
    """Exercise 1. A box in the wrong place costs nothing, nor does a second one in the place of an answer."""
    total = 0.0
    for turn in turns:
        if turn == "error":
            continue
        total += 0.2
        if turn != "box":
            plain = (text.replace(" ", "").replace("_", "").lower() for text in (turn, truth))
            return total + 1.0 * (len(set(plain)) == 1)
    return total


def advantages(rewards: Sequence[float], group: int) -> list[float]:
    """Exercise 2. A mean of equal numbers may differ from them by rounding, and a deviation near 0 blows that up."""
    leads = []
    for start in range(0, len(rewards), group):
        own = rewards[start : start + group]
        mean, spread = statistics.fmean(own), statistics.stdev(own)
        leads += [0.0 if min(own) == max(own) else (value - mean) / (spread + 1e-6) for value in own]
    return leads


def enrichment(attention: np.ndarray, coverage: np.ndarray) -> float:
    """Exercise 3. Without the second division large findings would be looked at most, whoever looks."""
    return float((attention * coverage).sum() / attention.sum() / coverage.mean())


def paid_for_overlap(result: Result, least: float) -> float:
    """Exercise 4. It needs true boxes in training, which answers alone do not; where none is known, no act pays."""
    terms = terms_of(result)
    if terms["iou"] < least:
        terms["act"] = 0.0
    return reward(terms, VARIANTS["A"]).total


def mirrored_mark(image: Image.Image, box: Box, view_px: int) -> Image.Image:
    """Exercise 5. As right with it: then the mark only says that something is there, and the place is not read."""
    other = Box(1 - box.x1, box.y0, 1 - box.x0, box.y1)
    return marked(view(image, view_px), [other], line_px=MARK_PX)


def taught_to_act(group: int) -> list[Result]:
    """Exercise 6. The rate of acts rises because acts are paid for; it does not say that they help."""
    far, true = (Box(0.8, 0.8, 0.9, 0.9),), (Box(0.1, 0.1, 0.2, 0.2),)
    boxes = [far if place % 2 else () for place in range(group)]
    return [Result(len(own), own, False, "oval", "disc", true) for own in boxes]
