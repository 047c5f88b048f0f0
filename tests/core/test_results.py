import csv
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from lightbox import machine
from lightbox.claims import document, entries, published, results, runner
from lightbox.claims.document import Published
from lightbox.claims.jobs import plan
from lightbox.claims.registry import choose_claims, load_papers
from lightbox.claims.runner import Finished
from lightbox.claims.spec import PHANTOM, Kind, Role
from lightbox.claims.worker import Order, run_order
from lightbox.errors import RequestError, WorkError
from lightbox.runs.examples import Example, MaskMark, Picture, Step
from lightbox.testing.toy_paper import forget_toy_paper, write_toy_paper

RESULTS = Path(__file__).parents[2] / "results"
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


def build(run, todo=None, finished=None, **options):
    todo = todo or planned()
    finished = finished or runner.find_finished(todo, run / "out")
    settings = {"started": "2026-01-01T00:00:00Z", "wall_s": 12.34, "folder": run / "out" / "reproduce" / "toy-quick"}
    settings |= {"root": run / "results"}
    return results.build(todo, finished, **settings | options)


def publish(run, root, ids=()):
    todo = planned(ids=ids)
    finished = runner.find_finished(todo, run / "out")
    new = build(run, todo, finished)
    published.publish(new, todo, finished, root)
    return new


def test_document_has_every_key_of_the_design(run):
    content = document.to_json(build(run))
    assert content.keys() >= FROM_DESIGN
    for claim in content["claims"]:
        assert claim.keys() >= CLAIM_FROM_DESIGN
        for contrast in claim["contrasts"]:
            assert contrast.keys() >= CONTRAST_FROM_DESIGN
    json.dumps(content, allow_nan=False)


def test_a_link_that_may_have_any_effect_above_0_can_be_the_weakest():
    def link(effect, least):
        return SimpleNamespace(role=Role.PRIMARY, effect=effect, min_effect=least)

    claim, links = SimpleNamespace(kind=Kind.CHAIN), [link(0.03, 0.02), link(0.2, 0.0), link(0.5, 0.1)]
    assert entries._deciding(claim, links) is links[0]
    assert entries._deciding(claim, [*links, link(-0.1, 0.0)]).effect == -0.1


def test_claim_entry_has_the_numbers_of_its_scores(run):
    first, second = build(run).claims
    assert (first.id, first.verdict, first.unit) == ("Y1", "reproduced", "points")
    assert 8 < first.effect < 16  # 12 points planted
    assert first.ci95[0] < first.effect < first.ci95[1]
    assert first.min_effect == 2.0
    assert (first.seeds, first.planned_seeds, first.items) == ((0, 1, 2, 3, 4), 5, 200)
    assert first.controls == ("true minus filler",)
    primary, control = first.contrasts
    assert primary.effect == pytest.approx(sum(primary.per_seed) / 5)
    assert (primary.arm, primary.rival, primary.role) == ("true", "none", "primary")
    assert (primary.state, control.state) == ("reproduced", "holds")
    assert len(first.run_ids) == len(set(first.run_ids)) == 20
    assert second.effect == min(contrast.effect for contrast in second.contrasts)  # the weakest link


def test_gate_and_baselines_are_written_in_the_unit_of_the_claim(run):
    claim = build(run).claims[0]
    gate = claim.gate
    assert (gate.passed, gate.best, gate.unit) == (True, "true", "points")
    assert gate.baseline == "true [blank]"
    assert gate.effect == pytest.approx(gate.best_mean - gate.baseline_mean)
    assert (gate.margin, gate.ceiling, gate.headroom) == (5.0, 100.0, 2.0)
    assert set(claim.baselines) == {"majority", "none [blank]", "true [blank]"}
    assert set(claim.shown_baselines()) == {"majority", "true [blank]"}
    assert (claim.baselines["majority"].metric, len(claim.baselines["majority"].per_seed)) == ("hit", 5)


