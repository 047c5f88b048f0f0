"""VQA-RAD in its four released forms.

| form | files | split |
|---|---|---|
| public | `VQA_RAD Dataset Public.json`, one list | `phrase_type` starts with "test" |
| split | `trainset.json`, `testset.json` (the MEVF division), lists with the same keys | the file |
| llava_med | `*train*.jsonl`, `*test*.jsonl` with question_id, image, text, gpt4_answer, answer_type | the file |
| parquet | flaviagiammarino/vqa-rad, see `shards`: image, question, answer | the file |

The public form names the teaching case of each image (`image_case_url`); its number stands in for the patient. The
other forms do not, so patients are unknown there. Closed items whose answer is neither yes nor no have no options in
any of these files and are read as open; `closed_without_options` counts them where the form says that they are closed.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from lightbox.errors import RequestError
from lightbox.readers.documents import read_json, read_json_lines
from lightbox.readers.members import is_there
from lightbox.readers.rows import Gathering, RowError, as_row, case_id_of, inside, make_question, text_field
from lightbox.readers.shards import find_shards, read_shards
from lightbox.records import Case

FORMS = ("public", "split", "llava_med", "parquet")
SPLITS = ("train", "test")
PUBLIC_FILE = "VQA_RAD Dataset Public.json"
BODY_PARTS = {"HEAD": "head", "CHEST": "chest", "ABD": "abdomen"}
_IMAGE_FOLDERS = ("images", "VQA_RAD Image Folder", "VQA_RAD_Image_Folder")
_OPTIONAL = ("image_organ", "image_case_url", "question_type", "answer_type")
# MedPix case pages, in an older and a newer form of their address
_CASE_NUMBER = re.compile(r"(?:id=|/case/)([0-9a-fA-F-]+)")


def read_cases(root: Path, rows: Gathering, *, split: str | None = None, form: str = "auto") -> None:
    """Read VQA-RAD below `root` into `rows`.

    Args:
        root: folder with the question files and an image folder beside them.
        rows: where cases, problems and counts go.
        split: "train", "test", or None for both.
        form: "public", "split", "llava_med", "parquet", or "auto" for the first of these that is there.

    Raises:
        RequestError: no question file, or an unreadable one.
    """
    folder = next((root / name for name in _IMAGE_FOLDERS if (root / name).is_dir()), root)
    files = _files(root, split, form)
    if files[0][0].suffix == ".parquet":
        read_shards(files, rows, title="VQA-RAD")
        return
    for file, file_split in files:
        if file.suffix == ".jsonl":
            for number, value in read_json_lines(file):
                with rows.row(file, number):
                    _add_llava_med(rows, value, folder, file_split)
            continue
        for number, value in enumerate(read_json(file, list), start=1):
            with rows.row(file, number):
                _add_original(rows, value, folder, file_split, only_split=split)


def _files(root: Path, split: str | None, form: str) -> list[tuple[Path, str]]:
    """(file, its split; "" where rows say it) of the form asked for."""
    files_by_form = {name: list(_form_files(root, name)) for name in FORMS if form in ("auto", name)}
    for files in files_by_form.values():
        # "auto" goes on to the next form where this one lacks the split
        readable = [(file, name) for file, name in files if split is None or name in ("", split)]
        if readable:
            return readable
    request = f"form '{form}'" + (f", split '{split}'" if split else "")
    raise RequestError(
        f"VQA-RAD at '{root}', {request}",
        f"There is no '{PUBLIC_FILE}', no trainset.json or testset.json, and no llava_med_format/*.jsonl and no "
        "data/*.parquet of that kind",
        "Name the folder that holds one of them with --root",
    )


def _form_files(root: Path, form: str) -> Iterator[tuple[Path, str]]:
    if form == "public" and is_there(root / PUBLIC_FILE):
        yield root / PUBLIC_FILE, ""
    if form == "split":
        yield from ((root / f"{s}set.json", s) for s in SPLITS if is_there(root / f"{s}set.json"))
    if form == "llava_med":
        for name in SPLITS:
            files = [*root.glob(f"*{name}*.jsonl"), *root.glob(f"llava_med_format/*{name}*.jsonl")]
            yield from ((file, name) for file in sorted(files))
    if form == "parquet":
        yield from find_shards(root, SPLITS)


def _add_original(rows: Gathering, value: object, folder: Path, split: str, *, only_split: str | None) -> None:
    row = as_row(value)
    rows.note_optional(row, _OPTIONAL)
    phrase = text_field(row, "phrase_type", default="")
    if not split:
        if not phrase:
            raise RowError("phrase_type", "is missing, so the split of the row is unknown")
        split = "test" if phrase.startswith("test") else "train"
    if only_split not in (None, split):
        rows.counts["rows_of_other_splits"] += 1
        return
    organ = text_field(row, "image_organ", default="").upper()
    url = _CASE_NUMBER.search(text_field(row, "image_case_url", default=""))
    case = _case(
        text_field(row, "image_name"),
        folder,
        "image_name",
        split,
        body_part=BODY_PARTS.get(organ, organ.lower()),
        patient_id=url.group(1) if url else None,
    )
    question = make_question(
        text_field(row, "qid"),
        text_field(row, "question"),
        text_field(row, "answer"),
        kind=text_field(row, "question_type", default="").lower(),
    )
    _count_answer_type(rows, text_field(row, "answer_type", default=""), is_closed=question.is_closed)
    rows.add(case, question)


def _add_llava_med(rows: Gathering, value: object, folder: Path, split: str) -> None:
    if isinstance(value, RowError):
        raise value
    row = as_row(value)
    rows.note_optional(row, ("answer_type",))
    text = text_field(row, "text").replace("<image>", "").strip()  # LLaVA's placeholder, which a backbone writes itself
    question = make_question(text_field(row, "question_id"), text, text_field(row, "gpt4_answer"))
    case = _case(text_field(row, "image"), folder, "image", split)
    _count_answer_type(rows, text_field(row, "answer_type", default=""), is_closed=question.is_closed)
    rows.add(case, question)


def _case(image: str, folder: Path, field: str, split: str, **fields: object) -> Case:
    return Case(id=case_id_of(image), images=(inside(folder, image, field),), split=split, **fields)


def _count_answer_type(rows: Gathering, answer_type: str, *, is_closed: bool) -> None:
    source_closed = answer_type.upper() == "CLOSED"
    if answer_type and source_closed != is_closed:
        rows.counts["closed_without_options" if source_closed else "yes_no_marked_open"] += 1
