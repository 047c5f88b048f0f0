import csv
import subprocess
import threading
from dataclasses import replace

import pytest

from lightbox import machine
from lightbox.claims import replays
from lightbox.claims.replays import COLUMNS, Machine, append_replays, read_replays, replay_of, replays_of, run_digest
from lightbox.cli import replay_log
from lightbox.errors import RequestError, WorkError
from lightbox.paths import results_dir
from lightbox.testing.fake_results import fake_results


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, beside a published one that differs in its second claim and lacks the third."""
    document = fake_results(tmp_path_factory.mktemp("run"), n_items=60)
    jobs = tuple(
        replace(job, ended=f"2026-11-30T10:00:{job.seed:02d}Z", hardware="Z80, 1 core") for job in document.jobs
    )
    first, second, third = (replace(claim, hardware=("Z80, 1 core",)) for claim in document.claims)
    weak = second.deciding
    moved = replace(weak, effect=30.0, ci95=(28.0, 32.0), per_seed=tuple(30 + d for d in weak.per_seed))
    another = replace(second, contrasts=tuple(moved if c == weak else c for c in second.contrasts))
    return replace(document, claims=(first.beside(first), second.beside(another), third), jobs=jobs)


def rows_of(document, by="Ada"):
    under = Machine("Linux 6.1 x86_64", "3.12.1", "2.10.0")
    return [replay_of(claim, "quick", document.jobs, by=by, machine=under) for claim in document.claims]


def test_a_row_holds_both_runs_and_the_outcome_of_the_test_between_them(run):
    first, second, third = rows_of(run)
    claim = run.claims[0]
    assert (first.effect, first.low, first.high) == (claim.effect, *claim.ci95)
    assert (first.published_effect, first.published_low) == (claim.effect, claim.ci95[0])
    assert (first.date, first.hardware, first.torch, first.seeds) == ("2026-11-30", "Z80, 1 core", "2.10.0", 5)
    assert [row.outcome for row in (first, second, third)] == ["agrees", "differs", "nothing published"]
    assert (first.contrasts, second.contrasts, third.contrasts) == ("3 of 3 agree", "1 of 2 agree", "")
    assert (third.published_effect, third.published_verdict) == (None, "")


def test_what_is_written_is_read_again_as_it_was(run, tmp_path):
    path = tmp_path / "results" / "replays.csv"
    rows = rows_of(run, by='Ad\u00e4, "the first"')
    assert append_replays(path, rows) == rows
    again = read_replays(path)
    assert len(again) == 3
    for one, other in zip(again, rows, strict=True):
        for name, value in vars(other).items():
            expected = pytest.approx(value, rel=1e-6) if isinstance(value, float) else value
            assert getattr(one, name) == expected


def test_the_same_run_is_not_logged_twice_and_another_run_of_the_same_jobs_is(run, tmp_path):
    path = tmp_path / "replays.csv"
    append_replays(path, rows_of(run))
    before = path.read_bytes()
    assert append_replays(path, rows_of(run, by="somebody else")) == []
    assert path.read_bytes() == before
    later = replace(run, jobs=tuple(replace(job, ended="2026-12-01T00:00:00Z") for job in run.jobs))
    assert len(append_replays(path, rows_of(later))) == 3
    assert path.read_bytes().startswith(before)
    assert len(read_replays(path)) == 6


def test_a_run_is_told_by_its_own_jobs_alone(run):
    claim = run.claims[0]
    foreign = replace(run.jobs[0], key="f" * 20, ended="2000-01-01T00:00:00Z")
    assert run_digest(claim, [*run.jobs, foreign]) == run_digest(claim, reversed(run.jobs))
    assert run_digest(claim, run.jobs) != run_digest(claim, run.jobs[1:])


@pytest.mark.parametrize("name", ["=HYPERLINK(1)", "+1", "-1", "@SUM(A1)", "'=1", "'Ada", "Ada"])
def test_no_name_is_a_formula_in_a_spreadsheet_and_every_one_is_read_as_it_was(run, tmp_path, name):
    path = tmp_path / "replays.csv"
    append_replays(path, rows_of(run, by=name))
    with path.open(newline="", encoding="utf-8") as file:
        cells = {row["by"] for row in csv.DictReader(file)}
    assert not any(cell.startswith(("=", "+", "-", "@")) for cell in cells)
    assert {row.by for row in read_replays(path)} == {name}


def test_a_name_stays_on_one_line_and_loses_signs_that_cannot_be_seen(run, tmp_path):
    path = tmp_path / "replays.csv"
    append_replays(path, rows_of(run, by="Ada\n\t\u202e,\x00 L." + "x" * 999))
    [name] = {row.by for row in read_replays(path)}
    assert name.startswith("Ada , L.x")
    assert len(name) <= 200
    assert len(path.read_text(encoding="utf-8").splitlines()) == 4


def test_many_at_once_lose_no_row(run, tmp_path):
    path = tmp_path / "replays.csv"
    runs = [[replace(row, run=f"{number:012d}") for row in rows_of(run)] for number in range(12)]
    threads = [threading.Thread(target=append_replays, args=(path, rows)) for rows in runs for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(row.run for row in read_replays(path)) == sorted(
        f"{number:012d}" for number in range(12) for _ in "abc"
    )


def test_a_log_that_another_process_holds_is_named(run, tmp_path, monkeypatch):
    path = tmp_path / "replays.csv"
    monkeypatch.setattr(replays, "PATIENCE_S", 0.05)
    with (
        replays.FileLock(tmp_path / ".replays.csv.lock"),
        pytest.raises(WorkError, match="Another process has held it"),
    ):
        append_replays(path, rows_of(run))


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (lambda text: text.replace("date,by,", "date,who,", 1), "unknown here: who; it lacks by"),
        (lambda text: text.replace("date,by,", "by,date,", 1), "another order"),
        (lambda text: text.replace(",run\n", ",run,mood\n", 1), "unknown here: mood"),
        (lambda text: text + "2026-11-30,Ada\n", "Line 5 is no row of it: it has 2 cells"),
        (lambda text: text.replace(",5,", ",five,", 1), "Line 2 is no row of it: invalid literal"),
        (lambda text: text + '"2026', "Line 5 is no row of it: unexpected end of data"),
        (lambda text: "", "it lacks date, by"),
    ],
)
def test_a_log_of_other_columns_or_with_a_damaged_row_is_refused_and_left_as_it_is(run, tmp_path, edit, why):
    path = tmp_path / "replays.csv"
    append_replays(path, rows_of(run))
    path.write_text(edit(path.read_text(encoding="utf-8")), encoding="utf-8")
    before = path.read_bytes()
    for call in (lambda: read_replays(path), lambda: append_replays(path, rows_of(run))):
        with pytest.raises(WorkError, match=why) as refused:
            call()
        assert refused.value.given == f"The replay log is {path}."
        assert "Restore the file" in refused.value.do
    assert path.read_bytes() == before


def test_an_empty_line_and_a_missing_last_line_feed_do_no_harm(run, tmp_path):
    path = tmp_path / "replays.csv"
    first, second, third = rows_of(run)
    append_replays(path, [first])
    path.write_text(path.read_text(encoding="utf-8").replace("\n", "\n\n", 1).rstrip("\n"), encoding="utf-8")
    append_replays(path, [first, second, third])
    assert [row.claim for row in read_replays(path)] == ["T1", "T2", "T6"]


def test_replays_of_a_claim_are_counted_by_outcome_machine_and_publication(run):
    claim = run.claims[0]
    first = replace(rows_of(run)[0], published_commit="; ".join(claim.commits))
    rows = [
        first,
        replace(first, run="2", outcome="differs", hardware="M1"),
        replace(first, run="3", published_commit="older"),
        replace(first, claim="T2"),
        replace(first, preset="full"),
    ]
    found = replays_of(rows, claim, "quick")
    assert found.outcomes == {"agrees": 2, "differs": 1}
    assert (found.count, found.machines, found.of_another) == (3, ("Z80, 1 core", "M1"), 1)
    assert replays_of([], claim, "quick").count == 0


def test_the_committed_log_can_be_read():
    path = results_dir() / replays.FILE
    assert path.read_text(encoding="utf-8").splitlines()[0] == ",".join(COLUMNS)
    for row in read_replays(path):
        assert row.by
        assert row.outcome in (replays.AGREES, replays.DIFFERS, replays.NOT_COMPARABLE, replays.NOTHING)


def test_who_runs_is_the_name_given_or_gits_own(tmp_path):
    assert replay_log.name_of_runner("Ada", tmp_path) == "Ada"
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    subprocess.run(["git", "-C", str(tmp_path), "config", "user.name", "Grace"], check=True)
    assert replay_log.name_of_runner("", tmp_path / "results") == "Grace"


def test_without_any_name_the_run_does_not_begin(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RequestError, match="git knows no user.name here. Give --by NAME"):
        replay_log.name_of_runner(" ", tmp_path)


@pytest.mark.parametrize(
    ("preset", "options", "message"),
    [
        ("smoke", {}, "--log is given with --preset smoke. It decides nothing"),
        ("quick", {"dry_run": True}, "--log is given with --dry-run. It runs nothing"),
        ("quick", {"reuse": True}, "--reuse results. Jobs that are taken from what is published"),
        ("quick", {"publish": True}, "--publish. A run is either published, or a replay"),
    ],
)
def test_what_makes_no_replay_is_refused(preset, options, message):
    given = {"reuse": False, "dry_run": False, "publish": False}
    replay_log.check_request("quick", **given)
    with pytest.raises(RequestError, match=message):
        replay_log.check_request(preset, **given | options)


def test_the_system_is_told_only_where_the_jobs_ran_on_this_machine():
    here = {"hardware": machine.hardware(), "versions": {"python": "3.11.9", "torch": "2.10.0"}}
    assert replay_log._machine([here, here]).python == "3.11.9"
    assert replay_log._machine([here]).system
    assert replay_log._machine([here, {"hardware": "Z80"}]).system == ""
