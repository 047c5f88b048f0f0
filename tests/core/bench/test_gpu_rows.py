"""The rows that need a GPU, on tiny models without one, and the driver that no row can stop."""

import csv
import importlib.util
import json
import sys

import pytest
import torch

from lightbox.bench import gpu, pruning, step
from lightbox.bench.kernels import measure
from lightbox.bench.kernels.operators import OPERATORS


@pytest.fixture
def driver(request):
    """`benchmarks/gpu.py`, a script that imports nothing of ours."""
    path = request.config.rootpath / "benchmarks" / "gpu.py"
    spec = importlib.util.spec_from_file_location("benchmarks_gpu", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lines_of(folder):
    return [json.loads(line) for line in (folder / "gpu.jsonl").read_text().splitlines()]


def ask(monkeypatch, folder, *arguments):
    monkeypatch.setattr(sys, "argv", ["gpu", *arguments, "--out", str(folder), "--device", "cpu", "--tiny"])
    return gpu.main()


@pytest.fixture(autouse=True)
def _facts(monkeypatch):
    monkeypatch.setenv(gpu.FACTS, json.dumps({"commit": "abc", "device": "cpu", "torch": torch.__version__}))


def test_a_row_is_written_with_device_versions_and_commit(monkeypatch, tmp_path):
    assert ask(monkeypatch, tmp_path, "memory", "llava-1.5-7b") == 0
    (line,) = lines_of(tmp_path)
    assert (line["status"], line["commit"], line["torch"]) == ("measured", "abc", torch.__version__)
    assert line["case"].startswith("tiny llava-1.5-7b, nf4 r16, bf16, batch 1")
    assert line["ratio"] == pytest.approx(1, abs=0.1)
    with (tmp_path / "rows.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["benchmark"], row["commit"], row["case"]) == ("memory", "abc", line["case"])


@pytest.mark.slow
def test_a_step_has_a_speed_and_a_peak_and_the_second_side_a_ratio(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "TIMED", 1)
    for choice in ("ours", "stock"):
        assert ask(monkeypatch, tmp_path, "step", "qwen2.5-vl-7b", "--choice", choice) == 0
    lines = lines_of(tmp_path)
    assert [line["unit"] for line in lines] == ["tokens/s", "MiB"] + ["tokens/s"] * 2 + ["MiB"] * 2
    ours, stock = lines[1], lines[4]
    assert stock["case"] == ours["case"].replace("ours", "stock")
    with (tmp_path / "rows.csv").open() as file:
        speed, peak = csv.DictReader(file)
    assert speed["peer"] == peak["peer"] == step.PEER
    assert float(peak["ratio"]) == pytest.approx(ours["value"] / stock["value"], rel=1e-3)


def test_new_tokens_are_counted_by_the_second(monkeypatch, tmp_path):
    assert ask(monkeypatch, tmp_path, "generate", "llava-1.5-7b", "--batch", "2") == 0
    (line,) = lines_of(tmp_path)
    assert line["unit"] == "tokens/s"
    assert line["value"] > 0


def test_an_operator_and_a_method_have_rows_against_their_peers(monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "check_tests", lambda name, device: None)
    assert ask(monkeypatch, tmp_path, "kernels", "--choice", "segment_select") == 0
    assert ask(monkeypatch, tmp_path, "pruning", "--choice", "random") == 0
    lines = lines_of(tmp_path)
    assert {line["benchmark"] for line in lines} == {"kernels", "pruning"}
    assert {line["case"].partition(",")[0] for line in lines if line["benchmark"] == "kernels"} == {"segment_select"}
    with (tmp_path / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(lines)
    assert [row["notes"].partition(";")[0] for row in rows if row["case"].startswith("time to")] == ["goal >= 2.5"]


def test_the_driver_has_rows_for_every_operator_and_the_usual_methods(driver):
    assert set(driver.OPERATORS) == set(OPERATORS)
    assert set(driver.METHODS) == set(pruning.METHODS)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["attention", "--choice", "xformers"], "It has no operator for the CPU"),
        (["step", "--choice", "theirs"], "A step is ours or stock"),
        (["kernels", "--choice", "sort"], "--only is 'sort'"),
        (["pruning", "--choice", "fastv"], "--method is 'fastv'"),
    ],
)
def test_what_cannot_be_measured_here_says_why_and_writes_nothing(monkeypatch, tmp_path, capsys, arguments, why):
    assert ask(monkeypatch, tmp_path, *arguments) == gpu.SKIPPED
    assert why in capsys.readouterr().err
    assert not (tmp_path / "gpu.jsonl").exists()


def run_driver(driver, monkeypatch, folder, script, *arguments):
    """The driver with a shell script in place of Python, so that a row is what the script does."""
    python = folder / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(folder), "--device", "cpu", *arguments])
    return driver.main()


def test_a_row_that_fails_leaves_its_reason_and_the_next_one_runs(driver, monkeypatch, tmp_path):
    script = 'case "$3$4" in memoryllava*) echo "no memory" >&2; exit 1;; esac'
    assert run_driver(driver, monkeypatch, tmp_path, script) == 1
    lines = lines_of(tmp_path)
    assert [line["row"] for line in lines] == driver.ROWS
    assert [line["status"] for line in lines[:4]] == ["failed", "failed", "done", "done"]
    assert lines[0]["reason"] == "no memory"
    assert {line["python"] for line in lines} == {sys.version.split()[0]}
    assert "== memory llava-1.5-7b --batch 1: failed\nno memory" in (tmp_path / "gpu.log").read_text()


def test_a_row_that_takes_too_long_is_ended_and_one_that_cannot_run_is_skipped(driver, monkeypatch, tmp_path):
    monkeypatch.setattr(driver, "USUAL_TIMEOUT_S", 0.5)
    script = f'case "$*" in *ours*) exec sleep 20;; *stock*) echo "no card" >&2; exit {driver.SKIPPED};; esac'
    assert run_driver(driver, monkeypatch, tmp_path, script, "--only", "step llava") == 1
    assert [(line["status"], line["reason"]) for line in lines_of(tmp_path)] == [
        ("failed", "longer than 0 s"),
        ("skipped", "no card"),
    ]


def test_beyond_its_budget_no_row_is_started(driver, monkeypatch, tmp_path):
    assert run_driver(driver, monkeypatch, tmp_path, "exit 0", "--only", "memory", "--budget-s", "10") == 1
    assert {line["status"] for line in lines_of(tmp_path)} == {"not started"}


def test_rows_that_do_not_exist_are_refused(driver, monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_driver(driver, monkeypatch, tmp_path, "exit 0", "--only", "nothing")
    assert "no row begins with nothing" in capsys.readouterr().err


def test_driver_and_rows_agree_on_what_skipped_means(driver):
    assert driver.SKIPPED == gpu.SKIPPED
