import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from lightbox.claims import runner
from lightbox.claims.jobs import plan
from lightbox.claims.pool import Pool
from lightbox.claims.registry import choose_claims, load_papers
from lightbox.errors import RequestError, WorkError
from lightbox.runs import folders
from lightbox.runs.finished import finished_folder
from lightbox.runs.folders import open_output
from lightbox.testing.inline_pool import InlinePool
from lightbox.testing.toy_paper import forget_toy_paper, write_toy_paper


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def inline(monkeypatch):
    monkeypatch.setattr(runner, "Pool", InlinePool)


def planned(preset="smoke", ids=()):
    return plan(choose_claims(load_papers(packages={"toy": "toy"}), ids), preset)


def run(found_plan, out, *, fresh=False, **options):
    with open_output(out):
        found = runner.find_finished(found_plan, out, fresh=fresh)
        return runner.run(found_plan, out, found, fresh=fresh, **options)


def behave(toy, code):
    """Give the toy's jobs another behaviour at the moment they know their scores."""
    text = (toy / "world.py").read_text()
    head = "def level_of(cfg):\n"
    body = "".join(f"    {line}\n" for line in code.splitlines())
    (toy / "world.py").write_text(text.replace(head, head + body))


def read(path):
    return json.loads(path.read_text())


def scores(out):
    return {path.parent.name: path.read_bytes() for path in out.glob("jobs/*/scores.parquet")}


@pytest.fixture(scope="module")
def real_run(tmp_path_factory):
    """One run with real workers, shared by tests that look at what it left: plan, folders, calls, variables."""
    folder = tmp_path_factory.mktemp("real")
    write_toy_paper(folder / "src")
    behave(folder / "src" / "toy", "import os\nprint('hello from python')\nos.write(1, b'hello from below\\n')")
    todo, told = planned("quick"), []
    before = dict(os.environ)
    found = run(todo, folder / "out", workers=2, on_job_done=lambda job, place: told.append((job.key, place)))
    forget_toy_paper(folder / "src")
    return todo, found, told, (before, dict(os.environ))


@pytest.mark.slow
def test_every_job_runs_once_and_says_what_it_was(real_run):
    todo, found, told, _ = real_run
    assert found.folders.keys() == todo.jobs.keys()
    assert not found.errors
    assert len(told) == 25
    assert dict(told) == found.folders
    job = todo.jobs[todo.keys["toy", "twice", 0]]
    card = read(found.folders[job.key] / "job.json")
    assert card["finished"] is True
    assert (card["key"], card["paper"], card["arm"], card["seed"], card["preset"]) == (
        job.key,
        "toy",
        "twice",
        0,
        "quick",
    )
    assert card["needs"] == {"true": todo.keys["toy", "true", 0]}
    assert (card["config"], card["inputs"], card["source"]) == (job.config, job.inputs, job.source)
    assert card["inputs"].keys() == {"generator", "weights"}
    assert card["overrides"] == ["preset=quick", "run.seed=0", "experiment=twice", "level=0.80"]
    assert 0 < card["peak_gib"] < 4
    assert card["wall_s"] > 0


def test_workers_stay_for_several_jobs_with_one_thread_and_no_hub(real_run):
    cards = [read(folder / "card.json") for folder in real_run[1].folders.values()]
    assert len(cards) == 25
    assert len({card["pid"] for card in cards}) <= 2
    assert {(card["threads"], card["hub"]) for card in cards} == {("1", "1")}
    assert os.getpid() not in {card["pid"] for card in cards}


def test_environment_of_this_process_is_as_before(real_run):
    before, after = real_run[3]
    assert before == after


def test_what_a_job_prints_goes_to_its_log(real_run):
    log = (next(iter(real_run[1].folders.values())) / "log.txt").read_text()
    assert "hello from python" in log
    assert "hello from below" in log


def test_second_run_starts_no_worker(toy, out, inline, monkeypatch):
    run(planned(), out)
    before = scores(out)
    monkeypatch.setattr(Pool, "give", lambda *_: pytest.fail("a worker was started"))
    found = run(planned(), out)
    assert len(found.folders) == 5
    assert scores(out) == before


def test_changed_arm_runs_alone_with_what_needs_it(toy, out, inline):
    first = run(planned(), out)
    text = (toy / "claims.py").read_text()
    (toy / "claims.py").write_text(text.replace('("level=0.72",)', '("level=0.73",)'))
    del sys.modules["toy.claims"]
    todo = planned()
    waiting = runner.jobs_to_run(todo, runner.find_finished(todo, out))
    assert [job.arm for job in waiting] == ["true", "twice"]
    assert len(first.folders.keys() & todo.jobs.keys()) == 3


