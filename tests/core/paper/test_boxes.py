"""A second paper costs only its ideas: boxes in place of answers, through every entry of the kit."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lightbox.testing.boxes
from lightbox.claims import jobs, registry
from lightbox.errors import RequestError
from lightbox.records import Box, box_iou
from lightbox.runs import folders
from lightbox.testing.boxes import cli, evaluate
from lightbox.testing.boxes.config import resolve
from lightbox.testing.boxes.model import box_of, patches_of

PACKAGE = "lightbox.testing.boxes"
HOUSE = Path(lightbox.testing.boxes.__file__).parent
SMOKE = ["preset=smoke", "run.seed=0"]


@pytest.fixture(autouse=True)
def _without_index(monkeypatch):
    monkeypatch.setattr("lightbox.paper.entries.index_run", lambda *_: None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished training with its head."""
    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightbox.paper.entries.index_run", lambda *_: None)
        cli.train([*SMOKE, "data.n_train=240", "optim.max_steps=60", f"run.out={out}"])
    return next((out / "runs").iterdir())


def test_it_takes_at_most_250_lines_of_its_own():
    files = [path for path in HOUSE.rglob("*") if path.suffix in (".py", ".yaml")]
    assert len(files) >= 10
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files) <= 250


@pytest.mark.slow
def test_a_training_scores_every_condition_beside_the_location_prior(trained):
    means = folders.mean_scores(folders.read_scores(trained))
    assert set(means) == {"image/iou", "blank/iou", "shuffled/iou"}
    assert means["image/iou"] > means["blank/iou"]
    assert set(folders.read_card(trained)["baselines"]) == {"location_prior"}
    assert (trained / "model" / "head.safetensors").is_file()


def test_a_saved_head_is_scored_again_with_the_same_result(trained, tmp_path):
    cli.evaluate([*SMOKE, "data.n_train=240", f"needs=[{trained}]", f"run.out={tmp_path}"])
    again = next((tmp_path / "runs").iterdir())
    assert folders.read_scores(again).equals(folders.read_scores(trained))


def test_eval_without_a_saved_head_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.evaluate(SMOKE)
    assert stop.value.code == 2
    assert "needs=[RUN]" in capsys.readouterr().err


def test_prediction_is_a_box_and_is_drawn(trained, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(tmp_path / "a.png")
    drawn = tmp_path / "drawn.png"
    prediction = cli.predict(image=tmp_path / "a.png", question="nodule", run=trained, out=drawn)
    (box,) = prediction["boxes"]
    assert 0 <= box[0] < box[2] <= 1
    assert 0 <= box[1] < box[3] <= 1
    with Image.open(drawn) as page:
        assert (np.asarray(page)[:384] == 255).any()  # the outline


def test_its_claims_are_planned_and_every_arm_leaves_a_finished_job(tmp_path):
    paper = registry.load_paper("boxes", PACKAGE)
    plan = jobs.plan([(paper, claim) for claim in paper.claims.claims], "smoke")
    assert {job.arm for job in plan.jobs.values()} == {"head", "location_prior", "untouched"}
    for job in plan.jobs.values():
        cli.run_job(tmp_path / "jobs" / job.key, job.overrides, {})
        table = folders.read_scores(tmp_path / "jobs" / job.key)
        assert table.num_rows == 12 * (1 if job.arm == "location_prior" else 3)
        assert table["iou"].null_count == 0


def test_train_and_reproduce_name_a_run_by_the_same_key(trained):
    paper = registry.load_paper("boxes", PACKAGE)
    template = jobs.make_template(paper, paper.claims.arms["head"], "smoke")
    record = folders.read_record(trained)
    cfg = resolve([*SMOKE, "data.n_train=240", "optim.max_steps=60"])
    assert record["source"] == template.source
    assert record["modules"] == template.modules
    assert record["inputs"] == template.inputs
    assert folders.flatten(record["config"])["data.n_train"] == str(cfg.data.n_train)


@pytest.mark.parametrize(
    ("override", "message"),
    [("experiment=haed", "Did you mean experiment=head"), ("data.n_tset=1", "no key 'data.n_tset'")],
)
def test_a_wrong_request_names_the_key(override, message):
    with pytest.raises(RequestError, match=message):
        resolve([*SMOKE, override])


def test_location_prior_is_a_median_and_needs_no_image():
    train, scored = evaluate.load_findings(resolve(SMOKE))
    rows = evaluate.guess_rows(train, scored)
    assert {row["condition"] for row in rows} == {"image"}
    assert 0 < sum(row["iou"] for row in rows) / len(rows) < 0.5


def test_a_box_of_whole_patches_survives_the_way_through_patches():
    box = Box(0.25, 0.5, 0.75, 0.625)
    assert box_iou(box_of(patches_of(box, 8) * 2 - 1), box) == 1.0
