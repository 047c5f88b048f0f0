"""Rates are chosen by the paper's own measure, from one grid that widens for every arm alike."""

import csv
import io
import subprocess
import sys
from dataclasses import replace

import pyarrow as pa
import pytest
import yaml

from lightbox.claims import tuning
from lightbox.claims.registry import Paper
from lightbox.claims.spec import Arm
from lightbox.claims.statistics import Scores
from lightbox.errors import RequestError, WorkError
from lightbox.runs.folders import read_scores
from lightbox.testing.fake_results import fake_claims
from lightbox.testing.fake_runs import write_job

ARMS = fake_claims().arms | {"answer_only": Arm("answer_only", "answers and nothing else")}
CLAIMS = replace(fake_claims(), tuning=("bleu4", "correct"), arms=ARMS)


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


def test_an_arm_is_tuned_under_the_condition_that_it_declares(tmp_path):
    elsewhere = replace(CLAIMS, condition="volume")
    with pytest.raises(WorkError, match="chosen under 'volume', and it was scored under .*blank.*tuned_under"):
        trial(tmp_path / "a", "explanation", elsewhere)
    arms = ARMS | {"explanation": Arm("explanation", "t", tuned_under="blank")}
    score, scores = trial(tmp_path / "b", "explanation", replace(elsewhere, arms=arms))
    judged = scores.tables["explanation", 0].to_pandas().query("condition == 'blank'")
    assert score["score"] == pytest.approx(judged.bleu4.mean(), abs=1e-6)


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
        return tuning.tune(paper, tmp_path / "out", **{"budget": 70} | place | options), asked

    return tune


def test_tuning_widens_until_no_edge_wins_and_writes_table_and_choice(tuned, tmp_path):
    rates, asked = tuned(rates=(1e-3, 2e-3))
    assert asked == [(1e-3, 2e-3), (1e-3, 2e-3, 4e-3), (1e-3, 2e-3, 4e-3, 8e-3)]
    assert set(rates.values()) == {4e-3}
    assert yaml.safe_load((tmp_path / "quick.yaml").read_text()) == rates
    rows = trials_in(tmp_path)
    assert {row["lr"] for row in rows} == {"0.001", "0.002", "0.004", "0.008"}
    assert {row["budget"] for row in rows} == {"70"}


def test_trials_of_other_arms_stay_where_budget_and_grid_are_theirs(tuned, tmp_path):
    first, asked = tuned(arms=("explanation", "none"))
    before = trials_in(tmp_path)
    tuned(arms=("filler",), rates=(2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3))
    after = trials_in(tmp_path)
    assert [row for row in after if row["arm"] != "filler"] == before
    assert {row["arm"] for row in after} == {"explanation", "none", "filler"}
    with pytest.raises(
        RequestError, match="holds trials of 'explanation' at budget 70 and rates 0.00025, .*rivals share both"
    ):
        tuned(arms=("reasoning",), rates=(1e-3, 2e-3, 4e-3, 8e-3))
    with pytest.raises(RequestError, match="at budget 35"):
        tuned(arms=("reasoning",), budget=35)
    assert len(asked) == 3  # refused before a trial ran
    assert set(first) == {"explanation", "none"}


def test_a_grid_that_would_outgrow_that_of_other_arms_is_refused_before_the_wider_trials(tuned, tmp_path):
    table = tmp_path / CLAIMS.paper / "tuning.csv"
    table.parent.mkdir()
    rows = [f"none,{rate},900,70,0.5,correct,10,key,abc,source" for rate in (1e-3, 2e-3)]
    table.write_text("\n".join([",".join(tuning.FIELDS), *rows]) + "\n")
    text = table.read_text()
    with pytest.raises(
        RequestError, match="filler are at budget 70 and rates 0.001, 0.002, 0.004.*tune all arms again"
    ):
        tuned(arms=("filler",), rates=(1e-3, 2e-3))
    assert table.read_text() == text
    rates, asked = tuned(arms=("filler", "none"), rates=(1e-3, 2e-3, 4e-3))
    assert asked == [(1e-3, 2e-3), (1e-3, 2e-3, 4e-3), (1e-3, 2e-3, 4e-3, 8e-3)]
    assert rates == {"filler": 4e-3, "none": 4e-3}


def test_every_trained_arm_has_a_rate_and_one_that_was_not_tuned_is_marked(tuned, tmp_path):
    (tmp_path / "quick.yaml").write_text("reasoning: 0.002\nfiller: 0.5\nfirst: 1\n")
    tuned(arms=("filler",))
    lines = (tmp_path / "quick.yaml").read_text().splitlines()
    assert "filler: 0.004" in lines
    assert "reasoning: 0.002  # not tuned on this grid" in lines
    assert "none: 0.001  # not tuned on this grid" in lines
    rates = yaml.safe_load("\n".join(lines))
    assert set(rates) == {name for name, arm in ARMS.items() if arm.is_trained}


def test_grid_without_the_rate_of_arms_that_others_read_is_refused(tuned):
    with pytest.raises(RequestError, match="are trained at 0.001"):
        tuned(rates=(5e-4, 2e-3))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["pilot", "medthink", "--claims", "T1", "--budgets", "300", "700"], "The ladder of budgets is 300, 700."),
        (["pilot", "medthing"], "There is no paper 'medthing'."),
        (["tuning", "medthink", "--claims", "T9"], "There is no claim 'T9'"),
        (["tuning", "medthink", "--claims", "T1", "--rates", "0.002"], "The grid of rates is 0.002."),
    ],
)
def test_a_wrong_request_of_pilot_or_tuning_is_told_in_three_lines(words, what, tmp_path):
    module, *rest = words
    command = [sys.executable, "-m", f"lightbox.claims.{module}", *rest, "--out", str(tmp_path / "out")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2, ended.stderr
    assert f"What was given: {what}" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "out").exists()
