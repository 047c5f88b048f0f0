"""Two-Stage: who wrote what for whom."""

import json

import pyarrow.compute as pc
import pytest

from lightbox.errors import RequestError
from lightbox.paper.generated import GENERATED, add_generated, read_generated, with_generated
from lightbox.paper.learner import Learner
from lightbox.runs import folders
from medthink import cli, stages
from medthink.config import N_FOLDS, resolve
from medthink.data import load_splits


def test_folds_keep_cases_whole_and_are_of_even_size():
    items = load_splits(resolve(["preset=smoke", "data.n_train=200"]), with_images=False)[0].samples
    fold_of = stages.folds_of(items, seed=0)
    assert set(fold_of) == set(range(N_FOLDS))
    by_case = {}
    for item, fold in zip(items, fold_of, strict=True):
        assert by_case.setdefault(item.case_id, fold) == fold
    sizes = [list(by_case.values()).count(fold) for fold in range(N_FOLDS)]
    assert max(sizes) - min(sizes) <= 1
    assert stages.folds_of(items, seed=0) == fold_of != stages.folds_of(items, seed=1)


def test_too_few_cases_for_folds_are_refused(items):
    with pytest.raises(RequestError, match=r"show 4 cases"):
        stages.folds_of(items[:4], seed=0)


@pytest.mark.slow
def test_out_of_fold_rationales_never_come_from_a_model_that_saw_the_case(tiny, tmp_path, monkeypatch):
    """Every training is watched: whoever writes for an item was trained on none of its case's items."""
    seen, wrote = [], {}
    fit, write = Learner.fit, Learner.write

    def watched_fit(learner, samples, *rest, **options):
        seen.append({sample.case_id for sample in samples})
        return fit(learner, samples, *rest, **options)

    def watched_write(learner, samples, *rest, **options):
        wrote.update({sample.id: (sample.case_id, len(seen) - 1) for sample in samples})
        return write(learner, samples, *rest, **options)

    monkeypatch.setattr(Learner, "fit", watched_fit)
    monkeypatch.setattr(Learner, "write", watched_write)
    cli.run_job(tmp_path / "jobs" / "job", [*tiny, "experiment=stage1_folds", "optim.max_steps=1"], {})
    assert len(seen) == N_FOLDS
    assert len(wrote) == 24
    assert all(case not in seen[model] for case, model in wrote.values())
    written = json.loads((tmp_path / "jobs" / "job" / GENERATED).read_text())
    assert set(written["train"]) == set(wrote)


@pytest.mark.slow
def test_stage_one_is_scored_on_what_it_learnt_from_as_the_folds_are(tiny, tmp_path):
    """T3's premise compares the two, item by item."""
    for arm in ("stage1", "stage1_folds"):
        cli.run_job(tmp_path / arm / "job", [*tiny, f"experiment={arm}", "optim.max_steps=1"], {})
    seen, unseen = (folders.read_scores(tmp_path / arm / "job") for arm in ("stage1", "stage1_folds"))
    seen = seen.filter(pc.equal(seen["condition"], "train"))
    assert seen["item"].equals(unseen["item"])
    assert seen["fact_f1"].null_count == unseen["fact_f1"].null_count == 0
    assert seen["correct"].null_count == len(seen) == 24


def test_each_stage_two_arm_reads_its_own_rationales(items, tmp_path):
    needs = {}
    for arm in ("stage1", "stage1_folds"):
        needs[arm] = tmp_path / arm
        needs[arm].mkdir()
        add_generated(needs[arm], {"train": {item.id: f"{arm} {item.id}" for item in items}})
    read = {source: stages.stage2_questions(items, source, needs) for source in ("gold", "in_sample", "out_of_fold")}
    assert read["gold"] == items
    assert read["in_sample"][0].record.rationale == "stage1 a"
    assert read["out_of_fold"][0].record.rationale == "stage1_folds a"
    assert [i.record.answer for i in read["in_sample"]] == [i.record.answer for i in items]


def test_conditions_are_added_and_not_lost(tmp_path):
    add_generated(tmp_path, {"train": {"a": "x"}})
    add_generated(tmp_path, {"image": {"b": "y"}})
    assert read_generated({"stage1": tmp_path}, "stage1", "train") == {"a": "x"}
    with pytest.raises(RequestError, match="texts for image, train, not for 'blank'"):
        read_generated({"stage1": tmp_path}, "stage1", "blank")


def test_missing_stage_one_is_refused_with_the_way_out():
    with pytest.raises(RequestError, match=r"Run experiment=stage1 first and name its folder as needs=\[FOLDER\]"):
        read_generated({}, "stage1", "image")


def test_items_of_another_run_are_refused(items):
    with pytest.raises(RequestError, match="5 of 6 items have no generated rationale"):
        with_generated(items, {"a": "x"}, "rationale")


def test_earlier_runs_say_which_arm_they_are(tmp_path):
    (tmp_path / "job.json").write_text('{"arm": "stage1"}')
    assert folders.needed_runs([str(tmp_path)]) == {"stage1": tmp_path}
    with pytest.raises(RequestError, match="no finished run"):
        folders.needed_runs([str(tmp_path / "other")])
