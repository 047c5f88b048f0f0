import csv
import io
import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest

from lightbox.claims import pilot as pilot_command
from lightbox.claims import published, runner
from lightbox.claims.budget import (
    FILE,
    Convergence,
    convergence,
    judge,
    load_pilot,
    merge_rows,
    moving,
    read_rows,
)
from lightbox.claims.document import BudgetCurve, BudgetPoint, load, write
from lightbox.claims.jobs import arm_job, plan
from lightbox.claims.registry import choose_claims, load_papers
from lightbox.claims.retrain import retrain_pilot, train_pilot_only
from lightbox.claims.same_source import DIFFERENT, ON_THIS_MACHINE, SAME
from lightbox.claims.spec import Claim, Kind, Role, Verdict, difference
from lightbox.claims.statistics import effect_of
from lightbox.claims.verdicts import decide
from lightbox.cli import claim_tables, reproduce
from lightbox.errors import RequestError
from lightbox.report.claim_view import CHIPS, ClaimView, stopped_early, turn
from lightbox.report.readme import results_lines
from lightbox.testing.fake_results import fake_results
from lightbox.testing.inline_pool import InlinePool
from lightbox.testing.toy_paper import forget_toy_paper, write_toy_paper

BUDGETS = (300, 600, 1200, 2400)
LINK = difference("link", "arm", "rival")
CONTROL = difference("control", "arm", "filler", Role.CONTROL)
CLAIM = Claim("toy", "X1", Kind.DIRECTIONAL, "it helps", "nowhere", "not found", (LINK, CONTROL), None)


def ladder(means, *, contrast=LINK, spread=(-0.01, 0.0, 0.01), wobble=0.0):
    """Effects by budget; `wobble` shifts two seeds apart at every other budget, which is noise of movements."""
    effects = {}
    for place, (budget, mean) in enumerate(zip(BUDGETS, means, strict=False)):
        shift = wobble * (-1) ** place
        d = [mean + part + own for part, own in zip(spread, (shift, 0.0, -shift), strict=True)]
        effects[budget] = effect_of(contrast, d, seeds=(900, 901, 902), items=500, min_effect=0.02)
    return effects


FLAT, GROWING, SHRINKING = (0.06,) * 4, (0.03, 0.06, 0.09, 0.15), (0.15, 0.09, 0.06, 0.03)
CROSSING, LATE, INSIDE = (-0.05, -0.01, 0.08, 0.12), (0.0, 0.005, 0.0, 0.08), (0.01, -0.005, 0.008, 0.0)
REVERSED, DEEPER = (-0.05, -0.05, -0.04, -0.05), (-0.03, -0.05, -0.08, -0.12)


@pytest.mark.parametrize(
    ("means", "on_plateau"),
    [
        (FLAT, (300, 600, 1200)),
        (GROWING, (300, 600, 1200)),
        (SHRINKING, ()),
        (CROSSING, (1200,)),
        (LATE, ()),
        (INSIDE, (300, 600, 1200)),
        (REVERSED, (300, 600, 1200)),
        (DEEPER, (300, 600, 1200)),
    ],
)
def test_planted_curves_are_on_their_plateau_where_no_later_budget_moves_them(means, on_plateau):
    for budget in BUDGETS[:-1]:
        judged = convergence(CLAIM, {"link": ladder(means)}, budget)
        assert judged.is_on_plateau == (budget in on_plateau), budget
        assert judged.plateau == (on_plateau[0] if on_plateau else None)


@pytest.mark.parametrize(
    ("before", "after", "moves"),
    [
        (0.06, 0.04, True),  # by the minimum itself
        (0.06, 0.041, False),
        (-0.06, -0.04, True),
        (-0.06, -0.09, False),
        (0.02, -0.001, True),  # across zero
        (0.019, 0.039, True),  # within the minimum: in any direction
        (0.019, 0.0385, False),
        (-0.019, -0.0395, True),
    ],
)
def test_a_contrast_moves_from_the_minimum_on(before, after, moves):
    assert (moving(ladder((before, after)), 300) == 600) == moves


