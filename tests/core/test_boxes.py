"""Boxes as rows give them: converted, refused with the field and the reason, fused; XML read strictly."""

import itertools

import pytest

from lightbox.errors import RequestError
from lightbox.readers.boxes import edges_fields, edges_list, fuse_boxes, make_box, number_field, size_fields
from lightbox.readers.rows import RowError
from lightbox.readers.xml_trees import MAX_DEPTH, read_xml
from lightbox.records import Box


def test_pixels_become_fractions_and_fractions_stay():
    assert make_box((10, 20, 30, 100), "box", size_wh=(100, 200)) == (Box(0.1, 0.1, 0.3, 0.5), False)
    assert make_box((0.1, 0.1, 0.3, 0.5), "box", size_wh=None) == (Box(0.1, 0.1, 0.3, 0.5), False)
    assert make_box((0, 0, 100, 200), "box", size_wh=(100, 200)) == (Box(0, 0, 1, 1), False)


def test_a_rounding_beyond_the_edge_is_moved_to_it_and_said():
    assert make_box((-1, 0, 100.5, 201), "box", size_wh=(100, 200)) == (Box(0, 0, 1, 1), True)
    assert make_box((0.5, -0.0005, 1.0005, 1), "box", size_wh=None) == (Box(0.5, 0, 1, 1), True)


@pytest.mark.parametrize(
    ("xyxy", "size_wh", "reason"),
    [
        ((30, 20, 10, 100), (100, 200), "inverted"),
        ((10, 100, 30, 20), (100, 200), "inverted"),
        ((10, 20, 10, 100), (100, 200), "empty"),
        ((10, 20, 102, 100), (100, 200), "outside an image of 100 x 200 pixels"),
        ((-2, 20, 30, 100), (100, 200), "outside an image of 100 x 200 pixels"),
        ((100, 20, 101, 100), (100, 200), "empty"),
        ((0.1, 0.1, 30, 0.5), None, "pixels where fractions are declared"),
        ((0.1, 0.1, 1.1, 0.5), None, "outside 0..1"),
    ],
)
def test_a_box_that_is_none_is_refused_by_its_field(xyxy, size_wh, reason):
    with pytest.raises(RowError, match=reason) as err:
        make_box(xyxy, "bbox", size_wh=size_wh)
    assert err.value.name == "bbox"


@pytest.mark.parametrize("value", ["", "x", "nan", "inf", "1,5", None, True, [1], float("nan")])
def test_a_field_that_is_no_number_is_refused(value):
    with pytest.raises(RowError):
        number_field({"x": value}, "x")


def test_half_a_box_names_the_missing_half():
    with pytest.raises(RowError, match="field 'y1' is empty"):
        edges_fields({"x0": "1", "y0": "2", "x1": "3", "y1": ""}, ("x0", "y0", "x1", "y1"))
    with pytest.raises(RowError, match="not a list of four numbers"):
        edges_list([1, 2, 3], "bbox")


@pytest.mark.parametrize(("width", "field"), [("0", "w"), ("1.5", "w"), ("-3", "w"), ("", "w")])
def test_a_size_is_in_whole_pixels(width, field):
    with pytest.raises(RowError) as err:
        size_fields({"w": width, "h": "5"}, "w", "h")
    assert err.value.name == field
    assert size_fields({"w": "4.0", "h": 5}, "w", "h") == (4, 5)


def test_fused_boxes_are_means_of_what_overlaps():
    left = [Box(0.1, 0.1, 0.3, 0.3), Box(0.1, 0.1, 0.3, 0.5), Box(0.1, 0.1, 0.3, 0.4)]
    apart = Box(0.6, 0.6, 0.9, 0.9)
    fused = fuse_boxes([*left, apart])
    assert [tuple(round(edge, 6) for edge in box) for box in fused] == [(0.1, 0.1, 0.3, 0.4), apart]
    assert fuse_boxes([]) == []
    assert fuse_boxes([apart, apart]) == [apart]


def test_fusion_does_not_depend_on_the_order_of_the_rows_and_ends_in_the_hull():
    boxes = [Box(0.1, 0.1, 0.5, 0.5), Box(0.2, 0.2, 0.6, 0.6), Box(0.4, 0.4, 0.9, 0.9), Box(0.0, 0.7, 0.2, 0.9)]
    results = {tuple(fuse_boxes(order)) for order in itertools.permutations(boxes)}
    assert len(results) == 1
    (fused,) = results
    assert len(fused) <= len(boxes)
    assert all(0 <= box.x0 < box.x1 <= 0.9 and 0.1 <= box.y0 < box.y1 <= 0.9 for box in fused)


def test_boxes_at_the_threshold_stay_apart():
    a, b = Box(0.0, 0.0, 0.5, 1.0), Box(0.25, 0.0, 0.75, 1.0)  # IoU is 1 / 3
    assert len(fuse_boxes([a, b], 1 / 3)) == 2
    assert len(fuse_boxes([a, b], 0.33)) == 1


def test_xml_keeps_lines_text_and_attributes(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text('<a>\n <b k="1"> x &amp; y </b>\n <c/>\n</a>')
    tree = read_xml(path, "a")
    assert [(child.tag, child.line, child.text, child.attributes) for child in tree.children] == [
        ("b", 2, "x & y", {"k": "1"}),
        ("c", 3, "", {}),
    ]
    assert tree.fields("b") == {"b": "x & y"}
    with pytest.raises(RowError, match="field 'd' is missing"):
        tree.child("d")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]><a>&e;</a>', "document type"),
        ('<!DOCTYPE a [<!ENTITY e "aa"><!ENTITY f "&e;&e;">]><a>&f;</a>', "document type"),
        ("<a>&undefined;</a>", "not XML"),
        ("<a><b></a>", "not XML"),
        ("<a/><a/>", "not XML"),
        ("plain text", "not XML"),
        ('<?xml version="1.0" encoding="no-such"?><a/>', "not XML"),
        ("<b/>", "holds <b>"),
        ("<a>" * (MAX_DEPTH + 1) + "</a>" * (MAX_DEPTH + 1), "deep"),
    ],
)
def test_xml_that_is_broken_or_asks_for_more_is_refused(tmp_path, text, reason):
    path = tmp_path / "a.xml"
    path.write_text(text)
    with pytest.raises(RequestError, match=reason):
        read_xml(path, "a")
