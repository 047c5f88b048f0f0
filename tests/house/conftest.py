"""Which files the guards look at, and the size report that ends a run of them."""

import ast
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = ("packages", "projects", "tests", "benchmarks")
OUTSIDE = {".git", ".venv", "lightbox-out", "__pycache__"}
FILE_LINES, FUNCTION_LINES = 220, 80


@cache
def every_file() -> tuple[Path, ...]:
    """Files that git tracks or would track; outside a git checkout, everything but build products."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        found = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        found = [path for path in ROOT.rglob("*") if not OUTSIDE & set(path.relative_to(ROOT).parts)]
    return tuple(sorted(path for path in found if path.is_file()))


@cache
def python_trees() -> dict[Path, ast.Module]:
    """Syntax tree of every Python file, by path relative to the root."""
    files = [path.relative_to(ROOT) for path in every_file() if path.suffix == ".py"]
    return {path: ast.parse((ROOT / path).read_text(encoding="utf-8"), str(path)) for path in files}


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def files() -> tuple[Path, ...]:
    """Absolute paths of the files under guard."""
    return every_file()


@pytest.fixture(scope="session")
def trees() -> dict[Path, ast.Module]:
    """Syntax trees by relative path."""
    return python_trees()


def pytest_terminal_summary(terminalreporter):
    """Print, without failing, which source files and functions are longer than a thing with one purpose usually is."""
    sizes = []
    for path, tree in python_trees().items():
        if path.parts[0] in ("packages", "projects"):
            lines = len((ROOT / path).read_text(encoding="utf-8").splitlines())
            sizes += [(lines, str(path))] if lines > FILE_LINES else []
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= FUNCTION_LINES:
                    sizes.append((node.end_lineno - node.lineno + 1, f"{path}:{node.lineno} {node.name}()"))
    terminalreporter.section(f"files over {FILE_LINES} lines, functions over {FUNCTION_LINES}: {len(sizes)}")
    for lines, name in sorted(sizes, reverse=True)[:10]:
        terminalreporter.line(f"{lines:5d}  {name}")