def test_failing_job_is_recorded_and_the_others_go_on(toy, out, inline):
    behave(toy, "if cfg.level == 0.72:\n    raise ValueError('no such thing')")
    todo = planned()
    found = run(todo, out)
    failed = todo.keys["toy", "true", 0]
    assert set(found.errors) == {failed, todo.keys["toy", "twice", 0]}
    assert len(found.folders) == 3
    assert "ValueError: no such thing" in str(found.errors[failed])
    assert "needs arm 'true'" in str(found.errors[todo.keys["toy", "twice", 0]])
    folder = out / "jobs" / failed
    assert "no such thing" in read(folder / "error.json")["why"]
    assert not (folder / "job.json").exists()


def test_error_of_a_job_that_failed_goes_away_when_it_works(toy, out, inline):
    behave(toy, "from pathlib import Path\nif not Path('fixed').exists():\n    raise ValueError('not yet')")
    todo = planned(ids=["Y1"])
    assert len(run(todo, out).errors) == 4
    Path("fixed").touch()
    assert not run(todo, out).errors
    assert not list(out.glob("jobs/*/error.json"))


def test_three_part_error_of_a_job_comes_home_as_it_was(toy, out):
    behave(
        toy, "from lightbox.errors import WorkError\nraise WorkError('Step 3', 'The loss is not finite', 'Lower lr')"
    )
    found = run(planned(ids=["Y1"]), out)
    error = next(iter(found.errors.values()))
    assert (error.given, error.why, error.do) == ("Step 3.", "The loss is not finite.", "Lower lr.")
    log = next(iter(out.glob("jobs/*/log.txt"))).read_text()
    assert "Traceback" in log
    assert "The loss is not finite" in log


@pytest.mark.slow
def test_worker_that_dies_takes_one_job_along(toy, out):
    behave(toy, "import os, signal\nif cfg.level == 0.61:\n    os.kill(os.getpid(), signal.SIGKILL)")
    todo = planned()
    found = run(todo, out, workers=1)
    assert list(found.errors) == [todo.keys["toy", "filler", 0]]
    assert "SIGKILL, as a system short of memory does" in str(found.errors[todo.keys["toy", "filler", 0]])
    assert len(found.folders) == 4


def test_job_without_scores_is_an_error(toy, out, inline):
    text = (toy / "train.py").read_text()
    (toy / "train.py").write_text(
        text.replace("    write_scores(Path(directory)", "    return\n    write_scores(Path(directory)")
    )
    found = run(planned(ids=["Y1"]), out)
    assert "wrote no scores.parquet" in str(next(iter(found.errors.values())))


def test_unfinished_job_continues_in_its_folder(toy, out, inline):
    todo = planned(ids=["Y1"])
    key = todo.keys["toy", "true", 0]
    folder = out / "jobs" / key / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"step": 3, "sum": 100.0}))
    found = run(todo, out)
    assert found.folders[key] == folder.parent
    assert read(folder / "state.json")["sum"] > 100  # it did not begin again


def test_fresh_recomputes_beside_the_earlier_attempt(toy, out, inline):
    todo = planned(ids=["Y1"])
    run(todo, out)
    before = scores(out)
    found = run(todo, out, fresh=True)
    assert {folder.name for folder in found.folders.values()} == {f"{key}-2" for key in todo.jobs}
    after = scores(out)
    assert {name: after[name] for name in before} == before
    assert {name.removesuffix("-2"): after[name] for name in after.keys() - before.keys()} == before
    assert runner.find_finished(todo, out).folders == found.folders  # the newest counts from now on


def test_damaged_scores_are_noticed_and_run_again_beside_them(toy, out, inline, caplog):
    todo = planned(ids=["Y1"])
    run(todo, out)
    key = todo.keys["toy", "true", 0]
    path = out / "jobs" / key / "scores.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert finished_folder(out, key) is None
    assert "does not match its digest" in caplog.text
    found = run(todo, out)
    assert found.folders[key].name == f"{key}-2"
    assert path.read_bytes() == bytes(content)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"finished": true}'])
def test_damaged_card_counts_as_unfinished(toy, out, inline, content):
    todo = planned(ids=["Y1"])
    run(todo, out)
    key = todo.keys["toy", "true", 0]
    (out / "jobs" / key / "job.json").write_text(content)
    assert finished_folder(out, key) is None


def test_second_process_on_the_same_folder_is_told_at_once(out):
    begun = time.monotonic()
    with open_output(out), pytest.raises(RequestError, match="Another lightbox process is writing"), open_output(out):
        pass
    assert time.monotonic() - begun < 2
    with open_output(out):
        pass  # free again


