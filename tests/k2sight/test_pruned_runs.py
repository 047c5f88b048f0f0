"""The config group `pruning`: K2Sight's Qwen2-VL reads fewer tokens of each image, and Florence-2 is refused."""

import math

import pytest
import torch
from PIL import Image

from k2sight import train
from k2sight.cli import ENTRIES
from k2sight.config import resolve
from k2sight.data import load_splits
from k2sight.model import open_grounder
from lightbox.errors import RequestError
from lightbox.paper.pretrained import find_pretrained
from lightbox.pruning.models import check_free
from lightbox.runs import folders
from lightbox.testing.budgets import losses_under_budgets
from lightbox.testing.shrunk import save_shrunk

QUARTER = ["pruning.method=divprune", "pruning.budget=0.25"]


@pytest.fixture(scope="module")
def sizes(tmp_path_factory):
    folder = save_shrunk("qwen2-vl-7b", tmp_path_factory.mktemp("qwen2_vl"))
    short = ["data.n_train=8", "data.n_test=4", "data.parts=[known]", "eval.texts=[]", "eval.answer_tokens=4"]
    return ["preset=smoke", f"model.backbone={folder}", *short]


@pytest.mark.slow
def test_an_arm_trains_is_scored_and_draws_boxes_under_pruning(sizes, tmp_path):
    run = ENTRIES.run_once([*sizes, *QUARTER, "experiment=defined", f"run.out={tmp_path}"], "train")
    assert all(math.isfinite(value) for _, value in folders.read_history(run)["train/loss"])
    assert folders.read_scores(run).num_rows > 0
    Image.new("L", (64, 64), 90).save(tmp_path / "chest.png")
    told = ENTRIES.predict(image=tmp_path / "chest.png", question="it means coin, white, root", run=run)
    kept, tokens = (int(word) for word in told["tokens read"].split(",")[0].split(" of "))
    assert 0 < kept <= tokens / 4 + 1


@pytest.mark.slow
def test_steps_are_pruned_and_the_whole_budget_trains_and_scores_as_no_pruning_does(sizes, tmp_path):
    policies = {"usual": [], "whole": [QUARTER[0]], "few": QUARTER}
    losses, rows = {}, {}
    for name, policy in policies.items():
        asked = [*sizes, *policy, "experiment=defined", f"run.out={tmp_path / name}"]
        run = ENTRIES.run_once(asked, "train")
        losses[name] = [value for _, value in folders.read_history(run)["train/loss"]]
        rows[name] = folders.read_scores(run).to_pylist()
    # random weights hardly look: a quarter of the tokens moves the loss in its sixth digit
    assert losses["whole"] == pytest.approx(losses["usual"], rel=1e-6)
    assert losses["few"] != pytest.approx(losses["usual"], rel=1e-6)
    assert rows["whole"] == rows["usual"]


def test_boxes_are_drawn_for_scores_under_pruning(sizes, tmp_path, monkeypatch):
    """Seen by what `evaluate` finds the model inside, since boxes of random weights are seldom readable."""
    cfg = resolve([*sizes, *QUARTER, "experiment=defined", "objective.is_trained=false", "run.seed=0"])
    seen = []
    monkeypatch.setattr(
        train.evaluate, "evaluate", lambda _cfg, grounder, *_, **__: seen.append(is_pruned(grounder.learner.backbone))
    )
    monkeypatch.setattr(train.evaluate, "beside_score", lambda *_: {})
    train.run(cfg, find_pretrained(cfg.model.backbone), tmp_path, cache=tmp_path, needs={}, keeps_model=False)
    assert seen == [True]


def is_pruned(backbone):
    try:
        check_free(backbone.core)
    except RequestError:
        return True
    return False


@pytest.fixture(scope="module")
def opened(sizes):
    cfg = resolve([*sizes, "experiment=defined", "run.seed=0"])
    split = load_splits(cfg)[0]
    return split, open_grounder(cfg, find_pretrained(cfg.model.backbone), (split,), cache=None).learner


def test_the_whole_budget_gives_the_loss_of_no_pruning_and_a_small_one_does_not(opened):
    split, learner = opened
    usual, whole, few = losses_under_budgets(learner, split, [None, 1.0, 0.1])
    torch.testing.assert_close(whole, usual, rtol=1e-5, atol=1e-5)
    assert (few - usual).abs() > 1e-3


def test_florence_is_refused_before_data_is_read(florence2_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "load_splits", lambda _: pytest.fail("data was read"))
    asked = ["preset=smoke", f"model.backbone={florence2_folder}", f"run.out={tmp_path}", "experiment=defined"]
    with pytest.raises(RequestError, match=r"(?s)divprune and model\.backbone .* family florence2.*llava, llava_next"):
        ENTRIES.run_once([*asked, *QUARTER], "train")
