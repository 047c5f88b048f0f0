"""VQA-RAD: one golden example for each of its three forms, and its malformed rows."""

import json

import pytest

from lightbox.errors import RequestError
from lightbox.readers.catalog import read
from lightbox.readers.rows import Problem
from lightbox.records import Case, Question

ROW = {
    "qid": 129,
    "image_name": "synpic1.jpg",
    "image_organ": "HEAD",
    "answer": "Yes",
    "answer_type": "CLOSED",
    "question_type": "PRES",
    "question": "Is there edema?",
    "phrase_type": "freeform",
}


def put(root, name, value):
    (root / "images").mkdir(exist_ok=True)
    file = root / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(value if isinstance(value, str) else json.dumps(value))
    return file


def test_split_form_golden(tmp_path):
    open_row = {
        **ROW,
        "qid": 130,
        "question": " Where? ",
        "answer": "Left lobe",
        "question_type": "POS",
        "answer_type": "OPEN",
    }
    other = {**ROW, "qid": 131, "image_name": "synpic2.jpg", "image_organ": "ABD ", "answer": 2, "answer_type": "OPEN "}
    put(tmp_path, "trainset.json", [ROW, open_row, other])
    put(tmp_path, "testset.json", [{**ROW, "qid": 9, "answer": "no"}])
    result = read("vqa_rad", tmp_path)
    images = tmp_path / "images"
    assert result.cases == (
        Case(
            id="synpic1",
            images=(images / "synpic1.jpg",),
            body_part="head",
            split="train",
            licence="CC0-1.0",
            questions=(
                Question("129", "Is there edema?", "yes", ("yes", "no"), 0, kind="pres"),
                Question("130", "Where?", "Left lobe", kind="pos"),
            ),
        ),
        Case(
            id="synpic2",
            images=(images / "synpic2.jpg",),
            body_part="abdomen",
            split="train",
            licence="CC0-1.0",
            questions=(Question("131", "Is there edema?", "2", kind="pres"),),
        ),
        Case(
            id="synpic1",
            images=(images / "synpic1.jpg",),
            body_part="head",
            split="test",
            licence="CC0-1.0",
            questions=(Question("9", "Is there edema?", "no", ("yes", "no"), 1, kind="pres"),),
        ),
    )
    assert result.problems == ()
    assert result.counts == {"rows": 4, "cases": 3, "questions": 4, "malformed_rows": 0}


def test_public_form_golden_takes_split_from_phrase_type_and_patient_from_the_teaching_case(tmp_path):
    row = {
        **ROW,
        "qid": "7",
        "qid_linked_id": "03f451ca",
        "image_case_url": "https://medpix.nlm.nih.gov/case?id=48e1dd0e-8552",
        "evaluation": "evaluated",
        "question_rephrase": "NULL",
        "question_relation": "NULL",
        "question_frame": "NULL",
        "image_organ": "CHEST",
    }
    test_row = {**row, "qid": 8, "phrase_type": "test_para", "answer": "supratentorial"}
    put(tmp_path, "VQA_RAD Dataset Public.json", [row, test_row])
    train, test = read("vqa_rad", tmp_path).cases
    assert (train.split, test.split) == ("train", "test")
    assert train.patient_id == test.patient_id == "48e1dd0e-8552"
    assert train.body_part == "chest"
    assert test.questions[0].options == ()
    result = read("vqa_rad", tmp_path, "test")
    assert [case.split for case in result.cases] == ["test"]
    assert result.counts["rows_of_other_splits"] == 1
    assert result.counts["closed_without_options"] == 1


def test_llava_med_form_golden(tmp_path):
    line = {
        "question_id": 86,
        "image": "synpic3.jpg",
        "text": "Is there edema?\n<image>",
        "gpt4_answer": "Yes",
        "answer_type": "CLOSED",
    }
    put(tmp_path, "llava_med_format/VQA_RAD_train_llavamed_format.jsonl", json.dumps(line) + "\n")
    (case,) = read("vqa_rad", tmp_path).cases
    assert case.questions == (Question("86", "Is there edema?", "yes", ("yes", "no"), 0),)
    assert (case.id, case.split, case.patient_id) == ("synpic3", "train", None)
    assert case.images == (tmp_path / "images" / "synpic3.jpg",)