def test_controls_count_and_the_reason_names_what_moves():
    ladders = {"link": ladder(FLAT), "control": ladder(SHRINKING, contrast=CONTROL)}
    judged = convergence(CLAIM, ladders, 600)
    assert not judged.is_on_plateau
    assert judged.plateau is None
    assert judged.reason == "'control' moves from +9.0 to +6.0 points between 600 and 1200 steps"
    assert convergence(CLAIM, {"link": ladder(CROSSING)}, 600).summary().endswith("; the plateau begins at 1200")
    assert "600 steps, not on the plateau: 'control' moves" in judged.summary()


def test_seeds_that_one_budget_lacks_do_not_count():
    full, fewer = ladder(FLAT), ladder(FLAT, spread=(-0.05, 0.0, 0.05))
    cut = effect_of(LINK, [0.06, 0.11], seeds=(901, 902), items=500, min_effect=0.02)
    assert moving(fewer, 300) is None
    assert moving({300: fewer[300], 600: cut}, 300) is None  # 0.085 is the mean of the shared seeds at both
    other = effect_of(LINK, [0.06], seeds=(903,), items=500, min_effect=0.02)
    assert moving({300: full[300], 600: other}, 300) == 600


def test_a_noisy_pilot_rules_no_movement_out_and_one_seed_none_at_all():
    assert convergence(CLAIM, {"link": ladder(REVERSED)}, 600).unsettled == ()
    noisy = convergence(CLAIM, {"link": ladder(REVERSED, wobble=0.02)}, 600)
    assert noisy.is_on_plateau
    assert noisy.unsettled == ("link",)
    assert "on the plateau; no negative verdict can rest on: link" in noisy.summary()
    single = {b: effect_of(LINK, [-0.05], seeds=(900,), items=500, min_effect=0.02) for b in BUDGETS}
    assert convergence(CLAIM, {"link": single}, 600).unsettled == ("link",)


def test_more_seeds_at_the_last_budgets_settle_what_three_leave_open():
    """The SD of a movement comes from the whole ladder, its interval from the seeds of that movement."""
    three = ladder(REVERSED, wobble=0.012)
    assert convergence(CLAIM, {"link": three}, 1200).unsettled == ("link",)
    spread = np.tile([-0.01, 0.0, 0.01], 4)
    more = {}
    for budget, sign in ((1200, 1), (2400, -1)):
        d = np.mean(three[budget].per_seed) + spread + sign * 0.012 * np.sign(spread)
        more[budget] = effect_of(LINK, d, seeds=range(900, 912), items=500, min_effect=0.02)
    assert convergence(CLAIM, {"link": three | more}, 1200).unsettled == ()


def verdict_of(link, control, judged):
    spread = (-0.002, -0.001, 0.0, 0.001, 0.002)
    effects = [
        effect_of(contrast, [mean + part for part in spread], seeds=range(5), items=500, min_effect=0.02)
        for contrast, mean in ((LINK, link), (CONTROL, control))
    ]
    return decide(CLAIM, effects, None, planned_seeds=5, convergence=judged)


SETTLED = Convergence("optim.max_steps", 600, 300, True)
STATES = {
    Verdict.REPRODUCED: (0.05, 0.05),
    Verdict.ABSENT: (0.0, 0.05),
    Verdict.CONTROL_FAILED: (0.05, 0.0),
    Verdict.CONTRADICTED: (-0.05, 0.05),
}


@pytest.mark.parametrize("verdict", STATES)
def test_off_the_plateau_no_verdict_stands_and_an_unsettled_contrast_forbids_negative_ones(verdict):
    def drawn(judged):
        return verdict_of(*STATES[verdict], judged)

    assert drawn(None).verdict == drawn(SETTLED).verdict == verdict
    off = drawn(replace(SETTLED, is_on_plateau=False, reason="it moves"))
    assert off.verdict == Verdict.STILL_LEARNING
    assert off.reason.startswith(f"off the plateau: it moves; at this budget it would be {verdict}: ")
    rests_on, other = ("control", "link") if verdict is Verdict.CONTROL_FAILED else ("link", "control")
    assert drawn(replace(SETTLED, unsettled=(other,))).verdict == verdict
    unsettled = drawn(replace(SETTLED, unsettled=(rests_on,))).verdict
    assert unsettled == (verdict if verdict is Verdict.REPRODUCED else Verdict.STILL_LEARNING)


