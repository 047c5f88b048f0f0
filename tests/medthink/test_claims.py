"""The claims hold together, and the arms differ in what they declare and in nothing else."""

import subprocess
import sys

import numpy as np
import pytest

from lightbox.claims.jobs import arm_job
from lightbox.claims.pilot import deciding_arms, plan_pilot
from lightbox.claims.published import published_folders, recompute
from lightbox.claims.registry import Paper, check_claims
from lightbox.claims.spec import Kind, Role
from lightbox.files import to_plain
from lightbox.paper.conditions import IMAGE
from lightbox.paths import results_dir
from lightbox.runs.folders import KEY_COLUMNS, flatten
from medthink.claims import PAPER
from medthink.config import resolve
from medthink.scores import METRICS

QUICK_ARMS = {"none", "explanation", "same_answer", "filler", "untouched", "majority", "question_only"}
METHOD_KEYS = {"data.rationale", "data.corruption_pct", "data.form", "data.lesion_scale_pct", "optim.steps_factor"}


def test_claims_are_consistent():
    check_claims(PAPER)
    assert [claim.id for claim in PAPER.claims] == [
        "T1",
        "T1-pads",
        "T1-alike",
        "T2",
        "T2-exact",
        "T3",
        "T4",
        "T5",
        "T6",
        "R1",
    ]
    assert [claim.id for claim in PAPER.claims if claim.is_primary] == ["T1"]


def test_quick_runs_t1_on_five_seeds_with_the_declared_arms():
    quick = [claim for claim in PAPER.claims if "quick" in claim.presets]
    assert [claim.id for claim in quick] == ["T1"]
    assert {claim.seeds["quick"] for claim in quick} == {5}
    assert {arm for claim in quick for arm in claim.arms} == QUICK_ARMS


def test_primary_contrasts_of_directional_claims_get_eight_seeds_in_full():
    assert {PAPER.claim(name).seeds["full"] for name in ("T1", "T2")} == {8}
    assert min(claim.seeds["full"] for claim in PAPER.claims if "full" in claim.presets) >= 5


@pytest.mark.parametrize("claim", PAPER.claims, ids=lambda claim: claim.id)
def test_every_claim_reads_columns_that_are_written(claim):
    measures = [m for c in claim.contrasts for _, m in c.terms]
    measures += [*claim.gate.arms, *claim.gate.baselines] if claim.gate else []
    assert {m.metric or PAPER.headline for m in measures} <= set(METRICS)
    assert {column for m in measures for column, _ in m.where} <= set(KEY_COLUMNS)


def test_headline_tuning_metrics_and_condition_are_what_is_written():
    assert {PAPER.headline, *PAPER.tuning} <= set(METRICS)
    assert PAPER.condition == IMAGE


@pytest.mark.slow
def test_one_pilot_speaks_for_quick_and_full():
    """Its jobs share source and settings with those of both presets, which differ in the number of test items."""
    paper, claim = Paper("medthink", "medthink", PAPER), PAPER.claim("T1")
    todo = plan_pilot(paper, [claim], (300, 600, 1200, 2400), (900,))
    assert {job.config["optim"]["max_steps"] for job in todo.jobs.values() if "@" in job.arm} == {300, 600, 1200, 2400}
    assert {job.config["data"]["eval_split"] for job in todo.jobs.values()} == {"validation"}
    for arm in deciding_arms(claim):
        pilots = {(job.source, job.settings) for job in todo.jobs.values() if job.arm.partition("@")[0] == arm}
        runs = [arm_job(paper, arm, preset=preset, seed=0) for preset in ("quick", "full")]
        assert pilots == {(job.source, job.settings) for job in runs}, arm


def test_controls_of_t1_are_same_answer_and_filler():
    assert {c.rival for c in PAPER.claim("T1").by_role(Role.CONTROL)} == {"same_answer", "filler"}


