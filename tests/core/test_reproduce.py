import csv
import io
import json
import subprocess
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from lightbox.claims import published, replays, runner
from lightbox.claims.document import load
from lightbox.claims.published import DOCUMENT
from lightbox.claims.registry import load_papers
from lightbox.claims.spec import Role
from lightbox.cli import claim_tables, replay_log, reproduce, session
from lightbox.errors import RequestError, WorkError
from lightbox.paths import default_out, results_dir
from lightbox.runs.index_place import known_run_ids
from lightbox.testing.inline_pool import InlinePool


class Index:
    """Stands for the MLflow index, which takes seconds to open; remembers what it was told."""

    def __init__(self):
        self.parents, self.children, self.closed, self.out = [], [], None, None

    def parent(self, paper, preset, tags):
        self.parents.append((paper, preset))
        return "parent"

    def child(self, parent_id, folder, claims):
        self.children.append((parent_id, folder.name, claims))
        ids = known_run_ids(self.out)
        (self.out / "mlflow-runs.json").write_text(json.dumps(ids | {folder.name: "child"}))
        return "child"

    def close(self, status="FINISHED"):
        self.closed = status


@pytest.fixture
def index(monkeypatch):
    found = Index()

    def opened(out):
        found.out = out
        return found

    monkeypatch.setattr("lightbox.runs.index.open_tracker", opened)
    monkeypatch.setattr(runner, "Pool", InlinePool)
    return found


@pytest.fixture
def said():
    """A console that remembers what was printed."""
    return claim_tables.plain_console(file=io.StringIO(), width=200)


def go(tmp_path, said, *, preset="quick", ids=(), **options):
    plan = reproduce.make_plan([], preset=preset, claim_ids=ids, packages={"toy": "toy"})
    return reproduce.run_plan(plan, tmp_path / "out", root=tmp_path / "results", console=said, **options)


def printed(console):
    return console.file.getvalue()


@pytest.mark.slow
def test_reproduce_writes_results_and_page_and_prints_a_row_a_claim(toy, index, said, tmp_path):
    document = go(tmp_path, said)
    folder = tmp_path / "out" / "reproduce" / "toy-quick"
    assert load(folder / "results.json") == document
    assert "A true rationale helps" in (folder / "report.html").read_text()
    text = printed(said)
    assert "toy Y3 does not run at quick; it runs at full" in text
    assert "[25/25] toy twice, seed 4" in text
    assert "toy Y1  reproduced  +12" in text
    assert "2 verdicts drawn, 2 reproduced" in text
    assert "speaks about a mechanism, never about patients" in text
    command = f"uv run lightbox reproduce toy --preset quick --out {tmp_path / 'out'} --log"
    assert f"To add this run to the replay log: {command}" in text


@pytest.mark.slow
def test_index_gets_one_parent_a_paper_and_each_job_with_the_claims_that_read_it(toy, index, said, tmp_path):
    document = go(tmp_path, said)
    assert index.parents == [("toy", "quick")]
    assert len(index.children) == 25
    by_key = {job.key: job.arm for job in document.jobs}
    claims = {by_key[key]: ids for _, key, ids in index.children}
    assert claims["filler"] == ["Y1"]
    assert claims["none"] == ["Y1", "Y2"]
    assert index.closed == "FINISHED"


@pytest.mark.slow
def test_second_reproduce_runs_nothing_and_opens_no_index(toy, index, said, tmp_path, monkeypatch):
    first = go(tmp_path, said)
    index.parents.clear()
    monkeypatch.setattr(InlinePool, "give", lambda *_: pytest.fail("a job was run"))
    second = go(tmp_path, said)
    assert second.claims == first.claims
    assert index.parents == []


