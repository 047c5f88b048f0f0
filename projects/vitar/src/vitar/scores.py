"""Per-item scores: is the answer right, did the policy look, and where. No torch."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightbox.paper.samples import Sample
from vitar.data import Asked
from vitar.rewards import Result, terms_of

if TYPE_CHECKING:  # it imports torch, and baselines are scored without
    from vitar.rollout import Episode

ITEM_METRICS = (
    "correct",  # 1 where the final answer is the true one; an episode without an answer counts as wrong
    "parsed",  # 1 where there is a final answer
    "acted",  # 1 where a look was carried out
    "iou",  # overlap of the box that the policy wrote last with the true one, whatever it was shown; null in one pass
    "box_area",  # fraction of the image of that box, 0 without one; null in one pass
    "failures",  # turns that could not be read or carried out, and ends without an answer
    "look_first",  # attention to the true box while it acts, by chance; 1 without two looks, null where it was not read
    "look_again",  # the same to the same view while it answers
    "look_second",  # and to what it was shown
    "allocated_first",  # attention to the view while it acts, by that of evenly spread attention; likewise null
    "allocated_again",
    "allocated_second",
    "flipped",  # 1 where something was hidden and the answer is another one than usually; null elsewhere
    "diameter_px",  # geometric mean of the sides of the true box, in pixels of the view
)
SET_METRICS = ("parsed_correct",)
"""Of all items under a condition, on a row of its own whose kind is "set": share right among those with an answer, the
official code's other accuracy; 0 where no item has one."""
METRICS = ITEM_METRICS + SET_METRICS
SET = "set"
ScoreRow = dict[str, str | float | None]


def score(sample: Sample[Asked], condition: str, episode: "Episode", *, view_px: int) -> ScoreRow:
    """One row of the table."""
    result, can_look = episode.result, episode.feedback.tool != ""
    terms = terms_of(result)
    row = score_answer(sample, condition, result, view_px)
    return row | {
        "acted": float(result.acts > 0),
        "iou": terms["iou"] if can_look else None,
        "box_area": sum(box.area for box in result.boxes) if can_look else None,
        "failures": float(len(episode.failures)),
    }


def score_answer(sample: Sample[Asked], condition: str, result: Result, view_px: int) -> ScoreRow:
    """The part of a row that is about the answer; the whole of it where there was no episode."""
    terms, asked = terms_of(result), sample.record
    return _blank(sample.id, condition, asked.kind) | {
        "correct": terms["accuracy"],
        "parsed": terms["format"],
        "diameter_px": asked.diameter * view_px,
    }


def score_set(rows: Sequence[ScoreRow], condition: str) -> ScoreRow:
    """The row of all items of a condition."""
    right = [float(row["correct"]) for row in rows if row["parsed"]]
    return _blank(SET, condition, SET) | {"parsed_correct": sum(right) / len(right) if right else 0.0}


def tally(episodes: Sequence["Episode"]) -> dict[str, float]:
    """`act_rate`, the share of episodes in which a look was carried out, and how often each failure was met."""
    counts = Counter(name for episode in episodes for name in episode.failures)
    acted = sum(episode.result.acts > 0 for episode in episodes)
    return {"act_rate": acted / len(episodes)} | {name: float(count) for name, count in counts.items()}


def _blank(item: str, condition: str, kind: str) -> ScoreRow:
    return {"item": item, "condition": condition, "kind": kind, **dict.fromkeys(METRICS)}