def test_folder_that_cannot_be_written_is_a_wrong_request(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RequestError, match=r"It cannot be written: Not a directory.*--out"),
        open_output(tmp_path / "file" / "o"),
    ):
        pass


def test_full_disk_in_a_job_ends_the_run_and_keeps_what_was_finished(toy, out):
    behave(
        toy, "if cfg.level == 0.61:\n    with open('/dev/full', 'wb', buffering=0) as file:\n        file.write(b'x')"
    )
    todo = planned()
    with pytest.raises(WorkError, match="The disk is full"):
        run(todo, out, workers=1)
    kept = runner.find_finished(todo, out).folders
    assert todo.keys["toy", "filler", 0] not in kept
    assert len(kept) >= 1


def test_full_disk_while_marking_a_job_loses_nothing(toy, out, inline, monkeypatch):
    todo = planned(ids=["Y1"])
    write = folders.write_json

    def full(path, value):
        path.with_name("half").write_text("{")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(folders, "write_json", full)
    with pytest.raises(WorkError, match="The disk is full; finished jobs and checkpoints are kept"):
        run(todo, out, workers=1)
    assert not list(out.glob("jobs/*/job.json"))
    before = scores(out)
    assert before
    monkeypatch.setattr(folders, "write_json", write)
    assert not run(todo, out).errors
    assert before.items() <= scores(out).items()


def test_progress_is_told_at_most_every_ten_seconds(toy, out, inline, monkeypatch):
    told = []
    run(planned(ids=["Y1"]), out, on_progress=told.append)
    assert not told
    monkeypatch.setattr(runner, "PROGRESS_S", 0.0)
    monkeypatch.setattr(runner, "PROGRESS_SHARE", 0)
    seen = []
    run(planned(ids=["Y2"]), out, fresh=True, on_progress=lambda found: seen.append(len(found.folders)))
    assert seen == [1, 2, 3, 4]


def test_caller_is_told_once_when_jobs_were_handed_out(toy, out, inline):
    told = []
    run(planned(), out, on_started=lambda: told.append("started"))
    run(planned(), out, on_started=lambda: told.append("again"))  # nothing to run
    assert told == ["started"]


@pytest.mark.parametrize(
    ("option", "message"), [({"engine": "ray"}, "--engine is 'ray'"), ({"workers": 0}, "--workers is 0")]
)
def test_engine_and_workers_that_cannot_be_are_refused(toy, out, option, message):
    with pytest.raises(RequestError, match=message):
        run(planned(), out, **option)


def start(toy, out, preset="quick"):
    """Another process that runs the toy with slow steps; returns it once jobs are under way."""
    text = (toy / "config.py").read_text()
    (toy / "config.py").write_text(text.replace("STEP_S = 0.0", "STEP_S = 0.2"))
    code = (
        f"import signal, sys; sys.path.insert(0, {str(toy.parent)!r})\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell starts background jobs with it ignored
        "from pathlib import Path\n"
        "from lightbox.claims import jobs, registry, runner\n"
        "from lightbox.runs import folders\n"
        "from lightbox.errors import guard\n"
        "def main():\n"
        "    papers = registry.load_papers(packages={'toy': 'toy'})\n"
        f"    plan = jobs.plan(registry.choose_claims(papers), {preset!r})\n"
        f"    out = Path({str(out)!r})\n"
        "    with folders.open_output(out):\n"
        "        runner.run(plan, out, runner.find_finished(plan, out))\n"
        "if __name__ == '__main__':\n"
        "    sys.exit(guard(main))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], process_group=0)
    deadline = time.monotonic() + 30
    while not list(out.glob("jobs/*/checkpoints/state.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    return process


def workers_of(process):
    return psutil.Process(process.pid).children(recursive=True)


def gone(processes, *, within_s=5.0):
    _, alive = psutil.wait_procs(processes, timeout=within_s)
    return not alive


@pytest.mark.slow
def test_ctrl_c_ends_with_130_leaves_no_worker_and_keeps_jobs(toy, out):
    process = start(toy, out)
    workers = workers_of(process)
    assert workers
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    assert process.wait(20) == 130
    assert gone(workers)
    assert list(out.glob("jobs/*/checkpoints/state.json"))


@pytest.mark.slow
def test_workers_die_with_a_killed_parent_and_the_folder_is_free(toy, out):
    process = start(toy, out)
    workers = workers_of(process)
    assert workers
    process.kill()
    process.wait(10)
    assert gone(workers)
    with open_output(out):
        pass
