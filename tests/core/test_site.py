"""The site: every document has its page, what is dead or fetched from elsewhere stops the build."""

import shutil
import socket
from collections import Counter

import pytest

from lightbox.cli import site as site_command
from lightbox.errors import RequestError, WorkError
from lightbox.paths import repo_root
from lightbox.report.readme import documents
from lightbox.site import build, check, claim_pages, walkthroughs
from lightbox.site.documents import contents, pages_below

# the Markdown reader uses what a later Sphinx will drop
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated. Check CHANGES for Sphinx API modifications")
CELLS = '# %% [markdown]\n# # Title\n#\n# Text.\n# %%\nprint("seen")\nsave("a.png")\n'


@pytest.fixture
def small(tmp_path):
    """A checkout with two documents, one of which links to the other and to a file."""
    root = tmp_path / "checkout"
    (root / "docs").mkdir(parents=True)
    (root / "README.md").write_text("# Start\n\nSee [more](docs/more.md#a-part) and [data](data.csv).\n")
    (root / "docs" / "more.md").write_text("# More\n\n## A part\n\nBack to [the start](../README.md).\n")
    (root / "data.csv").write_text("a,b\n")
    return root


@pytest.fixture
def offline(monkeypatch):
    """Whoever opens a connection fails."""

    def refuse(*_):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_every_document_of_the_checkout_has_one_page():
    root = repo_root()
    sections = contents(root)
    placed = Counter(path for paths in sections.values() for path in paths)
    placed += Counter(page for paths in sections.values() for path in paths for _, page in pages_below(root, path))
    placed["README.md"] += 1
    written = {str(path.relative_to(root)) for path in documents(root)}
    assert {path for path in placed if path.endswith(".md")} - written <= {
        p for p in placed if p.endswith("published.md")
    }
    assert written <= placed.keys()
    assert set(placed.values()) == {1}


def test_the_course_stands_in_order_before_the_papers():
    sections = contents(repo_root())
    assert list(sections)[:3] == ["Start", "Course", "Papers"]
    assert [path.rpartition("/")[2][:2] for path in sections["Course"]] == ["in", *(f"{n}-" for n in range(1, 9))]


@pytest.mark.slow
def test_a_small_checkout_becomes_pages_without_network(small, tmp_path, offline):
    page = build.build(small, tmp_path / "site", is_run=False)
    assert page == tmp_path / "site" / "index.html"
    text = (tmp_path / "site" / "README.html").read_text()
    assert 'href="docs/more.html#a-part"' in text
    assert check.faults(tmp_path / "site") == []
    assert build.build(small, tmp_path / "site", is_run=False) == page  # over its own earlier build


@pytest.mark.parametrize(
    ("link", "why"),
    [
        ("[gone](docs/gone.md)", "docs/gone.md"),
        ("[gone](docs/more.md#no-part)", "no-part"),
        ("[gone](nothing.csv)", "nothing.csv"),
    ],
)
def test_a_dead_link_stops_the_build_and_names_its_place(small, tmp_path, link, why):
    (small / "README.md").write_text(f"# Start\n\n{link}\n")
    with pytest.raises(WorkError, match=f"documents of the checkout.*{why}"):
        build.build(small, tmp_path / "site", is_run=False)
    assert not (tmp_path / "site").exists()


def test_a_page_that_fetches_from_elsewhere_stops_the_build(small, tmp_path):
    (small / "README.md").write_text(
        '# Start\n\n<img src="https://example.org/a.png" alt="a">\n\n[more](docs/more.md)\n'
    )
    with pytest.raises(WorkError, match=r"fetches https://example\.org/a\.png"):
        build.build(small, tmp_path / "site", is_run=False)


