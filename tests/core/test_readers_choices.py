"""PMC-VQA, OmniMedVQA and MedXpertQA MM: golden examples, malformed rows, ids that repeat in another part."""

import csv
import io
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from lightbox.cli.data import app
from lightbox.errors import RequestError
from lightbox.readers.catalog import read
from lightbox.readers.documents import read_csv
from lightbox.readers.images import load_image
from lightbox.readers.rows import RowError
from lightbox.readers.validate import validate
from lightbox.records import Case, Question


def picture(value=7):
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 6), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def pack(file, members):
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file


V1 = ["Figure_path", "Question", "Answer", "Choice A", "Choice B", "Choice C", "Choice D", "Answer_label"]
V2 = ["index", "Figure_path", "Caption", "Question", "Choice A", "Choice B", "Choice C", "Choice D", "Answer", "split"]
FIRST = ["P1_F1.png", " What shape? ", "Ring", " A:Disc ", " B:Ring", "C:Star", "Cross", "B"]
SECOND = ["0", "P1_F1_1.png", "A ring.", "What shape?", " A:Disc", " B:Ring", " C:Star", " D:Cross", "C", "train"]


def table(file, header, *rows):
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return file


def changed(row, header, **cells):
    return [cells.get(name.replace(" ", "_"), cell) for name, cell in zip(header, row, strict=True)]


def test_pmc_v1_golden_from_a_folder(tmp_path):
    table(tmp_path / "train.csv", V1, FIRST, changed(FIRST, V1, Question="Two\nlines?"))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "P1_F1.png").write_bytes(picture(5))
    (case,) = read("pmc_vqa", tmp_path).cases
    options = ("Disc", "Ring", "Star", "Cross")
    assert case == Case(
        id="P1_F1",
        images=(tmp_path / "images" / "P1_F1.png",),
        split="train",
        licence="CC-BY-SA",
        questions=(
            Question("train-2", "What shape?", "Ring", options, 1),
            Question("train-3", "Two\nlines?", "Ring", options, 1),
        ),
    )


def test_pmc_v2_golden_from_the_zip_file(tmp_path):
    file = pack(tmp_path / "images_2.zip", {"figures/P1_F1_1.png": picture(6)})
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "P1_F1_1.png").write_bytes(picture(5))  # of v1, not what v2 shows
    table(tmp_path / "train_2.csv", V2, SECOND)
    table(tmp_path / "test_2.csv", V2, changed(SECOND, V2, split="test"))
    table(tmp_path / "train.csv", V1, FIRST)
    result = read("pmc_vqa", tmp_path)
    train, test = result.cases
    assert train.images == (file / "figures" / "P1_F1_1.png",)
    assert load_image(train.images[0])[0, 0] == 6
    assert train.questions == (Question("train_2-0", "What shape?", "Star", ("Disc", "Ring", "Star", "Cross"), 2),)
    assert (test.split, test.questions[0].id) == ("test", "test_2-0")
    assert result.counts["files_of_other_forms_or_splits"] == 1
    assert validate("pmc_vqa", tmp_path).is_ok


def test_pmc_forms_are_chosen_by_name(tmp_path):
    for name in ("test.csv", "test_clean.csv"):
        table(tmp_path / name, V1, FIRST)
    assert read("pmc_vqa", tmp_path).cases[0].questions[0].id == "test-2"
    assert read("pmc_vqa", tmp_path, form="v1_clean").cases[0].questions[0].id == "test_clean-2"
    with pytest.raises(RequestError, match=r"There is no train_2\.csv or test_2\.csv"):
        read("pmc_vqa", tmp_path, form="v2")
    with pytest.raises(RequestError, match=r"form='v3'.*auto, v1, v1_clean, v2"):
        read("pmc_vqa", tmp_path, form="v3")


