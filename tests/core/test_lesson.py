"""`lightbox student`: arms of one claim on one development seed, a page that follows them, and no verdict."""

import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from lightbox.claims import lesson, runner
from lightbox.claims import pilot as pilot_command
from lightbox.claims.budget import load_pilot
from lightbox.claims.registry import load_papers
from lightbox.cli import student
from lightbox.cli.claim_tables import plain_console
from lightbox.errors import RequestError, WorkError
from lightbox.files import write_json
from lightbox.testing.inline_pool import InlinePool


@pytest.fixture
def paced(toy, monkeypatch):
    """The toy, whose claims have a training budget."""
    monkeypatch.setattr(runner, "Pool", InlinePool)
    text = (toy / "claims.py").read_text()
    (toy / "claims.py").write_text(text.replace('budget=""', 'budget="steps"'))
    return load_papers(packages={"toy": "toy"})[0]


def planned(paper, claim="Y1", **options):
    return lesson.plan_lesson(paper, paper.claims.claim(claim), **options)


def taught(plan, tmp_path):
    places = {"root": tmp_path / "results", "console": plain_console()}
    return student.run_lesson(plan, tmp_path / "out", **places, is_shown=False)


def page_of(tmp_path, claim="Y1"):
    return (tmp_path / "out" / "student" / claim / "report.html").read_text()


def test_a_lesson_trains_the_arms_of_the_first_link_alone_on_validation_images(paced):
    plan = planned(paced).plan
    assert {(arm, seed) for _, arm, seed in plan.keys} == {("true@800", 990), ("none@800", 990)}
    assert all("data.eval_split=validation" in job.overrides for job in plan.jobs.values())
    chain = planned(paced, "Y2", steps=50).plan
    assert {arm for _, arm, _ in chain.keys} == {"true@50", "twice@50"}  # whom a link's arm needs comes along


def test_the_budget_is_the_largest_that_is_forecast_to_fit(paced, toy):
    text = (toy / "config.py").read_text()
    (toy / "config.py").write_text(text.replace('"minutes": 0.5', '"minutes": cfg.steps / 400'))
    assert planned(paced, seconds=60).budget == 200  # two arms at once: 30 s beside, 30 s of training
    assert planned(paced, seconds=59).budget == 100
    assert planned(paced, seconds=1).budget == 25  # none fits: the smallest
    assert planned(paced, steps=7).budget == 7


@pytest.mark.parametrize("seed", [0, 899, 900, 902, 1000])
def test_seeds_of_verdicts_and_of_the_pilot_are_refused(paced, seed):
    with pytest.raises(RequestError, match=f"--seed is {seed}. Verdicts are decided .* Give one from 903 to 999"):
        planned(paced, seed=seed)


def test_a_claim_that_trains_nothing_is_refused(toy):
    [paper] = load_papers(packages={"toy": "toy"})
    with pytest.raises(RequestError, match="A lesson on Y1. It trains nothing.*reproduce toy --claims Y1"):
        planned(paper)


def test_what_comes_out_is_the_mean_difference_of_the_items_with_its_standard_error(paced, tmp_path):
    result = taught(planned(paced, steps=4), tmp_path)
    folders = {key: tmp_path / "out" / "jobs" / key for key in planned(paced, steps=4).plan.jobs}
    hits = {}
    for job in planned(paced, steps=4).plan.jobs.values():
        table = pq.read_table(folders[job.key] / "scores.parquet").to_pandas()
        hits[job.arm] = table[table.condition == "film"].set_index("item").hit
    differences = 100 * (hits["true@4"] - hits["none@4"])
    assert result.effect == pytest.approx(differences.mean())
    assert result.item_sd == pytest.approx(differences.sem())
    assert result.levels == pytest.approx({"true": 100 * hits["true@4"].mean(), "none": 100 * hits["none@4"].mean()})
    assert result.items == 200