def test_inconclusive_stays_itself_off_the_plateau():
    wide = [0.09, -0.05, 0.02, 0.0, 0.03]
    effects = [effect_of(c, wide, seeds=range(5), items=500, min_effect=0.02) for c in (LINK, CONTROL)]
    judged = Convergence("optim.max_steps", 600, reason="no pilot")
    assert decide(CLAIM, effects, None, planned_seeds=5, convergence=judged).verdict == Verdict.INCONCLUSIVE


# --- rows of a pilot ---


def paced_toy(package):
    """The toy with a budget of 4 steps, and half of it at quick; what a budget changes is nothing."""
    text = (package / "claims.py").read_text()
    (package / "claims.py").write_text(text.replace('budget=""', 'budget="steps", ladder={"quick": (0.5,)}'))
    [paper] = load_papers(packages={"toy": "toy"})
    return paper


@pytest.fixture
def paced(toy, monkeypatch):
    monkeypatch.setattr(runner, "Pool", InlinePool)
    return paced_toy(toy)


@pytest.fixture(scope="module")
def pilot_text(tmp_path_factory):
    """What a pilot of Y1 writes."""
    folder = tmp_path_factory.mktemp("pilot")
    write_toy_paper(folder / "src")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "Pool", InlinePool)
        text = run_pilot(paced_toy(folder / "src" / "toy"), folder).read_text()
    forget_toy_paper(folder / "src")
    return text


@pytest.fixture
def measured(pilot_text, paced, tmp_path):
    """The file of that pilot, among the results of a test."""
    path = tmp_path / "results" / "toy" / "budget.csv"
    path.parent.mkdir(parents=True)
    path.write_text(pilot_text)
    return path


def run_pilot(paper, folder, ids=("Y1",), **options):
    claims = [claim for _, claim in choose_claims([paper], ids)]
    options = {"budgets": (2, 4, 8, 16), **options}
    return pilot_command.pilot(paper, claims, folder / "pilot", root=folder / "results", **options)


def edited(path, change):
    """Rewrite every row of a pilot by a function of its cells, which returns None to drop it."""
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    changed = [new for row in rows if (new := change(dict(row)))]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(changed)


def judged(paper, folder, claim=None):
    """The judgement of Y1 at quick as a dry run makes it."""
    todo = plan(choose_claims([paper], ["Y1"]), "quick")
    return claim_tables.planned_convergence(paper, claim or paper.claims.claim("Y1"), todo, folder / "results")


@pytest.mark.slow
def test_the_pilot_keeps_a_mean_for_every_measure_arm_seed_and_budget(paced, measured):
    rows = read_rows(measured)
    places = {(row.arm, row.budget, row.condition) for row in rows}
    trained = {(arm, b, c) for arm in ("true", "none") for b in (2, 4, 8, 16) for c in ("film", "blank")}
    assert places == trained | {("filler", b, "film") for b in (2, 4, 8, 16)} | {("majority", 0, "film")}
    assert {row.seed for row in rows} == set(pilot_command.SEEDS)
    assert {row.items for row in rows} == {200}
    one = arm_job(paced, "true", preset="quick", seed=0)
    assert {(row.source, row.settings) for row in rows if row.arm == "true"} == {(one.source, one.settings)}
    assert len({row.key for row in rows if row.arm == "true"}) == 4 * 3


def test_a_pilot_of_an_arm_that_needs_another_trains_that_at_the_same_budget(paced):
    todo = pilot_command.plan_pilot(paced, [paced.claims.claim("Y2")], (2, 4, 8, 16), (900,))
    for budget in (2, 4, 8, 16):
        job = todo.jobs[todo.keys["toy", f"twice@{budget}", 900]]
        assert job.needs == {"true": todo.keys["toy", f"true@{budget}", 900]}
        assert f"steps={budget}" in job.overrides
        assert "data.eval_split=validation" in job.overrides


