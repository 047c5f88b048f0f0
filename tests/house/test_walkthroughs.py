"""Every walkthrough, of a paper and of a part of core, has the house's form, names what exists, and runs."""

import ast
import re
import resource
import statistics
from dataclasses import dataclass
from pathlib import Path

import pytest

from lightbox.report.paper_map import read_map
from lightbox.site import walkthroughs

ROOT = Path(__file__).resolve().parents[2]
PAPERS = sorted(path.parent.name for path in (ROOT / "projects").glob("*/walkthrough.py"))
PARTS = sorted(path.parent.name for path in (ROOT / "packages" / "core").glob("*/walkthrough.py"))
every_paper = pytest.mark.parametrize("paper", PAPERS)
every_one = pytest.mark.parametrize("name", PAPERS + PARTS)
MEASURED = re.compile(r"\d+\.\d+|\d+ ?%|\d+ points")


@dataclass(frozen=True)
class Promise:
    """What a walkthrough may cost and has to leave behind.

    Args:
        most_cpu_s: of one core.
        says: stands in what it prints.
        figures: files in the folder that it is given.
        quiet: first lines of the cells that print nothing.
    """

    most_cpu_s: float = 60
    says: str = "verdict: no verdict"
    figures: tuple[str, ...] = ("example.png", "overfit.svg")
    quiet: tuple[str, ...] = ("import atexit", "PAPER_MAP = (")


PROMISES = dict.fromkeys(PAPERS, Promise()) | {
    "medplib": Promise(figures=("example.png", "masks.png", "overfit.svg")),
    "mmedpo": Promise(
        most_cpu_s=90,
        figures=("example.png", "learning.svg", "looks.png", "noised.png", "overfit.svg"),
    ),
    "vitar": Promise(
        most_cpu_s=90,
        figures=("attention.png", "environment.png", "example.png", "overfit.svg", "trace.png"),
    ),
    "pruning": Promise(
        most_cpu_s=240,
        says="usual places",
        figures=("boxes.png", "kept.png", "lesions.png", "overlap.png", "positions.png"),
        quiet=("import sys",),
    ),
}


def test_every_walkthrough_is_known():
    assert sorted(PROMISES) == sorted(PAPERS + PARTS)


def folder_of(name):
    return ROOT / ("projects" if name in PAPERS else "packages/core") / name


def sources_of(name):
    return ROOT / (f"projects/{name}" if name in PAPERS else "packages/core") / "src"


def folder_of_tests(name):
    return ROOT / "tests" / (name if name in PAPERS else f"core/{name}")


def source_of(name):
    return (folder_of(name) / "walkthrough.py").read_text(encoding="utf-8")


def cells(name):
    """(kind, text) of each cell, kind "text" or "code"."""
    found = []
    for part in re.split(r"^# %%", source_of(name), flags=re.MULTILINE)[1:]:
        head, _, body = part.partition("\n")
        found.append(("text" if "[markdown]" in head else "code", body.strip()))
    return found


def sections(name):
    """Heading -> cells of each section, the one before the first heading left out."""
    found, section = {}, ""
    for kind, body in cells(name):
        heading = re.match(r"# #{2,3} (.*)", body) if kind == "text" else None
        section = heading[1] if heading else section
        if section:
            found.setdefault(section, []).append((kind, body))
    return found


@every_paper
def test_nine_steps_in_order(paper):
    numbers = [int(found[1]) for name in sections(paper) if (found := re.match(r"(\d)\. ", name))]
    assert numbers == list(range(1, 10))


@every_one
def test_every_section_ends_with_an_assertion_and_how_to_break_it(name):
    for section, inside in sections(name).items():
        code = [body for kind, body in inside if kind == "code"][-1]
        assert isinstance(ast.parse(code).body[-1], ast.Assert), section
        assert "# break: " in code.splitlines()[-1], section


@every_one
def test_text_comes_before_code_and_cells_are_short(name):
    kinds = [kind for kind, _ in cells(name)]
    assert all(before == "text" for before, kind in zip(kinds, kinds[1:], strict=False) if kind == "code")
    sizes = [len(body.splitlines()) for kind, body in cells(name) if kind == "code"]
    assert max(sizes) <= 25
    assert statistics.median(sizes) <= 12


@every_one
def test_every_cell_shows_something(name):
    quiet = [body for kind, body in cells(name) if kind == "code" and "print(" not in body]
    assert [body.splitlines()[0] for body in quiet] == list(PROMISES[name].quiet)


@every_one
def test_measured_numbers_are_printed_and_never_typed(name):
    typed = [MEASURED.findall(body) for kind, body in cells(name) if kind == "text"]
    assert [found for found in typed if found] == []


@pytest.mark.slow
@every_one
def test_nothing_of_the_project_is_written_again(name):
    own = {
        node.name for node in ast.walk(ast.parse(source_of(name))) if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sources_of(name).rglob("*.py")]
    theirs = {n.name for tree in trees for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    assert own & theirs == set()


@every_paper
def test_paper_map_and_anchors_in_the_code_name_the_same_equations(paper):
    named = {anchor.name for anchor in read_map(ROOT, paper)}
    implementing = {
        f"{paper}.{path.stem}.{node.name}"
        for path in (ROOT / "projects" / paper / "src" / paper).glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and "Implements" in (ast.get_docstring(node) or "")
    }
    has_objective = (ROOT / "projects" / paper / "src" / paper / "objective.py").is_file()
    assert any(name.startswith(f"{paper}.objective.") for name in named) or not has_objective
    assert implementing - named == set()


@every_paper
def test_everything_on_the_paper_map_is_named_by_a_test(paper):
    tests = [path for folder in (paper, "core") for path in (ROOT / "tests" / folder).glob("*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in tests).lower()
    names = [re.findall(r"[A-Z]\w+|\w+$", anchor.name)[0].lower() for anchor in read_map(ROOT, paper)]
    assert [name for name in names if not re.search(rf"\b{name}\b", text)] == []


@every_one
def test_tests_that_the_failure_gallery_names_exist(name):
    named = set(re.findall(r"`(test_\w+)`", source_of(name)))
    tests = "\n".join(path.read_text(encoding="utf-8") for path in folder_of_tests(name).glob("*.py"))
    assert len(named) >= 2
    assert [test for test in named if f"def {test}(" not in tests] == []


@pytest.mark.slow
@every_one
def test_it_runs_top_to_bottom_on_one_core_in_its_time(name, tmp_path):
    """Its run is kept for the site, which shows it and need not run it again."""
    before, promise = resource.getrusage(resource.RUSAGE_CHILDREN), PROMISES[name]
    script = folder_of(name) / "walkthrough.py"
    done = walkthroughs.execute(script, tmp_path / "run")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr[-2000:]
    assert promise.says in done.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < promise.most_cpu_s
    assert {path.name for path in (tmp_path / "run" / "figures").iterdir()} == set(promise.figures)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["figures", "record.json"]
    walkthroughs.keep(ROOT, script, tmp_path / "run")
