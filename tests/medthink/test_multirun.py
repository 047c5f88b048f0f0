"""Sweeps: how they expand, what they refuse, and that the runs are handed over as they were written."""

import importlib.util
import json
import logging
import subprocess
import sys
from types import SimpleNamespace

import pytest

from lightbox.errors import RequestError, WorkError
from lightbox.paper import multirun
from medthink import cli
from medthink.config import resolve


@pytest.fixture(autouse=True)
def _own_logging():
    """Hydra sets handlers of the root logger, one of them on a file; take them away again.

    It closes all others first. absl's, which rouge-score brings, would then close the stderr that pytest reads.
    """
    root = logging.getLogger()
    if "absl.logging" in sys.modules:
        sys.modules["absl.logging"].get_absl_handler().python_handler.stream = sys.__stderr__
    before, level = list(root.handlers), root.level
    yield
    for handler in set(root.handlers) - set(before):
        handler.close()
    root.handlers, root.level = before, level


@pytest.fixture
def calls():
    """What a paper was asked to do: overrides of runs, and (output folder, run folder) of the index."""
    return SimpleNamespace(runs=[], indexed=[])


@pytest.fixture
def entry(calls, tmp_path):
    """MedThink's configuration with a run that only writes its name; seed 3 fails, seed 4 has a bug."""

    def run(overrides):
        calls.runs.append(overrides)
        cfg = resolve(overrides)
        if cfg.run.seed == 3:
            raise WorkError("Step 3", "The loss is not finite", "Lower optim.lr")
        if cfg.run.seed == 4:
            raise ZeroDivisionError("by zero")
        folder = tmp_path / cfg.run.out / "runs" / f"{cfg.objective.method}-{cfg.run.seed}"
        folder.mkdir(parents=True)
        return folder

    return multirun.Entry("medthink", resolve, run, lambda out, folder: calls.indexed.append((out, folder)))


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--multirun", "-m"])
def test_every_combination_runs_with_its_own_overrides_and_is_indexed_afterwards(entry, calls, flag, tmp_path, capsys):
    argv = ["preset=smoke", flag, "experiment=none,explanation", "run.seed=0,1", "run.out=there"]
    assert multirun.is_multirun(argv)
    folders = multirun.launch(entry, argv)
    assert calls.runs == [
        ["preset=smoke", f"experiment={arm}", f"run.seed={seed}", "run.out=there"]
        for arm in ("none", "explanation")
        for seed in (0, 1)
    ]
    assert [folder.name for folder in folders] == ["none-0", "none-1", "explanation-0", "explanation-1"]
    assert [(str(out), folder) for out, folder in calls.indexed] == [("there", folder) for folder in folders]
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["multirun", "runs"]
    assert "experiment=explanation run.seed=1" in capsys.readouterr().out


def test_the_default_output_folder_holds_all_that_hydra_writes(entry, calls, tmp_path):
    multirun.launch(entry, ["--multirun", "preset=smoke", "experiment=majority"])
    assert [path.name for path in (tmp_path / "lightbox-out").iterdir()] == ["multirun"]
    assert [str(out) for out, _ in calls.indexed] == ["lightbox-out"]


@pytest.mark.slow
def test_failing_runs_are_told_after_the_others_ended(entry, calls, tmp_path):
    argv = ["-m", "preset=smoke", "experiment=none", "run.seed=0,3,4,5", "run.out=x"]
    with pytest.raises(WorkError, match=r"2 of 4 runs failed: .*run\.seed=3.*run\.seed=4.*The loss is not finite"):
        multirun.launch(entry, argv)
    assert [folder.name for _, folder in calls.indexed] == ["none-0", "none-5"]
    (log,) = (tmp_path / "x" / "multirun").glob("*/2/medthink.log")
    assert "Traceback" in log.read_text()
    assert "ZeroDivisionError: by zero" in log.read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["experiment=none,explanatio"], r"experiment=explanatio.*Did you mean experiment=explanation\?"),
        (["optim.lrr=1,2"], "there is no key 'optim.lrr'"),
        (["data.n_test=4,0"], "data.n_test is 0"),
        (["optim.lr=interval(0,1)"], "An interval has no values"),
        (["run.seed=0,1,0"], "Both are the same run"),
        (["run.out=a,b"], "run.out takes the values a, b"),
        (["run.seed=[0"], "Hydra cannot read it"),
        (["+new=1,2"], "The schema is fixed"),
        (["hydra.sweep.dir=x"], "folders and logs follow run.out"),
        (["hydra/sweeper=basic"], "folders and logs follow run.out"),
        (["hydra/launcher=jobli"], "The launchers are basic, joblib, submitit_local, submitit_slurm"),
        (["hydra/launcher=joblib", "hydra.launcher.n_job=2"], r"Did you mean hydra.launcher.n_jobs"),
    ],
)
def test_a_wrong_sweep_is_refused_before_anything_is_run_or_written(entry, calls, words, message, tmp_path):
    with pytest.raises(RequestError, match=message):
        multirun.launch(entry, ["--multirun", "preset=smoke", "experiment=none", *words])
    assert calls.runs == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("name", ["joblib", "submitit_local", "submitit_slurm"])