@pytest.mark.parametrize(
    ("cells", "field", "reason"),
    [
        ({"Answer_label": "E"}, "Answer_label", "is 'E', not one of A, B, C, D"),
        ({"Answer_label": ""}, "Answer_label", "is empty"),
        ({"Answer": "Disc"}, "Answer", "is 'Disc', but Answer_label names 'Ring'"),
        ({"Choice_C": "C:"}, "Choice C", "is empty"),
        ({"Question": " "}, "Question", "is empty"),
        ({"Figure_path": "../a.png"}, "Figure_path", "does not name a file inside"),
        ({"Figure_path": "b.png"}, "Figure_path", "names no member of images.zip"),
    ],
)
def test_pmc_malformed_row_is_named_and_the_rest_is_read(tmp_path, cells, field, reason):
    pack(tmp_path / "images.zip", {"images/P1_F1.png": picture()})
    file = table(tmp_path / "train.csv", V1, FIRST, changed(FIRST, V1, **cells), FIRST)
    result = read("pmc_vqa", tmp_path)
    (problem,) = result.problems
    assert (problem.file, problem.row, problem.field) == (str(file), "3", field)
    assert reason in problem.reason
    assert result.counts["questions"] == 2


@pytest.mark.parametrize("answer", ["ring", " B:Ring ", '"Ring."'])
def test_pmc_answer_may_differ_from_its_choice_in_spelling(tmp_path, answer):
    table(tmp_path / "train.csv", V1, changed(FIRST, V1, Answer=answer))
    assert read("pmc_vqa", tmp_path).problems == ()


def test_pmc_v2_row_of_the_other_split_or_with_an_index_met_before_is_malformed(tmp_path):
    rows = [SECOND, changed(SECOND, V2, split="test", index="1"), SECOND, changed(SECOND, V2, Answer="b", index="2")]
    table(tmp_path / "train_2.csv", V2, *rows)
    result = read("pmc_vqa", tmp_path)
    assert [(p.row, p.field) for p in result.problems] == [("3", "split"), ("4", "index")]
    assert "as in train_2.csv, row 2; the first row is kept" in result.problems[1].reason
    assert [q.answer for case in result.cases for q in case.questions] == ["Star", "Ring"]


def test_csv_rows_of_every_fault_are_yielded_and_the_rest_is_read(tmp_path):
    file = tmp_path / "a.csv"
    file.write_bytes(
        b"\xef\xbb\xbfa,b\r\n1,x\r\n2\r\n\r\n3,\xff\r\n"
        b'4,"never closed\r\n5,y\r\n6,"two\r\nlines"\r\n7,"odd"end\r\n8,\xe2\x80\xa8z\r\n'
    )
    rows = dict(read_csv(file, ("a", "b")))
    assert {line: row for line, row in rows.items() if not isinstance(row, RowError)} == {
        2: {"a": "1", "b": "x"},
        7: {"a": "5", "b": "y"},
        8: {"a": "6", "b": "two\r\nlines"},
        11: {"a": "8", "b": "\u2028z"},
    }
    assert {line: str(row) for line, row in rows.items() if isinstance(row, RowError)} == {
        3: "field 'row' has 1 cells where 2 belong: a, b",
        5: "field 'b' is not UTF-8",
        6: "field 'row' is not CSV: ',' expected after '\"'",
        10: "field 'row' is not CSV: ',' expected after '\"'",
    }


@pytest.mark.parametrize(
    ("header", "why"),
    [("a,c", "The column b is missing"), ("a,b,b", "A column stands twice"), ('a,"b', "Its first line is not CSV")],
)
def test_csv_whose_header_is_broken_or_lacks_a_column_is_refused(tmp_path, header, why):
    (tmp_path / "a.csv").write_text(f"{header}\n1,2\n")
    with pytest.raises(RequestError, match=why):
        list(read_csv(tmp_path / "a.csv", ("a", "b")))


OMNI = {
    "dataset": "Shapes",
    "question_id": "Shapes_0001",
    "question_type": "Modality Recognition",
    "question": "What is this?",
    "gt_answer": "drawing",
    "image_path": "Images/Shapes/a.png",
    "option_A": "Drawing",
    "option_B": "Photograph",
    "option_C": "X-ray",
    "modality_type": "Digital Photography",
}


