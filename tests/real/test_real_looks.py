"""ViTAR on real boxes, found through LIGHTBOX_DATA_ROOT: who is asked what, and a smoke run on masses and nodules."""

import os
from collections import Counter

import numpy as np
import pytest

from lightbox.claims.spec import REAL
from lightbox.paper.conditions import picture
from lightbox.readers.catalog import ROOT_VARIABLE
from lightbox.runs import folders
from vitar.claims import PAPER
from vitar.cli import ENTRIES
from vitar.config import resolve
from vitar.data import load_splits

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not os.environ.get(ROOT_VARIABLE), reason=f"{ROOT_VARIABLE} is not set: no real data here"),
]


@pytest.mark.parametrize(
    ("arm", "classes", "images", "least"),
    [("mark", {"Platelets", "RBC", "WBC"}, 100, 12), ("smear_mark", {"rbc", "wbc"}, 40, 7)],
)
def test_five_seeds_score_other_images_and_every_class_as_often(arm, classes, images, least):
    scored_ids: list[str] = []
    for seed in range(5):
        cfg = resolve(["preset=real", f"experiment={arm}", f"run.seed={seed}"])
        train, scored = load_splits(cfg)
        assert not set(train.case_ids) & set(scored.case_ids)
        scored_ids += scored.case_ids
        for split in (train, scored):
            counts = Counter(sample.record.answer for sample in split.samples)
            assert set(counts) == classes
            assert len(set(counts.values())) == 1
            assert min(counts.values()) >= least
        for claim in PAPER.claims:
            if claim.images == REAL and arm in claim.arms:
                assert len(scored.samples) >= claim.min_items
    assert len(scored_ids) == len(set(scored_ids)) > 0.9 * images


def test_boxes_of_cells_lie_on_cells_in_the_square_that_is_shown():
    """Nuclei are the blue of a smear: inside the boxes of white cells there is more of it than elsewhere."""
    train, _ = load_splits(resolve(["preset=real", "experiment=mark"]))
    inside, outside = [], []
    for sample in [own for own in train.samples if own.record.answer == "WBC"][:12]:
        pixels = np.asarray(picture(train.images[sample.image], 640), dtype=float)
        assert pixels.shape == (640, 640, 3)
        x0, y0, x1, y1 = (round(value * 640) for value in sample.record.boxes[0])
        blue = pixels[..., 2] - pixels[..., 0]
        inside.append(blue[y0:y1, x0:x1].mean())
        blue[y0:y1, x0:x1] = np.nan
        outside.append(np.nanmean(blue))
    assert np.mean(np.array(inside) > np.array(outside)) == 1.0


def test_smoke_on_masses_and_nodules(tmp_path):
    overrides = [
        *("preset=smoke", "experiment=mark", "data.source=nih_cxr_mass_boxes", "data.parts=2", "data.point_bins=128"),
        f"data.root={os.environ[ROOT_VARIABLE]}/nih_cxr_mass_boxes",
        f"run.out={tmp_path}",
    ]
    folder = ENTRIES.run_once(overrides, "train", is_indexed=False)
    rows = folders.read_scores(folder).to_pylist()
    items = [row for row in rows if row["condition"] == "image" and row["kind"] != "set"]
    assert len(items) == 8
    assert {row["condition"] for row in rows} == {"image", "blank", "shuffled", "random", "true"} | {
        "hidden",
        "hidden_elsewhere",
    }
    assert all(row["iou"] is not None and row["diameter_px"] > 0 for row in items)
    (example, *_) = folders.read_examples(folder)
    assert "Mass, Nodule?" in str(example)
