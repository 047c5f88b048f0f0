"""A file of predictions, one JSON object a line: read strictly, malformed lines named, the rest kept. No torch."""

from collections.abc import Mapping
from pathlib import Path

from lightbox.errors import RequestError
from lightbox.eval.conventions import Prediction
from lightbox.readers.documents import read_json_lines
from lightbox.readers.rows import Problem, RowError, as_row, choices_field, index_field, shown, text_field
from lightbox.records import Question


def read_predictions(path: Path) -> tuple[list[Prediction], list[Problem]]:
    """Read `id`, `question`, `options`, `answer`, `answer_index` and `prediction` of each line, and no other field.

    An open question has no `options` and no `answer_index`: absent, null, or an empty list. An empty `prediction` is an
    answer that failed and is kept; a missing one is malformed.

    Returns:
        Predictions in the order of the file, and the malformed lines.

    Raises:
        RequestError: where the file cannot be read, or none of its lines.
    """
    predictions, problems, lines = [], [], {}
    for number, value in read_json_lines(path):
        try:
            if isinstance(value, RowError):
                raise value
            prediction = _prediction(as_row(value))
            first = lines.setdefault(prediction.question.id, number)
            if first != number:  # it would count twice
                raise RowError("id", f"{shown(prediction.question.id)} stands on line {first} already")
            predictions.append(prediction)
        except RowError as err:
            problems.append(Problem(str(path), str(number), err.name, err.reason))
    if not predictions:
        raise RequestError(
            f"File '{path}' has no readable line",
            f"There is nothing to score. The first malformed one is {problems[0]}",
            "Write one object a line with id, question, options, answer, answer_index and prediction",
        )
    return predictions, problems


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
