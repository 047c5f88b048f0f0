"""Real sets with boxes: images that are no squares, classes of the knowledge tables, findings that are absent."""

import json

import numpy as np
import pytest
from PIL import Image

from k2sight.cli import ENTRIES
from k2sight.config import resolve
from k2sight.data import classes_of, load_splits
from lightbox.errors import RequestError
from lightbox.paper.overlay import in_image
from lightbox.records import Box
from lightbox.runs import folders

WIDTH, HEIGHT = 96, 48
BOX_PX = (24, 12, 48, 24)  # left, top, width, height


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    """COCO: ten images with a red cell each, every second one with a white cell too."""
    root = tmp_path_factory.mktemp("smears")
    rng = np.random.default_rng(0)
    images, boxes = [], []
    for k in range(10):
        Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(root / f"{k}.png")
        images.append({"id": k, "file_name": f"{k}.png", "width": WIDTH, "height": HEIGHT})
        for category in (0, 1) if k % 2 else (0,):
            boxes.append({"id": 2 * k + category, "image_id": k, "category_id": category, "bbox": BOX_PX})
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
    train, scored = load_splits(resolve(asked))
    assert (len(train.samples), len(scored.samples)) == (16, 2)
    red = next(s.record for s in train.samples if s.record.name == "RBC")
    assert red.boxes[0] == pytest.approx(Box(0.25, 0.375, 0.75, 0.625))  # a quarter of the square is above the image
    assert in_image(red.boxes[0], (HEIGHT, WIDTH)) == pytest.approx(Box(0.25, 0.25, 0.75, 0.75))


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


def test_a_run_on_a_real_set_is_trained_scored_and_asked(data_root, asked, tmp_path):
    run = ENTRIES.run_once([*asked, "eval.texts=[]", f"run.out={tmp_path}"], "train")
    table = folders.read_scores(run).to_pylist()
    assert {row["kind"] for row in table} == {"all", "set all"}
    answer = ENTRIES.predict(image=data_root / "1.png", question="WBC", run=run, out=tmp_path / "drawn.png")
    assert answer["definition"].startswith("large round body")
    for box in answer["boxes"]:
        assert all(0 <= side <= 1 for side in box)
    with pytest.raises(RequestError, match="leukocyte"):
        ENTRIES.predict(image=data_root / "1.png", question="leukocyte", run=run)