@pytest.mark.slow
def test_a_longer_ladder_trains_what_has_no_row_though_the_jobs_are_gone(paced, tmp_path, monkeypatch):
    first = run_pilot(paced, tmp_path, seeds=(900,)).read_text()
    shutil.rmtree(tmp_path / "pilot")
    ran = []
    give = InlinePool.give
    monkeypatch.setattr(InlinePool, "give", lambda pool, order: (ran.append(order.key), give(pool, order))[1])
    assert run_pilot(paced, tmp_path, seeds=(900,)).read_text() == first
    assert ran == []
    path = run_pilot(paced, tmp_path, seeds=(900,), budgets=(4, 8, 16, 32))
    assert {row.key for row in read_rows(path) if row.budget == 32} == set(ran)
    assert set(first.splitlines()) < set(path.read_text().splitlines())


@pytest.mark.slow
def test_a_second_pilot_runs_nothing_and_one_that_failed_goes_on(paced, tmp_path, monkeypatch):
    first = run_pilot(paced, tmp_path).read_text()
    folders = sorted((tmp_path / "pilot" / "jobs").iterdir())
    (folders[0] / "job.json").unlink()  # as if the pilot had been killed in that job
    path = tmp_path / "results" / paced.name / FILE
    edited(path, lambda row: None if row["key"] == folders[0].name else row)
    ran = []
    give = InlinePool.give
    monkeypatch.setattr(InlinePool, "give", lambda pool, order: (ran.append(order.key), give(pool, order))[1])
    assert run_pilot(paced, tmp_path).read_text() == first
    assert ran == [folders[0].name]


@pytest.mark.slow
def test_the_pilot_says_where_each_claim_is_on_its_plateau(paced, tmp_path, caplog):
    with caplog.at_level("INFO", "lightbox.claims"):
        run_pilot(paced, tmp_path, seeds=(900,))
    said = [message for message in caplog.messages if message.startswith("Y1: ")]
    assert [line.partition(";")[0] for line in said] == [f"Y1: {b} steps, on the plateau" for b in (2, 4, 8)]


@pytest.mark.slow
def test_a_wider_ladder_adds_rows_and_another_claim_too(paced, measured, tmp_path):
    before = read_rows(measured)
    after = read_rows(run_pilot(paced, tmp_path, ("Y2",), budgets=(4, 8, 16, 32), seeds=(900,)))
    assert {row.place for row in before} < {row.place for row in after}
    assert {row.budget for row in after if row.arm == "twice"} == {4, 8, 16, 32}


@pytest.mark.parametrize("budgets", [(4,), (4, 8, 16), (4, 8, 12, 24), (0, 0, 0, 0)])
def test_a_ladder_that_tells_nothing_is_refused_before_anything_runs(paced, tmp_path, budgets):
    with pytest.raises(RequestError, match="ladder of budgets is .* at least 4 budgets, each twice the last"):
        run_pilot(paced, tmp_path, budgets=budgets)
    assert not (tmp_path / "pilot").exists()


def test_a_pilot_of_claims_without_a_budget_is_refused(toy, tmp_path):
    [paper] = load_papers(packages={"toy": "toy"})
    with pytest.raises(RequestError, match="None of the claims has a training budget"):
        run_pilot(paper, tmp_path)