def test_jobs_curves_and_examples_are_there_and_paths_are_relative(run):
    new = build(run)
    assert len(new.jobs) == 25
    assert {job.commit for job in new.jobs} == {"abc123"}
    assert set(new.curves["toy"]["train/loss"]) == {"none", "true", "filler", "twice", "majority"}
    assert len(new.curves["toy"]["train/loss"]["true"]) == 5
    assert {shown.arm for shown in new.examples} == {"none", "true", "filler", "twice", "majority"}
    assert str(run) not in json.dumps(document.to_json(new))


def test_example_image_path_leads_from_the_document_to_the_file(run):
    todo = planned()
    folder = run / "out" / "jobs" / todo.keys["toy", "true", 0]
    picture = Picture("examples/a.png", masks=(MaskMark("examples/m.png", "truth"),))
    row = Example("a", (picture,), trace=(Step("look", picture),)).to_row()
    (folder / "examples.json").write_text(json.dumps([row]))
    example = next(shown.example for shown in build(run).examples if shown.arm == "true")
    place = run / "out" / "reproduce" / "toy-quick"
    for moved in (*example.pictures, example.trace[0].picture):
        assert (place / moved.path).resolve() == (folder / "examples" / "a.png").resolve()
        assert (place / moved.masks[0].path).resolve() == (folder / "examples" / "m.png").resolve()


def test_example_that_does_not_read_is_named_with_what_to_do(run):
    todo = planned()
    folder = run / "out" / "jobs" / todo.keys["toy", "true", 0]
    (folder / "examples.json").write_text(json.dumps([{"item": "a", "pictures": [{"image": "a.png"}]}]))
    with pytest.raises(WorkError, match=r"An example of item 'a'.*pictures\.0\.path.*Delete the run's examples"):
        build(run)


def test_document_of_a_half_finished_run_has_fewer_seeds_and_no_verdict(run):
    todo = planned()
    finished = runner.find_finished(todo, run / "out")
    for arm in ("none", "true", "filler", "twice", "majority"):
        for seed in (1, 4):
            del finished.folders[todo.keys["toy", arm, seed]]
    claim = build(run, todo, finished).claims[0]
    assert (claim.verdict, claim.reason) == ("no verdict", "3 of 5 seeds have ended")
    assert claim.seeds == (0, 2, 3)
    assert claim.effect is not None


def test_document_before_the_first_job_has_no_numbers(run):
    claims = build(run, finished=Finished()).claims
    assert {claim.verdict for claim in claims} == {"no verdict"}
    assert {claim.effect for claim in claims} == {None}


def test_exact_claim_has_no_interval(run):
    todo = planned("full")
    keys = [todo.keys["toy", "none", 100 + seed] for seed in range(5)]
    quick = planned()
    finished = Finished({key: run / "out" / "jobs" / quick.keys["toy", "none", s] for s, key in enumerate(keys)})
    claim = build(run, todo, finished).claims[0]
    assert (claim.kind, claim.ci95, claim.bound, claim.verdict) == ("exact", None, 100.0, "reproduced")


def test_smaller_test_set_than_needed_is_an_error_of_the_request(run):
    claims = run / "src" / "toy" / "claims.py"
    claims.write_text(claims.read_text().replace("COMMON = dict(", "COMMON = dict(min_items=500, "))
    with pytest.raises(RequestError, match="has 200 test items a seed.*at least 500"):
        build(run)


def test_caveats_of_a_claim_and_the_machines_of_its_jobs_are_written(run):
    claims = run / "src" / "toy" / "claims.py"
    claims.write_text(claims.read_text().replace("COMMON = dict(", 'COMMON = dict(caveats=("By construction.",), '))
    content = document.to_json(build(run))
    assert [claim["caveats"] for claim in content["claims"]] == [["By construction."]] * 2
    assert [claim["hardware"] for claim in content["claims"]] == [[machine.hardware()]] * 2


def test_failed_jobs_are_listed_with_their_reason(run):
    todo = planned()
    finished = runner.find_finished(todo, run / "out")
    key = todo.keys["toy", "true", 2]
    del finished.folders[key]
    finished.errors[key] = WorkError("Step 3", "The loss is not finite", "Lower lr")
    [error] = build(run, todo, finished).errors
    assert (error.arm, error.seed, error.error) == ("true", 2, "Step 3. The loss is not finite. Lower lr.")


