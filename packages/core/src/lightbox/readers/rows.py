"""Rows of a dataset: fields checked one by one, malformed rows set aside by name, questions gathered into cases."""

import dataclasses
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from lightbox.errors import RequestError
from lightbox.records import Case, Finding, Question, check_case, check_question

MAX_TEXT = 20_000
YES_NO = ("yes", "no")
_FIELD = re.compile(r"field '([^']*)'")  # the checks of records name the field in their message
_SHOWN = 80


class RowError(Exception):
    """One row cannot be read: which field, and why."""

    def __init__(self, name: str, reason: str) -> None:
        self.name, self.reason = name, reason
        super().__init__(f"field '{name}' {reason}")


@dataclass(frozen=True, slots=True)
class Problem:
    """A malformed row: file, row (number counted from 1, or key), field and reason."""

    file: str
    row: str
    field: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}, field '{self.field}': {self.reason}"


@dataclass(frozen=True)
class ReadResult:
    """What a reader found: cases, malformed rows, and counts of what was kept, skipped or noteworthy."""

    cases: tuple[Case, ...]
    problems: tuple[Problem, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)


class Gathering:
    """Collects rows into one case per (split, case id) and malformed rows into problems.

    Args:
        dataset: name for messages.
        licence: goes into every case.
    """

    def __init__(self, dataset: str, licence: str) -> None:
        self.dataset, self.licence = dataset, licence
        self.counts: Counter[str] = Counter()
        self.problems: list[Problem] = []
        self._cases: dict[tuple[str, str], Case] = {}
        self._questions: dict[tuple[str, str], list[Question]] = {}
        self._file, self._place = "", ""
        self._optional: Counter[tuple[str, str, bool]] = Counter()  # by file, field, whether it is absent
        self._first: dict[str, str] = {}

    @contextmanager
    def row(self, file: Path, row: int | str, *, counter: str = "rows") -> Iterator[None]:
        """Turn a `RowError`, or a record that its boundary check refuses, into a `Problem`; the next row is read."""
        self.counts[counter] += 1
        self._file, self._place = str(file), f"{file.name}, row {row}"
        try:
            yield
        except RowError as err:
            self.problems.append(Problem(str(file), _named(row), _named(err.name), err.reason))
        except RequestError as err:
            named = _FIELD.search(err.given)
            self.problems.append(Problem(str(file), _named(row), named.group(1) if named else "row", err.why))

    def note_optional(self, row: Mapping[str, object], fields: Iterable[str]) -> None:
        """Note which optional fields the row at hand has; `result` counts those that other rows of its file have.

        A key that is misspelled or null would else pass for one that the source never had.
        """
        for name in fields:
            value = row.get(name)
            is_absent = value is None or isinstance(value, str) and not value.strip()
            self._optional[self._file, name, is_absent] += 1

    def add(self, case: Case, *questions: Question) -> None:
        """Add a case, or further questions of one already there (same split and id)."""
        for question in questions:
            check_question(question, where=case.id)
        key = (case.split, case.id)
        if key not in self._cases:
            self._cases[key] = check_case(dataclasses.replace(case, licence=self.licence), where=case.id)
            self._questions[key] = []
        elif case.images != self._cases[key].images:  # a question would be asked of another image without a word
            raise RowError("image", f"is {case.images[0]}, but case {case.id} shows {self._cases[key].images[0]}")
        self._questions[key].extend(questions)

    def add_once(self, case: Case, question: Question, *, id_field: str) -> None:
        """As `add`, for a question whose id is its own in the whole set.

        Raises:
            RowError: on `id_field`, where a row before has the id, in whichever shard or part.
        """
        if question.id in self._first:
            raise RowError(id_field, f"is {question.id}, as in {self._first[question.id]}; the first row is kept")
        self.add(case, question)
        self._first[question.id] = self._place

    def add_findings(self, case: Case, findings: Iterable[Finding]) -> None:
        """Add findings to a case that is already there."""
        key = (case.split, case.id)
        extended = dataclasses.replace(self._cases[key], findings=(*self._cases[key].findings, *findings))
        self._cases[key] = check_case(extended, where=case.id)

    @property
    def cases(self) -> tuple[Case, ...]:
        """The cases so far, without their questions."""
        return tuple(self._cases.values())

    def result(self, root: Path) -> ReadResult:
        """All cases in the order met.

        Raises:
            RequestError: where no row could be read.
        """
        if not self._cases:
            first = f" The first malformed row is {self.problems[0]}" if self.problems else ""
            raise RequestError(
                f"{self.dataset} at '{root}' has no readable row",
                f"An empty dataset cannot be used.{first}",
                f"Compare the folder with the files listed in the card of {self.dataset}, or name another root",
            )
        cases = tuple(
            dataclasses.replace(case, questions=tuple(self._questions[key])) for key, case in self._cases.items()
        )
        self.counts["cases"] = len(cases)
        self.counts["questions"] = sum(len(case.questions) for case in cases)
        self.counts["malformed_rows"] = len(self.problems)
        for (file, name, is_absent), count in self._optional.items():
            if is_absent and (file, name, False) in self._optional:
                self.counts[f"rows_without_{name}"] += count
        return ReadResult(cases, tuple(self.problems), dict(self.counts))


