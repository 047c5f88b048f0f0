"""What a kill may leave and the next command must mend; and that `benchmarks/kills.py` would see what it did not."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from lightbox.claims.jobs import Job
from lightbox.claims.runner import Finished
from lightbox.cli.session import Session
from lightbox.files import file_sha256
from lightbox.paper import entries
from lightbox.runs import index
from lightbox.runs.finished import sweep
from lightbox.runs.index_place import known_run_ids
from lightbox.testing import kills
from lightbox.testing.boxes.cli import ENTRIES
from lightbox.testing.fake_runs import write_job
from lightbox.testing.kills import CHAINS, Whole, faults, half_finished, phase_of

BASELINE = ["preset=smoke", "experiment=location_prior"]


@pytest.fixture
def left(tmp_path):
    """An output folder with one finished run, and what an undisturbed one leaves."""
    folder = write_job(tmp_path, "none", 0, n_items=8, key="a")
    record = json.loads((folder / "job.json").read_text()) | {"files": {}}
    record["files"]["scores.parquet"] = file_sha256(folder / "scores.parquet")
    (folder / "job.json").write_text(json.dumps(record))
    (tmp_path / "mlflow-runs.json").write_text('{"a": "1"}')
    return tmp_path, Whole(kills.kept(tmp_path), kills.names(tmp_path), kills.indexed(tmp_path), 1.0)


def test_a_run_that_ended_as_the_undisturbed_one_has_no_faults(left):
    out, whole = left
    assert len(whole.kept) == 1
    assert faults(out, whole) == half_finished(out, whole) == []


def test_other_scores_a_file_too_much_one_that_lacks_and_a_run_not_indexed_are_each_seen(left):
    out, whole = left
    (out / "jobs/a/.card.json.tmp-7").touch()
    (out / "jobs/a/history.json").unlink()
    (out / "jobs/a/scores.parquet").write_bytes(b"half")
    (out / "mlflow-runs.json").write_text("{}")
    assert faults(out, whole) == [
        "jobs/a/scores.parquet differs",
        "jobs/a/.card.json.tmp-7 is too much",
        "jobs/a/history.json is not there",
        "the index lacks a",
    ]
    assert half_finished(out, whole)[0].startswith("a says it is finished")


def test_a_killed_process_is_told_by_what_is_on_its_stack():
    stack = 'File "/a/lightbox/train/checkpoint.py", line 61 in save\nFile "/a/driver.py", line 3 in fit\n'
    assert phase_of(stack)[1] == "checkpoint.py:61 save"
    assert phase_of(stack.replace("save", "save_or_warn"))[0] == "saving a checkpoint"
    assert phase_of("") == ("between", "")


def test_chains_are_a_training_and_a_reproduce_of_each_paper():
    assert len({chain.name for chain in CHAINS}) == len(CHAINS) == 10


def test_what_a_killed_write_left_is_swept_from_a_finished_folder(tmp_path):
    (tmp_path / "model").mkdir()
    for name in (".scores.parquet.tmp-7", "model/.purpose.json.tmp-8", "model/purpose.json"):
        (tmp_path / name).touch()
    sweep(tmp_path)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["purpose.json"]


def test_a_finished_training_that_the_index_lacks_is_indexed_by_the_same_command(tmp_path, monkeypatch):
    """A kill fell between `job.json` and the index, and the next command found the run finished."""
    indexed = []
    monkeypatch.setattr(entries, "is_finished", lambda *_: True)
    monkeypatch.setattr(entries, "index_run", lambda _, folder: indexed.append(folder))
    folder = ENTRIES.run_once([*BASELINE, f"run.out={tmp_path}"], "train")
    assert indexed == [folder]
    (tmp_path / "mlflow-runs.json").write_text(json.dumps({folder.name: "1"}))
    ENTRIES.run_once([*BASELINE, f"run.out={tmp_path}"], "train")
    assert indexed == [folder]


def test_a_reproduce_indexes_finished_jobs_that_the_index_lacks(tmp_path, monkeypatch):
    indexed = []

    class Tracker:
        def parent(self, *_):
            return "parent"

        def child(self, parent, folder, claims):
            indexed.append((parent, folder.name, claims))

    monkeypatch.setattr(index, "open_tracker", lambda _: Tracker())
    jobs = {key: Job(key, "toy", "toy", "none", 0, "quick", (), {}, {}, {}, "", {}) for key in "ab"}
    plan = SimpleNamespace(claims=[], preset="quick", jobs=jobs)
    session = Session(plan, tmp_path, root=tmp_path, console=SimpleNamespace(is_terminal=False), total=0)
    session.names = ["toy"]
    (tmp_path / "mlflow-runs.json").write_text('{"a": "1"}')
    session.index_rest(Finished(folders={key: tmp_path / "jobs" / key for key in "ab"}))
    assert indexed == [("parent", "b", [])]


def test_a_damaged_list_of_indexed_runs_counts_as_empty_and_is_named(tmp_path, caplog):
    for text in ('{"a"', "[1]", "\0"):
        (tmp_path / "mlflow-runs.json").write_text(text)
        assert known_run_ids(tmp_path) == {}
    assert caplog.text.count("mlflow-runs.json cannot be read") == 3


@pytest.mark.slow
def test_a_training_killed_at_random_moments_ends_with_the_scores_of_an_undisturbed_one(tmp_path, request):
    """Two kills of K2Sight's; `benchmarks/kills.py` makes fifty over the papers."""
    script = request.config.rootpath / "benchmarks" / "kills.py"
    words = ["--only", "k2sight/train", "--kills", "4", "--cold", "0", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "kills.jsonl").read_text().splitlines()]
    assert sum(row["kind"] == "kill" for row in rows) >= 2
    assert all(row["faults"] == [] for row in rows)
