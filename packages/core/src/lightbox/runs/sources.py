"""Which code decides a run's numbers, found by reading import statements and importing nothing.

It is all that the paper's `train` and `evaluate` modules reach: modules of the paper, of `lightbox`, and the
`__init__` files that importing them runs. Comments, docstrings and layout are left out, so editing them keeps every
finished run. What cannot change a number is in `OUTSIDE`; what is imported and used only where
a configuration asks for it is in `CHOICES`.
"""

import ast
import hashlib
import importlib.util
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import lightbox
from lightbox.errors import RequestError
from lightbox.files import digest

CORE = "lightbox"
ROOTS = ("train", "evaluate")
DIGITS = 16
OUTSIDE = {
    "lightbox.refusals": "words of a refusal",
    "lightbox.paths": "where files lie; their content is in the key",
    "lightbox.paper.composition": "the configuration and the digests of what it reads are in the key",
    "lightbox.paper.entries": "the command line",
    "lightbox.paper.forecast": "a forecast of memory, and advice where it runs out",
    "lightbox.paper.examples": "what the page shows of a run",
    "lightbox.paper.purpose": "refuses weights that were trained for something else",
    "lightbox.adapters.memory": "a forecast of memory",
    "lightbox.adapters.guards": "refuses a model that would not train as asked",
    "lightbox.backbones.matching": "refuses weights that do not fit their model",
    "lightbox.backbones.preflight": "refuses a request before anything is loaded",
    "lightbox.train.card": "what a run says of itself",
    "lightbox.train.signals": "when a run stops; it continues to the same bits",
    "lightbox.train.watch": "stops a run in which something is wrong",
    "lightbox.claims": "runs jobs; an arm enters through its configuration",
    "lightbox.report": "shows results",
    "lightbox.cli": "the command line",
    "lightbox.bench": "measures speed",
    "lightbox.runs.index": "the MLflow index",
    "lightbox.runs.index_entry": "likewise",
    "lightbox.runs.index_place": "likewise",
}
"""Module or package -> why it cannot change a number."""
CHOICES = {
    "lightbox.paper.learner": (
        "lightbox.adapters.attach",
        "lightbox.adapters.artifact",
        "lightbox.backbones.loading",
        "lightbox.backbones.quantisation",
    ),
    "lightbox.paper.samples": (
        "lightbox.readers.catalog",
        "lightbox.readers.leakage",
        "lightbox.readers.splits",
    ),
    "lightbox.backbones.loading": tuple(
        f"lightbox.backbones.{family}" for family in ("florence2", "gemma3", "llava", "qwen_vl", "t5")
    ),
    "lightbox.backbones.towers": ("lightbox.backbones.detr",),
    "lightbox.readers.catalog": tuple(
        f"lightbox.readers.{reader}" for reader in ("path_vqa", "rationales", "slake", "vqa_med_2019", "vqa_rad")
    ),
    "lightbox.readers.images": ("lightbox.readers.dicom", "lightbox.readers.parquet"),
}
"""Module -> what it imports and calls only where a configuration asks for it."""


def closure(package: str, chosen: Collection[str] = ()) -> dict[str, Path]:
    """Modules that decide the numbers of a paper's runs, by name, with their files.

    Args:
        package: importable name of the paper; it is located, not imported.
        chosen: names in `CHOICES` that a configuration asks for.

    Raises:
        RequestError: where there is no such package, it lacks a root, or a file does not parse.
    """
    every = dict(_modules(Path(lightbox.__file__).parent, CORE))
    every |= dict(_modules(_package_folder(package), package))
    outside = {*OUTSIDE, f"{package}.claims"}
    reached: dict[str, Path] = {}
    waiting = {f"{package}.{root}" for root in ROOTS}
    for root in sorted(waiting - every.keys()):
        raise RequestError(
            f"The paper '{package}'",
            f"It has no module '{root.rpartition('.')[2]}', which its runs are made by",
            f"Write {root.replace('.', '/')}.py, see CONTRIBUTING.md",
        )
    while waiting:
        for module in _with_parents(waiting.pop()):  # importing a.b.c runs a and a.b first
            if module in reached or module not in every or not outside.isdisjoint(_with_parents(module)):
                continue
            reached[module] = every[module]
            names = _imports(every[module], _stamp(every[module]), module)
            optional = set(CHOICES.get(module, ())) - set(chosen)
            waiting |= {name for name in names if optional.isdisjoint(_with_parents(name))}
    return dict(sorted(reached.items()))


def code_digests(package: str, chosen: Collection[str] = ()) -> dict[str, str]:
    """Digest of the code of each module of `closure`, by name."""
    return {module: _code_digest(path, _stamp(path))[:DIGITS] for module, path in closure(package, chosen).items()}


def whole_digest(package: str) -> str:
    """One digest of all code that any run of a paper may call: what machines that share its jobs must agree on."""
    every_choice = {name for names in CHOICES.values() for name in names}
    return digest(code_digests(package, every_choice))


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
    """What tells a changed file from the one that was read: planning reads each file once a process."""
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
    for node in _running(_parsed(path, stamp)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *([base] if base else [])])
            names.update([base, *(f"{base}.{alias.name}" for alias in node.names)])
    return frozenset(names)


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below, functions too, but what is imported for annotations only (`if TYPE_CHECKING:`)."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        yield child
        yield from _running(child)


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
