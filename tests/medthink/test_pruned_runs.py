"""The config group `pruning`: a vision-language model in the place of the T5 reads fewer tokens of each image."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from lightbox.errors import RequestError
from lightbox.paper.pretrained import find_pretrained
from lightbox.paper.pruning_config import PruningConfig
from lightbox.pruning import pipeline
from lightbox.runs import folders
from lightbox.runs.sources import closure
from lightbox.testing.budgets import losses_under_budgets
from medthink import cli, train
from medthink.config import chosen, resolve
from medthink.data import load_splits
from medthink.predict import load_run, predict

QUARTER = ["pruning.method=divprune", "pruning.budget=0.25"]


@pytest.fixture(scope="module")
def run(tiny_llava, tmp_path_factory):
    """A finished run with an adapter under a quarter of the tokens."""
    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightbox.paper.entries.index_run", lambda *_: None)
        cli.train([*tiny_llava, *QUARTER, "experiment=explanation", f"run.out={out}"])
    return next((out / "runs").iterdir())


@pytest.mark.slow
def test_an_arm_trains_and_is_scored_under_pruning(run):
    assert all(math.isfinite(value) for _, value in folders.read_history(run)["train/loss"])
    assert folders.read_scores(run).num_rows == 12 * 3


@pytest.mark.slow
def test_an_answer_is_given_under_the_pruning_of_its_training(run):
    asked = {"question": "is there a nodule ?", "options": ("yes", "no"), "folder": run}
    image = np.full((64, 64), 90, np.uint8)
    told = predict(image, **asked)
    kept, tokens = (int(word) for word in told["tokens read"].split(",")[0].split(" of "))
    assert 0 < kept <= tokens / 4 + 1
    cfg, learner = load_run(run)
    whole = predict(image, **asked, opened=(dataclasses.replace(cfg, pruning=PruningConfig()), learner))
    assert "tokens read" not in whole
    assert whole["options"] != told["options"]


@pytest.fixture(scope="module")
def opened(tiny_llava):
    cfg = resolve([*tiny_llava, "experiment=explanation"])
    split = load_splits(cfg)[0]
    return split, train.open_learner(cfg, find_pretrained(cfg.model.backbone), (split,), cache=None)


def test_the_whole_budget_gives_the_loss_of_no_pruning_and_a_small_one_does_not(opened):
    split, learner = opened
    usual, whole, few = losses_under_budgets(learner, split, [None, 1.0, 0.1])
    torch.testing.assert_close(whole, usual, rtol=1e-5, atol=1e-5)
    assert (few - usual).abs() > 1e-3


@pytest.mark.slow
def test_steps_and_answers_are_pruned_though_adapters_are_put_into_the_model(tiny_llava, tmp_path, monkeypatch):
    """`Learner.fit` replaces its backbone where it attaches adapters; the block was opened before."""
    cfg = resolve([*tiny_llava, *QUARTER, "experiment=explanation"])
    steps, answers, choose = [], [], pipeline.choose

    def noted(*given):
        choice = choose(*given)
        of_both = steps if torch.is_grad_enabled() else answers
        of_both.append((sum(choice.kept_counts), choice.is_kept.numel()))
        return choice

    monkeypatch.setattr(pipeline, "choose", noted)
    base = find_pretrained(cfg.model.backbone)
    train.run(cfg, base, tmp_path / "run", cache=tmp_path, needs={}, keeps_model=False)
    assert len(steps) >= cfg.optim.max_steps
    assert answers
    assert all(kept < whole / 3 for kept, whole in steps + answers)


def test_a_t5_with_its_tower_is_refused_before_data_is_read(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "load_splits", lambda _: pytest.fail("data was read"))
    cfg = resolve([*tiny, *QUARTER, "experiment=explanation"])
    with pytest.raises(
        RequestError, match=r"(?s)divprune and model\.backbone .* family t5.*llava, llava_next, qwen2_vl"
    ):
        train.run(
            cfg, find_pretrained(cfg.model.backbone), tmp_path / "run", cache=tmp_path, needs={}, keeps_model=True
        )
    assert not (tmp_path / "run").exists()


def test_a_reader_of_text_alone_is_refused(tiny_llava):
    with pytest.raises(RequestError, match=r"divprune and objective\.method is reader"):
        resolve([*tiny_llava, *QUARTER, "experiment=reader"])


def test_code_of_pruning_decides_pruned_jobs_alone(tiny_llava):
    plain, quarter = (
        closure("medthink", chosen(resolve([*tiny_llava, *own, "experiment=explanation"]))) for own in ([], QUARTER)
    )
    assert not any(module.startswith(("lightbox.pruning", "lightbox.kernels")) for module in plain)
    assert {"lightbox.pruning.pipeline", "lightbox.pruning.methods.divprune", "lightbox.kernels.greedy_select.op"} <= {
        *quarter
    }
