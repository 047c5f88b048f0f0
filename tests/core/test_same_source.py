"""One job of each arm, trained again after an edit: older results stand where its scores are equal, else not."""

import sys
from dataclasses import replace

import pytest

from lightbox import machine
from lightbox.claims import published, results, runner
from lightbox.claims.jobs import plan
from lightbox.claims.registry import choose_claims, load_papers
from lightbox.claims.retrain import retrain, train_only
from lightbox.claims.same_source import (
    DIFFERENT,
    FILE,
    ON_THIS_MACHINE,
    PILOT,
    SAME,
    Retrained,
    SameSources,
    append,
    load_same_sources,
)
from lightbox.errors import RequestError
from lightbox.runs.folders import open_output
from lightbox.testing.inline_pool import InlinePool
from lightbox.testing.toy_paper import forget_toy_paper

ROW = Retrained(
    preset="quick",
    arm="true",
    seed=0,
    budget=0,
    old_key="k1",
    old_source="s1",
    old_settings="c1",
    old_commit="abc123",
    key="k2",
    source="s2",
    settings="c2",
    commit="def456",
    outcome=SAME,
    rows=400,
    hardware="a processor",
    date="2026-01-01",
)
HARMLESS = "return cfg.level + 0"
HARMFUL = "return cfg.level + 0.2"
ROUNDED = 'return cfg.level + float(__import__("os").environ.get("PROCESSOR", "0"))'
"""A line whose result is another one on another processor."""


class Maker:
    def __init__(self, source, settings):
        self.source, self.settings = source, settings


OLD, NEW = Maker("s1", "c1"), Maker("s2", "c2")


@pytest.fixture
def root(toy, tmp_path, monkeypatch):
    """Results with the toy published at quick."""
    monkeypatch.setattr(runner, "Pool", InlinePool)
    return publish(tmp_path)


def publish(tmp_path):
    todo = plan(choose_claims([paper_of_today()], []), "quick")
    with open_output(tmp_path / "out"):
        finished = runner.run(todo, tmp_path / "out", runner.find_finished(todo, tmp_path / "out"))
    place = {"folder": tmp_path / "out" / "page", "root": tmp_path / "results"}
    new = results.build(todo, finished, started="2026-01-01T00:00:00Z", wall_s=1.0, **place)
    published.publish(new, todo, finished, tmp_path / "results")
    return tmp_path / "results"


def paper_of_today():
    return load_papers(packages={"toy": "toy"})[0]


def edit(toy, code):
    """Change a line that every job reads, and forget the modules that were imported before."""
    world = toy / "world.py"
    world.write_text(world.read_text().replace("return cfg.level", code))
    forget_toy_paper(toy.parent)
    sys.path.insert(0, str(toy.parent))


def claims_at_quick(root):
    return published.recompute(root / "toy" / "quick", paper_of_today()).claims


@pytest.mark.slow
def test_an_edit_that_changes_no_score_leaves_results_standing_and_says_so(toy, root, tmp_path):
    assert {claim.older_source + claim.retrained for claim in claims_at_quick(root)} == {()}
    edit(toy, HARMLESS)
    assert all(claim.older_source and not claim.retrained for claim in claims_at_quick(root))
    rows = retrain(paper_of_today(), "quick", tmp_path / "again", root=root, workers=1)
    assert {(row.arm, row.seed, row.outcome) for row in rows} == {
        (arm, 0, SAME) for arm in ("none", "true", "filler", "twice", "majority")
    }
    assert all(claim.retrained and not claim.older_source for claim in claims_at_quick(root))
    edit(toy, HARMLESS + ' + 0.0  # "return cfg.level"')  # a further edit has to be shown harmless too
    assert all(claim.older_source and not claim.retrained for claim in claims_at_quick(root))


@pytest.mark.slow
def test_an_edit_that_changes_scores_is_written_down_and_leaves_older_results(toy, root, tmp_path):
    edit(toy, HARMFUL)
    rows = retrain(paper_of_today(), "quick", tmp_path / "again", root=root, workers=1)
    assert {row.outcome for row in rows if row.arm != "majority"} == {DIFFERENT}
    assert load_same_sources(root, "toy").rows == tuple(rows)
    assert all(claim.older_source and not claim.retrained for claim in claims_at_quick(root))


@pytest.fixture
def elsewhere(toy, tmp_path, monkeypatch):
    """Results that another processor made, and the folder in which their source trained the same jobs on this one."""
    monkeypatch.setattr(runner, "Pool", InlinePool)
    edit(toy, ROUNDED)
    root = publish(tmp_path)
    monkeypatch.setenv("PROCESSOR", "0.2")
    older = tmp_path / "older"
    finished = train_only(paper_of_today(), "quick", older, root=root, workers=1)
    assert len(finished.folders) == 5
    return root, older


