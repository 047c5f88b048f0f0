import json
import subprocess
import sys

import pytest

from lightbox.claims import published, runner
from lightbox.claims.jobs import plan
from lightbox.claims.registry import choose_claims, load_papers
from lightbox.cli.job_origin import explanation, find_origin
from lightbox.cli.reproduce import explain
from lightbox.errors import RequestError, WorkError
from lightbox.runs.folders import open_output
from lightbox.runs.key import OLDER
from lightbox.testing.inline_pool import InlinePool

PACKAGES = {"toy": "toy"}


@pytest.fixture
def finished(toy, tmp_path, monkeypatch):
    """A finished smoke run of the toy: its output folder, and the key of each arm."""
    monkeypatch.setattr(runner, "Pool", InlinePool)
    todo = plan(choose_claims(load_papers(packages=PACKAGES)), "smoke")
    with open_output(tmp_path / "out"):
        runner.run(todo, tmp_path / "out", runner.find_finished(todo, tmp_path / "out"))
    return tmp_path / "out", {arm: key for (_, arm, _), key in todo.keys.items()}


def explained(finished, arm, *, digits=20):
    out, keys = finished
    return explanation(keys[arm][:digits], out, out.parent / "results", packages=PACKAGES)


def today(lines):
    return [line.removeprefix("Today: ") for line in lines if line.startswith("Today: ")]