@pytest.mark.slow
def test_second_reproduce_imports_neither_torch_nor_mlflow(toy, index, said, tmp_path):
    go(tmp_path, said)
    code = (
        f"import sys; sys.path.insert(0, {str(toy.parent)!r})\n"
        "from pathlib import Path\n"
        "from lightbox.cli import reproduce\n"
        "plan = reproduce.make_plan([], preset='quick', packages={'toy': 'toy'})\n"
        f"place = Path({str(tmp_path)!r})\n"
        "document = reproduce.run_plan(plan, place / 'out', root=place / 'results')\n"
        "assert [claim.verdict for claim in document.claims] == ['reproduced', 'reproduced']\n"
        "heavy = {'torch', 'transformers', 'mlflow', 'multiprocessing.popen_spawn_posix'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_dry_run_tells_jobs_minutes_memory_and_widths_and_runs_none(toy, index, said, tmp_path):
    assert go(tmp_path, said, dry_run=True, workers=1) is None
    text = printed(said)
    assert "25 jobs, 0 of them finished, 25 to run" in text
    assert "about 12.5 minutes with 1 worker(s), about 0.2 GiB" in text
    assert "toy Y1: 5 seed(s), interval of about +-2.5 points (d_s with SD 2.0, assumed" in text
    assert not (tmp_path / "out").exists()
    assert index.parents == []


@pytest.mark.slow
def test_dry_run_takes_the_width_from_a_published_run(toy, index, said, tmp_path):
    document = go(tmp_path, said, publish=True)
    sd = max(c.seed_sd for c in document.claims[0].contrasts if c.role is Role.PRIMARY)
    go(tmp_path, said, dry_run=True)
    assert f"+-{2.7764 * sd / 5**0.5:.1f} points (d_s with SD {sd:.1f}, SD of the published run)" in printed(said)
    assert "25 jobs, 25 of them finished, 0 to run" in printed(said)


@pytest.mark.slow
def test_page_and_results_fill_in_while_jobs_end(toy, index, said, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "PROGRESS_S", 0.0)
    monkeypatch.setattr(runner, "PROGRESS_SHARE", 0)
    seen = []
    write = session.Session.write

    def watch(self, finished):
        document = write(self, finished)
        seen.append([len(claim.seeds) for claim in document.claims])
        return document

    monkeypatch.setattr(session.Session, "write", watch)
    go(tmp_path, said, preset="smoke")
    assert len(seen) == 6  # after each of 5 jobs, and at the end
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == ([0, 0], [1, 1])
    assert "replay log" not in printed(said)  # this size decides nothing that could agree


@pytest.mark.slow
def test_failed_job_is_told_at_the_end_with_its_reason_after_the_page_was_written(toy, index, said, tmp_path):
    text = (toy / "world.py").read_text()
    (toy / "world.py").write_text(
        text.replace("    return cfg", "    assert cfg.level != 0.72, 'bad level'\n    return cfg")
    )
    with pytest.raises(WorkError, match=r"10 of 25 jobs failed: toy true, seed 0.*AssertionError: bad level.*log\.txt"):
        go(tmp_path, said, publish=True)
    document = load(tmp_path / "out" / "reproduce" / "toy-quick" / "results.json")
    assert len(document.errors) == 10
    assert {claim.verdict for claim in document.claims} == {"no verdict"}
    assert not (tmp_path / "results").exists()


def test_interrupt_closes_the_index_as_killed(toy, index, said, tmp_path, monkeypatch):
    def interrupt(self, job, folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(session.Session, "job_done", interrupt)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, said)
    assert index.closed == "KILLED"


@pytest.mark.slow
def test_publish_and_reuse_decide_without_running(toy, index, said, tmp_path, monkeypatch):
    first = go(tmp_path, said, publish=True)
    assert "published: " in printed(said)
    with (tmp_path / "results" / "runs.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 25
    monkeypatch.setattr(InlinePool, "give", lambda *_: pytest.fail("a job was run"))
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    second = go(tmp_path, said, reuse=True)
    assert tuple(claim.beside(None) for claim in second.claims) == first.claims
    assert second.claims[0].published.agrees is True


@pytest.mark.slow
def test_without_reuse_committed_jobs_are_run_here_again(toy, index, said, tmp_path):
    go(tmp_path, said, publish=True)
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    document = go(tmp_path, said)
    assert {job.reused for job in document.jobs} == {False}
    assert "agrees" in printed(said)


@pytest.mark.slow
def test_a_replay_is_logged_once_and_the_published_run_itself_never(toy, index, said, tmp_path, monkeypatch):
    minutes = iter(f"2026-11-30T{minute // 60:02d}:{minute % 60:02d}:00Z" for minute in range(1440))
    monkeypatch.setattr(runner.time, "strftime", lambda *_: next(minutes))  # no two jobs end in the same second
    go(tmp_path, said, publish=True, log_by="Ada")
    log = tmp_path / "results" / "replays.csv"
    assert "toy Y1 is the published run itself" in printed(said)
    assert replays.read_replays(log) == []
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    document = go(tmp_path, said, log_by="Ada")
    assert "logged: toy Y1, agrees, by Ada" in printed(said)
    rows = replays.read_replays(log)
    assert [(row.claim, row.outcome, row.verdict, row.by) for row in rows] == [
        ("Y1", "agrees", "reproduced", "Ada"),
        ("Y2", "agrees", "reproduced", "Ada"),
    ]
    assert {row.hardware for row in rows} == {document.jobs[0].hardware}
    assert all(row.python and row.torch and row.system for row in rows)
    go(tmp_path, said, log_by="Grace")
    assert "2 of its claims stand in the log already" in printed(said)
    assert replays.read_replays(log) == rows


def test_the_command_that_logs_a_run_names_what_was_asked_for_and_no_more(toy, tmp_path):
    plan, part = (
        reproduce.make_plan([], preset="quick", claim_ids=ids, packages={"toy": "toy"}) for ids in ([], ["Y2"])
    )
    assert replay_log.command_to_log(plan, default_out()) == "uv run lightbox reproduce toy --preset quick --log"
    assert replay_log.command_to_log(part, default_out()).endswith("--preset quick --claims Y2 --log")
    assert replay_log.command_to_log(plan, tmp_path / "a b").endswith(f"--out '{tmp_path}/a b' --log")


@pytest.mark.slow
def test_report_from_results_recomputes_and_writes_one_page_a_preset(toy, index, said, tmp_path):
    document = go(tmp_path, said, publish=True)
    papers = load_papers(packages={"toy": "toy"})
    pages = reproduce.report_published(papers, tmp_path / "results", tmp_path / "new")
    assert [page.parent.name for page in pages] == ["published", "published-quick"]
    assert [c.effect for c in load(pages[1].parent / "results.json").claims] == [c.effect for c in document.claims]
    assert all("A true rationale helps" in page.read_text() for page in pages)
    assert 'href="../published-quick/report.html#toy-Y1"' in pages[0].read_text()
    one_size = reproduce.report_published(papers, tmp_path / "results", tmp_path / "new", preset="quick")
    assert [page.parent.name for page in one_size] == ["published-quick"]
    with pytest.raises(RequestError, match="A report of toy at full"):
        reproduce.report_published(papers, tmp_path / "results", tmp_path / "new", preset="full")


@pytest.mark.slow
def test_report_from_a_folder_writes_the_page_of_the_run_again(toy, index, said, tmp_path):
    go(tmp_path, said)
    page = tmp_path / "out" / "reproduce" / "toy-quick" / "report.html"
    before = page.read_text()
    page.unlink()
    assert reproduce.report_folder(tmp_path / "out") == [page]
    assert page.read_text() == before
    assert reproduce.report_folder(page.parent) == [page]
    with pytest.raises(RequestError, match="--from is '.*nothing'"):
        reproduce.report_folder(tmp_path / "nothing")


@pytest.mark.slow
def test_explanation_of_a_claim_fits_in_20_lines_and_names_its_parts(toy, index, said, tmp_path):
    document = go(tmp_path, said)
    paper = load_papers(packages={"toy": "toy"})[0]
    for claim, entry in zip(paper.claims.claims, [*document.claims, None], strict=True):
        lines = claim_tables.explanation(paper, claim, [("quick", entry)] if entry else [])
        assert len(lines) <= 20
    text = "\n".join(claim_tables.explanation(paper, paper.claims.claims[0], [("quick", document.claims[0])]))
    for part in (
        *(
            "Statement: A true rationale helps",
            "true (true rationale)",
            "Primary: true minus none: true - none (hit)",
        ),
        *("Control: true minus filler: true - filler (hit)", "strongest of majority, {best} [blank] by 0.05"),
        *("Minimum effect: 2 points", "smoke (1 seeds), quick (5 seeds)", "Verdict at quick: reproduced, +12"),
    ):
        assert part in text


@pytest.mark.slow
def test_explanation_names_caveats_and_every_link_with_its_state(toy, index, said, tmp_path):
    entry = go(tmp_path, said).claims[1]
    paper = load_papers(packages={"toy": "toy"})[0]
    claim = replace(paper.claims.claims[1], caveats=("True by construction.",))
    lines = claim_tables.explanation(paper, claim, [("quick", entry)])
    assert "Caveats: True by construction." in lines
    for link in entry.links:
        low, high = link.ci95
        assert f"{link.name} {link.effect:+.2f} points [{low:+.2f}, {high:+.2f}] ({link.state})" in lines[-1]


@pytest.mark.slow
def test_explanation_stays_within_20_lines_for_a_claim_of_many_contrasts(toy, index, said, tmp_path):
    paper = load_papers(packages={"toy": "toy"})[0]
    claim = paper.claims.claims[1]
    many = tuple(replace(claim.contrasts[0], name=f"link {i}", role=list(Role)[i % len(Role)]) for i in range(40))
    entry = go(tmp_path, said, preset="smoke").claims[1]
    published = [("quick", entry), ("full", entry)]
    lines = claim_tables.explanation(paper, replace(claim, contrasts=many), published)
    assert len(lines) <= 20
    assert all(f"link {i}:" in "\n".join(lines) for i in range(40))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"papers": ["tyo"]}, "no paper 'tyo'. The known ones are: toy"),
        ({"claim_ids": ["Y7"]}, "no claim 'Y7'. The known ones are: Y1, Y2, Y3"),
        ({"claim_ids": ["Y3"]}, "--preset quick with --claims Y3. None of them runs there: Y3 at full"),
        ({"preset": "huge"}, "no preset 'huge'. The known ones are: full, quick, smoke"),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(toy, options, message):
    settings = {"papers": [], "preset": "quick", "packages": {"toy": "toy"}} | options
    with pytest.raises(RequestError, match=message):
        reproduce.make_plan(settings.pop("papers"), **settings)


