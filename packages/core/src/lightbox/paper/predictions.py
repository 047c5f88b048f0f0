"""What a run wrote, unchanged: `predictions.jsonl`, one line an item and condition, for rival scoring rules. No torch.

`lightbox.eval.predictions` reads it, as it reads the file of any other program.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightbox.files import replace_text
from lightbox.paper.samples import Sample
from lightbox.records import Question
from lightbox.runs import folders


@dataclass(frozen=True, slots=True)
class Written:
    """A question with its reference answer, the condition it was asked under, and the whole generated text."""

    sample: Sample[Question]
    condition: str
    text: str


def write_predictions(folder: Path, texts: Sequence[Written]) -> None:
    """Write the texts of a run in the order given; a run that gives no answers writes no file."""
    lines = [json.dumps(_row(written)) + "\n" for written in texts]
    if lines:
        replace_text(folder / folders.PREDICTIONS, "".join(lines))


def _row(written: Written) -> dict[str, object]:
    question = written.sample.record
    return {
        "id": written.sample.id,
        "condition": written.condition,
        "question": question.text,
        "options": list(question.options),
        "answer": question.answer,
        "answer_index": question.answer_index,
        "prediction": written.text,
    }
