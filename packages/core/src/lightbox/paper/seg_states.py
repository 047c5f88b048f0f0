"""From a language model's states to masks: which state speaks for each `<SEG>`.

The state that predicts `<SEG>` is made a prompt of the segmenter, as in LISA and MedPLIB; the state at `<SEG>` itself
is the other choice. Image tokens stand in the ids as often as in the states, so positions need no offset.
"""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightbox.config import check_choice
from lightbox.errors import RequestError

STATES = ("predict", "self")


@dataclass(frozen=True)
class SegStates:
    """States of the n `<SEG>` of a batch, row by row, in order of the text.

    Args:
        states: with gradient.
        rows: of the batch, `image_of` of the segmenter where each row has one image; a row without `<SEG>` has no mask.
        places: of the `<SEG>` themselves, so that a mask can be tied to the words before it.
    """

    states: Float[Tensor, "n d"]
    rows: Int[Tensor, " n"]
    places: Int[Tensor, " n"]


def seg_states(
    hidden: Float[Tensor, "b t d"],
    ids: Int[Tensor, "b t"],
    seg_id: int,
    *,
    is_answer: Bool[Tensor, "b t"],
    state: str = "predict",
) -> SegStates:
    """Gather a state for every `<SEG>` that a model wrote, any number in a row, none included.

    Args:
        hidden: last states, one for each id.
        ids: of the whole sequences, padded on any side.
        seg_id: the id of `<SEG>`.
        is_answer: True for tokens of answers; a `<SEG>` in a question or a template asks for nothing.
        state: predict, the state before `<SEG>`; or self, the state at it.

    Raises:
        RequestError: states of other positions than the ids', or a `<SEG>` that begins a row, which nothing predicts.
    """
    check_choice("seg_state", state, STATES)
    if hidden.shape[:2] != ids.shape or is_answer.shape != ids.shape:
        raise RequestError(
            f"States of shape {tuple(hidden.shape)} for ids of {tuple(ids.shape)}, is_answer {tuple(is_answer.shape)}",
            "Each id has a state; image tokens stand in the ids too",
            "Give the ids as the processor expanded them",
        )
    rows, places = ((ids == seg_id) & is_answer).nonzero(as_tuple=True)
    before = places - 1 if state == "predict" else places
    if (before < 0).any():
        raise RequestError(
            f"Row {int(rows[before < 0][0])} begins with <SEG>",
            "The state that predicts it would be the one before, and there is none",
            "Begin with a prompt, or set seg_state=self",
        )
    return SegStates(hidden[rows, before], rows, places)
