"""Real sets with boxes: images that are no squares, classes of the knowledge tables, findings that are absent."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from k2sight import evaluate
from k2sight.cli import ENTRIES
from k2sight.config import inputs, resolve
from k2sight.data import classes_of, load_splits
from lightbox.errors import RequestError
from lightbox.paper.overlay import in_image
from lightbox.records import Box
from lightbox.runs import folders

WIDTH, HEIGHT = 96, 48


def boxes_px(number):
    """Left, top, width and height of the red and of the white cell of an image; each image has others."""
    return (4 + number, 6 + number, 20, 16), (2, 30 - number, 6, 5)


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    """COCO: ten images, wide and high in turn, with a red cell each, every second one with a white cell too."""
    root = tmp_path_factory.mktemp("smears")
    rng = np.random.default_rng(0)
    images, boxes = [], []
    for k in range(10):
        width, height = (HEIGHT, WIDTH) if k % 4 > 1 else (WIDTH, HEIGHT)
        pixels = rng.integers(0, 20, (height, width, 3), dtype=np.uint8)
        for category in (0, 1) if k % 2 else (0,):
            left, top, across, down = box = boxes_px(k)[category]
            pixels[top : top + down, left : left + across] += np.uint8(200 - 100 * category)
            boxes.append({"id": 2 * k + category, "image_id": k, "category_id": category, "bbox": box})
        Image.fromarray(pixels).save(root / f"{k}.png")
        images.append({"id": k, "file_name": f"{k}.png", "width": width, "height": height})
    categories = [{"id": 0, "name": "RBC"}, {"id": 1, "name": "WBC"}]
    text = json.dumps({"images": images, "annotations": boxes, "categories": categories})
    (root / "all.json").write_text(text)
    return root


@pytest.fixture
def asked(data_root, florence2_folder):
    return [
        "preset=smoke",
        f"model.backbone={florence2_folder}",
        "data.source=coco",
        f"data.root={data_root}",
        "data.split=by_image",
    ]


def test_boxes_are_fractions_of_the_square_that_the_model_sees(asked):
    for split in load_splits(resolve([*asked, "data.absent_pct=40"])):
        for sample in split.samples:
            image = split.images[sample.image]
            with Image.open(image) as picture:
                width, height = picture.size
            boxes = [in_image(box, (height, width)) for box in sample.record.boxes]
            left, top, across, down = boxes_px(int(image.stem))[sample.record.name == "WBC"]
            true = Box(left / width, top / height, (left + across) / width, (top + down) / height)
            assert boxes == ([pytest.approx(true)] if sample.record.present else [])
            side = max(width, height)
            assert all(box.x1 - box.x0 == pytest.approx(across / side) for box in sample.record.boxes)


def test_absent_findings_are_thinned_and_a_share_is_a_share(asked):
    counts = {}
    for pct in (0, 20, 90):
        train, _ = load_splits(resolve([*asked, f"data.absent_pct={pct}"]))
        counts[pct] = [sum(s.record.present == is_there for s in train.samples) for is_there in (True, False)]
    assert counts[0][1] == 0
    assert counts[20][1] == round(counts[20][0] / 4)
    assert counts[90][1] == 8 + 8 - counts[90][0]
    whole, part = (load_splits(resolve([*asked, f"data.share_pct={pct}"]))[0].ids for pct in (100, 50))
    assert part == whole[: round(len(whole) / 2)]


def test_the_blob_is_looked_for_in_the_same_square(asked):
    train, _ = load_splits(resolve([*asked, "data.absent_pct=0"]))
    red = replace(train, samples=[s for s in train.samples if s.record.name == "RBC"])
    assert red.samples
    rows = evaluate.guess_rows(red, evaluate.guesses(train, red, "blob"))
    overlaps = [row["best_iou"] for row in rows if row["best_iou"] is not None]
    assert sum(overlaps) / len(overlaps) > 0.5


def test_the_key_of_a_baseline_that_looks_knows_the_images(asked):
    read = inputs(resolve([*asked, "experiment=blob"]))
    assert "images" in read


def test_a_finding_that_the_set_calls_absent_is_asked_for_and_described(asked):
    train, _ = load_splits(resolve(asked))
    absent = [s.record for s in train.samples if not s.record.present]
    assert {target.name for target in absent} == {"WBC"}
    assert all(target.boxes == () for target in absent)
    assert absent[0].definition.startswith("large round body")


def test_definitions_are_scrambled_among_the_classes_of_the_set(asked):
    true, scrambled = (load_splits(resolve([*asked, f"experiment={arm}"]))[0] for arm in ("defined", "scrambled"))
    said = {s.record.name: s.record.definition for s in true.samples}
    swapped = {s.record.name: s.record.definition for s in scrambled.samples}
    assert swapped == {"RBC": said["WBC"], "WBC": said["RBC"]}


def test_prompts_of_the_evaluation_know_the_classes_of_the_set(asked):
    cfg = resolve(asked)
    assert set(classes_of(cfg, load_splits(cfg)[0]).names) == {"RBC", "WBC"}


def test_a_set_without_a_description_is_refused_and_can_be_asked_by_name(data_root, asked, tmp_path):
    text = (data_root / "all.json").read_text().replace("RBC", "spirochaete")
    for path in data_root.glob("*.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "all.json").write_text(text)
    other = [*asked, f"data.root={tmp_path}"]
    with pytest.raises(RequestError, match="spirochaete"):
        load_splits(resolve(other))
    assert load_splits(resolve([*other, "experiment=name"]))[0].samples


@pytest.mark.slow
def test_a_run_on_a_real_set_is_trained_scored_and_asked(data_root, asked, tmp_path):
    run = ENTRIES.run_once([*asked, f"run.out={tmp_path}"], "train")
    table = folders.read_scores(run).to_pylist()
    assert {row["kind"] for row in table} == {"all", "set all"}
    # what needs the ontology of the phantom is left out
    assert {row["condition"] for row in table} == {"image", "blank", "shuffled", "only_location", "other"}
    answer = ENTRIES.predict(image=data_root / "1.png", question="WBC", run=run, out=tmp_path / "drawn.png")
    assert answer["definition"].startswith("large round body")
    for box in answer["boxes"]:
        assert all(0 <= side <= 1 for side in box)
    with pytest.raises(RequestError, match="leukocyte"):
        ENTRIES.predict(image=data_root / "1.png", question="leukocyte", run=run)