@pytest.mark.slow
def test_the_page_shows_every_seed_so_far_beside_the_pilot_and_draws_no_verdict(paced, tmp_path):
    claims = [paced.claims.claim("Y1")]
    pilot_command.pilot(paced, claims, tmp_path / "pilot", root=tmp_path / "results", budgets=(2, 4, 8, 16))
    first = taught(planned(paced, steps=4), tmp_path)
    second = taught(planned(paced, steps=4, seed=903), tmp_path)
    page = page_of(tmp_path)
    assert "Pilot: " in page
    for own in (first, second):
        assert own.key in page
    assert f"at 4 with seed {second.seed}" in page
    assert "no verdict" in page
    assert 'http-equiv="refresh"' not in page  # it has ended
    taught(planned(paced, steps=4, seed=903), tmp_path)
    assert len(json.loads((tmp_path / "out" / "student" / "Y1" / "outcomes.json").read_text())) == 2  # not one more


def test_a_pilot_of_other_settings_is_not_laid_beside_the_seed_and_the_page_says_why(paced, tmp_path):
    plan = planned(paced, steps=4)
    ladder, why = lesson.pilot_effects(plan, load_pilot(tmp_path, paced.claims))
    assert ladder == {}
    assert "There is no such file" in why
    taught(plan, tmp_path)
    assert "No seeds of a pilot can stand here" in page_of(tmp_path)


def test_the_loss_is_read_from_the_newest_checkpoint_while_an_arm_trains_and_from_its_history_after(paced, tmp_path):
    plan = planned(paced, steps=4)
    key = next(iter(plan.plan.jobs))
    for step in (1, 2):
        folder = tmp_path / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        curve = [[at, 1.0 / at] for at in range(1, step + 1)] + [[step, None]]
        write_json(folder / "state.json", {"history": {"train/loss": curve}})
    arm = lesson.progress(plan, {key: tmp_path})[plan.plan.jobs[key].arm.partition("@")[0]]
    assert (arm.step, arm.of, arm.is_done) == (2, 4, False)
    assert arm.curve == ((1, 1.0), (2, 0.5))
    write_json(tmp_path / "history.json", {"train/loss": [[4, 0.1]]})
    assert lesson.read_loss(tmp_path) == [(4, 0.1)]


def test_a_page_that_is_drawn_while_arms_train_loads_itself_again(paced, tmp_path):
    plan = planned(paced, steps=4)
    sheet = student._Sheet(plan, tmp_path / "out", tmp_path / "out" / "student" / "Y1", root=tmp_path / "results")
    page = sheet.write(is_running=True).read_text()
    assert 'http-equiv="refresh"' in page
    assert "Nothing is scored yet" in page


def test_an_arm_that_fails_is_named_and_the_page_stops_drawing_itself(paced, toy, tmp_path):
    (toy / "evaluate.py").write_text("def write_scores(directory, cfg, drift):\n    raise RuntimeError('no')\n")
    with pytest.raises(WorkError, match="jobs failed: toy"):
        taught(planned(paced, steps=4), tmp_path)
    assert 'http-equiv="refresh"' not in page_of(tmp_path)


def test_damaged_outcomes_of_earlier_seeds_are_an_error_that_says_what_is_lost(paced, tmp_path):
    path = tmp_path / "out" / "student" / "Y1" / "outcomes.json"
    path.parent.mkdir(parents=True)
    path.write_text('[{"seed": 1}]')
    with pytest.raises(WorkError, match="Earlier seeds are in .* It is damaged: .* only dots of the page are lost"):
        taught(planned(paced, steps=4), tmp_path)


def test_an_unpaired_link_has_no_error_of_items(paced, tmp_path):
    plan = planned(paced, steps=4)
    taught(plan, tmp_path)
    folders = {key: tmp_path / "out" / "jobs" / key for key in plan.plan.jobs}
    unpaired = replace(plan, link=replace(plan.link, is_paired=False))
    assert lesson.outcome(unpaired, folders).item_sd is None
    assert lesson.outcome(unpaired, folders).effect == pytest.approx(lesson.outcome(plan, folders).effect)
