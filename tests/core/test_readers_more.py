"""VQA-Med 2019, PathVQA and the rationale sets: golden examples and malformed rows."""

import hashlib
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lightbox.errors import RequestError
from lightbox.readers.catalog import read
from lightbox.readers.images import load_image
from lightbox.readers.leakage import leakage
from lightbox.records import Case, Question


@pytest.fixture
def med(tmp_path):
    train = tmp_path / "ImageClef_2019_Training"
    (train / "Train_images").mkdir(parents=True)
    (train / "QAPairsByCategory").mkdir()
    (train / "All_QA_Pairs_train.txt").write_text(
        "synpic1|is this a t1 weighted image?|no\r\n"
        "synpic1|what plane is this?|axial\r\n"
        "synpic2|what is abnormal?|cyst\r\n"
    )
    (train / "QAPairsByCategory" / "C1_Modality_train.txt").write_text("synpic1|is this a t1 weighted image?|no\n")
    (train / "QAPairsByCategory" / "C2_Plane_train.txt").write_text("synpic1|what plane is this?|axial\n")
    return tmp_path


def test_vqa_med_golden(med):
    images = med / "ImageClef_2019_Training" / "Train_images"
    result = read("vqa_med_2019", med)
    assert result.cases == (
        Case(
            id="synpic1",
            images=(images / "synpic1.jpg",),
            split="train",
            licence="CC-BY-4.0",
            questions=(
                Question("train-1", "is this a t1 weighted image?", "no", ("yes", "no"), 1, kind="modality"),
                Question("train-2", "what plane is this?", "axial", kind="plane"),
            ),
        ),
        Case(
            id="synpic2",
            images=(images / "synpic2.jpg",),
            split="train",
            licence="CC-BY-4.0",
            questions=(Question("train-3", "what is abnormal?", "cyst"),),
        ),
    )
    assert result.counts["without_category"] == 1


def test_vqa_med_test_file_has_its_category_in_the_line(tmp_path):
    line = "synpic9|abnormality|what is seen?|oligodendroglioma#cystic mass\n"
    (tmp_path / "VQAMed2019_Test_Questions_w_Ref_Answers.txt").write_text(line)
    (tmp_path / "VQAMed2019_Test_Images").mkdir()
    (case,) = read("vqa_med_2019", tmp_path, "test").cases
    assert case.questions == (Question("test-1", "what is seen?", "oligodendroglioma#cystic mass", kind="abnormality"),)
    assert case.images[0].parent.name == "VQAMed2019_Test_Images"


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (b"synpic3|only two\n", "row"),
        (b"synpic3|a|b|c\n", "row"),
        (b"synpic3||yes\n", "question"),
        (b"../x|what?|yes\n", "synpic"),
        (b"synpic3|what?|\xff\n", "row"),
    ],
)
def test_vqa_med_malformed_line_is_named_and_the_rest_is_read(med, line, field):
    file = med / "ImageClef_2019_Training" / "All_QA_Pairs_train.txt"
    file.write_bytes(line + file.read_bytes())
    result = read("vqa_med_2019", med)
    assert [(p.file, p.row, p.field) for p in result.problems] == [(str(file), "1", field)]
    assert result.counts["questions"] == 3


def test_vqa_med_malformed_category_line_is_a_problem_of_its_own_file(med):
    file = med / "ImageClef_2019_Training" / "QAPairsByCategory" / "C2_Plane_train.txt"
    file.write_text("nonsense\n")
    result = read("vqa_med_2019", med)
    assert [(p.file, p.row) for p in result.problems] == [(str(file), "1")]
    assert result.counts["without_category"] == 2


def test_vqa_med_without_files_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"All_QA_Pairs_val\.txt"):
        read("vqa_med_2019", tmp_path, "validation")


def png(value):
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 6), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def write_parquet(file, rows, **options):
    file.parent.mkdir(exist_ok=True)
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), ("question", pa.string()), ("answer", pa.string())])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), file, **options)


def row(content, question="what is shown?", answer="gland"):
    return {"image": {"bytes": content, "path": None}, "question": question, "answer": answer}


def test_path_vqa_golden_groups_equal_images_and_opens_them_from_the_parquet(tmp_path):
    file = tmp_path / "data" / "train-00000-of-00001.parquet"
    write_parquet(file, [row(png(10)), row(png(20), "is it?", "Yes"), row(png(10), "where?")], row_group_size=2)
    first, second = read("path_vqa", tmp_path).cases
    assert first.id == hashlib.sha256(png(10)).hexdigest()[:16]
    assert first.images == (file / "0",)
    assert [q.id for q in first.questions] == ["train-train-00000-of-00001-0", "train-train-00000-of-00001-2"]
    assert second.questions == (Question("train-train-00000-of-00001-1", "is it?", "yes", ("yes", "no"), 0),)
    assert load_image(first.images[0]).tolist() == np.full((4, 6), 10).tolist()
    assert load_image(second.images[0])[0, 0] == 20
    assert load_image(file / "2")[0, 0] == 10


def test_path_vqa_equal_bytes_in_two_splits_are_leakage(tmp_path):
    write_parquet(tmp_path / "train-0.parquet", [row(png(10)), row(png(20))])
    write_parquet(tmp_path / "test-0.parquet", [row(png(10)), row(png(30)), row(png(10), "where?")])
    (found,) = leakage(read("path_vqa", tmp_path).cases)
    assert (found.images, found.images_shared, found.items, found.items_on_shared_images) == (2, 1, 3, 2)
    assert found.repeated_pairs == 1


