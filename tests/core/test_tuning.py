from dataclasses import replace

import pyarrow.compute as pc
import pytest

from lightbox.claims.tuning import trial_score
from lightbox.errors import WorkError
from lightbox.runs.folders import read_scores
from lightbox.testing.fake_results import fake_claims
from lightbox.testing.fake_runs import write_job

CLAIMS = replace(fake_claims(), tuning=("bleu4", "correct"))


def test_a_trial_is_scored_by_the_first_tuning_metric_that_the_arm_has(tmp_path):
    writes, answers = (write_job(tmp_path, arm, 0) for arm in ("explanation", "answer_only"))
    assert trial_score(writes, CLAIMS)["metric"] == "bleu4"
    judged = read_scores(answers).filter(pc.field("condition") == "image")
    expected = {"metric": "correct", "items": 120, "score": round(pc.mean(judged["correct"]).as_py(), 6)}
    assert trial_score(answers, CLAIMS) == expected


def test_an_arm_that_is_never_scored_under_the_papers_condition_is_judged_on_all_its_rows(tmp_path):
    folder = write_job(tmp_path, "explanation", 0)
    assert trial_score(folder, replace(CLAIMS, condition="volume"))["items"] == 3 * 120


def test_a_paper_that_declares_no_tuning_metric_is_tuned_by_its_headline(tmp_path):
    folder = write_job(tmp_path, "explanation", 0)
    assert trial_score(folder, replace(CLAIMS, tuning=()))["metric"] == "correct"


def test_an_arm_without_a_tuning_metric_is_named(tmp_path):
    folder = write_job(tmp_path, "explanation", 0)
    with pytest.raises(WorkError, match="lack a tuning metric.*chosen by one of dice, iou"):
        trial_score(folder, replace(CLAIMS, tuning=("dice", "iou")))
