import csv
import json
import shutil
import sys

import pyarrow.parquet as pq
import pytest

from lightbox.claims import published, results, runner
from lightbox.claims.entries import with_published
from lightbox.claims.jobs import plan
from lightbox.claims.registry import choose_claims, load_papers
from lightbox.claims.runner import Finished
from lightbox.claims.worker import Order, run_order
from lightbox.errors import RequestError, WorkError
from lightbox.testing.toy_paper import forget_toy_paper, write_toy_paper

FROM_DESIGN = {"schema", "preset", "commit", "started", "wall_s", "machine", "claims"}
CLAIM_FROM_DESIGN = {
    *("paper", "id", "kind", "statement", "paper_numbers", "gate", "effect", "ci95", "unit", "min_effect", "seeds"),
    *("items", "contrasts", "controls", "baselines", "verdict", "run_ids", "wall_s"),
}
CONTRAST_FROM_DESIGN = {"name", "arm", "rival", "role", "effect", "ci95", "boot95", "per_seed"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished quick run of the toy, made in this process: its folder."""
    folder = tmp_path_factory.mktemp("run")
    write_toy_paper(folder / "src")
    todo = planned()
    for job in todo.jobs.values():
        order = Order(job.key, "toy", folder / "out" / "jobs" / job.key, job.overrides, needs_of(job, folder))
        runner._settle(job, run_order(order), order.folder, Finished(), commit="abc123")
    forget_toy_paper(folder / "src")
    return folder


def needs_of(job, folder):
    return {arm: folder / "out" / "jobs" / key for arm, key in job.needs.items()}


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the finished run that a test may change, with the toy importable."""
    shutil.copytree(finished, tmp_path / "run")
    sys.path.insert(0, str(tmp_path / "run" / "src"))
    yield tmp_path / "run"
    forget_toy_paper(tmp_path / "run" / "src")


def planned(preset="quick", ids=()):
    return plan(choose_claims(load_papers(packages={"toy": "toy"}), ids), preset)


def build(run, todo=None, found=None, **options):
    todo = todo or planned()
    found = found or runner.find_finished(todo, run / "out")
    settings = {"started": "2026-01-01T00:00:00Z", "wall_s": 12.34, "folder": run / "out" / "reproduce" / "toy-quick"}
    return results.build(todo, found, **settings | options)


def publish(run, root, ids=()):
    todo = planned(ids=ids)
    found = runner.find_finished(todo, run / "out")
    document = build(run, todo, found)
    published.publish(document, todo, found, root)
    return document


def test_document_has_every_key_of_the_design(run):
    document = build(run)
    assert document.keys() >= FROM_DESIGN
    for claim in document["claims"]:
        assert claim.keys() >= CLAIM_FROM_DESIGN
        for contrast in claim["contrasts"]:
            assert contrast.keys() >= CONTRAST_FROM_DESIGN
    json.dumps(document, allow_nan=False)


def test_claim_entry_has_the_numbers_of_its_scores(run):
    first, second = build(run)["claims"]
    assert (first["id"], first["verdict"], first["unit"]) == ("Y1", "reproduced", "points")
    assert 8 < first["effect"] < 16  # 12 points planted
    assert first["ci95"][0] < first["effect"] < first["ci95"][1]
    assert first["min_effect"] == 2.0
    assert (first["seeds"], first["planned_seeds"], first["items"]) == ([0, 1, 2, 3, 4], 5, 200)
    assert first["controls"] == ["true minus filler"]
    primary, control = first["contrasts"]
    assert primary["effect"] == pytest.approx(sum(primary["per_seed"]) / 5)
    assert (primary["arm"], primary["rival"], primary["role"]) == ("true", "none", "primary")
    assert (primary["state"], control["state"]) == ("reproduced", "holds")
    assert len(first["run_ids"]) == len(set(first["run_ids"])) == 20
    assert second["effect"] == min(contrast["effect"] for contrast in second["contrasts"])  # the weakest link


def test_gate_and_baselines_are_written_in_the_unit_of_the_claim(run):
    claim = build(run)["claims"][0]
    gate = claim["gate"]
    assert (gate["passed"], gate["best"], gate["unit"]) == (True, "true", "points")
    assert gate["baseline"] == "true [blank]"
    assert gate["effect"] == pytest.approx(gate["best_mean"] - gate["baseline_mean"])
    assert (gate["margin"], gate["ceiling"], gate["headroom"]) == (5.0, 100.0, 2.0)
    assert set(claim["baselines"]) == {"majority", "none [blank]", "true [blank]"}
    assert len(claim["baselines"]["majority"]["per_seed"]) == 5


def test_jobs_curves_and_examples_are_there_and_paths_are_relative(run):
    document = build(run)
    assert len(document["jobs"]) == 25
    assert {row["commit"] for row in document["jobs"]} == {"abc123"}
    assert set(document["curves"]["toy"]["train/loss"]) == {"none", "true", "filler", "twice", "majority"}
    assert len(document["curves"]["toy"]["train/loss"]["true"]) == 5
    assert {row["arm"] for row in document["examples"]} == {"none", "true", "filler", "twice", "majority"}
    assert str(run) not in json.dumps(document)


def test_example_image_path_leads_from_the_document_to_the_file(run):
    todo = planned()
    folder = run / "out" / "jobs" / todo.keys["toy", "true", 0]
    rows = json.loads((folder / "examples.json").read_text())
    (folder / "examples.json").write_text(json.dumps([rows[0] | {"image": "examples/a.png"}]))
    row = next(row for row in build(run)["examples"] if row["arm"] == "true")
    place = run / "out" / "reproduce" / "toy-quick"
    assert (place / row["image"]).resolve() == (folder / "examples" / "a.png").resolve()


def test_document_of_a_half_finished_run_has_fewer_seeds_and_no_verdict(run):
    todo = planned()
    found = runner.find_finished(todo, run / "out")
    for arm in ("none", "true", "filler", "twice", "majority"):
        for seed in (1, 4):
            del found.folders[todo.keys["toy", arm, seed]]
    claim = build(run, todo, found)["claims"][0]
    assert (claim["verdict"], claim["reason"]) == ("no verdict", "3 of 5 seeds have ended")
    assert claim["seeds"] == [0, 2, 3]
    assert claim["effect"] is not None


def test_document_before_the_first_job_has_no_numbers(run):
    claims = build(run, found=Finished())["claims"]
    assert {claim["verdict"] for claim in claims} == {"no verdict"}
    assert {claim["effect"] for claim in claims} == {None}


def test_exact_claim_has_no_interval(run):
    todo = planned("full")
    keys = [todo.keys["toy", "none", seed] for seed in range(5)]
    quick = planned()
    found = Finished({key: run / "out" / "jobs" / quick.keys["toy", "none", s] for s, key in enumerate(keys)})
    claim = build(run, todo, found)["claims"][0]
    assert (claim["kind"], claim["ci95"], claim["bound"], claim["verdict"]) == ("exact", None, 100.0, "reproduced")


def test_smaller_test_set_than_needed_is_an_error_of_the_request(run):
    claims = run / "src" / "toy" / "claims.py"
    claims.write_text(claims.read_text().replace("COMMON = dict(", "COMMON = dict(min_items=500, "))
    with pytest.raises(RequestError, match="has 200 test items a seed.*at least 500"):
        build(run)


def test_failed_jobs_are_listed_with_their_reason(run):
    todo = planned()
    found = runner.find_finished(todo, run / "out")
    key = todo.keys["toy", "true", 2]
    del found.folders[key]
    found.errors[key] = WorkError("Step 3", "The loss is not finite", "Lower lr")
    document = build(run, todo, found)
    assert document["errors"] == [
        {"paper": "toy", "arm": "true", "seed": 2, "key": key, "error": "Step 3. The loss is not finite. Lower lr."}
    ]


def test_family_stands_beside_the_verdicts(run):
    family = build(run)["family"]
    assert (family["verdicts"], family["reproduced"], family["expected_false"]) == (2, 2, 0.05)


def test_written_document_is_read_back_the_same(run, tmp_path):
    document = build(run)
    results.write(document, tmp_path / "new" / "results.json")
    assert results.load(tmp_path / "new" / "results.json") == json.loads(json.dumps(document))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"schema": 0}', "has schema 0.*reads schema 1"),
        ("{}", "has schema None"),
        ("[1]", "schema None"),
        ("{", "not JSON"),
    ],
)
def test_document_of_another_version_is_refused_with_what_to_do(tmp_path, content, message):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(RequestError, match=message + ".*reproduce"):
        results.load(tmp_path / "results.json")


