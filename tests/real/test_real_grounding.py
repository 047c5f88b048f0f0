"""MedPLIB's preset `real` on the files that it names, found through LIGHTBOX_DATA_ROOT: who is asked what, and a smoke
run on each set.
"""

import os

import numpy as np
import pytest

from lightbox.claims.spec import REAL
from lightbox.paper.pretrained import find_pretrained
from lightbox.readers.catalog import ROOT_VARIABLE
from lightbox.runs.folders import MODEL, read_card, read_scores
from medplib import evaluate, train
from medplib.artifact import save_model
from medplib.claims import OFTEN, PAPER
from medplib.config import resolve
from medplib.data import load_splits
from medplib.model import open_arm

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not os.environ.get(ROOT_VARIABLE), reason=f"{ROOT_VARIABLE} is not set: no real data here"),
]
HIPPOCAMPI = {"anterior hippocampus", "posterior hippocampus"}


@pytest.mark.parametrize(
    ("arm", "classes", "cases"),
    [("nuclei", {"nuclei"}, 16), ("hippocampus", HIPPOCAMPI, 24), ("chest", set(OFTEN), 22)],
)
def test_five_seeds_score_every_patient_once_and_every_class_each(arm, classes, cases):
    claim = next(claim for claim in PAPER.claims if claim.images == REAL and arm in claim.arms)
    scored_ids = []
    for seed in range(5):
        learnt, scored = load_splits(resolve(["preset=real", f"experiment={arm}", f"run.seed={seed}"]))
        # slices of a volume, which is a patient's, are its name, the plane and a number
        groups = [
            {case_id.rsplit("-", 2)[0] if arm == "hippocampus" else case_id for case_id in split.case_ids}
            for split in (learnt, scored)
        ]
        assert not groups[0] & groups[1]
        scored_ids += groups[1]
        for split in (learnt, scored):
            assert {sample.record.name for sample in split.samples} == classes
            assert max(max(image.shape[:2]) for image in split.images) <= 128
        shown = [sample.record.name for sample in scored.samples if sample.record.mask.any()]
        assert len(shown) >= claim.min_items
        assert min(shown.count(name) for name in classes) >= 2
        assert any(image.shape[0] != image.shape[1] for image in scored.images)
    assert len(scored_ids) == len(set(scored_ids)) == cases


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The shipped parts as they are, in the place of stage 3."""
    folder = tmp_path_factory.mktemp("grounding")
    cfg = resolve(["preset=smoke", "experiment=align"])
    save_model(folder / MODEL, open_arm(cfg, find_pretrained(cfg.model.backbone), {}))
    return folder


@pytest.mark.parametrize(
    ("arm", "source"),
    [("nuclei", ""), ("hippocampus", ""), ("chest", ""), ("nuclei", "sam_med2d_demo")],
)
def test_smoke_on_a_set(arm, source, start, tmp_path):
    named = ["preset=smoke", f"experiment={arm}", "model.image_px=96", "data.n_test=4", "optim.max_steps=2"]
    if source:
        named += [f"data.source={source}", f"data.root={os.environ[ROOT_VARIABLE]}/{source}", "data.parts=2"]
    cfg = resolve(named)
    base = find_pretrained(cfg.model.backbone)
    train.run(cfg, base, tmp_path / "run", cache=tmp_path, needs={"grounding": start}, keeps_model=False)
    rows = read_scores(tmp_path / "run").to_pylist()
    _, scored = load_splits(cfg)
    assert len(rows) == 3 * len(scored.samples)
    assert all((row["dice_present"] is None) == (row["false_mask"] is not None) for row in rows)
    assert read_card(tmp_path / "run")["unreadable"] == []
    evaluate.run_baseline(resolve([*named, "objective.method=oracle", "objective.is_trained=false"]), tmp_path / "top")
    top = [row["dice_present"] for row in read_scores(tmp_path / "top").to_pylist() if row["dice_present"] is not None]
    assert np.mean(top) > 0.8