def test_path_vqa_malformed_rows_are_named(tmp_path):
    file = tmp_path / "train-0.parquet"
    rows = [row(png(1)), {"image": None, "question": "q", "answer": "a"}, row(b""), row(png(1), question=None)]
    write_parquet(file, rows)
    result = read("path_vqa", tmp_path)
    assert [(p.row, p.field) for p in result.problems] == [("2", "image"), ("3", "image"), ("4", "question")]
    assert result.counts["questions"] == 1


def test_path_vqa_unreadable_files_are_refused(tmp_path):
    with pytest.raises(RequestError, match=r"no train-\*\.parquet"):
        read("path_vqa", tmp_path)
    file = tmp_path / "train-0.parquet"
    file.write_bytes(b"PAR1 not really")
    with pytest.raises(RequestError, match="not readable parquet"):
        read("path_vqa", tmp_path)
    pq.write_table(pa.table({"question": ["q"]}), file)
    with pytest.raises(RequestError, match="PathVQA needs image, answer too"):
        read("path_vqa", tmp_path)


def test_parquet_row_that_is_not_there_is_refused(tmp_path):
    file = tmp_path / "train-0.parquet"
    write_parquet(file, [row(png(1)), {"image": None, "question": "q", "answer": "a"}])
    with pytest.raises(RequestError, match="has 2 rows"):
        load_image(file / "2")
    with pytest.raises(RequestError, match="holds no image bytes"):
        load_image(file / "1")


CLOSED = {
    "question": "Is there edema?",
    "choices": ["yes", "no"],
    "answer": 1,
    "solution": "The sulci are sharp. There is no edema.",
    "image": "synpic1.jpg",
    "image_organ": "HEAD",
}


def write_rationales(root, name, content):
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_r_rad_golden(tmp_path):
    opened = {**CLOSED, "question": "Where?", "choices": ["left lobe"], "answer": 0}
    write_rationales(tmp_path, "closed-end/trainset.json", {"12": CLOSED})
    write_rationales(tmp_path, "open-end/testset.json", {"12": opened})
    train, test = read("r_rad", tmp_path).cases
    assert train == Case(
        id="synpic1",
        images=(tmp_path / "images" / "synpic1.jpg",),
        body_part="head",
        split="train",
        licence="not stated",
        questions=(
            Question(
                "train-closed-12",
                "Is there edema?",
                "no",
                ("yes", "no"),
                1,
                rationale="The sulci are sharp. There is no edema.",
            ),
        ),
    )
    assert test.questions[0].options == ()
    assert (test.questions[0].id, test.questions[0].answer) == ("test-open-12", "left lobe")


def test_r_slake_golden_keeps_its_own_two_choices(tmp_path):
    item = {
        "question": "Which is bigger, kidney or liver?",
        "choices": ["Kidney", "Liver"],
        "answer": 1,
        "solution": "The liver fills the right side.",
        "img_id": 0,
        "img_name": "xmlab0/source.jpg",
    }
    write_rationales(tmp_path, "closed-end/test.json", {"7": item})
    (case,) = read("r_slake", tmp_path, images="imgs").cases
    assert (case.id, case.images) == ("0", (tmp_path / "imgs" / "xmlab0" / "source.jpg",))
    assert case.questions[0].options == ("Kidney", "Liver")
    assert case.questions[0].answer == "Liver"


def test_r_path_reads_validation_and_adds_the_ending_of_images(tmp_path):
    item = {k: v for k, v in CLOSED.items() if k != "image_organ"}
    write_rationales(tmp_path, "closed-end/valset.json", {"1": {**item, "image": "val_0001"}})
    (case,) = read("r_path", tmp_path, "validation").cases
    assert case.images[0].name == "val_0001.jpg"


@pytest.mark.parametrize(
    ("broken", "field", "reason"),
    [
        ({**CLOSED, "answer": 2}, "answer", "index 2 with 2 choices"),
        ({**CLOSED, "answer": -1}, "answer", "index -1 with 2 choices"),
        ({**CLOSED, "answer": "no"}, "answer", "not an index"),
        ({**CLOSED, "choices": "yes no"}, "choices", "not a list"),
        ({**CLOSED, "choices": []}, "choices", "not a list"),
        ({**CLOSED, "choices": ["yes", 3.5, None]}, "choices", "not text"),
        ({k: v for k, v in CLOSED.items() if k != "solution"}, "solution", "is missing"),
        ({k: v for k, v in CLOSED.items() if k != "image"}, "image", "is missing"),
        ([], "row", "is a list, not an object"),
    ],
)
def test_rationale_malformed_row_is_named_by_its_key(tmp_path, broken, field, reason):
    file = write_rationales(tmp_path, "closed-end/trainset.json", {"1": CLOSED, "bad": broken, "3": CLOSED})
    result = read("r_rad", tmp_path)
    (problem,) = result.problems
    assert (problem.file, problem.row, problem.field) == (str(file), "bad", field)
    assert reason in problem.reason
    assert result.counts["questions"] == 2


def test_rationale_id_that_stands_twice_is_a_problem(tmp_path):
    text = json.dumps({"1": CLOSED})[:-1] + ', "1": ' + json.dumps({**CLOSED, "answer": 0}) + "}"
    write_rationales(tmp_path, "closed-end/trainset.json", text)
    result = read("r_rad", tmp_path)
    assert [(p.row, p.field) for p in result.problems] == [("1", "qid")]
    assert result.cases[0].questions[0].answer == "no"


def test_rationale_list_instead_of_object_is_refused(tmp_path):
    write_rationales(tmp_path, "closed-end/trainset.json", [CLOSED])
    with pytest.raises(RequestError, match="holds a JSON list.*object keyed by question id"):
        read("r_rad", tmp_path)
    with pytest.raises(RequestError, match="Neither closed-end"):
        read("r_slake", tmp_path / "closed-end", "test")
