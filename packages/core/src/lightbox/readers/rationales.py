"""R-RAD, R-SLAKE and R-Path: MedThink's question sets with medical decision-making rationales.

Each file is one object keyed by question id: ``{"<qid>": {"question", "choices": [...], "answer": index, "solution",
"image" or "img_name", ...}}``. Files lie in `closed-end/` and `open-end/` and are named train, trainset, test,
testset or valset. Closed items have two choices; open items hold the answer as their only choice. The rationales were
written by a model that was shown the answer, so they give it away. Images are those of VQA-RAD, SLAKE and PathVQA, in
a folder `images` beside the question folders.
"""

from pathlib import Path

from lightbox.errors import RequestError
from lightbox.readers.documents import StrictObject, read_json
from lightbox.readers.members import check_folder, is_there
from lightbox.readers.rows import (
    Gathering,
    RowError,
    as_row,
    case_id_of,
    choices_field,
    clean_text,
    index_field,
    inside,
    make_question,
    text_field,
)
from lightbox.readers.vqa_rad import BODY_PARTS
from lightbox.records import Case

SPLITS = ("train", "validation", "test")
_STEMS = {"train": ("train", "trainset"), "validation": ("val", "valset"), "test": ("test", "testset")}
_FOLDERS = ("closed-end", "open-end")
_IMAGE_FIELDS = ("img_name", "image")


def read_cases(root: Path, rows: Gathering, *, split: str | None = None, images: str = "images") -> None:
    """Read a rationale set.

    Args:
        root: folder that holds `closed-end/` and `open-end/`, or the question files themselves.
        rows: where cases, problems and counts go.
        split: "train", "validation", "test", or None for all there are.
        images: image folder, absolute or relative to `root`.

    Raises:
        RequestError: no question file, or an unreadable one.
    """
    splits = SPLITS if split is None else (split,)
    files = [
        (folder / f"{stem}.json", name)
        for name in splits
        for folder in (*(check_folder(root / kind) for kind in _FOLDERS), root)
        for stem in _STEMS[name]
        if is_there(folder / f"{stem}.json")
    ]
    if not files:
        raise RequestError(
            f"The rationale set at '{root}'" + (f", split '{split}'" if split else ""),
            "Neither closed-end/, open-end/ nor the folder itself holds train, trainset, test, testset or valset.json",
            "Name the folder that holds them with --root",
        )
    for file, name in files:
        content: StrictObject = read_json(file, dict)
        # a file knows its own ids only, and ours are unique in the set
        prefix = f"{name}-{file.parent.name.removesuffix('-end')}" if file.parent.name in _FOLDERS else name
        for qid, _ in content.repeated:
            with rows.row(file, qid):
                raise RowError("qid", "stands twice in the file; the first row is kept")
        for qid, value in content.items():
            with rows.row(file, qid):
                _add(rows, value, root / images, name, f"{prefix}-{clean_text(qid, 'qid')}")


def _add(rows: Gathering, value: object, images: Path, split: str, qid: str) -> None:
    row = as_row(value)
    rows.note_optional(row, ("image_organ", "img_id"))
    choices = choices_field(row, "choices")
    index = index_field(row, "answer", len(choices))
    field = next((name for name in _IMAGE_FIELDS if name in row), "image")
    image = text_field(row, field)
    image = image if Path(image).suffix else image + ".jpg"  # PathVQA's names come without an ending
    organ = text_field(row, "image_organ", default="").upper()
    question = make_question(
        qid,
        text_field(row, "question"),
        choices[index],
        choices=choices,
        index=index,
        rationale=text_field(row, "solution"),
    )
    case = Case(
        id=text_field(row, "img_id", default="") or case_id_of(image),
        images=(inside(images, image, field),),
        body_part=BODY_PARTS.get(organ, organ.lower()),
        split=split,
    )
    rows.add(case, question)