def test_a_launcher_that_is_not_installed_is_named_with_its_extra(entry, monkeypatch, name, whole):
    find = importlib.util.find_spec

    def without_plugins(module, package=None):
        if module.startswith("hydra_plugins"):
            if whole:
                raise ModuleNotFoundError(module)
            return None
        return find(module, package)

    monkeypatch.setattr(importlib.util, "find_spec", without_plugins)
    with pytest.raises(RequestError, match=r"launcher is not installed here\. Install the extra 'launchers'"):
        multirun.launch(entry, ["-m", "preset=smoke", f"hydra/launcher={name}"])
    multirun.check_settings(["hydra/launcher=basic"])


def test_processes_launched_together_do_not_each_start_the_sweep(entry, calls, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RequestError, match="Each of the processes .* would start every run"):
        multirun.launch(entry, ["-m", "preset=smoke", "run.seed=0,1"])
    assert calls.runs == []


def test_lists_and_quoted_commas_are_one_value():
    assert multirun.combinations(["needs=[a,b]", "run.out='x,y'"]) == [["needs=[a,b]", "run.out='x,y'"]]
    assert multirun.combinations(["run.seed=range(0,2)"]) == [["run.seed=0"], ["run.seed=1"]]


def train(folder, *words):
    """`python -m medthink train` in a folder, as a user calls it."""
    command = [sys.executable, "-m", "medthink", "train", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280, check=False)


def scores(out):
    return {path.parent.name: path.read_bytes() for path in out.glob("runs/*/scores.parquet")}


@pytest.mark.slow
def test_a_wrong_key_in_a_sweep_exits_2_before_torch_is_imported(tmp_path):
    code = "import sys; from medthink.cli import train\ntry:\n    train(sys.argv[1:])\nexcept SystemExit as stop:\n"
    code += "    sys.exit(9 if 'torch' in sys.modules or 'transformers' in sys.modules else stop.code)"
    command = [sys.executable, "-c", code, "--multirun", "preset=smoke", "optim.lr=1,x", "hydra/launcher=joblib"]
    done = subprocess.run(command, timeout=60, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["What was given", "Why", "What to do"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_runs_of_a_joblib_sweep_have_the_bits_of_single_runs_and_are_in_the_index(tiny, tmp_path, monkeypatch):
    words = [word for word in tiny if word != "preset=smoke"]
    done = train(
        tmp_path, "--multirun", "preset=smoke", "experiment=none,explanation", *words, "run.out=sweep",
        "hydra/launcher=joblib", "hydra.launcher.n_jobs=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr("lightbox.paper.entries.index_run", lambda *_: None)
    for arm in ("none", "explanation"):
        cli.train([*tiny, f"experiment={arm}", f"run.out={tmp_path / 'single'}"])
    found = scores(tmp_path / "sweep")
    assert found == scores(tmp_path / "single")
    assert len(found) == 2
    assert set(json.loads((tmp_path / "sweep" / "mlflow-runs.json").read_text())) == set(found)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["single", "sweep"]
    assert len(list((tmp_path / "sweep" / "multirun").iterdir())) == 1


@pytest.mark.slow
def test_submitit_runs_a_sweep_on_this_machine_and_a_failure_takes_no_other_run_along(tmp_path):
    words = ["-m", "preset=smoke", "experiment=majority,stage2_in_sample", "hydra/launcher=submitit_local"]
    done = train(tmp_path, *words, "run.out=out")
    assert done.returncode == 1
    assert "1 of 2 runs failed" in done.stderr
    assert "stage1" in done.stderr  # what the failed arm needs
    assert [name.split("-")[0] for name in scores(tmp_path / "out")] == ["majority"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
