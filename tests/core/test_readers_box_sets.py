"""Sets with boxes on golden files made by hand, with invented values: every field of a case, and malformed rows."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from lightbox.errors import RequestError
from lightbox.readers.catalog import read
from lightbox.readers.images import load_image
from lightbox.records import Box, Finding

VINDR = "image_id,rad_id,class_name,x_min,y_min,x_max,y_max\n"


def write_dicom(path, **tags):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 50, 100, 1
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelData = np.arange(5000, dtype=np.uint16).tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    path.parent.mkdir(exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def places(result):
    return [(problem.row, problem.field) for problem in result.problems]


def vindr(root, rows):
    (root / "annotations").mkdir()
    (root / "annotations" / "annotations_train.csv").write_text(VINDR + rows)


def test_vindr_fuses_readers_and_says_what_is_absent(tmp_path):
    one, two = (write_dicom(tmp_path / "train" / f"{name}.dicom") for name in ("one", "two"))
    vindr(
        tmp_path,
        "one,R1,Mass,10,10,30,30\none,R2,Mass,20,10,40,30\none,R1,Mass,80,10,90,20\none,R3,No finding,,,,\n"
        "two,R1,No finding,,,,\ntwo,R2,Cyst,0,0,100,50\n",
    )
    result = read("vindr_cxr", tmp_path)
    first, second = result.cases
    assert (first.id, first.split, first.images, first.modality) == ("one", "train", (one,), "X-ray")
    mass, cyst = first.findings
    assert np.allclose(mass.boxes, [Box(0.15, 0.2, 0.35, 0.6), Box(0.8, 0.2, 0.9, 0.4)])
    assert cyst == Finding("Cyst", present=False)
    assert second.images == (two,)
    assert second.findings == (Finding("Cyst", boxes=(Box(0, 0, 1, 1),)), Finding("Mass", present=False))
    assert (result.counts["boxes_before_fusion"], result.counts["boxes"]) == (4, 3)
    assert len(read("vindr_cxr", tmp_path, fuses=False).cases[0].findings[0].boxes) == 3
    assert load_image(one).max() == 255


def test_vindr_malformed_rows_name_row_and_field(tmp_path):
    write_dicom(tmp_path / "one.dicom")
    write_dicom(tmp_path / "frames.dicom", NumberOfFrames=3)
    write_dicom(tmp_path / "colours.dicom", PhotometricInterpretation="PALETTE COLOR")
    (tmp_path / "broken.dicom").write_bytes(b"\0" * 200)
    vindr(
        tmp_path,
        "one,R1,Mass,10,10,30,\none,R1,No finding,1,2,3,4\none,R1,,1,2,3,4\nframes,R1,Mass,1,2,3,4\n"
        "colours,R1,Mass,1,2,3,4\nbroken,R1,Mass,1,2,3,4\nnone,R1,Mass,1,2,3,4\none,R1\none,R2,Mass,10,10,30,30\n",
    )
    result = read("vindr_cxr", tmp_path)
    assert places(result) == [
        *(("2", "y_max"), ("3", "x_min"), ("4", "class_name")),
        *((str(row), "image_id") for row in (5, 6, 7, 8)),
        ("9", "row"),
    ]
    assert "3 frames" in result.problems[3].reason
    assert "PALETTE COLOR" in result.problems[4].reason
    (case,) = result.cases
    assert case.findings == (Finding("Mass", boxes=(Box(0.1, 0.2, 0.3, 0.6),)),)


def test_vindr_boxes_of_scaled_images_are_measured_by_the_table_of_sizes(tmp_path):
    Image.new("L", (20, 20)).save(tmp_path / "one.png")
    vindr(tmp_path, "one,R1,Mass,100,100,300,300\n")
    (tmp_path / "annotations" / "image_resolutions_train.json").write_text('{"one": [500, 1000]}')
    assert read("vindr_cxr", tmp_path).cases[0].findings[0].boxes == (Box(0.1, 0.2, 0.3, 0.6),)


def finding(abnormal, labels=(), boxes=(), **more):
    return {
        "sentence_en": "A.",
        "sentence_es": "B.",
        "abnormal": abnormal,
        "labels": [*labels],
        "boxes": [*boxes],
    } | more


def padchest(root, *studies):
    rows = [{"StudyID": name, "ImageID": f"{name}.png", "findings": list(found)} for name, found in studies]
    (root / "grounded_reports_20240819.json").write_text(json.dumps(rows))
    table = "ImageID,split,label,label_group,PatientID\n"
    table += "".join(f"{name}.png,{'train' if name != 'b' else 'test'},nodule,mass,p{name}\n" for name, _ in studies)
    (root / "master_table.csv").write_text(table)
    for name, _ in studies:
        Image.fromarray(np.arange(200, dtype=np.uint16).reshape(10, 20) * 300).save(root / f"{name}.png")


def test_padchest_golden_and_absence_from_reports_without_anything_abnormal(tmp_path):
    box = [0.1, 0.2, 0.3, 0.4]
    seen = finding(True, ["nodule"], [box], locations=["left lung"], extra_boxes=[box])
    padchest(tmp_path, ("a", [seen]), ("b", [finding(False)]), ("c", [finding(False, ["nodule"])]))
    result = read("padchest_gr", tmp_path)
    first, second, third = result.cases
    assert (first.id, first.split, first.patient_id, second.split) == ("a", "train", "pa", "test")
    attributes = {"phrase": "A.", "location": "left lung"}
    assert first.findings == (Finding("nodule", attributes=attributes, boxes=(Box(*box),)),)
    assert (first.report.sentences, first.report.findings) == (("A.",), ("nodule",))
    assert second.findings == (Finding("nodule", present=False),)
    assert third.findings == ()  # named, though not abnormal: neither present nor absent
    assert result.counts["sentences_with_extra_boxes"] == 1
    assert read("padchest_gr", tmp_path, uses_groups=True, language="es").cases[0].findings[0].name == "mass"
    assert [case.id for case in read("padchest_gr", tmp_path, "test").cases] == ["b"]
    assert load_image(first.images[0]).max() == 255


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"boxes": [[10, 20, 30, 40]]}, "boxes"),
        ({"boxes": [[0.3, 0.2, 0.1, 0.4]]}, "boxes"),
        ({"boxes": [[0.3, 0.2]]}, "boxes"),
        ({"boxes": "none"}, "boxes"),
        ({"abnormal": "yes"}, "abnormal"),
        ({"labels": [3.5, None]}, "labels"),
        ({"sentence_en": None}, "sentence_en"),
    ],
)
def test_padchest_malformed_findings_are_problems(tmp_path, change, field):
    padchest(tmp_path, ("a", [finding(True, ["nodule"], [[0, 0, 1, 1]]) | change, finding(True, ["cyst"])]))
    result = read("padchest_gr", tmp_path)
    assert places(result) == [("1, finding 1", field)]
    assert "cyst" in {found.name for found in result.cases[0].findings}


def test_ms_cxr_golden_and_malformed(tmp_path):
    head = "dicom_id,category_name,label_text,path,x,y,w,h,image_width,image_height,split\n"
    path = "files/p10/p10000001/s1/d1.jpg"
    rows = [("10,10,40,20", "train"), ("0,0,100,50", "train"), ("10,10,,20", "train"), ("1,1,5,5", "tuesday")]
    text = head + "".join(f"d1,Edema,some haze,{path},{box},100,50,{split}\n" for box, split in rows)
    (tmp_path / "MS_CXR_Local_Alignment_v1.1.0.csv").write_text(text)
    result = read("ms_cxr", tmp_path)
    (case,) = result.cases
    assert (case.id, case.patient_id, case.split, case.images) == ("d1", "10000001", "train", ())
    boxes = (Box(0.1, 0.2, 0.5, 0.6), Box(0, 0, 1, 1))
    assert case.findings == (Finding("Edema", attributes={"phrase": "some haze"}, boxes=boxes),)
    assert places(result) == [("4", "w"), ("5", "split")]


CHEST = {"file_name": "1.png", "syms": ["Mass", "Mass"], "boxes": [[0, 0, 512, 512], [512, 512, 1024, 1024]]}
CHEST_BOXES = (Box(0, 0, 0.5, 0.5), Box(0.5, 0.5, 1, 1))


def test_chestx_det_json_golden_and_malformed(tmp_path):
    others = [
        {"file_name": "2.png", "syms": ["Nodule"], "boxes": [[5, 5, 3, 9]]},
        {"file_name": "3.png", "syms": ["Nodule"], "boxes": []},
        {"file_name": "4.png", "syms": [], "boxes": []},
    ]
    (tmp_path / "ChestX_Det_test.json").write_text(json.dumps([CHEST, *others]))
    result = read("chestx_det", tmp_path)
    assert places(result) == [("2, box 1", "boxes"), ("3", "boxes")]
    assert [case.findings for case in result.cases] == [
        (Finding("Mass", boxes=CHEST_BOXES),),
        (),
        (),
        (Finding("Mass", present=False),),
    ]
    with pytest.raises(RequestError, match=r"There is no ChestX_Det_train\.json"):
        read("chestx_det", tmp_path, "train")


def test_chestx_det_parquet_golden(tmp_path):
    Image.new("L", (8, 8), 7).save(tmp_path / "a.png")
    cells = [{"bytes": (tmp_path / "a.png").read_bytes()}] * 2
    table = pa.table({"image": cells, "annotation_json": [json.dumps(CHEST), "{"]})
    pq.write_table(table, tmp_path / "train-00000.parquet")
    result = read("chestx_det", tmp_path)
    (case,) = result.cases
    assert (case.split, case.findings) == ("train", (Finding("Mass", boxes=CHEST_BOXES),))
    assert load_image(case.images[0]).shape == (8, 8)
    assert places(result) == [("2", "annotation_json")]


def test_nih_list_takes_absence_from_the_labels_alone(tmp_path):
    head = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
    rows = "00000001_000.png,Mass,0,0,512,512,,,\n00000002_000.png,Infiltrate,0,0,1024,1024,,,\n"
    (tmp_path / "BBox_List_2017.csv").write_text(head + rows + "00000002_000.png,Mass,0,0,,5,,,\n")
    result = read("nih_boxes", tmp_path)
    assert places(result) == [("4", "w")]
    assert [case.patient_id for case in result.cases] == ["00000001", "00000002"]
    assert [len(case.findings) for case in result.cases] == [1, 1]
    (tmp_path / "BBox_List_2017.csv").write_text(head + rows)
    labels = "00000001_000.png,Mass\n00000002_000.png,Infiltration|Mass\n00000003_000.png,No Finding\n"
    (tmp_path / "Data_Entry_2017.csv").write_text("Image Index,Finding Labels\n" + labels)
    first, second = read("nih_boxes", tmp_path).cases
    assert first.findings == (Finding("Mass", boxes=(Box(0, 0, 0.5, 0.5),)), Finding("Infiltrate", present=False))
    assert second.findings == (Finding("Infiltrate", boxes=(Box(0, 0, 1, 1),)), Finding("Mass"))


def test_masks_become_tight_boxes_and_bad_masks_are_problems(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("L", (100, 50), 9).save(tmp_path / "images" / "a.png")
    mask = np.zeros((20, 40, 4), np.uint8)
    mask[..., 3] = 255
    mask[5:10, 10:20, 2] = 33  # a dark blue
    Image.fromarray(mask).save(tmp_path / "m.png")
    Image.new("L", (40, 20)).save(tmp_path / "black.png")
    head = "Template Name,Filename,Mask,Resolution,Top,Left,Width,Height\n"
    rows = ["a.png,m.png,100x50,10,20,40,20", "a.png,,100x50,0,0,100,50", "a.png,black.png,100x50,10,20,40,20"]
    rows += ["a.png,m.png,100x50,10,20,41,20", "a.png,m.png,99x50,10,20,40,20", "a.png,gone.png,100x50,0,0,1,1"]
    (tmp_path / "structure.csv").write_text(head + "".join(f"Lung {n},{row}\n" for n, row in enumerate(rows)))
    result = read("covid_cxr_masks", tmp_path)
    assert places(result) == [("4", "Mask"), ("5", "Mask"), ("6", "Filename"), ("7", "Mask")]
    assert result.cases[0].findings == (Finding("Lung 0", boxes=(Box(0.3, 0.3, 0.4, 0.4),)), Finding("Lung 1"))
