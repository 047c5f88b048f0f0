"""Every paper's walkthrough has the house's form, names what exists, and runs top to bottom."""

import ast
import os
import re
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from lightbox.report.paper_map import read_map

ROOT = Path(__file__).resolve().parents[2]
PAPERS = sorted(path.parent.name for path in (ROOT / "projects").glob("*/walkthrough.py"))
every_paper = pytest.mark.parametrize("paper", PAPERS)
MOST_CPU_S = 60
MEASURED = re.compile(r"\d+\.\d+|\d+ ?%|\d+ points")


def source_of(paper):
    return (ROOT / "projects" / paper / "walkthrough.py").read_text(encoding="utf-8")


def cells(paper):
    """(kind, text) of each cell, kind "text" or "code"."""
    found = []
    for part in re.split(r"^# %%", source_of(paper), flags=re.MULTILINE)[1:]:
        head, _, body = part.partition("\n")
        found.append(("text" if "[markdown]" in head else "code", body.strip()))
    return found


def sections(paper):
    """Heading -> cells of each section, the one before the first heading left out."""
    found, name = {}, ""
    for kind, body in cells(paper):
        heading = re.match(r"# #{2,3} (.*)", body) if kind == "text" else None
        name = heading[1] if heading else name
        if name:
            found.setdefault(name, []).append((kind, body))
    return found


@every_paper
def test_nine_steps_in_order(paper):
    numbers = [int(found[1]) for name in sections(paper) if (found := re.match(r"(\d)\. ", name))]
    assert numbers == list(range(1, 10))


@every_paper
def test_every_section_ends_with_an_assertion_and_how_to_break_it(paper):
    for name, inside in sections(paper).items():
        code = [body for kind, body in inside if kind == "code"][-1]
        assert isinstance(ast.parse(code).body[-1], ast.Assert), name
        assert "# break: " in code.splitlines()[-1], name


@every_paper
def test_text_comes_before_code_and_cells_are_short(paper):
    kinds = [kind for kind, _ in cells(paper)]
    assert all(before == "text" for before, kind in zip(kinds, kinds[1:], strict=False) if kind == "code")
    sizes = [len(body.splitlines()) for kind, body in cells(paper) if kind == "code"]
    assert max(sizes) <= 25
    assert statistics.median(sizes) <= 12


@every_paper
def test_every_cell_shows_something(paper):
    quiet = [body for kind, body in cells(paper) if kind == "code" and "print(" not in body]
    assert [body.splitlines()[0] for body in quiet] == ["import atexit", "PAPER_MAP = ("]


@every_paper
def test_measured_numbers_are_printed_and_never_typed(paper):
    typed = [MEASURED.findall(body) for kind, body in cells(paper) if kind == "text"]
    assert [found for found in typed if found] == []


@every_paper
def test_nothing_of_the_project_is_written_again(paper):
    own = {
        node.name for node in ast.walk(ast.parse(source_of(paper))) if isinstance(node, ast.FunctionDef | ast.ClassDef)
    }
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "projects" / paper / "src").rglob("*.py")]
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
    assert implementing or not (ROOT / "projects" / paper / "src" / paper / "objective.py").is_file()
    assert implementing - named == set()


@every_paper
def test_everything_on_the_paper_map_is_named_by_a_test(paper):
    tests = [path for folder in (paper, "core") for path in (ROOT / "tests" / folder).glob("*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in tests).lower()
    names = [re.findall(r"[A-Z]\w+|\w+$", anchor.name)[0].lower() for anchor in read_map(ROOT, paper)]
    assert [name for name in names if not re.search(rf"\b{name}\b", text)] == []


@every_paper
def test_tests_that_the_failure_gallery_names_exist(paper):
    named = set(re.findall(r"`(test_\w+)`", source_of(paper)))
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests" / paper).glob("*.py"))
    assert len(named) >= 2
    assert [name for name in named if f"def {name}(" not in tests] == []


@pytest.mark.slow
@every_paper
def test_it_runs_top_to_bottom_in_a_minute_of_one_core(paper, tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [
        sys.executable,
        "-W",
        "error::UserWarning",
        str(ROOT / "projects" / paper / "walkthrough.py"),
        str(tmp_path / "figures"),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "verdict: no verdict" in done.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < MOST_CPU_S
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"example.png", "overfit.svg"}
    assert [path.name for path in tmp_path.iterdir()] == ["figures"]
