"""Where a paper's equations, templates and rules stand in the code: names resolved to file and line. No torch.

A project's `walkthrough.py` declares `PAPER_MAP`, a literal of (what the paper says, dotted name). It lies there and
not in the package, so that a better word in it changes no job key. Files are parsed, not imported.
"""

import ast
from pathlib import Path
from typing import NamedTuple

from lightbox.errors import RequestError

DECLARED = "PAPER_MAP"


class Anchor(NamedTuple):
    """One row of a map: the paper's item, the dotted name that implements it, and where that is defined."""

    item: str
    name: str
    path: Path
    line: int


def read_map(root: Path, paper: str) -> list[Anchor]:
    """The map that `projects/<paper>/walkthrough.py` declares, each name resolved.

    Args:
        root: the checkout.
        paper: name of the project's folder.

    Raises:
        RequestError: where there is no such file or declaration, or a name is not defined.
    """
    path = root / "projects" / paper / "walkthrough.py"
    if not path.is_file():
        raise RequestError(f"The map of {paper}", f"There is no {path}", f"Write it, with {DECLARED} in it")
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if DECLARED in _names_bound(node):
            return [Anchor(item, name, *locate(root, name)) for item, name in ast.literal_eval(node.value)]
    raise RequestError(f"The map of {paper}", f"{path} binds no {DECLARED}", "Declare it at top level, as a literal")


def locate(root: Path, name: str) -> tuple[Path, int]:
    """File and line where a dotted name is defined: a function, class, method or module constant of this checkout.

    Args:
        root: the checkout.
        name: for example "medthink.model.Fusion.forward".

    Raises:
        RequestError: where no source file of the checkout defines it.
    """
    parts = name.split(".")
    for folder in (*root.glob("packages/*/src"), *root.glob("projects/*/src")):
        for size in range(len(parts) - 1, 0, -1):
            path = folder.joinpath(*parts[:size]).with_suffix(".py")
            if path.is_file():
                line = _line_of(ast.parse(path.read_text(encoding="utf-8")).body, parts[size:])
                if line is not None:
                    return path, line
    raise RequestError(f"The name '{name}'", "No source file of this checkout defines it", f"Correct {DECLARED}")


def _line_of(body: list[ast.stmt], parts: list[str]) -> int | None:
    """Line of the definition of `parts`, looked for in a module's or class's own statements."""
    for node in body:
        if parts[0] in _names_bound(node):
            if len(parts) == 1:
                return node.lineno
            return _line_of(node.body, parts[1:]) if isinstance(node, ast.ClassDef) else None
    return None


def _names_bound(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]