def test_a_flat_toy_is_on_its_plateau_and_a_missing_pilot_is_said(paced, measured, tmp_path):
    text = measured.read_text()
    measured.unlink()
    missing = judged(paced, tmp_path)
    assert not missing.is_on_plateau
    assert "no pilot: The pilot of Y1 is" in missing.reason
    assert "budget.csv" in missing.reason
    assert "python -m lightbox.claims.pilot toy --claims Y1" in missing.reason
    measured.write_text(text)
    assert judged(paced, tmp_path) == Convergence("steps", 4, 2, True)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda row: row if row["arm"] != "filler" else None, "holds no row of arm 'filler'"),
        (lambda row: row | {"source": "0" * 64}, "made by another source than the run's"),
        (lambda row: row | {"settings": "0" * 20}, "made with another configuration than the run's"),
        (lambda row: row | {"lr": row["budget"]}, "mix the learning rates"),
        (lambda row: row if row["budget"] in ("0", "4") else None, "Its ladder is 4, and a plateau is judged from 4"),
        (lambda row: row | {"items": "120"} if row["arm"] == "none" else row, "unequal numbers of items at seed 900"),
        (
            lambda row: row | {"budget": {"4": "5", "8": "7"}.get(row["budget"], row["budget"])},
            "trains for 4 steps, and it needs that budget and 8",
        ),
    ],
)
def test_a_pilot_that_does_not_speak_for_the_run_is_refused_with_its_file(paced, measured, tmp_path, change, why):
    edited(measured, change)
    reason = judged(paced, tmp_path).reason
    assert why in reason
    assert "The pilot of Y1 is results/toy/budget.csv. " in reason
    assert str(tmp_path) not in reason
    assert "Run `python -m lightbox.claims.pilot toy --claims Y1`" in reason


def test_rows_of_an_older_source_do_not_hide_those_of_today(paced, measured, tmp_path):
    rows = read_rows(measured)
    merge_rows(measured, [replace(row, budget=row.budget * 32, source="older") for row in rows if row.budget])
    assert judged(paced, tmp_path).is_on_plateau
    assert len(read_rows(measured)) > len(rows)


@pytest.mark.slow
@pytest.mark.parametrize(("code", "speaks"), [("return cfg.level + 0", True), ("return cfg.level + 0.2", False)])
def test_a_pilot_of_an_older_source_speaks_where_its_smallest_budget_is_the_same_again(
    toy, paced, measured, tmp_path, code, speaks
):
    world = toy / "world.py"
    world.write_text(world.read_text().replace("return cfg.level", code))
    forget_toy_paper(toy.parent)
    sys.path.insert(0, str(toy.parent))
    [paper] = load_papers(packages={"toy": "toy"})
    assert "made by another source" in judged(paper, tmp_path).reason
    claims, place = [paper.claims.claim("Y1")], {"root": tmp_path / "results", "workers": 1}
    rows = retrain_pilot(paper, claims, tmp_path / "again", **place)
    assert {(row.arm, row.seed) for row in rows} == {(f"{a}@2", 900) for a in ("true", "none", "filler")} | {
        ("majority", 900)
    }
    assert judged(paper, tmp_path).is_on_plateau == speaks
    with pytest.raises(RequestError, match="None of the claims has a training budget"):
        retrain_pilot(paper, [replace(claims[0], budget="")], tmp_path / "again", **place)


@pytest.mark.slow
def test_beside_another_processors_pilot_the_older_source_here_decides(toy, paced, measured, tmp_path):
    claims, place = [paced.claims.claim("Y1")], {"root": tmp_path / "results", "workers": 1}
    train_pilot_only(paced, claims, tmp_path / "older", **place)
    merge_rows(measured, [replace(row, mean=row.mean + 1e-6) for row in read_rows(measured)])
    world = toy / "world.py"
    world.write_text(world.read_text().replace("return cfg.level", "return cfg.level + 0"))
    forget_toy_paper(toy.parent)
    sys.path.insert(0, str(toy.parent))
    [paper] = load_papers(packages={"toy": "toy"})
    with pytest.raises(RequestError, match="None of its rows has a key of today's source"):
        train_pilot_only(paper, claims, tmp_path / "older", **place)
    rows = retrain_pilot(paper, claims, tmp_path / "again", older=tmp_path / "older", **place)
    assert [(row.outcome, row.beside) for row in rows] == [(SAME, ON_THIS_MACHINE)] * 4
    assert judged(paper, tmp_path).is_on_plateau
    assert {row.outcome for row in retrain_pilot(paper, claims, tmp_path / "again", **place)} == {DIFFERENT}
    assert not judged(paper, tmp_path).is_on_plateau


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("900", "nine", 1),
        lambda text: text + text.splitlines()[1] + "\n",
        lambda text: text.replace("arm,", "limb,", 1),
    ],
)
def test_a_damaged_file_is_refused_before_a_run_and_nothing_is_lost(paced, measured, tmp_path, damage):
    measured.write_text(damage(measured.read_text()))
    with pytest.raises(RequestError, match=r"The pilot is .*budget\.csv.* is no row of it"):
        load_pilot(tmp_path / "results", paced.claims)
    text = measured.read_text()
    with pytest.raises(RequestError, match=r"budget\.csv"):
        run_pilot(paced, tmp_path)
    assert measured.read_text() == text


