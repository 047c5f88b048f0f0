import json
import logging
import os
import shutil
import subprocess
import sys

import pytest

from lightbox.runs import folders, index, index_entry, index_place
from lightbox.testing.fake_runs import write_job

pytestmark = pytest.mark.usefixtures("own_index_environment")


@pytest.fixture
def template(index_template):
    return index_template


@pytest.fixture
def out(indexed_out):
    return indexed_out


def client_of(out):
    """An mlflow client of our making, for looking at what was written."""
    return index._new_client(index_place.sqlite_uri(out.resolve() / "mlflow.db"))


def runs_of(out, experiment="medthink"):
    client = client_of(out)
    found = client.get_experiment_by_name(experiment)
    return [] if found is None else list(client.search_runs([found.experiment_id]))


def index_one(out, arm="explanation", seed=0, **options):
    folder = write_job(out, arm, seed, **options)
    tracker = index.open_tracker(out)
    parent = tracker.parent("medthink", "quick", {"commit": "0123456789ab"})
    child = tracker.child(parent, folder, ["T1"])
    tracker.close()
    return parent, child


@pytest.mark.slow
def test_a_job_becomes_a_child_run_with_params_curves_means_and_files(out):
    parent, child = index_one(out)
    by_id = {run.info.run_id: run for run in runs_of(out)}
    assert set(by_id) == {parent, child}
    run = by_id[child]
    assert run.info.status == by_id[parent].info.status == "FINISHED"
    expected = {"paper": "medthink", "arm": "explanation", "seed": "0", "preset": "quick", "claim": "T1"}
    assert expected.items() <= run.data.tags.items()
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert run.data.params["optim.lr"] == "0.001"
    scores = folders.read_scores(out / "jobs" / run.data.tags["job_key"])
    assert run.data.metrics["test/image/correct"] == pytest.approx(folders.mean_scores(scores)["image/correct"])
    assert run.data.metrics["nonfinite_points"] == 0
    assert sorted(path.name for path in (out / "artifacts").rglob("*.*")) == sorted(index.FILES)


def test_the_whole_learning_curve_is_logged_with_its_steps(out):
    _, child = index_one(out)
    points = client_of(out).get_metric_history(child, "train/loss")
    assert [point.step for point in points] == list(range(0, 200, 10))


def test_indexing_twice_makes_no_second_run_and_joins_the_claims(out):
    _, first = index_one(out)
    tracker = index.open_tracker(out)
    parent = tracker.parent("medthink", "quick", {})
    again = tracker.child(parent, next((out / "jobs").iterdir()), ["T2"])
    tracker.close()
    assert again == first
    assert len(runs_of(out)) == 2
    assert {run.data.tags.get("claim") for run in runs_of(out)} == {None, "T1,T2"}


def test_a_run_left_half_written_by_a_kill_is_replaced(out):
    _, first = index_one(out)
    client_of(out).update_run(first, status="RUNNING")
    tracker = index.open_tracker(out)
    second = tracker.single(next((out / "jobs").iterdir()))
    assert second != first
    assert [run.info.run_id for run in runs_of(out) if "arm" in run.data.tags] == [second]


def test_a_run_trained_anew_in_its_folder_replaces_the_old_one(out):
    folder = write_job(out, "explanation", 0, place="runs", key="mine")
    tracker = index.open_tracker(out)
    first = tracker.single(folder)
    shutil.rmtree(folder)
    write_job(out, "explanation", 0, place="runs", key="mine", lr=5e-4)
    later = (folder / "job.json").stat().st_mtime + 60
    os.utime(folder / "job.json", (later, later))
    second = tracker.single(folder)
    assert second != first
    assert {run.info.run_id: run.data.params["optim.lr"] for run in runs_of(out)} == {second: "0.0005"}
    assert index_place.known_run_ids(out)["mine"] == second


def test_rebuild_restores_the_index_and_is_idempotent(out):
    for arm in ("answer_only", "explanation"):
        for seed in range(2):
            write_job(out, arm, seed)
    write_job(out, "explanation", 7, place="runs", key="my-run")
    keys = sorted(folder.name for folder in (out / "jobs").iterdir())
    page = out / "reproduce" / "medthink-quick"
    page.mkdir(parents=True)
    (page / "results.json").write_text(json.dumps({"claims": [{"id": "T1", "run_ids": keys}]}))
    assert index.rebuild(out) == 5
    summary = {run.data.tags["job_key"]: (run.data.tags.get("claim"), run.data.metrics) for run in runs_of(out)}
    assert index.rebuild(out) == 5
    assert len(runs_of(out)) == len(summary) == 6
    assert all(summary[key][0] == "T1" for key in keys)
    assert summary["my-run"][0] is None
    assert set(index_place.known_run_ids(out)) == set(summary)