def omni_files(folder="QA_information/Open-access", **files):
    return {f"{folder}/{name}.json": json.dumps(rows) for name, rows in files.items()}


def unpack(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize("form", ["root", "folder", "zip"])
def test_omnimedvqa_golden_in_every_layout(tmp_path, form):
    two = {**OMNI, "question_id": "Shapes_0002", "option_C": None, "modality": "CT"}
    del two["modality_type"]
    files = omni_files(Shapes=[OMNI, two]) | {"Images/Shapes/a.png": picture(9)}
    files |= omni_files("QA_information/Restricted-access", Secret=[{**OMNI, "question_id": "Secret_1"}])
    within = {f"OmniMedVQA/{name}": content for name, content in files.items()}
    if form == "zip":
        base = pack(tmp_path / "OmniMedVQA.zip", within) / "OmniMedVQA"
    else:
        unpack(tmp_path, files if form == "root" else within)
        base = tmp_path if form == "root" else tmp_path / "OmniMedVQA"
    result = read("omnimedvqa", tmp_path)
    (case,) = result.cases
    assert case == Case(
        id="Images-Shapes-a",
        images=(base / "Images" / "Shapes" / "a.png",),
        modality="Digital Photography",
        licence="not stated",
        questions=(
            Question(
                "Shapes_0001",
                "What is this?",
                "Drawing",
                ("Drawing", "Photograph", "X-ray"),
                0,
                kind="Modality Recognition",
            ),
            Question(
                "Shapes_0002", "What is this?", "Drawing", ("Drawing", "Photograph"), 0, kind="Modality Recognition"
            ),
        ),
    )
    assert load_image(case.images[0])[0, 0] == 9
    assert result.counts["files_of_other_access"] == 1
    assert validate("omnimedvqa", tmp_path).is_ok
    assert read("omnimedvqa", tmp_path, access="restricted").counts["questions"] == 1
    assert read("omnimedvqa", tmp_path, access="all").counts["questions"] == 3


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        ({"gt_answer": "painting"}, "gt_answer", "which is 0 of the options"),
        ({"option_B": "drawing"}, "gt_answer", "which is 2 of the options"),
        ({"option_B": "", "option_C": ""}, "option_A", "begins 1 options"),
        ({"option_B": ""}, "option_B", "is missing before an option that is there"),
        ({"image_path": "Images/../../a.png"}, "image_path", "does not name a file inside"),
        ({"question": 3.5e400}, "question", "not text"),
    ],
)
def test_omnimedvqa_malformed_row_is_named_and_the_rest_is_read(tmp_path, change, field, reason):
    bad = {**OMNI, "question_id": "Shapes_0002", **change}
    unpack(tmp_path, omni_files(Shapes=[OMNI, bad, {**OMNI, "question_id": "Shapes_0003"}]))
    result = read("omnimedvqa", tmp_path)
    (problem,) = result.problems
    assert (problem.row, problem.field) == ("2", field)
    assert reason in problem.reason
    assert result.counts["questions"] == 2


def test_omnimedvqa_broken_file_and_id_of_another_file_are_problems(tmp_path):
    other = [{**OMNI, "question": "Again?"}, {**OMNI, "question_id": "Other_1"}]
    unpack(tmp_path, omni_files(A=[OMNI], C=other) | {"QA_information/Open-access/B.json": "[{"})
    result = read("omnimedvqa", tmp_path)
    assert [(p.file.rpartition("/")[2], p.row, p.field) for p in result.problems] == [
        ("B.json", "all", "row"),
        ("C.json", "1", "question_id"),
    ]
    assert "as in A.json, row 1" in result.problems[1].reason
    assert result.counts["questions"] == 2


def test_omnimedvqa_without_files_or_with_an_unknown_access_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"Neither it, OmniMedVQA/ nor OmniMedVQA\.zip holds"):
        read("omnimedvqa", tmp_path)
    with pytest.raises(RequestError, match="access='none'.*open, restricted, all"):
        read("omnimedvqa", tmp_path, access="none")