def test_a_folder_that_is_no_earlier_build_is_not_replaced(small, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "mine.txt").write_text("mine")
    with pytest.raises(RequestError, match="It holds files and is no earlier build"):
        build.build(small, tmp_path / "site", is_run=False)
    assert (tmp_path / "site" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("html", "fault"),
    [
        ('<a href="b.html">', "names b.html, which is not there"),
        ('<a href="#part">', "names #part, where that anchor is not"),
        ('<a href="../secret.html">', "names ../secret.html, which is outside of the site"),
        ('<script src="//cdn.example.org/x.js"></script>', "fetches //cdn.example.org/x.js"),
        ('<p style="background: url(https://example.org/x.png)">', "fetches https://example.org/x.png"),
        ("<style>@import 'https://example.org/x.css'</style>", "fetches https://example.org/x.css"),
        ('<a href="https://example.org">', None),  # followed by a person, not fetched by the page
        ('<a id="part" href="#part">', None),
    ],
)
def test_what_is_wrong_with_a_page_is_said(tmp_path, html, fault):
    (tmp_path / "a.html").write_text(f"<html>{html}</html>")
    assert check.faults(tmp_path) == ([f"a.html {fault}"] if fault else [])


def test_a_style_sheet_that_fetches_from_elsewhere_is_a_fault(tmp_path):
    (tmp_path / "a.css").write_text("@font-face { src: url('https://example.org/f.woff2') }")
    assert check.faults(tmp_path) == ["a.css fetches https://example.org/f.woff2"]


def test_what_a_cell_printed_and_drew_stands_below_it(tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "a.png").write_bytes(b"")
    (tmp_path / "record.json").write_text('{"cpu_s": 3.2, "day": "2026-01-01", "texts": [[6, "seen\\n"]]}')
    page = walkthroughs.page_text(CELLS, tmp_path, "run/figures")
    assert page.index("# Title") < page.index("Executed on 2026-01-01, 3 s") < page.index('print("seen")')
    assert page.index('save("a.png")') < page.index("\nseen\n") < page.index("(run/figures/a.png)")
    assert "Not executed in this build" in walkthroughs.page_text(CELLS, None, "run/figures")


def test_a_run_is_shown_only_for_the_content_that_it_was_of(tmp_path):
    script = tmp_path / "projects" / "toy" / "walkthrough.py"
    script.parent.mkdir(parents=True)
    script.write_text(CELLS)
    run = tmp_path / "run"
    run.mkdir()
    (run / "record.json").write_text("{}")
    walkthroughs.keep(tmp_path, script, run)
    assert walkthroughs.recorded(tmp_path, script, is_run=False) is not None
    script.write_text(CELLS + "\n# changed\n")
    assert walkthroughs.recorded(tmp_path, script, is_run=False) is None


def test_a_walkthrough_that_fails_stops_the_build_with_its_last_words(tmp_path):
    script = tmp_path / "projects" / "toy" / "walkthrough.py"
    script.parent.mkdir(parents=True)
    script.write_text("# %%\nraise ValueError('it is broken')\n")
    with pytest.raises(
        WorkError, match="projects/toy/walkthrough.py prints.*It ended with 1: ValueError: it is broken"
    ):
        walkthroughs.recorded(tmp_path, script, is_run=True)


def test_without_sphinx_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setattr(site_command, "NEEDED", ("sphinx", "no_such_package"))
    with pytest.raises(RequestError, match="no_such_package is not installed.*uv sync --group site"):
        site_command.site(out=None)


@pytest.mark.slow
@pytest.mark.site
@pytest.mark.timeout(900)
def test_the_whole_site_builds_strictly_without_network(tmp_path, offline):
    """A walkthrough of which a run is kept, as `tests/house/test_walkthroughs.py` does, is shown with its output."""
    root = repo_root()
    page = build.build(root, tmp_path / "site", is_run=False)
    for script in walkthroughs.find_walkthroughs(root):
        shown = page.parent / script.relative_to(root).with_suffix(".html")
        is_executed = "Executed on" in shown.read_text(encoding="utf-8")
        assert is_executed == (walkthroughs.recorded(root, script, is_run=False) is not None), script
    pages = {str(path.relative_to(page.parent)) for path in page.parent.rglob("*.html")}
    assert {"README.html", "docs/course/8-your-claim.html", "projects/medplib/walkthrough.html"} <= pages
    assert {f"projects/{paper}/{claim_pages.full_page('quick')}" for paper in ("medthink", "vitar")} <= pages
    shutil.rmtree(page.parent)