# --- verdicts, documents and what is shown ---


class Silent:
    def parent(self, *_):
        return ""

    child = close = parent


@pytest.fixture
def go(paced, tmp_path, monkeypatch):
    monkeypatch.setattr("lightbox.runs.index.open_tracker", lambda out: Silent())

    def run(**options):
        todo = reproduce.make_plan([], preset="quick", claim_ids=["Y1"], packages={"toy": "toy"})
        console = claim_tables.plain_console(file=io.StringIO(), width=200)
        new = reproduce.run_plan(todo, tmp_path / "out", root=tmp_path / "results", console=console, **options)
        return new, console.file.getvalue()

    return run


@pytest.mark.slow
def test_a_run_without_a_pilot_is_still_learning_and_with_one_it_has_its_verdict(go, measured, pilot_text):
    measured.unlink()
    assert "4 steps, not on the plateau: no pilot" in go(dry_run=True)[1]
    [before] = go()[0].claims
    assert before.verdict == Verdict.STILL_LEARNING
    assert "no pilot" in before.reason
    assert before.reason.endswith("it would be reproduced: every primary contrast holds, and every control")
    measured.write_text(pilot_text)
    assert "4 steps, on the plateau" in go(dry_run=True)[1]
    [after] = go()[0].claims
    assert after.verdict == Verdict.REPRODUCED
    assert after.convergence == Convergence("steps", 4, 2, True)


@pytest.mark.slow
def test_half_the_budget_runs_on_the_verdicts_own_seeds_and_its_curves_are_kept(go, measured):
    new, _ = go()
    assert {job.arm for job in new.jobs} == {"none", "true", "filler", "majority", "none@2", "true@2", "filler@2"}
    [claim] = new.claims
    curves = {(curve.name, curve.is_pilot): curve for curve in claim.by_budget}
    own, pilot = (curves["true minus none", is_pilot] for is_pilot in (False, True))
    assert [point.budget for point in own.points] == [2, 4]
    assert [point.budget for point in pilot.points] == [2, 4, 8, 16]
    assert own.points[1].mean == claim.effect
    assert own.points[1].ci95 == claim.ci95
    assert (own.points[0].seeds, pilot.points[0].seeds) == (5, 3)
    assert curves["true", False].role == "arm"


@pytest.fixture
def longer(toy, tmp_path, monkeypatch):
    """The toy whose Y1 is decided at 8 steps and whose Y2 is at the preset's 4; both run half of theirs too."""
    monkeypatch.setattr(runner, "Pool", InlinePool)
    monkeypatch.setattr("lightbox.runs.index.open_tracker", lambda out: Silent())
    text = (toy / "claims.py").read_text()
    (toy / "claims.py").write_text(text.replace("is_primary=True,", 'is_primary=True, budget_by_preset={"quick": 8},'))
    paper = paced_toy(toy)
    run_pilot(paper, tmp_path, ids=("Y1", "Y2"))
    return paper