def test_form_can_be_chosen_where_two_are_there(tmp_path):
    put(tmp_path, "trainset.json", [ROW])
    line = {"question_id": 1, "image": "synpic3.jpg", "text": "q", "gpt4_answer": "lung", "answer_type": "CLOSED"}
    put(tmp_path, "llava_med_format/a_train_b.jsonl", json.dumps(line))
    assert read("vqa_rad", tmp_path).cases[0].id == "synpic1"
    result = read("vqa_rad", tmp_path, form="llava_med")
    assert result.cases[0].id == "synpic3"
    assert result.counts["closed_without_options"] == 1


def test_yes_marked_open_by_the_source_is_closed_and_counted(tmp_path):
    put(tmp_path, "trainset.json", [{**ROW, "answer_type": "OPEN"}])
    result = read("vqa_rad", tmp_path)
    assert result.cases[0].questions[0].is_closed
    assert result.counts["yes_no_marked_open"] == 1


@pytest.mark.parametrize(
    ("broken", "field", "reason"),
    [
        ("not an object", "row", "is a str, not an object"),
        ([1], "row", "is a list, not an object"),
        ({k: v for k, v in ROW.items() if k != "question"}, "question", "is missing"),
        ({**ROW, "question": "  "}, "question", "is empty"),
        ({**ROW, "answer": None}, "answer", "is None, not text"),
        ({**ROW, "answer": {"a": 1}}, "answer", "not text"),
        ({**ROW, "qid": None}, "qid", "is None, not text"),
        ({**ROW, "image_name": "../../secret.jpg"}, "image_name", "inside the image folder"),
        ({**ROW, "image_name": True}, "image_name", "is True, not text"),
    ],
)
def test_malformed_row_names_file_row_field_and_reason_and_the_rest_is_read(tmp_path, broken, field, reason):
    file = put(tmp_path, "trainset.json", [{**ROW, "qid": 1}, broken, {**ROW, "qid": 3}])
    result = read("vqa_rad", tmp_path)
    assert [question.id for case in result.cases for question in case.questions] == ["1", "3"]
    (problem,) = result.problems
    assert (problem.file, problem.row, problem.field) == (str(file), "2", field)
    assert reason in problem.reason
    assert result.counts["malformed_rows"] == 1


def test_public_row_without_phrase_type_has_no_split(tmp_path):
    row = {k: v for k, v in ROW.items() if k != "phrase_type"}
    file = put(tmp_path, "VQA_RAD Dataset Public.json", [ROW, row])
    assert read("vqa_rad", tmp_path).problems == (
        Problem(str(file), "2", "phrase_type", "is missing, so the split of the row is unknown"),
    )


def test_broken_json_line_is_one_problem(tmp_path):
    good = json.dumps({"question_id": 1, "image": "a.jpg", "text": "q", "gpt4_answer": "lung"})
    put(tmp_path, "VQA_RAD_test.jsonl", f"{good}\n{{broken\n")
    result = read("vqa_rad", tmp_path)
    assert [(p.row, p.field) for p in result.problems] == [("2", "row")]
    assert result.counts["questions"] == 1


def test_dataset_without_a_readable_row_is_refused_with_the_first_problem(tmp_path):
    put(tmp_path, "trainset.json", [{**ROW, "question": ""}])
    with pytest.raises(RequestError, match="has no readable row.*row 1, field 'question': is empty"):
        read("vqa_rad", tmp_path)
    put(tmp_path, "trainset.json", [])
    with pytest.raises(RequestError, match="It is JSON without a row"):
        read("vqa_rad", tmp_path)


def test_absent_files_forms_and_splits_are_refused(tmp_path):
    with pytest.raises(RequestError, match="There is no 'VQA_RAD Dataset Public.json'"):
        read("vqa_rad", tmp_path)
    put(tmp_path, "trainset.json", [ROW])
    with pytest.raises(RequestError, match="form 'llava_med'"):
        read("vqa_rad", tmp_path, form="llava_med")
    with pytest.raises(RequestError, match="split 'test'"):
        read("vqa_rad", tmp_path, "test")