def test_rebuild_skips_a_damaged_job_and_says_so(out, caplog):
    write_job(out, "answer_only", 0)
    (write_job(out, "explanation", 0) / "job.json").write_text("{")
    (out / "jobs" / "unfinished").mkdir()
    with caplog.at_level(logging.WARNING, logger="lightbox.runs.index"):
        assert index.rebuild(out) == 1
    assert "job.json cannot be read" in caplog.text


def test_rebuild_sets_aside_a_database_that_is_none(out, template, monkeypatch):
    (out / "mlflow.db").write_text("this is not a database, and long enough to be read as one. " * 40)
    monkeypatch.setattr(index, "_create_database", lambda database: shutil.copy(template, database) and "")
    write_job(out, "explanation", 0)
    assert index.rebuild(out) == 1
    assert (out / "mlflow.db.aside-1").read_text().startswith("this is not")


def test_rebuild_after_the_folder_moved_keeps_artifacts_in_the_new_place(out, template, monkeypatch):
    index_one(out)
    moved = out.rename(out.parent / "moved")
    monkeypatch.setattr(index, "_create_database", lambda database: shutil.copy(template, database) and "")
    assert index.rebuild(moved) == 1
    assert all(str(moved) in run.info.artifact_uri.replace("%20", " ") for run in runs_of(moved))
    assert not out.exists()


def test_non_finite_values_are_counted_and_not_logged(tmp_path):
    folder = write_job(tmp_path, "explanation", 0)
    (folder / "history.json").write_text('{"train/loss": [[0, 1.0], [1, NaN], [2, Infinity], [3, null], [4, 0.5]]}')
    metrics = list(index_entry.run_metrics(folders.read_run(folder)))
    assert [entry[1:] for entry in metrics if entry[0] == "train/loss"] == [(1.0, 0), (0.5, 4)]
    assert ("nonfinite_points", 3.0, 0) in metrics


def test_a_long_curve_is_thinned_and_keeps_its_last_point(tmp_path):
    folder = write_job(tmp_path, "explanation", 0)
    (folder / "history.json").write_text(json.dumps({"train/loss": [[step, 1.0] for step in range(50_001)]}))
    steps = [entry[2] for entry in index_entry.run_metrics(folders.read_run(folder)) if entry[0] == "train/loss"]
    assert len(steps) <= index_entry.POINTS_PER_CURVE + 1
    assert steps[0] == 0
    assert steps[-1] == 50_000


def test_a_long_parameter_is_named_by_its_digest_and_an_odd_key_is_made_legal(tmp_path):
    run = folders.Run(tmp_path, "k", config={"data": {"files": ["x" * 9000], "50%": 1}})
    params = index_entry.run_params(run)
    assert params["data.files"].startswith("sha256 ")
    assert params["data.50_"] == "1"


def test_a_database_deleted_during_the_run_does_not_stop_it(out):
    folder = write_job(out, "explanation", 0)
    tracker = index.open_tracker(out)
    parent = tracker.parent("medthink", "quick", {})
    (out / "mlflow.db").unlink()
    assert tracker.child(parent, folder, ["T1"]) == ""
    assert tracker.problem is not None
    assert not (out / "mlflow.db").exists()


def test_opening_sets_the_environment_before_mlflow_reads_it(out, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    index.open_tracker(out)
    assert index_place.ENVIRONMENT.items() <= os.environ.items()
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "60"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"


def test_importing_and_opening_an_existing_index_imports_no_mlflow(out):
    code = (
        "import sys; from pathlib import Path; from lightbox.runs import index\n"
        f"tracker = index.open_tracker(Path({str(out)!r}))\n"
        "assert tracker.problem is None\n"
        "sys.exit(any(name in sys.modules for name in ('mlflow', 'torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_run_ids_of_trainings_that_end_at_once_are_all_kept(tmp_path):
    code = (
        "import sys; from pathlib import Path; from lightbox.runs import index\n"
        "tracker = index.Tracker(Path(sys.argv[1]), 'sqlite:///none')\n"
        "for n in range(100): tracker._remember(f'{sys.argv[2]}-{n}', str(n))\n"
    )
    started = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name]) for name in "abc"]
    assert [process.wait(timeout=60) for process in started] == [0, 0, 0]
    assert len(index_place.known_run_ids(tmp_path)) == 300


@pytest.mark.slow
def test_six_processes_that_start_together_share_one_whole_database(tmp_path):
    code = (
        "import sys; from pathlib import Path; from lightbox.runs import index\n"
        "out, name = Path(sys.argv[1]), sys.argv[2]\n"
        "tracker = index.open_tracker(out)\n"
        "sys.exit(tracker.parent('paper' + name, 'quick', {}) == '')"
    )
    started = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(n)]) for n in range(6)]
    assert [process.wait(timeout=200) for process in started] == [0] * 6
    assert sum(len(runs_of(tmp_path, f"paper{n}")) for n in range(6)) == 6
    assert list(tmp_path.glob("*.new")) == []
