"""Strict files and rows: what is wrong is named, the rest is read."""

import pytest

from lightbox.errors import RequestError
from lightbox.readers.documents import parse_json, read_json, read_json_lines, read_lines, separated
from lightbox.readers.rows import (
    RowError,
    as_row,
    case_id_of,
    choices_field,
    index_field,
    inside,
    make_question,
    text_field,
)


def test_repeated_key_is_remembered_and_refused_as_a_row():
    value = parse_json('{"a": 1, "b": 2, "a": 3}')
    assert value == {"a": 1, "b": 2}
    assert value.repeated == (("a", 3),)
    with pytest.raises(RowError, match="field 'a' stands twice"):
        as_row(value)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "It is empty"),
        (b" \n ", "It is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "Git LFS pointer"),
        (b"[1, 2", "not JSON: .*line 1"),
        (b'["a",\n}', "line 2"),
        (b"[" * 200_000, "nested too deep"),
        (b'["\xff"]', "Byte 2 is not UTF-8"),
        (b"[" + b"1" * 6000 + b"]", "not JSON: .*digits"),
        (b'{"a": 1}', "a list of rows"),
        (b"3", "a list of rows"),
    ],
)
def test_unreadable_json_names_file_and_reason(tmp_path, content, why):
    file = tmp_path / "set.json"
    file.write_bytes(content)
    with pytest.raises(RequestError, match=why) as caught:
        read_json(file, list)
    assert str(file) in caught.value.given


def test_missing_file_and_folder_in_its_place_are_request_errors(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(RequestError, match="no such file"):
            read_json(path, list)


def test_byte_order_mark_is_skipped(tmp_path):
    file = tmp_path / "set.json"
    file.write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(file, list) == [1]


def test_bad_json_line_is_yielded_as_row_error_with_its_number(tmp_path):
    file = tmp_path / "set.jsonl"
    file.write_bytes(b'{"a": 1}\n\n{"a": \n\xff\xfe\n{"a": 2}\n')
    rows = dict(read_json_lines(file))
    assert rows[1] == {"a": 1}
    assert rows[5] == {"a": 2}
    assert isinstance(rows[3], RowError)
    assert "not JSON" in rows[3].reason
    assert "not UTF-8" in rows[4].reason
    assert set(rows) == {1, 3, 4, 5}


def test_lines_lose_their_carriage_return_and_mark(tmp_path):
    file = tmp_path / "pairs.txt"
    file.write_bytes(b"\xef\xbb\xbfa|b\r\nc|d")
    assert list(read_lines(file)) == [(1, "a|b"), (2, "c|d")]


def test_separated_line_needs_exactly_the_named_fields():
    assert separated("x|y", ("a", "b")) == {"a": "x", "b": "y"}
    for line in ("x", "x|y|z"):
        with pytest.raises(RowError, match=r"fields separated by '\|' where 2 belong: a, b"):
            separated(line, ("a", "b"))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "not text"),
        (True, "not text"),
        (float("nan"), "not text"),
        (float("inf"), "not text"),
        (["a"], "not text"),
        ({}, "not text"),
        ("", "is empty"),
        ("  \n", "is empty"),
        ("\ud800", "surrogate"),
        ("x" * 20_001, "20001 characters"),
    ],
)
def test_text_field_refuses_what_is_not_text(value, reason):
    with pytest.raises(RowError, match=reason):
        text_field({"question": value}, "question")


def test_text_field_strips_text_writes_numbers_and_names_what_is_missing():
    assert text_field({"a": " x "}, "a") == "x"
    assert text_field({"a": 0}, "a") == "0"
    assert text_field({}, "a", default="") == ""
    assert text_field({"a": None}, "a", default="d") == "d"
    with pytest.raises(RowError, match="field 'a' is missing"):
        text_field({}, "a")


def test_long_values_are_cut_in_messages():
    with pytest.raises(RowError) as caught:
        text_field({"a": ["y" * 5000]}, "a")
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize("value", [-1, 2, 99])
def test_index_out_of_range_is_named(value):
    with pytest.raises(RowError, match=f"is index {value} with 2 choices"):
        index_field({"answer": value}, "answer", 2)


@pytest.mark.parametrize("value", ["0", 0.0, True, None, [0]])
def test_index_of_another_type_is_refused(value):
    with pytest.raises(RowError, match="not an index"):
        index_field({"answer": value}, "answer", 2)


@pytest.mark.parametrize("value", [None, [], "yes", {"a": 1}])
def test_choices_must_be_a_list_with_content(value):
    with pytest.raises(RowError, match="field 'choices'"):
        choices_field({"choices": value}, "choices")


@pytest.mark.parametrize(
    "name", ["../a.jpg", "/etc/passwd", "a/../../b.jpg", "..\\b.jpg", "C:\\b.jpg", "C:b.jpg", "a\0.jpg", ".", "\x1b[2J"]
)
def test_image_names_cannot_leave_the_folder(tmp_path, name):
    with pytest.raises(RowError, match="inside the image folder"):
        inside(tmp_path, name, "image")


def test_image_names_inside_the_folder_are_joined(tmp_path):
    assert inside(tmp_path, "xmlab1/source.jpg", "image") == tmp_path / "xmlab1" / "source.jpg"
    assert case_id_of("xmlab1/source.jpg") == "xmlab1-source"
    assert case_id_of("synpic1.jpg") == "synpic1"


@pytest.mark.parametrize(("answer", "index"), [("Yes", 0), ("yes.", 0), ("NO", 1), ("no", 1)])
def test_yes_no_answers_become_two_options(answer, index):
    question = make_question("1", "Is it?", answer)
    assert question.is_closed
    assert question.options == ("yes", "no")
    assert question.answer_index == index
    assert question.answer == ("yes", "no")[index]


def test_questions_are_closed_exactly_with_two_choices():
    assert make_question("1", "q", "left lung").is_closed is False
    assert make_question("1", "q", "edema", choices=("edema",), index=0).is_closed is False
    assert make_question("1", "q", "a", choices=("a", "b", "c"), index=0).is_closed is False
    closed = make_question("1", "q", "CT", choices=("MR", "CT"), index=1)
    assert (closed.options, closed.answer_index, closed.answer) == (("MR", "CT"), 1, "CT")
