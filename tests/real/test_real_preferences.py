"""MMedPO's preset `real` on the files that it names, found through LIGHTBOX_DATA_ROOT: who is asked what."""

import os
from collections import Counter
from pathlib import Path

import pytest

from lightbox.readers.catalog import ROOT_VARIABLE
from mmedpo.claims import PAPER
from mmedpo.config import resolve
from mmedpo.curate import curate
from mmedpo.data import load_splits

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not os.environ.get(ROOT_VARIABLE), reason=f"{ROOT_VARIABLE} is not set: no real data here"),
]


def configured(arm, seed=900):
    return resolve(["preset=real", f"run.seed={seed}", f"experiment={arm}"])


def test_the_start_has_seen_no_image_of_the_released_pairs():
    train, scored = load_splits(configured("start"), with_images=False)
    assert (len(train.samples), len(train.images), len(scored.samples)) == (7656, 2552, 960)
    seen = {Path(image).stem for image in train.images}
    for seed in range(5):
        for split in load_splits(configured("rad_mmedpo", seed), with_images=False):
            assert not seen & set(split.case_ids)


def test_five_seeds_score_every_image_of_the_released_pairs_once():
    scored = [load_splits(configured("rad_mmedpo", seed), with_images=False)[1] for seed in range(5)]
    assert sorted(Counter(name for own in scored for name in own.case_ids).values()) == [1] * 20
    assert sum(len(own.samples) for own in scored) == 254
    (claim,) = (own for own in PAPER.claims if own.id == "MR2")
    assert min(len(own.samples) for own in scored) >= claim.min_items


def test_released_pairs_stand_beside_as_many_noised_images():
    cfg = configured("rad_mmedpo")
    kinds = Counter(pair.record.kind for pair in curate(cfg, load_splits(cfg)[0]).pairs)
    assert kinds["text"] == kinds["image"] > 80
