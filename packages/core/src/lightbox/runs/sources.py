"""The source digest of a paper: which code could change its scores, found without importing any of it.

It covers every .py file of the paper's package and each `lightbox` module these import, directly or not, read from the
import statements (inside functions too). Comments, docstrings and layout are left out, so editing them keeps every
finished job. Left out on purpose, because they cannot change what a job computes:

- the paper's `claims.py`: an arm enters through its resolved configuration;
- its YAML files: the resolved configuration is in the job key;
- `lightbox.claims`, `report`, `cli`, `bench`, the index of runs and what only they use: they run, index and show jobs;
- `lightbox/__init__.py`: it holds the version alone.
"""

import ast
import hashlib
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import lightbox
from lightbox.errors import RequestError

CORE = "lightbox"
WITHOUT_EFFECT = (
    *("lightbox.claims", "lightbox.report", "lightbox.cli", "lightbox.bench"),
    *("lightbox.runs.index", "lightbox.runs.index_entry", "lightbox.runs.index_place"),
)


def source_digest(package: str) -> str:
    """SHA-256, in hex, of the code of a paper's package and the `lightbox` modules it imports.

    Args:
        package: name of an importable package; it is located, not imported.

    Raises:
        RequestError: where there is no such package, or a file of it does not parse.
    """
    folder = _package_folder(package)
    modules = {module: path for module, path in _modules(folder, package) if module != f"{package}.claims"}
    modules |= _core_imports(set().union(*(_imports(path, _stamp(path), module) for module, path in modules.items())))
    total = hashlib.sha256()
    for module, path in sorted(modules.items()):
        total.update(f"{module} {_code_digest(path, _stamp(path))}\n".encode())
    return total.hexdigest()


def _core_imports(named: set[str]) -> dict[str, Path]:
    """Files of the `lightbox` modules among the imported names, and of all they import in turn."""
    known = dict(_modules(Path(lightbox.__file__).parent, CORE))
    found: dict[str, Path] = {}
    waiting = set(named)
    while waiting:
        name = waiting.pop()
        for module in _with_parents(name):  # importing a.b.c runs a and a.b first
            if module in known and module not in found and not _is_without_effect(module):
                found[module] = known[module]
                waiting |= _imports(known[module], _stamp(known[module]), module)
    return found


def _is_without_effect(module: str) -> bool:
    return module == CORE or any(f"{module}.".startswith(f"{name}.") for name in WITHOUT_EFFECT)


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _package_folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        why = "No such package is installed" if spec is None else "It is a single file"
        raise RequestError(
            f"The package '{package}'", why, "Install the paper's project as a package, or correct the name"
        )
    return Path(spec.submodule_search_locations[0])


def _modules(folder: Path, package: str) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*.py")):
        parts = [package, *path.relative_to(folder).with_suffix("").parts]
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


@cache
def _parsed(path: Path, stamp: tuple[int, int]) -> ast.Module:
    try:
        return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError) as err:
        raise RequestError(f"{path}", f"It does not parse: {err}", "Correct the file") from err


@cache
def _imports(path: Path, stamp: tuple[int, int], module: str) -> frozenset[str]:
    """Dotted names that a file imports; `from a import b` names a and a.b, as b may be a module."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names: set[str] = set()
    for node in ast.walk(_parsed(path, stamp)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
            names.update([base, *(f"{base}.{alias.name}" for alias in node.names)])
    return frozenset(names)


@cache
def _code_digest(path: Path, stamp: tuple[int, int]) -> str:
    parts: list[str] = []
    _spell(_parsed(path, stamp), parts)
    return hashlib.sha256("\x00".join(parts).encode()).hexdigest()


def _spell(node: Any, parts: list[str]) -> None:
    """Append the code of a syntax tree to `parts`; empty fields are skipped, as Python versions differ in them."""
    if isinstance(node, ast.AST):
        parts.append(f"({type(node).__name__}")
        for name, value in ast.iter_fields(node):
            if value is not None and value != []:
                parts.append(name)
                _spell(value, parts)
        parts.append(")")
    elif isinstance(node, list):
        parts.append("[")
        for entry in node:
            if not _is_bare_text(entry):
                _spell(entry, parts)
        parts.append("]")
    else:
        parts.append(repr(node))


def _is_bare_text(node: Any) -> bool:
    """True for a string that stands alone as a statement: a docstring, or the line under a configuration field."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