def test_absent_document_is_refused(tmp_path):
    with pytest.raises(RequestError, match="cannot be read: No such file"):
        results.load(tmp_path / "results.json")


def test_damaged_scores_are_named(run):
    todo = planned()
    path = run / "out" / "jobs" / todo.keys["toy", "true", 0] / "scores.parquet"
    found = runner.find_finished(todo, run / "out")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(WorkError, match=r"The scores are .*scores\.parquet\. They cannot be read"):
        build(run, todo, found)


def test_publish_copies_scores_document_and_rows(run, tmp_path):
    publish(run, tmp_path / "results")
    folder = tmp_path / "results" / "toy" / "quick"
    todo = planned()
    assert {path.stem for path in folder.glob("*.parquet")} == todo.scored_keys()
    for key in todo.scored_keys():
        assert (folder / f"{key}.parquet").read_bytes() == (run / "out" / "jobs" / key / "scores.parquet").read_bytes()
    with (tmp_path / "results" / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 25
    assert list(rows[0]) == list(published.COLUMNS)
    row = next(row for row in rows if (row["arm"], row["seed"]) == ("true", "3"))
    scores = pq.read_table(folder / f"{row['key']}.parquet").to_pylist()
    right = [score["correct"] for score in scores if score["condition"] == "image"]
    assert float(row["correct"]) == pytest.approx(sum(right) / len(right))
    assert (row["items"], row["preset"], row["commit"]) == ("200", "quick", "abc123")
    assert str(run) not in (folder / "results.json").read_text()


def test_publishing_again_adds_no_row_and_keeps_earlier_ones(run, tmp_path):
    root = tmp_path / "results"
    root.mkdir()
    (root / "runs.csv").write_text(",".join(published.COLUMNS) + "\n" + "older,quick,a,0" + "," * 10 + "\n")
    publish(run, root)
    once = (root / "runs.csv").read_text()
    publish(run, root)
    assert (root / "runs.csv").read_text() == once
    assert once.splitlines()[1].startswith("older,quick")
    assert len(once.splitlines()) == 27


def test_publishing_one_claim_keeps_the_other_claims(run, tmp_path):
    publish(run, tmp_path)
    publish(run, tmp_path, ids=["Y1"])
    document = results.load(tmp_path / "toy" / "quick" / "results.json")
    assert [claim["id"] for claim in document["claims"]] == ["Y1", "Y2"]
    assert document["family"]["verdicts"] == 2
    assert len(document["jobs"]) == 25


def test_unfinished_and_smoke_runs_are_not_published(run, tmp_path):
    todo = planned()
    found = runner.find_finished(todo, run / "out")
    document = build(run, todo, found)
    del found.folders[todo.keys["toy", "true", 0]]
    with pytest.raises(WorkError, match="1 of 25 jobs unfinished"):
        published.publish(document, todo, found, tmp_path)
    with pytest.raises(RequestError, match="--publish with --preset smoke"):
        published.publish(document, planned("smoke"), found, tmp_path)
    assert not list(tmp_path.glob("toy/*"))


def test_recomputing_from_published_scores_gives_the_same_numbers(run, tmp_path):
    document = publish(run, tmp_path)
    again = published.recompute(tmp_path / "toy" / "quick", load_papers(packages={"toy": "toy"})[0])
    for ours, theirs in zip(again["claims"], document["claims"], strict=True):
        same = ours.keys() - {"older_source", "published", "contrasts"}
        assert {name: ours[name] for name in same} == {name: theirs[name] for name in same}
        for one, other in zip(ours["contrasts"], theirs["contrasts"], strict=True):
            assert one == {name: value for name, value in other.items() if name != "published"}
        assert ours["older_source"] == []


def test_recomputing_does_not_trust_the_written_numbers(run, tmp_path):
    document = publish(run, tmp_path)
    path = tmp_path / "toy" / "quick" / "results.json"
    text = (
        path.read_text().replace('"verdict": "reproduced"', '"verdict": "absent"').replace('"effect": ', '"effect": 9')
    )
    path.write_text(text)
    again = published.recompute(path.parent, load_papers(packages={"toy": "toy"})[0])
    assert [claim["verdict"] for claim in again["claims"]] == ["reproduced", "reproduced"]
    assert again["claims"][0]["effect"] == document["claims"][0]["effect"]


def test_claim_made_by_an_older_source_is_marked_with_its_commit(run, tmp_path):
    publish(run, tmp_path)
    world = run / "src" / "toy" / "world.py"
    world.write_text(world.read_text().replace("return cfg.level", "return cfg.level + 0"))
    again = published.recompute(tmp_path / "toy" / "quick", load_papers(packages={"toy": "toy"})[0])
    assert {tuple(claim["older_source"]) for claim in again["claims"]} == {("abc123",)}


def test_missing_published_scores_are_named(run, tmp_path):
    publish(run, tmp_path)
    gone = next((tmp_path / "toy" / "quick").glob("*.parquet"))
    gone.unlink()
    with pytest.raises(WorkError, match=gone.name):
        published.recompute(tmp_path / "toy" / "quick", load_papers(packages={"toy": "toy"})[0])


def test_committed_jobs_are_reused_only_where_their_scores_are_enough(run, tmp_path):
    """A job that another one reads must have its folder; reused scores decide without any job."""
    publish(run, tmp_path)
    committed = published.committed_scores(tmp_path, ["toy"], "quick")
    todo = planned()
    found = runner.find_finished(todo, tmp_path / "empty", committed=committed)
    assert found.reused.keys() == todo.jobs.keys()
    assert runner.jobs_to_run(todo, found) == []
    cards = published.committed_cards(tmp_path, ["toy"], "quick")
    document = build(run, todo, found, committed_cards=cards)
    assert [claim["verdict"] for claim in document["claims"]] == ["reproduced", "reproduced"]
    assert {row["reused"] for row in document["jobs"]} == {True}
    del found.reused[todo.keys["toy", "twice", 3]]
    assert [job.arm for job in runner.jobs_to_run(todo, found)] == ["true", "twice"]


def test_published_effect_stands_beside_ours_with_whether_intervals_agree(run, tmp_path):
    publish(run, tmp_path)
    earlier = published.committed_claims(tmp_path, ["toy"], "quick")
    claim = build(run, published=earlier)["claims"][0]
    assert claim["published"]["effect"] == claim["effect"]
    assert claim["published"]["agrees"] is True
    assert claim["contrasts"][1]["published"]["agrees"] is True


@pytest.mark.parametrize(
    ("ends", "agrees"), [([1.0, 3.0], True), ([2.9, 9.0], True), ([3.1, 9.0], False), ([-3.0, 0.9], False)]
)
def test_intervals_agree_where_they_overlap(ends, agrees):
    ours = {"effect": 2.0, "ci95": [1.0, 3.0], "contrasts": []}
    theirs = {"effect": sum(ends) / 2, "ci95": ends, "verdict": "absent", "commits": [], "contrasts": []}
    assert with_published(ours, theirs)["published"]["agrees"] is agrees
    assert with_published(ours, None)["published"] is None


def test_publication_of_another_version_is_warned_of_and_replaced(run, tmp_path, caplog):
    path = tmp_path / "toy" / "quick" / "results.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"schema": 0}')
    assert published.committed_claims(tmp_path, ["toy"], "quick") == {}
    assert "has schema 0" in caplog.text
    publish(run, tmp_path)
    assert len(results.load(path)["claims"]) == 2