def test_unknown_engine_is_refused_before_anything_is_written(toy, said, tmp_path):
    with pytest.raises(RequestError, match=r"--engine is 'ray'.*--engine local"):
        go(tmp_path, said, engine="ray")
    assert not (tmp_path / "out").exists()


def test_ids_are_split_at_commas_and_empty_parts_do_not_count():
    assert reproduce.split_ids("T1, P3,,") == ["T1", "P3"]
    assert reproduce.split_ids("") == []


def test_terminal_shows_a_bar_instead_of_lines(toy, index, tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    go(tmp_path, console, preset="smoke")
    assert "[1/5]" not in printed(console)
    assert "5/5" in printed(console)


def test_no_claim_and_no_verdict_is_cut_on_a_narrow_terminal():
    recorded = load(results_dir() / "k2sight" / "quick" / DOCUMENT)
    console = claim_tables.plain_console(file=io.StringIO(), width=72)
    claim_tables.show_verdicts(console, recorded)
    printed = console.file.getvalue()
    assert recorded.claims
    for claim in recorded.claims:
        assert f"{claim.paper} {claim.id}" in printed
        assert str(claim.verdict) in printed


def test_published_numbers_on_real_images_are_shown_where_the_images_are_not(monkeypatch, tmp_path, caplog):
    monkeypatch.delenv("LIGHTBOX_DATA_ROOT", raising=False)
    [paper] = load_papers(["medthink"])
    again = published.recompute(results_dir() / "medthink" / "real", paper)
    assert [claim.older_source for claim in again.claims] == [()] * len(again.claims)
    assert again.claims
    assert "medthink at real is not compared" in caplog.text
