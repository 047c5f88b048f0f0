"""OmniMedVQA: JSON lists of multiple-choice questions on images of 73 datasets, no split.

`QA_information/Open-access/*.json` and `Restricted-access/*.json` lie beside `Images/` in the folder, in `OmniMedVQA/`
in it, or in `OmniMedVQA.zip` as published, which is read in place. Rows: dataset, question_id, question_type, question,
gt_answer, image_path, option_A to option_D (C and D may be absent), modality_type (a row of Chest CT Scan.json says
modality). `gt_answer` must be the text of one option. Images of the restricted sets are not published, so those files
are read on request alone. Seen: file names, fields, code that reads that zip. Unseen: a row. Patients are unknown.
"""

from collections.abc import Sequence
from pathlib import Path

from lightbox.errors import RequestError
from lightbox.readers.documents import read_json
from lightbox.readers.members import check_folder, is_there, open_archive
from lightbox.readers.rows import Gathering, RowError, as_row, case_id_of, make_choice, shown, text_field
from lightbox.readers.stores import ImageStore, InnerPath, zip_store
from lightbox.records import Case

ACCESS = {"open": ("Open-access",), "restricted": ("Restricted-access",), "all": ("Open-access", "Restricted-access")}
OPTIONS = ("option_A", "option_B", "option_C", "option_D")
_OPTIONAL = ("option_C", "option_D", "question_type", "modality_type", "modality")
_PLACES = frozenset({"QA_information", "Images"})
FOLDER, ARCHIVE = "OmniMedVQA", "OmniMedVQA.zip"


def read_cases(root: Path, rows: Gathering, *, split: str | None = None, access: str = "open") -> None:
    """Read OmniMedVQA below `root`.

    Args:
        root: folder in one of the layouts above.
        rows: where cases, problems and counts go.
        split: None; there is no official split.
        access: "open", "restricted" or "all".

    Raises:
        RequestError: an unknown access, no question file, or a zip file that cannot be read.
    """
    if access not in ACCESS:
        raise RequestError(f"access='{access}'", f"The choices are {', '.join(ACCESS)}", "Choose one of them")
    base = next((folder for folder in (root, root / FOLDER) if check_folder(folder / "QA_information").is_dir()), None)
    archive = root / ARCHIVE
    if base is not None:
        for name in ACCESS[access]:
            check_folder(base / "QA_information" / name)
        store, files = ImageStore(base), [*base.glob("QA_information/*/*.json")]
    elif is_there(archive):
        store = zip_store(archive, rows)
        opened = open_archive(archive)
        files = [InnerPath(archive, name) for name in (*opened.members, *opened.folders) if name.endswith(".json")]
        # a question file that lost its name would be missed by nobody
        rows.counts["members_elsewhere"] = sum(_PLACES.isdisjoint(name.split("/")) for name in opened.members)
    else:
        store, files = ImageStore(root), []
    chosen = sorted(file for file in files if file.parent.name in ACCESS[access])
    if not chosen:
        raise RequestError(
            f"OmniMedVQA at '{root}', access '{access}'",
            f"Neither it, {FOLDER}/ nor {ARCHIVE} holds QA_information/{' or '.join(ACCESS[access])}/*.json",
            "Name the folder of the release with --root",
        )
    rows.counts["files_of_other_access"] = len(files) - len(chosen)
    for file in chosen:
        entries: list = []
        with rows.row(file, "all", counter="files"):
            entries = read_json(file, list)
        for number, value in enumerate(entries, start=1):
            with rows.row(file, number):
                _add(rows, value, store)


def _add(rows: Gathering, value: object, store: ImageStore) -> None:
    row = as_row(value)
    rows.note_optional(row, _OPTIONAL)
    options = [text_field(row, name, default="") for name in OPTIONS]
    choices = tuple(text for text in options if text)
    if "" in options[: len(choices)]:
        raise RowError(OPTIONS[options.index("")], "is missing before an option that is there")
    if len(choices) < 2:
        raise RowError("option_A", f"begins {len(choices)} options; a choice needs two")
    image = text_field(row, "image_path")
    case = Case(
        id=case_id_of(image),
        images=(store.path(image, "image_path"),),
        modality=text_field(row, "modality_type" if "modality_type" in row else "modality", default=""),
    )
    kind = text_field(row, "question_type", default="")
    question = make_choice(
        text_field(row, "question_id"), text_field(row, "question"), choices, _index(row, choices), kind=kind
    )
    rows.add_once(case, question, id_field="question_id")


def _index(row: dict, choices: Sequence[str]) -> int:
    answer = text_field(row, "gt_answer")
    same = [place for place, choice in enumerate(choices) if choice.lower() == answer.lower()]
    if len(same) != 1:
        raise RowError("gt_answer", f"is {shown(answer)}, which is {len(same)} of the options {shown(choices)}")
    return same[0]
