"""Jobs of claims, end to end at tiny size: every strategy trains, scores and leaves its files."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.compute as pc
import pytest

from lightbox.claims.registry import arms_in_order
from lightbox.errors import RequestError
from lightbox.paper.generated import GENERATED
from lightbox.runs import folders
from medthink import cli
from medthink.claims import PAPER

FILES = {"scores.parquet", "history.json", "examples.json", "card.json"}


def run_arms(out: Path, arms, overrides):
    """Run arms and what they need, each in its job folder."""
    for name in arms_in_order(PAPER, arms):
        arm = PAPER.arms[name]
        needs = {need: out / "jobs" / need for need in arm.needs}
        cli.run_job(out / "jobs" / name, [*overrides, f"experiment={name}"], needs)
    return out / "jobs"


@pytest.mark.parametrize("arm", ["none", "explanation", "untouched", "question_only"])
def test_job_leaves_its_files_and_one_row_per_item_and_condition(arm, tiny, tmp_path):
    folder = run_arms(tmp_path, [arm], tiny) / arm
    assert {path.name for path in folder.iterdir()} >= FILES
    assert not (folder / "checkpoints").exists()
    table = folders.read_scores(folder)
    conditions = ["image"] if arm == "question_only" else ["blank", "image", "shuffled"]
    assert sorted(set(table["condition"].to_pylist())) == conditions
    assert table.num_rows == 12 * len(conditions)
    assert pc.all(pc.is_valid(table["correct"])).as_py()
    card = json.loads((folder / "card.json").read_text())
    if arm != "question_only":
        assert set(card["baselines"]) == {"majority", "question_only"}
        pictures = [picture for row in folders.read_examples(folder) for picture in row["pictures"]]
        assert pictures
        assert all((folder / picture["path"]).is_file() for picture in pictures)


@pytest.mark.slow
def test_equal_jobs_write_equal_bytes(tiny, tmp_path):
    first, second = (run_arms(tmp_path / name, ["explanation"], tiny) / "explanation" for name in ("a", "b"))
    for name in ("scores.parquet", "history.json", "examples.json", "generated.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


@pytest.mark.slow
def test_jobs_of_a_seed_share_the_feature_cache(tiny, tmp_path):
    run_arms(tmp_path, ["none"], tiny)
    cached = sorted(path.name for path in (tmp_path / "cache").iterdir())
    assert len(cached) == 2  # training images and test images
    run_arms(tmp_path, ["filler"], tiny)
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == cached


@pytest.mark.slow
def test_two_stage_in_sample_end_to_end(tiny, tmp_path):
    jobs = run_arms(tmp_path, ["stage2_in_sample"], tiny)
    written = json.loads((jobs / "stage1" / GENERATED).read_text())
    assert {name: len(texts) for name, texts in written.items()} == {
        "train": 24,
        "image": 12,
        "blank": 12,
        "shuffled": 12,
    }
    stage1 = folders.read_scores(jobs / "stage1")
    assert stage1["correct"].null_count == stage1.num_rows
    assert stage1["fact_f1"].null_count == 0
    assert folders.read_scores(jobs / "stage2_in_sample")["correct"].null_count == 0


@pytest.mark.slow
def test_reader_scores_four_texts(tiny, tmp_path):
    jobs = run_arms(tmp_path, ["reader"], tiny)
    table = folders.read_scores(jobs / "reader")
    assert set(table["condition"].to_pylist()) == {"no_rationale", "reference", "generated", "generated_reasoning"}


@pytest.mark.slow
def test_losses_of_reasoning_add_up_to_its_difference(tiny, tmp_path):
    jobs = run_arms(tmp_path, ["reasoning"], tiny)
    arm, rival = (folders.read_scores(jobs / name) for name in ("reasoning", "none"))
    means, rival_means = folders.mean_scores(arm), folders.mean_scores(rival)
    difference = rival_means["image/correct"] - means["image/correct"]
    parts = [means[f"image/loss_at_{kind}_facts"] for kind in ("right", "wrong")]
    assert sum(parts) == pytest.approx(difference)


@pytest.mark.slow
def test_killed_job_continues_from_its_checkpoint(tiny, tmp_path, monkeypatch):
    """A job that died between training and scoring trains no further step, and scores the same."""
    calm = run_arms(tmp_path / "calm", ["none"], tiny) / "none"
    from_start = [*tiny, "experiment=none"]
    folder = tmp_path / "killed" / "jobs" / "none"

    def die(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("medthink.evaluate.evaluate", die)
        with pytest.raises(KeyboardInterrupt):
            cli.run_job(folder, from_start, {})
    assert (folder / "checkpoints").is_dir()
    cli.run_job(folder, from_start, {})
    assert (folder / "scores.parquet").read_bytes() == (calm / "scores.parquet").read_bytes()
    assert json.loads((folder / "card.json").read_text())["notes"] == ["continued from step 2"]


@pytest.mark.slow
def test_strategy_learns_one_batch_by_heart(tiny, tmp_path):
    """Overfit 8 items: the loss of the last steps is far below the first, so gradients reach the target."""
    overrides = [*tiny, "data.n_train=8", "optim.max_steps=60", "optim.lr=0.01", "run.log_every_steps=5"]
    folder = run_arms(tmp_path, ["explanation"], overrides) / "explanation"
    losses = [value for _, value in folders.read_history(folder)["train/loss"]]
    assert losses[-1] < 0.4 * losses[0]


def test_saved_model_of_another_strategy_is_refused(tiny, tmp_path):
    cli.train([*tiny, "experiment=none", f"run.out={tmp_path}"])
    model = next((tmp_path / "runs").glob("none-*")) / "model"
    from_model = [o for o in tiny if not o.startswith("model.backbone")] + [f"model.backbone={model}"]
    with pytest.raises(RequestError, match=r"trained with objective.method=none"):
        cli.run_job(tmp_path / "jobs" / "x", [*from_model, "experiment=reasoning", "objective.is_trained=false"], {})


@pytest.mark.slow
def test_a_job_without_adapters_and_rationales_pays_for_no_library_of_theirs(tiny, tmp_path):
    code = "import sys; from pathlib import Path; from medthink import cli\n"
    code += "cli.run_job(Path(sys.argv[1]), sys.argv[2:], {})\n"
    code += "heavy = {'peft', 'bitsandbytes', 'nltk', 'pydicom'} & sys.modules.keys()\nassert not heavy, heavy"
    command = [sys.executable, "-c", code, str(tmp_path / "jobs" / "none"), *tiny, "experiment=none"]
    subprocess.run(command, check=True, timeout=280)


@pytest.mark.slow
def test_every_arm_of_every_claim_runs(tiny, tmp_path):
    jobs = run_arms(tmp_path, list(PAPER.arms), tiny)
    for name in PAPER.arms:
        assert {path.name for path in (jobs / name).iterdir()} >= FILES, name