def shown(value: object) -> str:
    """The value as a message shows it: its repr, cut short."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def is_finite(value: object) -> bool:
    """True for a number that a float can hold: not NaN, infinity, an integer of 400 digits, true or false."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def as_row(value: object) -> Mapping[str, object]:
    """`value` as a row, that is a JSON object without a repeated key.

    Raises:
        RowError: it is none, or is itself the error of a row that could not be parsed.
    """
    if isinstance(value, RowError):
        raise value
    if not isinstance(value, Mapping):
        raise RowError("row", f"is a {type(value).__name__}, not an object: {shown(value)}")
    repeated = getattr(value, "repeated", ())
    if repeated:
        raise RowError(repeated[0][0], "stands twice in one object")
    return value


def text_field(row: Mapping[str, object], name: str, *, default: str | None = None) -> str:
    """Text of a field, stripped; a finite number is written out. Missing or null gives `default` where there is one.

    Raises:
        RowError: missing, another type, empty, over `MAX_TEXT` characters, or not encodable.
    """
    value = row.get(name)
    if value is None and default is not None:
        return default
    if name not in row:
        raise RowError(name, "is missing")
    # answers such as 2 stand in files as numbers
    if is_finite(value):
        return str(value)
    if not isinstance(value, str):
        raise RowError(name, f"is {shown(value)}, not text")
    return clean_text(value, name, may_be_empty=default is not None)


def clean_text(value: str, name: str, *, may_be_empty: bool = False) -> str:
    """Strip and check one text: length, encodable, without NUL, not empty."""
    if len(value) > MAX_TEXT:
        raise RowError(name, f"has {len(value)} characters, more than {MAX_TEXT}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as err:
        raise RowError(name, "holds half a surrogate pair, which is not text") from err
    if "\0" in value:  # in files that were cut, or are UTF-16 without a mark; JSON and CSV let it pass
        raise RowError(name, "holds a NUL, which is not text")
    if not value.strip() and not may_be_empty:
        raise RowError(name, "is empty")
    return value.strip()


def choices_field(row: Mapping[str, object], name: str) -> tuple[str, ...]:
    """A field that is a list of texts, at least one."""
    value = row.get(name)
    if not isinstance(value, list) or not value:
        raise RowError(name, "is missing" if name not in row else f"is {shown(value)}, not a list of texts")
    return tuple(text_field({name: item}, name) for item in value)


def index_field(row: Mapping[str, object], name: str, size: int) -> int:
    """A field that is an index into `size` choices, counted from 0."""
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise RowError(name, "is missing" if name not in row else f"is {shown(value)}, not an index")
    if not 0 <= value < size:
        raise RowError(name, f"is index {shown(value)} with {size} choices; the index counts from 0")
    return value


def letter_field(row: Mapping[str, object], name: str, letters: Sequence[str]) -> int:
    """A field that names one of `letters`, in capitals or not; the place of that letter, counted from 0."""
    letter = text_field(row, name).upper()
    if letter not in letters:
        raise RowError(name, f"is {shown(row[name])}, not one of {', '.join(letters)}")
    return letters.index(letter)


def inside(folder: Path, name: str, field_name: str) -> Path:
    """`folder / name`, for a relative name that stays inside the folder."""
    # names written on Windows; pathlib would take the whole for one part
    parts = PurePosixPath(name.replace("\\", "/"))
    is_local = bool(parts.parts) and not parts.is_absolute() and ".." not in parts.parts
    if not is_local or ":" in parts.parts[0] or not name.isprintable():
        raise RowError(field_name, f"is {shown(name)}, which does not name a file inside the image folder")
    return folder / parts


def case_id_of(image_name: str) -> str:
    """A case id from an image's name: folders joined by "-", without the ending; xmlab1/source.jpg -> xmlab1-source."""
    return "-".join(PurePosixPath(image_name).with_suffix("").parts)


def make_question(
    qid: str, text: str, answer: str, *, choices: tuple[str, ...] = (), index: int = 0, **fields: Any
) -> Question:
    """Build a question; it is closed exactly where it has two options.

    Two `choices` are the options and `index` says which is right. Without two choices, a yes or no answer (any case, a
    final full stop allowed) gets the options ("yes", "no"). Everything else is open.
    """
    if len(choices) != 2:
        literal = answer.lower().rstrip(".")  # "Yes." and "yes" are one answer
        if literal not in YES_NO:
            return Question(id=qid, text=text, answer=answer, **fields)
        choices, index = YES_NO, YES_NO.index(literal)
    return make_choice(qid, text, choices, index, **fields)


def make_choice(qid: str, text: str, choices: tuple[str, ...], index: int, **fields: Any) -> Question:
    """Build a multiple-choice question of any number of options; `index` says which is right."""
    return Question(id=qid, text=text, answer=choices[index], options=choices, answer_index=index, **fields)


def _named(name: object) -> str:
    """A key of a file as a problem names it: as it is where it is short text, and as its repr, cut short, elsewhere."""
    text = str(name)
    return text if len(text) <= _SHOWN and text.isprintable() else shown(text)
