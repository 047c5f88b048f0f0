"""MedXpertQA MM: JSON lines of five-choice questions, most with one image and some with up to six.

`MM/dev.jsonl` (five examples for prompts, read as "validation") and `MM/test.jsonl` lie in the folder, images in
images.zip or `images/`. Rows: id, question, options {letter: text}, label, images [names], medical_task, body_system,
question_type. The question's text ends in a list of its choices, which is cut off: they are the options. All images
of a question make one case; what looks at one image sees the first. Seen: fields, an example, counts of rows and
images. Unseen: the folder inside images.zip, so a member is found by the end of its name. Patients are unknown.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from lightbox.errors import RequestError
from lightbox.readers.documents import read_json_lines
from lightbox.readers.members import check_folder, is_there
from lightbox.readers.rows import (
    Gathering,
    RowError,
    as_row,
    choices_field,
    letter_field,
    make_choice,
    shown,
    text_field,
)
from lightbox.readers.stores import ImageStore, find_store
from lightbox.records import Case

_FILES = {"validation": "dev.jsonl", "test": "test.jsonl"}
_CHOICES = re.compile(r"\s*Answer Choices:\s*\(A\).*\Z", re.DOTALL)


def read_cases(root: Path, rows: Gathering, *, split: str | None = None) -> None:
    """Read MedXpertQA MM below `root`.

    Args:
        root: folder with `MM/`, or with its files, and the images.
        rows: where cases, problems and counts go.
        split: "validation", "test", or None for both.

    Raises:
        RequestError: no question file, or an unreadable one.
    """
    folder = root / "MM" if check_folder(root / "MM").is_dir() else root
    names = _FILES if split is None else {split: _FILES[split]}
    files = {part: folder / name for part, name in names.items() if is_there(folder / name)}
    if not files:
        raise RequestError(
            f"MedXpertQA MM at '{root}'",
            f"Neither MM/ nor the folder itself holds {' or '.join(names.values())}",
            "Name the folder of the release with --root",
        )
    store = find_store(root, rows, folders=("images/images", "images"), zips=("images.zip",))
    for part, file in files.items():
        for number, value in read_json_lines(file):
            with rows.row(file, number):
                _add(rows, value, store, part)


def _add(rows: Gathering, value: object, store: ImageStore, part: str) -> None:
    if isinstance(value, RowError):
        raise value
    row = as_row(value)
    rows.note_optional(row, ("medical_task", "question_type", "body_system"))
    letters, choices = _options(row)
    images = tuple(store.path(name, "images") for name in choices_field(row, "images"))
    qid = text_field(row, "id")
    kinds = (text_field(row, name, default="") for name in ("medical_task", "question_type"))
    question = make_choice(
        qid,
        _CHOICES.sub("", text_field(row, "question")),
        choices,
        letter_field(row, "label", letters),
        kind=", ".join(kind for kind in kinds if kind),
    )
    case = Case(id=qid, images=images, body_part=text_field(row, "body_system", default=""), split=part)
    rows.add_once(case, question, id_field="id")
    rows.counts["questions_with_several_images"] += len(images) > 1


def _options(row: Mapping[str, object]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    options = row.get("options")
    if not isinstance(options, Mapping) or len(options) < 2:
        raise RowError("options", f"is {shown(options)}, not an object of two texts or more by letter")
    letters = tuple(sorted(as_row(options)))
    return letters, tuple(text_field(options, letter) for letter in letters)
