"""A file of predictions, one JSON object a line: read strictly, malformed lines named, the rest kept. No torch."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from lightbox.errors import RequestError
from lightbox.eval.conventions import Prediction
from lightbox.readers.documents import read_json_lines
from lightbox.readers.rows import Problem, RowError, as_row, choices_field, index_field, shown, text_field
from lightbox.records import Question


def read_predictions(path: Path, condition: str = "image") -> tuple[list[Prediction], list[Problem], Counter[str]]:
    """Read `id`, `question`, `options`, `answer`, `answer_index` and `prediction` of each line, and no other field.

    An open question has no `options` and no `answer_index`: absent, null, or an empty list. An empty `prediction` is an
    answer that failed and is kept; a missing one is malformed.

    Args:
        path: of the file.
        condition: which lines, where they name a `condition` as the file of a run does; lines
            without one, or with null, are read.

    Returns:
        Predictions in the order of the file, the malformed lines, and how many lines of other conditions were left out.

    Raises:
        RequestError: where the file cannot be read, or none of its lines.
    """
    predictions, problems, lines, others = [], [], {}, Counter()
    for number, value in read_json_lines(path):
        try:
            if isinstance(value, RowError):
                raise value
            row = as_row(value)
            named = row.get("condition")
            if named not in (None, condition):
                others[shown(named)] += 1
                continue
            prediction = _prediction(row)
            first = lines.setdefault(prediction.question.id, number)
            if first != number:  # it would count twice
                raise RowError("id", f"{shown(prediction.question.id)} stands on line {first} already")
            predictions.append(prediction)
        except RowError as err:
            problems.append(Problem(str(path), str(number), err.name, err.reason))
    if not predictions and others:
        raise RequestError(
            f"File '{path}' has no line of condition '{condition}'",
            f"Its lines are of {', '.join(others)}",
            "Name one of them with --condition",
        )
    if not predictions:
        raise RequestError(
            f"File '{path}' has no readable line",
            f"There is nothing to score. The first malformed one is {problems[0]}",
            "Write one object a line with id, question, options, answer, answer_index and prediction",
        )
    return predictions, problems, others


def _prediction(row: Mapping[str, object]) -> Prediction:
    text = row.get("prediction")
    if not isinstance(text, str):
        raise RowError("prediction", f"is {shown(text)}, not text" if "prediction" in row else "is missing")
    answer = text_field(row, "answer")
    options, index = (), None
    if row.get("options") not in (None, []):
        options = choices_field(row, "options")
        if len(options) < 2:
            raise RowError("options", f"is {shown(list(options))}, but a closed question has two or more")
        index = index_field(row, "answer_index", len(options))
        if options[index].casefold() != answer.casefold():
            raise RowError("answer", f"is {shown(answer)}, but answer_index {index} is {shown(options[index])}")
    elif row.get("answer_index") is not None:
        raise RowError("answer_index", f"is {shown(row['answer_index'])}, but there are no options")
    question = Question(text_field(row, "id"), text_field(row, "question"), answer, options, index)
    return Prediction(question, text)
