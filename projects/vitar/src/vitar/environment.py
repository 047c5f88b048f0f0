"""What an action does to an image: a pure function (image, actions) -> observation, by numpy and PIL. No torch.

Boxes are fractions of the image, xyxy, half-open (`lightbox.records.Box`), everywhere but at the two edges: `to_px`
where pixels are drawn or cut, `from_px` where a policy wrote pixels. So a box means the same on the full-resolution
original and on the smaller view that the policy sees; in ViTAR's code these two frames are mixed up.

What an action cannot do is no exception but a failure with a name, see `FAILURES`, so that no policy stops a run.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from lightbox.backbones.conversation import EIGHT_BIT_MODES
from lightbox.errors import RequestError
from lightbox.records import Box, box_iou

TOOLS = ("mark", "crop", "window")
MARK_PX, RED = 3, (255, 0, 0)  # the outline of visual_toolcrop.py; there it is white on grey images
MOST_BOXES = 4
DRAWS = 64
SLACK_PX = 1e-6  # k / w * w may be a little more or less than k
FAILURES = {
    "no_action": "an empty list of actions",
    "too_many_actions": "more actions than a turn may hold",
    "unknown_tool": "a tool that is not there",
    "bad_arity": "no box, more boxes than the tool takes, or not four numbers a box",
    "inverted": "a box whose end does not lie behind its beginning",
    "outside": "a box that leaves the image, or a coordinate that is no finite number",
    "bad_window": "a level outside [0, 1], or a width outside (0, 1]",
    "not_grey": "window and level of a colour image",
    "not_8_bit": "an image whose values are wider than 8 bit",
    "image_too_small": "an image in which the outline of a mark has no inside",
    "no_true_box": "a true box asked for where there is none",
}
"""Why an observation has no image; parsers in `actions` add their own."""


@dataclass(frozen=True)
class Action:
    """One use of a tool.

    Args:
        tool: one of `TOOLS`.
        boxes: at most `MOST_BOXES` to mark; exactly one to crop or window.
        window: level in [0, 1] and width in (0, 1] as fractions of the grey range; other tools leave it alone.
    """

    tool: str
    boxes: tuple[Box, ...]
    window: tuple[float, float] = (0.5, 1.0)


@dataclass(frozen=True)
class Task:
    """What an episode is about: an image, a question and its true answer, and where the finding asked about lies."""

    image: Image.Image
    question: str
    answer: str
    true_boxes: tuple[Box, ...] = ()


@dataclass(frozen=True)
class Feedback:
    """What a policy is shown for its actions: what it asked for, or a control.

    Args:
        tool: "" does what was asked; "mark", "crop" or "window" does this instead, "same" shows the image unchanged.
        boxes: "own"; "random" puts boxes of equal size elsewhere; "true" takes the true ones, the oracle.
        view_px: longer side of every image shown, in pixels; None keeps the original's.
        most_actions: of a turn, >= 1; ViTAR's code reads the first one only.

    Raises:
        RequestError: a value that is none of these.
    """

    tool: str = ""
    boxes: str = "own"
    view_px: int | None = None
    most_actions: int = 1

    def __post_init__(self) -> None:
        is_known = self.tool in ("", "same", *TOOLS) and self.boxes in ("own", "random", "true")
        if not is_known or self.most_actions < 1 or (self.view_px is not None and self.view_px < 1):
            raise RequestError(
                f"Feedback of tool '{self.tool}', boxes '{self.boxes}', view_px {self.view_px}, {self.most_actions} "
                "actions",
                f"Tools are '', same, {', '.join(TOOLS)}; boxes own, random, true; sizes and counts at least 1",
                "Correct the feedback",
            )


@dataclass(frozen=True)
class Observation:
    """What came of a turn's actions.

    Args:
        images: RGB, one an action, all of the size of `view`; empty after a failure.
        boxes: that were marked or cut out, as the control changed them.
        failure: a key of `FAILURES`; "" where all was done.
    """

    images: tuple[Image.Image, ...] = ()
    boxes: tuple[Box, ...] = ()
    failure: str = ""


def observe(
    image: Image.Image,
    actions: Sequence[Action],
    feedback: Feedback = Feedback(),
    *,
    true_boxes: Sequence[Box] = (),
    seed: int = 0,
) -> Observation:
    """Carry out the actions of one turn, or none of them.

    Args:
        image: the full-resolution original, grey or colour; it is not changed.
        actions: of the policy.
        feedback: what is shown for them.
        true_boxes: for the oracle, and for random boxes to stay away from.
        seed: of random boxes, >= 0.
    """
    failure = _refusal(image, actions, feedback, true_boxes)
    if failure:
        return Observation(failure=failure)
    images: list[Image.Image] = []
    shown: list[Box] = []
    for place, action in enumerate(actions):
        tool, boxes = feedback.tool or action.tool, action.boxes
        if feedback.boxes == "true":
            boxes = tuple(true_boxes[: MOST_BOXES if tool == "mark" else 1])
        if feedback.boxes == "random":
            rng = np.random.default_rng([seed, place])
            boxes = tuple(_elsewhere(box, image, [*action.boxes, *true_boxes], rng) for box in boxes)
        if tool == "mark":
            images.append(_marked(view(image, feedback.view_px), boxes))
        else:
            whole = _windowed(image, action.window) if tool == "window" else image
            size = view(image, feedback.view_px).size
            images.append(_cropped(whole, boxes[0], size) if tool != "same" else view(image, feedback.view_px))
        shown += boxes
    return Observation(tuple(images), tuple(shown))


def view(image: Image.Image, view_px: int | None = None) -> Image.Image:
    """An image as a policy sees it: RGB, whatever it was, its longer side `view_px` pixels long."""
    if view_px is None:
        return image.convert("RGB")
    scale = view_px / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def box_failure(box: Sequence[float]) -> str:
    """Why four fractions are no box of an image, a key of `FAILURES`; "" where they are one.

    Example:
        >>> box_failure((0.0, 0.0, 1.0, 1.0)), box_failure((0.5, 0.0, 0.5, 1.0)), box_failure((0.0, 0.0, 1.1, 1.0))
        ('', 'inverted', 'outside')
    """
    x0, y0, x1, y1 = box
    if not all(0 <= value <= 1 for value in box):  # NaN is not
        return "outside"
    return "" if x0 < x1 and y0 < y1 else "inverted"


def to_px(box: Sequence[float], size_px: tuple[int, int]) -> tuple[int, int, int, int]:
    """The pixels that a box touches, half-open; at least one.

    Args:
        box: fractions with x0 < x1 and y0 < y1.
        size_px: width and height.

    Example:
        >>> to_px((0.0, 0.25, 1.0, 0.26), (8, 8))
        (0, 2, 8, 3)
    """
    ends = [value * side for value, side in zip(box, (*size_px, *size_px), strict=True)]
    x0, y0 = (math.floor(end + SLACK_PX) for end in ends[:2])
    x1, y1 = (math.ceil(end - SLACK_PX) for end in ends[2:])
    x0, y0 = min(x0, size_px[0] - 1), min(y0, size_px[1] - 1)
    return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)


def from_px(box_px: Sequence[float], size_px: tuple[int, int]) -> Box:
    """A box in pixels as fractions of an image of `size_px`; not checked, see `box_failure`."""
    return Box(*(end / side for end, side in zip(box_px, (*size_px, *size_px), strict=True)))


def _refusal(image: Image.Image, actions: Sequence[Action], feedback: Feedback, true_boxes: Sequence[Box]) -> str:
    """The first failure of a turn; "" where all of it can be done."""
    if not 0 < len(actions) <= feedback.most_actions:
        return "too_many_actions" if actions else "no_action"
    if image.mode not in EIGHT_BIT_MODES:
        return "not_8_bit"
    if feedback.boxes == "true" and not true_boxes:
        return "no_true_box"
    for action in actions:
        failure = _action_failure(image, action, feedback)
        if failure:
            return failure
    return ""


def _action_failure(image: Image.Image, action: Action, feedback: Feedback) -> str:
    tool = feedback.tool or action.tool
    if action.tool not in TOOLS:
        return "unknown_tool"
    if not 1 <= len(action.boxes) <= (1 if tool in ("crop", "window") else MOST_BOXES):
        return "bad_arity"
    failures = [failure for box in action.boxes if (failure := box_failure(box))]
    if failures:
        return failures[0]
    level, width = action.window
    if tool == "window" and not (0 <= level <= 1 and 0 < width <= 1):
        return "bad_window"
    if tool == "window" and not _is_grey(image):
        return "not_grey"
    if tool == "mark" and min(view(image, feedback.view_px).size) <= 2 * MARK_PX:
        return "image_too_small"
    return ""


def _is_grey(image: Image.Image) -> bool:
    """True also where three channels say the same."""
    red, green, blue = (np.asarray(channel) for channel in image.convert("RGB").split())
    return bool((red == green).all() and (green == blue).all())


def _marked(shown: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """An RGB image with outlines drawn around boxes, so that they hide nothing; inside for a box of the whole image."""
    is_outline = np.zeros(shown.size[::-1], dtype=bool)
    for box in boxes:
        x0, y0, x1, y1 = to_px(box, shown.size)
        if (x0, y0, x1, y1) == (0, 0, *shown.size):  # drawn outside, its mark would not be seen
            x0, y0, x1, y1 = MARK_PX, MARK_PX, x1 - MARK_PX, y1 - MARK_PX
        ring = np.zeros_like(is_outline)
        ring[max(y0 - MARK_PX, 0) : y1 + MARK_PX, max(x0 - MARK_PX, 0) : x1 + MARK_PX] = True
        ring[y0:y1, x0:x1] = False
        is_outline |= ring
    return Image.fromarray(np.where(is_outline[..., None], np.uint8(RED), np.asarray(shown)))


def _cropped(image: Image.Image, box: Box, size_px: tuple[int, int]) -> Image.Image:
    """A box cut from the original and resized; first widened to the original's shape, so that nothing is distorted."""
    x0, y0, x1, y1 = to_px(box, image.size)
    share = max((x1 - x0) / image.width, (y1 - y0) / image.height)
    width, height = image.width * share, image.height * share
    left = min(max((x0 + x1 - width) / 2, 0), image.width - width)
    top = min(max((y0 + y1 - height) / 2, 0), image.height - height)
    edges = (left, top, min(left + width, image.width), min(top + height, image.height))
    return image.convert("RGB").resize(size_px, Image.Resampling.BICUBIC, box=edges)


def _windowed(image: Image.Image, window: tuple[float, float]) -> Image.Image:
    """Grey values from level - width / 2 to level + width / 2 spread over the whole range, others cut."""
    level, width = window
    grey = np.asarray(image.convert("L"), dtype=np.float64) / 255
    return Image.fromarray((np.clip((grey - level) / width + 0.5, 0, 1) * 255).round().astype(np.uint8))


def _elsewhere(box: Box, image: Image.Image, avoided: Sequence[Box], rng: np.random.Generator) -> Box:
    """A box of as many pixels each way that meets `avoided` as little as any of `DRAWS` draws."""
    x0, y0, x1, y1 = to_px(box, image.size)
    lefts = rng.integers(0, image.width - (x1 - x0) + 1, DRAWS).tolist()
    tops = rng.integers(0, image.height - (y1 - y0) + 1, DRAWS).tolist()
    drawn = [
        from_px((left, top, left + x1 - x0, top + y1 - y0), image.size) for left, top in zip(lefts, tops, strict=True)
    ]
    return min(drawn, key=lambda one: max(box_iou(one, other) for other in avoided))
