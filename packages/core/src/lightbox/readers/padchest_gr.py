"""PadChest-GR: sentences of chest radiograph reports, each finding with its boxes.

`grounded_reports_*.json` (the newest, by name): a list of studies with StudyID, ImageID and `findings`, each with
sentence_en, sentence_es, abnormal, and, mostly where abnormal, labels, locations and boxes (left, top, right, bottom as
fractions); extra_boxes, of a second reader, are counted and not read. `master_table.csv` gives ImageID its split and,
where it has the columns, label its label_group and ImageID its PatientID. Images are PNG of 16 bits, below the folder
(Padchest_GR_files/PadChest_GR/) or in one zip file there; the published parts PadChest_GR.zip.001 ... are joined by
`cat`. Every label of an abnormal sentence is a finding with the attributes phrase and location. A report says what was
seen, so absence is taken from reports alone in which no sentence is abnormal: they show no label of the set, but for
those that they name. Unseen: every file; the fields are as others describe them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lightbox.errors import RequestError
from lightbox.readers.boxes import edges_list
from lightbox.readers.documents import read_csv, read_json
from lightbox.readers.findings import MarkedImage, Markings
from lightbox.readers.members import is_there
from lightbox.readers.rows import Gathering, RowError, as_row, shown, text_field
from lightbox.readers.stores import tree_store
from lightbox.records import Report

TABLE = "master_table.csv"
SPLITS = ("train", "validation", "test")
LANGUAGES = ("en", "es")


def read_cases(
    root: Path, rows: Gathering, *, split: str | None = None, language: str = "en", uses_groups: bool = False
) -> None:
    """Read the grounded reports of `root`.

    Args:
        root: folder in the layout above.
        rows, split: as every reader's; studies of splits that are not asked for are counted.
        language: "en" or "es", of the sentences.
        uses_groups: name a finding by the group of its label, of which there are 26, as AG-KD does.

    Raises:
        RequestError: an unknown language, no reports, or a split or groups without the table that gives them.
    """
    files = sorted(root.glob("grounded_reports_*.json"))
    if language not in LANGUAGES:
        raise RequestError(f"language='{language}'", f"The choices are {', '.join(LANGUAGES)}", "Choose one of them")
    if not files or (split or uses_groups) and not is_there(root / TABLE):
        lacking = "grounded_reports_*.json" if not files else f"{TABLE}, which gives splits and groups"
        raise RequestError(f"PadChest-GR at '{root}'", f"There is no {lacking}", "Name the folder that holds it")
    images, groups = _table(root / TABLE, rows, uses_groups)
    if is_there(root / TABLE) and not images:
        raise RequestError(f"File '{root / TABLE}'", "No row of it names an image and its split", "Fetch it again")
    marks = Markings(rows, tree_store(root, rows), modality="X-ray", body_part="chest")
    for number, value in enumerate(read_json(files[-1], list), start=1):
        with rows.row(files[-1], number, counter="images"):
            row = as_row(value)
            name = text_field(row, "ImageID")
            image_split, patient = images.get(name, ("", None))
            rows.counts["images_without_a_table_row"] += bool(images) and name not in images
            if split not in (None, image_split):
                rows.counts["studies_of_other_splits"] += 1
                continue
            image = marks.image(name, "ImageID", split=image_split, in_px=False, patient_id=patient)
            sentences = []
            with image.row():
                findings = _list(row, "findings")
            for place, finding in enumerate(findings, start=1):
                with rows.row(files[-1], f"{number}, finding {place}", counter="sentences"), image.row():
                    sentences.append(_mark(as_row(finding), image, marks, f"sentence_{language}", groups))
            image.case = replace(image.case, report=Report(tuple(sentences), tuple(sorted(image.names))))
    labels = marks.names
    for image in marks.images.values():
        image.absent = labels - image.absent if image.is_whole and not image.boxes else set()
    marks.finish(files[-1], ())


def _mark(
    row: Mapping[str, object],
    image: MarkedImage,
    marks: Markings,
    sentence_field: str,
    groups: Mapping[str, str] | None,
) -> str:
    """Mark what one sentence says, and return the sentence.

    Labels of a sentence that is not abnormal wait in `image.absent`, which is just what they must not become.
    """
    sentence = text_field(row, sentence_field)
    labels = [text_field({"labels": label}, "labels") for label in _list(row, "labels")]
    if groups is not None:
        strangers = [label for label in labels if label not in groups]
        if strangers:
            raise RowError("labels", f"holds {shown(strangers[0])}, which has no label_group in {TABLE}")
        labels = [groups[label] for label in labels]
    if not isinstance(row.get("abnormal"), bool):
        raise RowError("abnormal", f"is {shown(row.get('abnormal'))}, not true or false")
    if not row["abnormal"]:
        image.absent.update(labels)
        return sentence
    marks.rows.counts["sentences_with_extra_boxes"] += bool(row.get("extra_boxes"))
    places = ", ".join(text_field({"locations": place}, "locations") for place in _list(row, "locations"))
    attributes = {"phrase": sentence} | ({"location": places} if places else {})
    for label in labels:
        image.finding(label, **attributes)
        for box in _list(row, "boxes"):
            marks.add(image, label, edges_list(box, "boxes"), "boxes", **attributes)
    return sentence


def _list(row: Mapping[str, object], name: str) -> Sequence[object]:
    """A field that is a list; sentences that are not abnormal may leave it out."""
    value = row.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise RowError(name, f"is {shown(value)}, not a list")
    return value


def _table(
    file: Path, rows: Gathering, uses_groups: bool
) -> tuple[dict[str, tuple[str, str | None]], dict[str, str] | None]:
    """Split and patient by image, and the group of each label where asked for."""
    images, groups = dict[str, tuple[str, str | None]](), dict[str, str]()
    columns = ("ImageID", "split", "label", "label_group") if uses_groups else ("ImageID", "split")
    for number, value in read_csv(file, columns) if is_there(file) else ():
        with rows.row(file, number, counter="table_rows"):
            row = as_row(value)
            name, split = text_field(row, "ImageID"), text_field(row, "split")
            if split not in SPLITS:
                raise RowError("split", f"is {shown(split)}, not one of {', '.join(SPLITS)}")
            entry = (split, text_field(row, "PatientID", default="") or None)
            rows.counts["images_without_a_patient"] += entry[1] is None and name not in images
            if images.setdefault(name, entry) != entry:
                raise RowError("split", f"or the patient of {name} differs from a row before, which is kept")
            if uses_groups and text_field(row, "label", default=""):
                groups[text_field(row, "label")] = text_field(row, "label_group")
    return images, groups if uses_groups else None
