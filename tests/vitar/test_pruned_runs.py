"""The config group `pruning`: a policy reads fewer tokens of each image, in the first turn and in those behind it."""

import math

import numpy as np
import pytest

from lightbox.errors import RequestError
from lightbox.runs import folders
from vitar.cli import ENTRIES
from vitar.config import resolve
from vitar.predict import predict

QUARTER = ["pruning.method=divprune", "pruning.budget=0.25"]
WHOLE = ["model.keeps_features=false", "eval.looks=0"]
"""What pruning asks for beside."""


@pytest.mark.slow
def test_traces_and_rewards_are_learnt_and_an_episode_is_played_under_pruning(qwen_folder, tmp_path):
    sizes = [
        "preset=smoke",
        f"model.backbone={qwen_folder}",
        "data.original_px=128",
        "data.n_train=8",
        *QUARTER,
        *WHOLE,
    ]
    first = ENTRIES.run_once([*sizes, "experiment=mark", f"run.out={tmp_path}"], "train", is_indexed=False)
    second = ENTRIES.run_once(
        [*sizes, "experiment=mark_a", f"needs=[{first}]", f"run.out={tmp_path}"], "train", is_indexed=False
    )
    for run in (first, second):
        assert all(math.isfinite(value) for _, value in folders.read_history(run)["train/loss"])
        assert folders.read_scores(run).num_rows > 0
    told = predict(np.full((128, 128), 90, np.uint8), "what is seen in the left hilum ?", folder=first, attention=True)
    assert told["tokens read"] == "16 of 64, chosen by divprune"
    assert told["attention is not drawn"] == "it reads some of an image's tokens"


@pytest.mark.parametrize(
    ("arm", "settings", "setting"),
    [
        ("mark", ["eval.looks=0"], "model.keeps_features is true"),
        ("same", ["model.keeps_features=false"], "eval.looks is 2"),
        ("crop", [*WHOLE, "pruning.positions=compact"], "pruning.positions is compact"),
        ("mark_a", [*WHOLE, "objective.kl=0.1"], r"objective.kl is 0\.1"),
    ],
)
def test_what_reads_whole_images_is_refused_beside_pruning(arm, settings, setting):
    with pytest.raises(RequestError, match=f"pruning.method is divprune and {setting}"):
        resolve(["preset=smoke", f"experiment={arm}", *QUARTER, *settings])


def test_arms_without_a_model_take_the_group_and_do_nothing(qwen_folder):
    assert resolve(["preset=smoke", "experiment=majority", *QUARTER]).is_baseline