XPERT = {
    "id": "MM-1",
    "question": "Which shape is drawn?\nAnswer Choices: (A) Disc (B) Ring (C) Star (D) Cross (E) Line",
    "options": {"A": "Disc", "B": "Ring", "C": "Star", "D": "Cross", "E": "Line"},
    "label": "E",
    "images": ["MM-1-a.png", "MM-1-b.png"],
    "medical_task": "Diagnosis",
    "body_system": "Skeletal",
    "question_type": "Reasoning",
}


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def xpert(tmp_path):
    pack(tmp_path / "images.zip", {"images/MM-1-a.png": picture(1), "images/MM-1-b.png": picture(2)})
    unpack(tmp_path, {"MM/test.jsonl": lines(XPERT), "MM/dev.jsonl": lines({**XPERT, "id": "MM-26"})})
    return tmp_path


def test_medxpertqa_golden(xpert):
    result = read("medxpertqa_mm", xpert)
    dev, test = result.cases
    folder = xpert / "images.zip" / "images"
    assert test == Case(
        id="MM-1",
        images=(folder / "MM-1-a.png", folder / "MM-1-b.png"),
        body_part="Skeletal",
        split="test",
        licence="MIT",
        questions=(
            Question(
                "MM-1",
                "Which shape is drawn?",
                "Line",
                ("Disc", "Ring", "Star", "Cross", "Line"),
                4,
                kind="Diagnosis, Reasoning",
            ),
        ),
    )
    assert (dev.id, dev.split) == ("MM-26", "validation")
    assert result.counts["questions_with_several_images"] == 2
    assert validate("medxpertqa_mm", xpert).images == 2


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        ({"label": "F"}, "label", "is 'F', not one of A, B, C, D, E"),
        ({"label": None}, "label", "is None, not text"),
        ({"options": ["Disc", "Ring"]}, "options", "not an object"),
        ({"options": {"A": "Disc"}, "label": "A"}, "options", "two texts or more"),
        ({"options": {"A": "Disc", "B": 7.5e400}, "label": "A"}, "B", "not text"),
        ({"images": []}, "images", "not a list"),
        ({"images": ["MM-9-a.png"]}, "images", "names no member of images.zip"),
        ({"images": "MM-1-a.png"}, "images", "not a list"),
        ({"id": "MM-26"}, "id", "as in dev.jsonl, row 1"),
    ],
)
def test_medxpertqa_malformed_row_is_named_and_the_rest_is_read(xpert, change, field, reason):
    unpack(xpert, {"MM/test.jsonl": lines({**XPERT, "id": "MM-2", **change}, XPERT)})
    result = read("medxpertqa_mm", xpert)
    (problem,) = result.problems
    assert (problem.row, problem.field) == ("1", field)
    assert reason in problem.reason
    assert result.counts["questions"] == 2


def test_medxpertqa_without_files_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"holds dev\.jsonl\. Name"):
        read("medxpertqa_mm", tmp_path, "validation")


def test_command_validates_a_sound_set_and_a_broken_one(xpert):
    arguments = ["validate", "medxpertqa_mm", "--root", str(xpert)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    unpack(xpert, {"MM/test.jsonl": lines(XPERT, {**XPERT, "id": "MM-2", "label": "F"})})
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "1 malformed rows" in result.stdout
    assert "row 2, field 'label': is 'F', not one of A, B, C, D, E" in " ".join(result.stdout.split())


def test_help_and_validation_import_neither_torch_nor_pandas(xpert):
    code = (
        "import sys; from typer.testing import CliRunner; from lightbox.cli.data import app; run = CliRunner().invoke\n"
        f"for words in (['--help'], ['validate', '--help'], ['validate', 'medxpertqa_mm', '--root', {str(xpert)!r}]):\n"
        "    assert run(app, words).exit_code == 0, words\n"
        "    assert not {'torch', 'pandas', 'transformers'} & sys.modules.keys(), words\n"
        "    assert words[-1] != '--help' or not {'pyarrow', 'PIL'} & sys.modules.keys(), words\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