def test_family_stands_beside_the_verdicts(run):
    family = build(run).family
    assert (family.verdicts, family.reproduced, family.expected_false) == (2, 2, 0.05)


def test_written_document_is_read_back_the_same(run, tmp_path):
    new = build(run)
    document.write(new, tmp_path / "new" / "results.json")
    assert document.load(tmp_path / "new" / "results.json") == new
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["results.json"]


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/*/results.json")), ids=lambda path: path.parent.name)
def test_every_committed_document_reads_and_is_written_as_it_was(path):
    content, text = document.to_json(document.load(path)), json.loads(path.read_text())
    text.pop(document.SEAL, None)  # `load` has compared it; older documents have none
    for new, old in zip(content["claims"] + content["jobs"], text["claims"] + text["jobs"], strict=True):
        for name in new.keys() - old.keys():  # what a document says since
            assert new.pop(name) in (None, [], PHANTOM)
    assert content == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"schema": 0}', "has schema 0.*reads schema 1"),
        ("{}", "has schema None"),
        ("[1]", "schema None"),
        ('{"schema": 1, "preset": "quick"}', "hold what no results hold: commit: Field required"),
        ("{", "not JSON"),
    ],
)
def test_document_of_another_version_is_refused_with_what_to_do(tmp_path, content, message):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(RequestError, match=message + ".*reproduce"):
        document.load(tmp_path / "results.json")


def test_absent_document_is_refused(tmp_path):
    with pytest.raises(RequestError, match="cannot be read: No such file"):
        document.load(tmp_path / "results.json")


def test_damaged_scores_are_named(run):
    todo = planned()
    path = run / "out" / "jobs" / todo.keys["toy", "true", 0] / "scores.parquet"
    finished = runner.find_finished(todo, run / "out")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(WorkError, match=r"The scores are .*scores\.parquet\. They cannot be read"):
        build(run, todo, finished)


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
    hits = [score["hit"] for score in scores if score["condition"] == "film"]
    assert float(row["headline"]) == pytest.approx(sum(hits) / len(hits))
    assert (row["metric"], row["items"], row["preset"], row["commit"]) == ("hit", "200", "quick", "abc123")
    assert str(run) not in (folder / "results.json").read_text()


def test_publishing_again_adds_no_row_and_keeps_earlier_ones(run, tmp_path):
    root = tmp_path / "results"
    root.mkdir()
    (root / "runs.csv").write_text(",".join(published.COLUMNS) + "\n" + "older,quick,a,0" + "," * 11 + "\n")
    publish(run, root)
    once = (root / "runs.csv").read_text()
    publish(run, root)
    assert (root / "runs.csv").read_text() == once
    assert once.splitlines()[1].startswith("older,quick")
    assert len(once.splitlines()) == 27


def test_publishing_one_claim_keeps_the_other_claims(run, tmp_path):
    publish(run, tmp_path)
    publish(run, tmp_path, ids=["Y1"])
    merged = document.load(tmp_path / "toy" / "quick" / "results.json")
    assert [claim.id for claim in merged.claims] == ["Y1", "Y2"]
    assert merged.family.verdicts == 2
    assert len(merged.jobs) == 25


def test_unfinished_and_smoke_runs_are_not_published(run, tmp_path):
    todo = planned()
    finished = runner.find_finished(todo, run / "out")
    new = build(run, todo, finished)
    del finished.folders[todo.keys["toy", "true", 0]]
    with pytest.raises(WorkError, match="1 of 25 jobs unfinished"):
        published.publish(new, todo, finished, tmp_path)
    with pytest.raises(RequestError, match="--publish with --preset smoke"):
        published.publish(new, planned("smoke"), finished, tmp_path)
    assert not list(tmp_path.glob("toy/*"))


def test_recomputing_from_published_scores_gives_the_same_numbers(run, tmp_path):
    first = publish(run, tmp_path)
    again = published.recompute(tmp_path / "toy" / "quick", load_papers(packages={"toy": "toy"})[0])
    assert again.claims == first.claims
    assert {claim.older_source for claim in again.claims} == {()}


def test_edited_document_is_refused_and_an_older_one_without_a_digest_is_not_trusted(run, tmp_path):
    first = publish(run, tmp_path)
    paper = load_papers(packages={"toy": "toy"})[0]
    path = tmp_path / "toy" / "quick" / "results.json"
    text = (
        path.read_text().replace('"verdict": "reproduced"', '"verdict": "absent"').replace('"effect": ', '"effect": 9')
    )
    path.write_text(text)
    with pytest.raises(RequestError, match=r"results\.json\. It does not match the digest at its end.*Restore it"):
        published.recompute(path.parent, paper)
    content = json.loads(text)
    del content["sha256"]
    path.write_text(json.dumps(content))
    with pytest.raises(RequestError, match=r"results\.json\. The digest at its end was taken away"):
        published.recompute(path.parent, paper)
    for claim in content["claims"]:  # as claims were before they had a training budget, which is when digests came
        del claim["budget"]
    path.write_text(json.dumps(content))
    again = published.recompute(path.parent, paper)
    assert [claim.verdict for claim in again.claims] == ["reproduced", "reproduced"]
    assert again.claims[0].effect == first.claims[0].effect


def test_claim_made_by_an_older_source_is_marked_with_its_commit(run, tmp_path):
    publish(run, tmp_path)
    world = run / "src" / "toy" / "world.py"
    world.write_text(world.read_text().replace("return cfg.level", "return cfg.level + 0"))
    again = published.recompute(tmp_path / "toy" / "quick", load_papers(packages={"toy": "toy"})[0])
    assert {claim.older_source for claim in again.claims} == {("abc123",)}


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
    finished = runner.find_finished(todo, tmp_path / "empty", committed=committed)
    assert finished.reused.keys() == todo.jobs.keys()
    assert runner.jobs_to_run(todo, finished) == []
    new = build(run, todo, finished, committed=published.committed_jobs(tmp_path, ["toy"], "quick"))
    assert [claim.verdict for claim in new.claims] == ["reproduced", "reproduced"]
    assert {job.reused for job in new.jobs} == {True}
    del finished.reused[todo.keys["toy", "twice", 3]]
    assert [job.arm for job in runner.jobs_to_run(todo, finished)] == ["true", "twice"]


def test_published_effect_stands_beside_ours_with_whether_the_two_agree(run, tmp_path):
    publish(run, tmp_path)
    earlier = published.committed_claims(tmp_path, ["toy"], "quick")
    claim = build(run, published=earlier).claims[0]
    hardware = (machine.hardware(),)
    assert claim.published == Published(claim.effect, claim.ci95, True, 0.0, "reproduced", ("abc123",), hardware)
    assert claim.contrasts[1].published.agrees is True


def test_claim_stands_beside_the_published_effect_of_its_own_deciding_contrast(run):
    """The weakest link of a chain need not be the same in both runs."""
    ours = build(run).claims[1]
    weak, other = ours.contrasts if ours.contrasts[0].effect == ours.effect else ours.contrasts[::-1]
    moved = replace(other, effect=-9.0, per_seed=(-9.1, -8.9, -9.0, -9.2, -8.8))
    theirs = replace(ours, effect=-9.0, contrasts=(weak, moved))
    assert ours.beside(theirs).published.effect == ours.effect
    assert ours.beside(theirs).published.agrees is True
    by_name = {contrast.name: contrast.published for contrast in ours.beside(theirs).contrasts}
    assert by_name[other.name].agrees is False


def test_no_published_effect_and_too_few_seeds_are_not_compared(run):
    ours = build(run).claims[0]
    one = tuple(replace(c, per_seed=c.per_seed[:1], seeds=c.seeds[:1]) for c in ours.contrasts)
    assert ours.beside(None).published is None
    assert ours.beside(replace(ours, contrasts=())).published is None
    assert (ours.beside(replace(ours, contrasts=one)).published.agrees, ours.published) == (None, None)


def test_publication_of_another_version_is_warned_of_and_replaced(run, tmp_path, caplog):
    path = tmp_path / "toy" / "quick" / "results.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"schema": 0}')
    assert published.committed_claims(tmp_path, ["toy"], "quick") == {}
    assert "has schema 0" in caplog.text
    publish(run, tmp_path)
    assert len(document.load(path).claims) == 2