@pytest.mark.slow
def test_a_claim_is_decided_at_the_budget_it_declares(longer, tmp_path):
    todo = plan(choose_claims([longer], ["Y1", "Y2"]), "quick")
    arms = {arm for _, arm, _ in todo.keys}
    own = {"none", "true", "filler", "none@8", "true@8", "filler@8"}
    assert arms == own | {"twice", "majority", "none@2", "true@2", "twice@2"}  # half of 8 is the preset's own 4
    assert {arm for _, arm in todo.own_arms()} == {"none@8", "true@8", "filler@8", "none", "true", "twice", "majority"}
    console = claim_tables.plain_console(file=io.StringIO(), width=200)
    new = reproduce.run_plan(todo, tmp_path / "out", root=tmp_path / "results", console=console, publish=True)
    entries = {claim.id: claim for claim in new.claims}
    assert [entries[name].convergence.budget for name in ("Y1", "Y2")] == [8, 4]
    names = {job.key: job.arm for job in new.jobs}
    assert {names[key] for key in entries["Y1"].run_ids} == own | {"majority"}
    assert {names[key] for key in entries["Y2"].run_ids} == arms - {"filler", "none@8", "true@8", "filler@8"}
    for name, budgets in (("Y1", [4, 8]), ("Y2", [2, 4])):
        [curve] = [c for c in entries[name].by_budget if c.name == "true minus none" and not c.is_pilot]
        assert [point.budget for point in curve.points] == budgets
    again = published.recompute(tmp_path / "results" / "toy" / "quick", longer)
    assert {claim.id: claim for claim in again.claims} == {name: e.beside(None) for name, e in entries.items()}
    assert claim_tables.planned_convergence(longer, longer.claims.claim("Y1"), todo, tmp_path / "results").budget == 8


def test_movement_on_the_verdicts_own_seeds_is_still_learning(paced, measured, tmp_path):
    claim = paced.claims.claim("Y1")
    todo = plan(choose_claims([paced], ["Y1"]), "quick")
    origins = {arm: todo.jobs[key] for (_, arm, _), key in todo.keys.items()}
    loaded = load_pilot(tmp_path / "results", paced.claims)

    def own(half, run, seeds=(0, 1)):
        effects = {b: [mean] * n for b, mean, n in ((2, half, len(seeds)), (4, run, 2))}
        made = {b: effect_of(LINK, d, seeds=range(len(d)), items=9, min_effect=0.02) for b, d in effects.items()}
        return {contrast.name: made for contrast in claim.contrasts}

    assert judge(claim, 4, loaded, origins, own(0.05, 0.06))[0].is_on_plateau
    moved = judge(claim, 4, loaded, origins, own(0.08, 0.06))[0]
    assert moved.reason.startswith("on the verdict's own seeds 'true minus none' moves from +8.0 to +6.0 points")
    waiting = judge(claim, 4, loaded, origins, own(0.05, 0.06, seeds=(0,)))[0]
    assert waiting.reason == "half the budget of 4 steps has not ended on every seed"
    assert not moved.is_on_plateau
    assert not waiting.is_on_plateau


@pytest.mark.slow
def test_published_results_are_recomputed_with_their_pilot_and_marked_without(go, paced, measured, tmp_path):
    new, _ = go(publish=True)
    folder = tmp_path / "results" / "toy" / "quick"
    again = published.recompute(folder, paced)
    assert again.claims == tuple(claim.beside(None) for claim in new.claims)
    measured.unlink()
    [marked] = published.recompute(folder, paced).claims
    assert marked.verdict == Verdict.STILL_LEARNING
    assert "no pilot" in marked.reason


@pytest.mark.slow
def test_a_document_whose_digest_was_taken_away_is_refused(go, measured, tmp_path):
    go(publish=True)
    path = tmp_path / "results" / "toy" / "quick" / "results.json"
    content = json.loads(path.read_text())
    del content["sha256"]
    path.write_text(json.dumps(content))
    with pytest.raises(RequestError, match=r"results\.json\. The digest at its end was taken away"):
        load(path)


@pytest.mark.slow
def test_results_of_before_claims_had_a_budget_come_out_marked(go, paced, measured, tmp_path):
    new, _ = go(publish=True)
    folder = tmp_path / "results" / "toy" / "quick"
    old = replace(new.claims[0], budget=None, convergence=None, by_budget=())
    lines = claim_tables.explanation(paced, paced.claims.claim("Y1"), [("quick", old)])
    assert lines[-1].endswith("; withdrawn: no pilot says whether it turns with more training")
    document = load(folder / "results.json")
    write(
        replace(document, jobs=tuple(replace(job, settings="", budget=None) for job in document.jobs)),
        folder / "results.json",
    )
    [marked] = published.recompute(folder, paced).claims
    assert marked.verdict == Verdict.STILL_LEARNING


