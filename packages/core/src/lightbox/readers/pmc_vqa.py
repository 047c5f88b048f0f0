"""PMC-VQA: CSV files of four-choice questions about figures of PubMed Central articles, in two versions.

| form | files | answer | images |
|---|---|---|---|
| v1 | `train.csv`, `test.csv` | `Answer` its text, `Answer_label` its letter | images.zip, or unpacked in `images/` |
| v1_clean | `train.csv`, `test_clean.csv` (checked by hand) | as v1 | as v1 |
| v2 | `train_2.csv`, `test_2.csv`, with index, Caption, split | `Answer` its letter | images_2.zip, or `figures/` |

Choices repeat their letter ("A:Diffuse"), which is taken off. `Caption` is not read: it answers too much. Where v1's
text is not the choice that its letter names, the row is malformed, as nobody knows which is meant. Seen: columns and an
example of v1, file names, the folder `figures/` in images_2.zip, a conversion of v1's training rows that gave up 31 of
176,948 for such faults. Unseen: a row of v2, and what its `split` may say besides train and test. Patients are unknown.
"""

from pathlib import Path

from lightbox.errors import RequestError
from lightbox.readers.documents import read_csv
from lightbox.readers.members import is_there
from lightbox.readers.rows import Gathering, RowError, case_id_of, clean_text, letter_field, make_choice, shown
from lightbox.readers.stores import ImageStore, find_store
from lightbox.records import Case

LETTERS = ("A", "B", "C", "D")
CHOICES = tuple(f"Choice {letter}" for letter in LETTERS)
_FILES = {
    "v1": {"train": "train.csv", "test": "test.csv"},
    "v1_clean": {"train": "train.csv", "test": "test_clean.csv"},
    "v2": {"train": "train_2.csv", "test": "test_2.csv"},
}
_IMAGES = {"images.zip": ("images/images", "images"), "images_2.zip": ("images_2/figures", "images_2", "figures")}


def read_cases(root: Path, rows: Gathering, *, split: str | None = None, form: str = "auto") -> None:
    """Read PMC-VQA below `root`.

    Args:
        root: folder with the CSV files, and the images beside them.
        rows: where cases, problems and counts go.
        split: "train", "test", or None for both.
        form: "v1", "v1_clean", "v2", or "auto" for the one with most of its files there, the first of equals.

    Raises:
        RequestError: an unknown form, no file of it, or one that lacks a column.
    """
    if form not in ("auto", *_FILES):
        raise RequestError(f"form='{form}'", f"The choices are auto, {', '.join(_FILES)}", "Choose one of them")
    forms = _FILES if form == "auto" else {form: _FILES[form]}
    chosen = max(forms, key=lambda name: len(_there(root, forms[name], split)))
    files = _there(root, forms[chosen], split)
    if not files:
        names = dict.fromkeys(name for each in forms.values() for part, name in each.items() if split in (None, part))
        raise RequestError(
            f"PMC-VQA at '{root}'", f"There is no {' or '.join(names)}", "Name the folder that holds them with --root"
        )
    every = {file for each in _FILES.values() for file in _there(root, each, None).values()}
    rows.counts["files_of_other_forms_or_splits"] = len(every - set(files.values()))
    is_second = chosen == "v2"
    archive = "images_2.zip" if is_second else "images.zip"
    store = find_store(root, rows, folders=_IMAGES[archive], zips=(archive,))
    label = "Answer" if is_second else "Answer_label"
    for part, file in files.items():
        for number, row in read_csv(file, ("Figure_path", "Question", *CHOICES, "Answer", label)):
            with rows.row(file, number):
                index = number if isinstance(row, RowError) else row.get("index") or number  # v2 numbers its rows
                _add(rows, row, store, (part, f"{file.stem}-{index}"), label)


def _there(root: Path, names: dict[str, str], split: str | None) -> dict[str, Path]:
    return {part: root / name for part, name in names.items() if split in (None, part) and is_there(root / name)}


def _add(
    rows: Gathering, row: dict[str, str] | RowError, store: ImageStore, place: tuple[str, str], label: str
) -> None:
    if isinstance(row, RowError):
        raise row
    part, qid = place
    if label == "Answer":  # v2
        rows.note_optional(row, ("index", "split"))
        rows.counts["rows_numbered_by_line"] += "index" not in row
    choices = tuple(
        clean_text(row[name].strip().removeprefix(f"{letter}:"), name)
        for name, letter in zip(CHOICES, LETTERS, strict=True)
    )
    index = letter_field(row, label, LETTERS)
    if label != "Answer" and _plain(row["Answer"]) != _plain(choices[index]):
        raise RowError("Answer", f"is {shown(row['Answer'])}, but {label} names {shown(choices[index])}")
    if row.get("split") in ("train", "test") and row["split"] != part:
        raise RowError("split", f"is {row['split']} in a file of {part}")
    figure = clean_text(row["Figure_path"], "Figure_path")
    case = Case(id=case_id_of(figure), images=(store.path(figure, "Figure_path"),), split=part)
    rows.add_once(case, make_choice(qid, clean_text(row["Question"], "Question"), choices, index), id_field="index")


def _plain(text: str) -> str:
    """Without what the two columns of v1 differ in: spaces, quotes, capitals, a final full stop, the letter."""
    text = " ".join(text.split()).strip("'\" .").lower()
    return text[2:].strip() if text[1:2] == ":" else text
