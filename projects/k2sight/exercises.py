"""Three exercises on K2Sight: recall, modify, break. Fill in the functions; `solutions.py` is beside this file.

Check your work from the checkout, in under a minute:

    uv run pytest tests/k2sight/test_exercises.py -k untouched_or_right

A function that still raises NotImplementedError counts as untouched; any other must be right. None trains a model.
"""

from collections.abc import Sequence

from k2sight.data import Target
from k2sight.descriptions import Classes
from lightbox.paper.samples import Sample
from lightbox.records import Box


def write_boxes(name: str, boxes: Sequence[Box], *, n_bins: int) -> str:
    """Recall: what does Florence-2 have to write for all boxes of a class?

    Write it by hand, without `k2sight.prompts` and without the codec. Boxes go from top to bottom, each behind its
    name; a coordinate is the token of its bin, and one at the far edge of the image takes the last bin.

    Args:
        name: of the class.
        boxes: `xyxy`, fractions of the image, in any order; none where the finding is absent.
        n_bins: each way.

    Returns:
        One line of text, such as "zexa<loc_1><loc_2><loc_3><loc_4>"; empty without boxes.
    """
    raise NotImplementedError("exercise 1")


def with_wrong_shape(samples: Sequence[Sample[Target]], classes: Classes, *, seed: int) -> list[Sample[Target]]:
    """Modify: a control for claim K4, beside the definition without its shape.

    Give each item a definition with a shape that is not its own, and leave density and location as they are. Is a wrong
    attribute worse than none? The words of a shape are those of any class that has it.

    Args:
        samples: with true definitions; they must not be changed.
        classes: what each name means, in words.
        seed: of the draws; equal seeds give equal results, other seeds other ones.

    Returns:
        New ones, in the order of `samples`, that differ in the definition only.
    """
    raise NotImplementedError("exercise 2")


def draw_blindly() -> list[Box]:
    """Break: get a high Acc@0.3 without looking at the image and without reading the prompt.

    The K2Sight authors' evaluation counts an item as found where any drawn box overlaps any true one by 0.3. Draw the
    same boxes for every item so that most are "found". What does `best_iou` say to that, and `paired_iou`?

    Returns:
        Boxes, `xyxy`, fractions of the image; at most 400.
    """
    raise NotImplementedError("exercise 3")