@pytest.mark.slow
def test_beside_another_processors_scores_the_older_source_here_decides(toy, elsewhere, tmp_path):
    root, older = elsewhere
    edit(toy, "return 0 + cfg.level")
    rows = retrain(paper_of_today(), "quick", tmp_path / "again", root=root, older=older, workers=1)
    assert [(row.outcome, row.beside) for row in rows] == [(SAME, ON_THIS_MACHINE)] * 5
    assert load_same_sources(root, "toy").rows == tuple(rows)
    assert all(claim.retrained and not claim.older_source for claim in claims_at_quick(root))


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["the edit", "no older jobs", "older jobs of another machine"])
def test_beside_another_processors_scores_nothing_else_does(toy, elsewhere, tmp_path, harm):
    root, older = elsewhere
    edit(toy, "return -0.3 + cfg.level" if harm == "the edit" else "return 0 + cfg.level")
    if harm == "older jobs of another machine":
        for record in older.glob("jobs/*/job.json"):
            record.write_text(record.read_text().replace(machine.hardware(), "another processor"))
    own = None if harm == "no older jobs" else older
    rows = retrain(paper_of_today(), "quick", tmp_path / "again", root=root, older=own, workers=1)
    assert [row.outcome for row in rows] == [DIFFERENT] * 5
    assert all(claim.older_source and not claim.retrained for claim in claims_at_quick(root))


@pytest.mark.slow
def test_a_source_that_published_nothing_is_not_trained_for_comparison(toy, root, tmp_path):
    edit(toy, HARMLESS)
    with pytest.raises(RequestError, match=r"toy at quick, to be trained by the source that published it"):
        train_only(paper_of_today(), "quick", tmp_path / "older", root=root)


def test_a_file_from_before_there_was_a_choice_was_compared_with_what_is_published(tmp_path):
    append(tmp_path / "toy" / FILE, [ROW])
    lines = (tmp_path / "toy" / FILE).read_text().splitlines()
    (tmp_path / "toy" / FILE).write_text("\n".join(line.rpartition(",")[0] for line in lines) + "\n")
    assert load_same_sources(tmp_path, "toy").rows == (ROW,)


@pytest.mark.slow
def test_results_of_today_need_no_training(root, tmp_path):
    with pytest.raises(RequestError, match="toy at quick.*It is of today's source"):
        retrain(paper_of_today(), "quick", tmp_path / "again", root=root)
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("rows", "arm", "preset", "is_one"),
    [
        ((ROW,), "true", "quick", True),
        ((ROW,), "true@400", "quick", True),  # the same arm at another budget
        ((ROW,), "true", "", True),
        ((ROW,), "none", "quick", False),
        ((ROW,), "true", "full", False),
        ((replace(ROW, source="s3"),), "true", "quick", False),
        ((replace(ROW, settings="c3"),), "true", "quick", False),
        ((replace(ROW, outcome=DIFFERENT),), "true", "quick", False),
        ((ROW, replace(ROW, seed=1, outcome=DIFFERENT)), "true", "quick", False),
        ((ROW, replace(ROW, preset=PILOT, outcome=DIFFERENT)), "true", "quick", True),
        ((ROW, replace(ROW, preset=PILOT, outcome=DIFFERENT)), "true", "", False),
    ],
)
def test_two_sources_count_as_one_for_an_arm_where_every_proof_says_so(rows, arm, preset, is_one):
    same = SameSources(rows)
    assert same.count_as_one(arm, OLD, NEW, preset=preset) == is_one
    assert same.count_as_one(arm, NEW, OLD, preset=preset) == is_one


def test_one_source_is_one_without_any_proof():
    assert SameSources().count_as_one("true", OLD, Maker("s1", "c1"), preset="quick")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2 + 40],
        lambda text: text.replace(f",{SAME},", ",equal,"),
        lambda text: text.replace(",400,", ",0,"),
        lambda text: text.replace("arm,", "limb,", 1),
    ],
)
def test_a_damaged_file_is_refused_and_not_written_over(tmp_path, damage):
    path = tmp_path / "toy" / FILE
    path.parent.mkdir()
    append(path, [ROW])
    append(path, [ROW])
    assert load_same_sources(tmp_path, "toy").rows == (ROW,)
    path.write_text(damage(path.read_text()))
    text = path.read_text()
    for read in (lambda: load_same_sources(tmp_path, "toy"), lambda: append(path, [ROW])):
        with pytest.raises(RequestError, match=r"retrained\.csv.*is no row of it"):
            read()
    assert path.read_text() == text
