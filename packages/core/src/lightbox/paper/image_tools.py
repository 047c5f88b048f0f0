"""What an action does to an image: a pure function (image, actions) -> observation, by numpy and PIL. No torch.

Boxes are fractions of the image in here and become pixels only where `image_regions` draws, and were pixels only where
a reply is read. ViTAR's code draws on the original what a policy wrote of the resized image. What cannot be done is no
exception but a failure with a name.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from lightbox.backbones.conversation import EIGHT_BIT_MODES
from lightbox.errors import RequestError
from lightbox.paper.image_regions import box_elsewhere, box_fault, cropped, is_grey, marked, view, view_size, windowed
from lightbox.records import Box

TOOLS = ("mark", "crop", "window")
MARK_PX = 3  # red, as in visual_toolcrop.py, where it is white on grey images
MOST_BOXES = 4
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
"""Why an observation has no image; `replies` adds what a parser refuses."""


@dataclass(frozen=True)
class Action:
    """One use of a tool of `TOOLS`, on 1 to `MOST_BOXES` boxes to mark, or on one to crop or window.

    `window` is level in [0, 1] and width in (0, 1], as fractions of the grey range; other tools leave it alone.
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
                f"{self}",
                f"Tools are '', same, {', '.join(TOOLS)}; boxes own, random, true; sizes and counts at least 1",
                "Correct the feedback",
            )


@dataclass(frozen=True)
class Observation:
    """What came of a turn: one RGB image an action, the boxes shown in them, or a key of `FAILURES` and neither."""

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
    images, shown = [], list[Box]()
    for place, action in enumerate(actions):
        tool, boxes = feedback.tool or action.tool, action.boxes
        if feedback.boxes == "true":
            boxes = tuple(true_boxes[: MOST_BOXES if tool == "mark" else 1])
        if feedback.boxes == "random":
            rng = np.random.default_rng([seed, place])
            boxes = tuple(box_elsewhere(box, image, [*action.boxes, *true_boxes], rng) for box in boxes)
        if tool in ("crop", "window"):
            source = windowed(image, action.window) if tool == "window" else image
            images.append(cropped(source, boxes[0], view_size(image.size, feedback.view_px)))
        else:
            seen = view(image, feedback.view_px)
            images.append(marked(seen, boxes, line_px=MARK_PX) if tool == "mark" else seen)
        shown += boxes
    return Observation(tuple(images), tuple(shown))


def _refusal(image: Image.Image, actions: Sequence[Action], feedback: Feedback, true_boxes: Sequence[Box]) -> str:
    """The first failure of a turn; "" where all of it can be done."""
    if not 0 < len(actions) <= feedback.most_actions:
        return "too_many_actions" if actions else "no_action"
    if image.mode not in EIGHT_BIT_MODES:
        return "not_8_bit"
    if feedback.boxes == "true" and not true_boxes:
        return "no_true_box"
    return next((failure for action in actions if (failure := _action_failure(image, action, feedback))), "")


def _action_failure(image: Image.Image, action: Action, feedback: Feedback) -> str:
    tool, (level, width) = feedback.tool or action.tool, action.window
    is_wrong = {  # in this order; later ones may read what earlier ones have checked
        "unknown_tool": lambda: action.tool not in TOOLS,
        "bad_arity": lambda: not 1 <= len(action.boxes) <= (1 if tool in ("crop", "window") else MOST_BOXES),
        "outside": lambda: any(box_fault(box) == "outside" for box in action.boxes),
        "inverted": lambda: any(box_fault(box) == "inverted" for box in action.boxes),
        "bad_window": lambda: tool == "window" and not (0 <= level <= 1 and 0 < width <= 1),
        "not_grey": lambda: tool == "window" and not is_grey(image),
        "image_too_small": lambda: tool == "mark" and min(view_size(image.size, feedback.view_px)) <= 2 * MARK_PX,
    }
    return next((failure for failure, is_met in is_wrong.items() if is_met()), "")