@pytest.mark.slow
def test_the_page_and_the_readme_show_effect_and_scores_against_budget(go, measured, tmp_path):
    go(publish=True)
    page = (tmp_path / "out" / "reproduce" / "toy-quick" / "report.html").read_text()
    assert "Training budget</dt><dd>4 steps, on the plateau" in page
    assert "Effect of Y1 against training budget: true minus none" in page
    assert "dashed: the verdict&#39;s own seeds" in page or "dashed: the verdict's own seeds" in page
    [row] = [line for line in results_lines("toy/quick", root=tmp_path, folder=tmp_path) if line.startswith("| Y1")]
    assert "| 4 steps, on the plateau |" in row


def curve(*means, role="primary", name="link", is_pilot=True):
    points = (BudgetPoint(b, mean, (mean - 1, mean + 1), 3) for b, mean in zip(BUDGETS, means, strict=True))
    return BudgetCurve(name, role, is_pilot, tuple(points))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("means", "sentence"),
    [
        ((-5.0, -1.0, 8.0, 12.0), "'link' turns its sign between 600 and 1200 steps, in the pilot"),
        ((-5.0, 5.0, 5.0, 1.0), "'link' turns its sign between 300 and 600 steps, in the pilot"),
        ((5.0, 2.0, -2.0, -6.0), "'link' turns its sign between 600 and 1200 steps, in the pilot"),
        ((-1.0, 1.0, 5.0, 9.0), ""),  # never beyond the minimum on the other side
        ((3.0, 4.0, 5.0, 9.0), ""),
        ((0.0, 0.0, 0.0, 0.0), ""),
    ],
)
def test_the_turn_of_a_sign_is_said(tmp_path, means, sentence):
    claim = fake_results(tmp_path).claims[0]
    shown = replace(claim, budget="optim.max_steps", by_budget=(curve(*means), curve(-9, 9, 9, 9, role="arm")))
    assert turn(shown) == sentence


def test_each_arm_at_its_own_best_budget_is_said(tmp_path):
    def line(name, role, means, budgets):
        # of the last budget there are fewer seeds, and its means cannot be compared with the others
        points = tuple(
            BudgetPoint(budget, mean, None, 2 if budget == 16 else 3)
            for budget, mean in zip(budgets, means, strict=True)
        )
        return BudgetCurve(name, role, True, points)

    budgets = (2, 4, 8, 16)
    true = line("true", "arm", (60, 72, 70, 90, 99), (*budgets, 32))  # its rival was not trained so long
    none = line("none", "arm", (66, 64, 68, 90), budgets)
    effect = line("true minus none", "primary", (-6, 8, 2, 0), budgets)
    plain = fake_results(tmp_path).claims[0]
    link = replace(plain.links[0], name="true minus none", arm="true", rival="none")
    claim = replace(plain, budget="steps", contrasts=(link,), by_budget=(true, none, effect))
    assert stopped_early(claim, 1) == "'true minus none' +4.0 points, true at 4, none at 8 steps"
    slope = line("true minus none", "primary", (-3, 4, 1, 0), budgets)  # half of the difference of the two
    assert stopped_early(replace(claim, by_budget=(true, none, slope)), 1) == ""
    assert stopped_early(replace(claim, by_budget=()), 1) == ""


def test_the_figure_holds_every_curve_and_a_claim_without_curves_has_none(tmp_path):
    new = fake_results(tmp_path)
    claim = replace(new.claims[0], budget="optim.max_steps")
    assert ClaimView(claim, new, "T1").by_budget is None
    curves = (curve(-5, -1, 8, 12), curve(1, 2, 3, 4, name="guard", role="control"), curve(60, 61, 62, 63, role="arm"))
    source, alt = ClaimView(replace(claim, by_budget=curves), new, "T1").by_budget
    assert source.startswith("data:image/svg+xml")
    assert "link -5 at 300" in alt.replace("−", "-")
    assert "guard" in alt
    single = replace(curves[0], points=(BudgetPoint(300, -5.0, None, 1),))
    assert ClaimView(replace(claim, by_budget=(single, curves[2])), new, "T1").by_budget is not None


def test_still_learning_has_a_chip():
    assert CHIPS[Verdict.STILL_LEARNING].mark