def test_weights_of_every_comparing_contrast_add_up_to_zero():
    for claim in PAPER.claims:
        for contrast in claim.contrasts:
            if len(contrast.terms) > 1:
                assert sum(weight for weight, _ in contrast.terms) == pytest.approx(0, abs=1e-12)


def test_fitted_fall_is_the_fall_of_a_straight_line():
    """Accuracy that falls from 0.9 by 0.2 over 0 to 50 % gives 0.2, whatever the points between."""
    terms = PAPER.claim("T5").by_role(Role.PRIMARY)[0].terms
    pct = np.array([0, 10, 25, 50])
    accuracy = 0.9 - 0.2 * pct / 50
    assert sum(w * a for (w, _), a in zip(terms, accuracy, strict=True)) == pytest.approx(0.2)
    assert [m.arm for _, m in terms] == ["explanation", *(f"explanation_corrupt{p}" for p in pct[1:])]


def test_t6_is_an_equivalence_within_one_bleu():
    claim = PAPER.claim("T6")
    assert (claim.kind, claim.min_effect, claim.unit, claim.unit_scale) == (Kind.EQUIVALENCE, 1.0, "BLEU", 1.0)


def test_stage_two_reads_what_stage_one_wrote():
    assert PAPER.arms["stage2_in_sample"].needs == ("stage1",)
    assert set(PAPER.arms["stage2_out_of_fold"].needs) == {"stage1", "stage1_folds"}
    assert set(PAPER.arms["reader"].needs) == {"explanation", "reasoning"}


def test_arms_differ_in_method_and_data_content_only():
    plain = flatten(to_plain(resolve(["preset=quick", "run.seed=0", "experiment=none"])))
    for arm in PAPER.arms.values():
        other = flatten(to_plain(resolve(["preset=quick", "run.seed=0", f"experiment={arm.name}"])))
        assert other["experiment"] == arm.name
        changed = {key for key in plain.keys() | other.keys() if plain.get(key) != other.get(key)}
        odd = {key for key in changed if not key.startswith("objective.")} - METHOD_KEYS - {"experiment", "optim.lr"}
        assert odd == set(), arm.name


def test_claims_and_config_import_no_torch():
    code = "import sys, medthink.claims, medthink.config; medthink.config.resolve(['preset=smoke']); "
    code += "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'mlflow')))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_rise_of_the_loss_is_its_mean_over_both_ways_of_making_rationales_inexact():
    accuracy = {"none": 0.8, "reasoning": 0.75, "none_lesions50": 0.6, "reasoning_lesions50": 0.4}
    accuracy["reasoning_corrupt50"] = 0.65
    [primary] = PAPER.claim("T2-exact").by_role(Role.PRIMARY)
    rise = sum(weight * accuracy[m.arm] for weight, m in primary.terms)
    assert rise == pytest.approx((0.2 + 0.15) / 2 - 0.05)


def test_every_trained_arm_has_a_rate_and_doses_share_one():
    rates = resolve(["preset=quick"]).tuned
    trained = {name: arm for name, arm in PAPER.arms.items() if arm.is_trained}
    assert set(rates) == set(trained)
    assert all(rates[name] == rates[arm.rate_of] for name, arm in trained.items() if arm.rate_of)


@pytest.mark.parametrize("preset", ["quick", pytest.param("full", marks=pytest.mark.slow)])
def test_what_is_published_can_be_decided_again(preset):
    """Also what an older source, phantom or list of claims left: it is marked, and never an error."""
    paper = Paper("medthink", "medthink", PAPER)
    for folder, _ in published_folders(results_dir(), [paper], preset):
        entries = recompute(folder, paper).claims
        assert {entry.id for entry in entries} <= {claim.id for claim in PAPER.claims if preset in claim.presets}
        [t1] = [entry for entry in entries if entry.id == "T1"]
        assert len(t1.seeds) == t1.planned_seeds  # the arms were found, whatever they were called then
