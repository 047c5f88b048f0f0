"""VQA-Med 2019 (ImageCLEF): lines ``synpic|question|answer``.

Training and validation are folders with `All_QA_Pairs_<train|val>.txt`, an image folder, and
`QAPairsByCategory/C<n>_<Category>_<split>.txt` that repeats the same lines by category (modality, plane, organ,
abnormality), from which each question gets its kind. The test set is `VQAMed2019_Test_Questions_w_Ref_Answers.txt`
with lines ``synpic|category|question|answer``. Reference answers are kept as written: in the test set `#` divides
alternatives and ``( )`` holds an optional part. Patients are unknown.
"""

from fnmatch import fnmatchcase
from pathlib import Path

from lightbox.errors import RequestError
from lightbox.readers.documents import read_lines, separated
from lightbox.readers.rows import Gathering, RowError, clean_text, inside, make_question
from lightbox.records import Case

SPLITS = ("train", "validation", "test")
PAIRS = ("synpic", "question", "answer")
TEST_PAIRS = ("synpic", "category", "question", "answer")
_PATTERNS = {
    "train": "All_QA_Pairs_train.txt",
    "validation": "All_QA_Pairs_val.txt",
    "test": "*Test_Questions_w_Ref_Answers.txt",
}


def read_cases(root: Path, rows: Gathering, *, split: str | None = None) -> None:
    """Read the pair files in `root` or one folder below it.

    Args:
        root: folder of the dataset.
        rows: where cases, problems and counts go.
        split: "train", "validation", "test", or None for all there are.

    Raises:
        RequestError: no pair file, or an unreadable one.
    """
    splits = SPLITS if split is None else (split,)
    files = [(file, name) for name in splits for file in _find(root, _PATTERNS[name])]
    if not files:
        raise RequestError(
            f"VQA-Med 2019 at '{root}'",
            f"Neither it nor a folder in it holds {' or '.join(_PATTERNS[name] for name in splits)}",
            "Name the folder of the unpacked archives with --root",
        )
    for file, name in files:
        folder = next(
            (p for p in sorted(file.parent.iterdir()) if p.is_dir() and "images" in p.name.lower()), file.parent
        )
        kinds = {} if name == "test" else _kinds(file.parent / "QAPairsByCategory", rows)
        for number, line in read_lines(file):
            with rows.row(file, number):
                _add(rows, line, folder, name, f"{name}-{number}", kinds)


def _find(root: Path, pattern: str) -> list[Path]:
    folders = [
        root,
        *(folder for folder in root.iterdir() if folder.is_dir()),
    ]  # the archives unpack into a folder each
    # and not Path.glob, which passes over a link that leads nowhere
    return sorted(file for folder in folders for file in folder.iterdir() if fnmatchcase(file.name, pattern))


def _kinds(folder: Path, rows: Gathering) -> dict[tuple[str, ...], str]:
    """Map each (synpic, question, answer) to its category; lines here that cannot be read are problems of their own."""
    kinds = {}
    for file in sorted(folder.glob("C*_*.txt")):
        kind = file.stem.split("_")[1].lower()  # C1_Modality_train.txt
        for number, line in read_lines(file):
            try:
                kinds[tuple(cell.strip() for cell in separated(line, PAIRS).values())] = kind
            except RowError as err:
                with rows.row(file, number):
                    raise err
    return kinds


def _add(rows: Gathering, line: str | RowError, folder: Path, split: str, qid: str, kinds: dict) -> None:
    cells = separated(line, TEST_PAIRS if split == "test" else PAIRS)
    row = {name: clean_text(cell, name) for name, cell in cells.items()}
    kind = row["category"] if split == "test" else kinds.get(tuple(row[name] for name in PAIRS), "")
    if not kind:
        rows.counts["without_category"] += 1
    image = inside(folder, row["synpic"] + ".jpg", "synpic")
    case = Case(id=row["synpic"], images=(image,), split=split)
    rows.add(case, make_question(qid, row["question"], row["answer"], kind=kind))
