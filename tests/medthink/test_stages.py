"""Two-Stage: who wrote what for whom."""

import json

import pytest

from lightbox.errors import RequestError
from medthink import folds, stages, t5
from medthink.config import N_FOLDS, resolve
from medthink.items import load_splits


def test_folds_keep_cases_whole_and_are_of_even_size():
    items = load_splits(resolve(["preset=smoke", "data.n_train=200"]), with_images=False)[0].items
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


def test_out_of_fold_rationales_never_come_from_a_model_that_saw_the_case(tiny, tmp_path, monkeypatch):
    """Every training is watched: whoever writes for an item was trained on none of its case's items."""
    seen, wrote = [], {}
    fit_items, write = t5.fit_items, t5.FusedT5.write

    def watched_fit(cfg, model, tokenizer, items, *rest, **facts):
        seen.append({item.case_id for item in items})
        return fit_items(cfg, model, tokenizer, items, *rest, **facts)

    def watched_write(learner, trial, split):
        wrote.update({item.id: (item.case_id, len(seen) - 1) for item in trial.items})
        return write(learner, trial, split)

    monkeypatch.setattr(t5, "fit_items", watched_fit)
    monkeypatch.setattr(t5.FusedT5, "write", watched_write)
    cfg = resolve([*tiny, "experiment=stage1_folds", "optim.max_steps=1"])
    folds.run(cfg, tmp_path / "job", cache=tmp_path / "cache")
    assert len(seen) == N_FOLDS
    assert len(wrote) == 24
    assert all(case not in seen[model] for case, model in wrote.values())
    written = json.loads((tmp_path / "job" / stages.GENERATED).read_text())
    assert set(written["train"]) == set(wrote)


def test_each_stage_two_arm_reads_its_own_rationales(items, tmp_path):
    needs = {}
    for arm in ("stage1", "stage1_folds"):
        needs[arm] = tmp_path / arm
        needs[arm].mkdir()
        stages.add_generated(needs[arm], {"train": {item.id: f"{arm} {item.id}" for item in items}})
    read = {source: stages.stage2_items(items, source, needs) for source in ("gold", "in_sample", "out_of_fold")}
    assert read["gold"] == items
    assert read["in_sample"][0].rationale == "stage1 a"
    assert read["out_of_fold"][0].rationale == "stage1_folds a"
    assert [i.answer for i in read["in_sample"]] == [i.answer for i in items]


def test_conditions_are_added_and_not_lost(tmp_path):
    stages.add_generated(tmp_path, {"train": {"a": "x"}})
    stages.add_generated(tmp_path, {"image": {"b": "y"}})
    assert stages.read_generated({"stage1": tmp_path}, "stage1", "train") == {"a": "x"}
    with pytest.raises(RequestError, match="rationales for image, train, not for 'blank'"):
        stages.read_generated({"stage1": tmp_path}, "stage1", "blank")


def test_missing_stage_one_is_refused_with_the_way_out():
    with pytest.raises(RequestError, match=r"Run experiment=stage1 first and name its folder as needs=\[FOLDER\]"):
        stages.read_generated({}, "stage1", "image")


def test_items_of_another_run_are_refused(items):
    with pytest.raises(RequestError, match="5 of 6 items have no generated rationale"):
        stages.with_generated(items, {"a": "x"})


def test_earlier_runs_say_which_arm_they_are(tmp_path):
    (tmp_path / "job.json").write_text('{"arm": "stage1"}')
    assert stages.earlier_runs([str(tmp_path)]) == {"stage1": tmp_path}
    with pytest.raises(RequestError, match="no finished run"):
        stages.earlier_runs([str(tmp_path / "other")])