def rewrite(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    for name in [name for name in sys.modules if name.startswith("toy")]:
        del sys.modules[name]


def edit_record(folder, **changes):
    path = folder / "job.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in (record | changes).items() if value is not None}))


def test_modules_inputs_libraries_and_needs_of_a_job_are_listed(finished):
    out, keys = finished
    lines = explained(finished, "twice", digits=6)
    assert lines[0].startswith(f"{keys['twice']}: toy twice, seed 0, smoke, commit ")
    assert lines[1] == f"From {out / 'jobs' / keys['twice']}"
    assert [line.split(": ")[0] for line in lines[2:-1]] == [
        *(f"Module {name}" for name in ("lightbox", "lightbox.files", "toy", "toy.config", "toy.evaluate")),
        *("Module toy.train", "Module toy.world", "Input generator", "Input weights", "Library numpy", "Needs true"),
    ]
    assert f"Needs true: {keys['true']}" in lines
    assert today(lines) == ["nothing differs"]


@pytest.mark.slow
def test_what_differs_today_is_said_also_of_the_runs_that_a_job_reads(finished, toy):
    rewrite(toy / "world.py", "return cfg.level", "return cfg.level * 1.0")
    rewrite(toy / "config.py", "luck: float = 0.1", "luck: float = 0.2")
    (toy / "start.bin").write_bytes(b"other weights")
    assert today(explained(finished, "true")) == [
        "luck 0.1 -> 0.2",
        "module toy.world changed",
        "input weights changed",
    ]
    assert today(explained(finished, "twice"))[-1] == "the run of arm true changed"
    assert today(explained(finished, "majority")) == ["module toy.world changed"]


def test_what_a_job_reads_may_be_there_no_longer(finished):
    out, keys = finished
    (out / "jobs" / keys["true"] / "job.json").unlink()
    assert today(explained(finished, "twice")) == ["nothing differs"]


def test_a_command_that_is_refused_today_is_said(finished, toy):
    rewrite(toy / "config.py", 'ITEMS = {"smoke": 20, ', "ITEMS = {")
    (line,) = today(explained(finished, "true"))
    assert line.startswith("the same command is refused: preset=smoke. There is no such preset.")


def test_a_job_of_an_older_layout_is_said_to_be_one(finished):
    out, keys = finished
    edit_record(out / "jobs" / keys["true"], modules=None, computing=None)
    assert today(explained(finished, "true")) == [OLDER]
    edit_record(out / "jobs" / keys["true"], overrides=None, needs=None)
    assert today(explained(finished, "true")) == [OLDER]


def test_a_single_training_is_found_by_its_key(finished):
    out, keys = finished
    (out / "runs").mkdir()
    folder = out / "runs" / f"true-{keys['true'][:12]}"
    (out / "jobs" / keys["true"]).rename(folder)
    lines = explained(finished, "true")
    assert lines[1] == f"From {folder}"
    assert today(lines) == ["nothing differs"]


@pytest.fixture
def row(finished):
    """A published row of the toy's arm `true`, and no folder of it: what the file holds by column."""
    out, keys = finished
    record = json.loads((out / "jobs" / keys["true"] / "job.json").read_text())
    (out / "jobs" / keys["true"] / "job.json").unlink()
    return {name: record.get(name, "") for name in published.COLUMNS}


def write_row(out, row):
    (out.parent / "results").mkdir()
    lines = [",".join(row), ",".join(f'"{value}"' for value in row.values())]
    (out.parent / "results" / published.ROWS).write_text("\n".join(lines) + "\n")


def test_a_published_row_says_whether_the_same_job_is_made_today(finished, row):
    write_row(finished[0], row)
    lines = explained(finished, "true")
    assert lines[0].startswith(f"{row['key']}: toy true, seed 0, smoke")
    assert today(lines) == ["nothing differs"]


def test_a_published_row_says_whether_the_code_is_another(finished, toy, row):
    write_row(finished[0], row)
    (toy / "start.bin").write_bytes(b"other weights")
    assert "what changed is settings, inputs, libraries" in today(explained(finished, "true"))[0]
    rewrite(toy / "world.py", "return cfg.level", "return cfg.level * 1.0")
    assert "what changed is its code" in today(explained(finished, "true"))[0]


def test_a_published_row_of_an_arm_or_a_paper_that_is_gone(finished, row):
    write_row(finished[0], row | {"arm": "gone"})
    assert today(explained(finished, "true")) == ["toy has no arm 'gone'"]
    (finished[0].parent / "results" / published.ROWS).unlink()
    (finished[0].parent / "results").rmdir()
    write_row(finished[0], row | {"paper": "gone"})
    assert today(explained(finished, "true"))[0].startswith("the same command is refused: There is no paper 'gone'")


@pytest.mark.slow
@pytest.mark.parametrize("digits", ["abcde", "not-hex", "0" * 21, ""])
def test_what_is_no_key_is_refused(finished, digits):
    with pytest.raises(RequestError, match=f"--job is '{digits}'.*20 hexadecimal digits.*first 6 are needed"):
        find_origin(digits, finished[0], finished[0])


def test_a_key_that_nothing_has_is_refused(finished):
    with pytest.raises(RequestError, match=r"Neither a finished run under '.*out' nor a row of .*runs\.csv has such"):
        find_origin("000000", finished[0], finished[0].parent / "results")


def test_digits_that_begin_several_keys_are_refused(finished):
    out, keys = finished
    twin = keys["true"][:8] + "0" * 12
    (out / "jobs" / keys["none"]).rename(out / "jobs" / twin)
    edit_record(out / "jobs" / twin, key=twin)
    with pytest.raises(RequestError, match="2 keys begin so: .*Give more of its digits"):
        find_origin(keys["true"][:8], out, out)
    assert find_origin(keys["true"][:9].upper(), out, out).key == keys["true"]


def test_a_damaged_record_is_named(finished):
    out, keys = finished
    (out / "jobs" / keys["true"] / "job.json").write_text("{")
    with pytest.raises(WorkError, match=r"job\.json cannot be read"):
        explained(finished, "true")
    assert today(explained(finished, "none")) == ["nothing differs"]


@pytest.mark.parametrize("asked", [{}, {"claim_id": "T1", "job": "0123456"}])
def test_a_claim_or_a_job_is_explained_and_not_both(asked):
    with pytest.raises(RequestError, match="One thing is explained at a time"):
        explain(**asked)


@pytest.mark.slow
def test_explaining_a_job_imports_no_torch(finished, toy):
    out, keys = finished
    code = (
        f"import sys; sys.path.insert(0, {str(toy.parent)!r})\n"
        "from pathlib import Path\n"
        "from lightbox.cli.job_origin import explanation\n"
        f"lines = explanation({keys['true']!r}, Path({str(out)!r}), Path({str(out)!r}), packages={PACKAGES})\n"
        "assert lines[-1] == 'Today: nothing differs', lines\n"
        "assert not {'torch', 'transformers', 'mlflow'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
