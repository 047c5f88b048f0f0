"""Rates are chosen by the paper's own measure, from one grid that widens for every arm alike."""

import csv
import io
from dataclasses import replace

import pyarrow as pa
import pytest
import yaml

from lightbox.claims import tuning
from lightbox.claims.registry import Paper
from lightbox.claims.statistics import Scores
from lightbox.errors import RequestError, WorkError
from lightbox.runs.folders import read_scores
from lightbox.testing.fake_results import fake_claims
from lightbox.testing.fake_runs import write_job

CLAIMS = replace(fake_claims(), tuning=("bleu4", "correct"))


def trial(tmp_path, arm, claims):
    tables = {(arm, 0): read_scores(write_job(tmp_path, arm, 0))}
    scores = Scores(tables, claims.headline, claims.condition, claims.balanced_by)
    return tuning.trial_score(Paper(claims.paper, claims.paper, claims), scores, arm, 0), scores


def test_a_trial_is_scored_by_the_first_tuning_metric_that_the_arm_has(tmp_path):
    assert trial(tmp_path, "explanation", CLAIMS)[0]["metric"] == "bleu4"
    score, scores = trial(tmp_path, "answer_only", CLAIMS)
    table = scores.tables["answer_only", 0].to_pandas()
    judged = table[table.condition == "image"]
    assert score == {"metric": "correct", "items": 120, "score": round(judged.correct.mean(), 6)}


def test_kinds_weigh_alike_in_a_trial_where_the_claims_weigh_them_so():
    kinds = ["side"] * 8 + ["count"] * 2
    table = pa.table(
        {"item": list("abcdefghij"), "condition": ["image"] * 10, "kind": kinds, "correct": [1.0] * 8 + [0.0] * 2}
    )
    scores = Scores({("explanation", 0): table}, "correct", "image", "kind")
    claims = replace(CLAIMS, balanced_by="kind", tuning=())
    score = tuning.trial_score(Paper(claims.paper, claims.paper, claims), scores, "explanation", 0)
    assert score == {"metric": "correct", "items": 10, "score": 0.5}


def test_an_arm_that_is_never_scored_under_the_papers_condition_is_judged_under_its_own(tmp_path):
    assert trial(tmp_path, "explanation", replace(CLAIMS, condition="volume"))[0]["items"] == 120


def test_a_paper_that_declares_no_tuning_metric_is_tuned_by_its_headline(tmp_path):
    assert trial(tmp_path, "explanation", replace(CLAIMS, tuning=()))[0]["metric"] == "correct"


def test_an_arm_without_a_tuning_metric_is_named(tmp_path):
    with pytest.raises(WorkError, match="lack a tuning metric.*chosen by one of dice, iou"):
        trial(tmp_path, "explanation", replace(CLAIMS, tuning=("dice", "iou")))


def trials_in(folder):
    return list(csv.DictReader(io.StringIO((folder / CLAIMS.paper / "tuning.csv").read_text())))


@pytest.mark.parametrize(
    ("best", "wider"),
    [
        ({"a": 2e-3, "b": 2e-3}, [1e-3, 2e-3, 4e-3]),  # no edge wins
        ({"a": 4e-3, "b": 2e-3}, [1e-3, 2e-3, 4e-3, 8e-3]),  # one arm's edge widens the grid of all
        ({"a": 4e-3, "b": 1e-3}, [5e-4, 1e-3, 2e-3, 4e-3, 8e-3]),
    ],
)
def test_grid_widens_at_each_edge_that_wins(best, wider):
    rates = (1e-3, 2e-3, 4e-3)
    rows = [{"arm": arm, "lr": rate, "score": float(rate == best[arm])} for arm in best for rate in rates]
    assert tuning.widened(rows, rates) == wider


@pytest.fixture
def tuned(tmp_path, monkeypatch):
    """The toy paper tuned by a machine that likes high rates, up to 4e-3."""
    paper = Paper(CLAIMS.paper, CLAIMS.paper, CLAIMS)
    asked = []

    def trials(paper, arms, rates, out, *, seeds, budget, workers):
        asked.append(tuple(rates))
        rows = [(arm.name, rate, seed) for arm in arms for rate in rates for seed in seeds]
        return [
            {"arm": name, "lr": rate, "seed": seed, "budget": budget, "score": -abs(rate - 4e-3)}
            for name, rate, seed in rows
        ]

    monkeypatch.setattr(tuning, "_trials", trials)

    def tune(**options):
        place = {"root": tmp_path, "choice": tmp_path / "quick.yaml"}
        return tuning.tune(paper, tmp_path / "out", budget=70, **place | options), asked

    return tune


def test_tuning_widens_until_no_edge_wins_and_writes_table_and_choice(tuned, tmp_path):
    rates, asked = tuned(rates=(1e-3, 2e-3))
    assert asked == [(1e-3, 2e-3), (1e-3, 2e-3, 4e-3), (1e-3, 2e-3, 4e-3, 8e-3)]
    assert set(rates.values()) == {4e-3}
    assert yaml.safe_load((tmp_path / "quick.yaml").read_text()) == rates
    rows = trials_in(tmp_path)
    assert {row["lr"] for row in rows} == {"0.001", "0.002", "0.004", "0.008"}
    assert {row["budget"] for row in rows} == {"70"}


def test_trials_and_rates_of_arms_that_were_not_tuned_again_stay(tuned, tmp_path):
    first, _ = tuned()
    names = [name for name, arm in CLAIMS.arms.items() if arm.is_trained and not arm.rate_of]
    before = trials_in(tmp_path)
    tuned(arms=names[:1], rates=(1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2))
    after = trials_in(tmp_path)
    assert [row for row in after if row["arm"] != names[0]] == [row for row in before if row["arm"] != names[0]]
    assert set(yaml.safe_load((tmp_path / "quick.yaml").read_text())) == set(first)


def test_grid_without_the_rate_of_arms_that_others_read_is_refused(tuned):
    with pytest.raises(RequestError, match="are trained at 0.001"):
        tuned(rates=(5e-4, 2e-3))
