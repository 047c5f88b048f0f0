"""Which code decides a run's numbers, found by reading import statements and importing nothing.

It is all that the paper's `train` and `evaluate` modules reach: modules of the paper, of `lightbox`, and the
`__init__` files that importing them runs. What cannot change a number is in `OUTSIDE`; what is imported and used only
where a configuration asks for it is in `CHOICES`.

Of a module that counts, these do not, so editing them keeps every finished run: comments, docstrings and layout; the
words of a `raise` and of a log line; `__version__`; and the default of a setting, since the value that a run took is in
its key.
"""

import ast
import hashlib
import importlib.util
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import lightbox
from lightbox.errors import RequestError
from lightbox.files import digest

CORE = "lightbox"
ROOTS = ("train", "evaluate")
DIGITS = 16
LOGGERS = ("_log", "logger")
SCHEMAS = ("config", "schema")
"""Last names of the modules whose `...Config` classes are settings: what a field defaults to is not code there."""
OUTSIDE = {
    "lightbox.errors": "how a run ends that gives no numbers",
    "lightbox.refusals": "words of a refusal",
    "lightbox.paths": "where files lie; their content is in the key",
    "lightbox.paper.composition": "the configuration and the digests of what it reads are in the key",
    "lightbox.paper.entries": "the command line",
    "lightbox.paper.forecast": "a forecast of memory, and advice where it runs out",
    "lightbox.paper.examples": "what the page shows of a run",
    "lightbox.paper.predictions": "texts for other scoring rules; ours reads them before they are written",
    "lightbox.paper.pruning_config": "names settings, which are in the key, and refuses wrong ones",
    "lightbox.paper.purpose": "refuses weights that were trained for something else",
    "lightbox.adapters.memory": "a forecast of memory",
    "lightbox.adapters.guards": "refuses a model that would not train as asked",
    "lightbox.backbones.matching": "refuses weights that do not fit their model",
    "lightbox.backbones.preflight": "refuses a request; the family that it returns is found by `families`",
    "lightbox.train.card": "what a run says of itself",
    "lightbox.train.signals": "when a run stops; it continues to the same bits",
    "lightbox.train.watch": "stops a run in which something is wrong",
    "lightbox.claims": "runs jobs; an arm enters through its configuration",
    "lightbox.report": "shows results",
    "lightbox.cli": "the command line",
    "lightbox.bench": "measures speed",
    "lightbox.runs.examples": "what the page shows of a run",
    "lightbox.runs.index": "the MLflow index",
    "lightbox.runs.index_entry": "likewise",
    "lightbox.runs.index_place": "likewise",
    "lightbox.runs.key": "names a run",
    "lightbox.runs.sources": "likewise",
}
"""Module or package -> why it cannot change a number."""
CHOICES = {
    "lightbox.paper.learner": (
        "lightbox.adapters.attach",
        "lightbox.adapters.artifact",
        "lightbox.adapters.manifest",
        "lightbox.backbones.loading",
        "lightbox.backbones.quantisation",
    ),
    "lightbox.paper.pretrained": ("lightbox.adapters.manifest",),
    "lightbox.paper.pruned": tuple(
        f"lightbox.pruning.{module}" for module in ("finding_head", "layouts", "pipeline", "types")
    ),
    "lightbox.paper.pruned_turns": ("lightbox.pruning.turns",),
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
        f"lightbox.readers.{reader}"
        for reader in (
            "box_csv",
            "chestx_det",
            "coco",
            "kvasir_vqa",
            "mask_files",
            "medxpertqa_mm",
            "ms_cxr",
            "nih_boxes",
            "omnimedvqa",
            "padchest_gr",
            "path_vqa",
            "pmc_vqa",
            "rationales",
            "slake",
            "text_boxes",
            "vindr_cxr",
            "vqa_med_2019",
            "vqa_rad",
            "xml_boxes",
        )
    ),
    "lightbox.readers.images": ("lightbox.readers.dicom", "lightbox.readers.parquet"),
    "lightbox.readers.mask_sets": tuple(
        f"lightbox.readers.{reader}"
        for reader in ("decathlon", "drosophila_vnc", "mask_folders", "mecovqa", "region_masks", "sa_med2d")
    ),
}
"""Module -> what it imports and calls only where a configuration asks for it."""


def closure(package: str, chosen: Collection[str] = ()) -> dict[str, Path]:
    """Modules that decide the numbers of a paper's runs, by name, with their files.

    Args:
        package: importable name of the paper; it is located, not imported.
        chosen: names in `CHOICES` that a configuration asks for; they count, whoever imports them.

    Raises:
        RequestError: where there is no such package, it lacks a root, or a file does not parse.
    """
    modules = dict(_modules(_core_folder(), CORE)) | dict(_modules(_package_folder(package), package))
    roots = {f"{package}.{root}" for root in ROOTS}
    for root in sorted(roots - modules.keys()):
        raise RequestError(
            f"The paper '{package}'",
            f"It has no module '{root.rpartition('.')[2]}', which its runs are made by",
            f"Write {root.replace('.', '/')}.py, see CONTRIBUTING.md",
        )
    return _reached(roots.union(chosen), modules, outside={*OUTSIDE, f"{package}.claims"}, chosen=chosen)


def code_digests(package: str, chosen: Collection[str] = ()) -> dict[str, str]:
    """Digest of the code of each module of `closure`, by name."""
    return digests_of(closure(package, chosen))


def digests_of(modules: Mapping[str, Path]) -> dict[str, str]:
    """Digest of the code of each file, by name of its module."""
    return {
        module: _code_digest(path, _stamp(path), is_schema=module.rpartition(".")[2] in SCHEMAS)[:DIGITS]
        for module, path in modules.items()
    }


def libraries_of(modules: Mapping[str, Path]) -> set[str]:
    """First parts of all names that the files import, such as "torch"."""
    return {name.split(".")[0] for module, path in modules.items() for name in _imports(path, _stamp(path), module)}


def whole_digest(package: str) -> str:
    """One digest of all code that any run of a paper may call: what machines that share its jobs must agree on."""
    return digest(code_digests(package, _every_choice()))


def core_digest(*roots: str) -> str:
    """One digest of the code that some modules of `lightbox` reach: what a cache of their results is named by."""
    modules = dict(_modules(_core_folder(), CORE))
    return digest(digests_of(_reached(roots, modules, outside=OUTSIDE.keys(), chosen=_every_choice())))


def _every_choice() -> set[str]:
    return {name for names in CHOICES.values() for name in names}


def _reached(
    roots: Collection[str], modules: Mapping[str, Path], *, outside: Collection[str], chosen: Collection[str]
) -> dict[str, Path]:
    """Of some modules those that importing the roots imports, sorted."""
    reached: dict[str, Path] = {}
    waiting = set(roots)
    while waiting:
        for module in _with_parents(waiting.pop()):  # importing a.b.c runs a and a.b first
            if module in reached or module not in modules or not set(_with_parents(module)).isdisjoint(outside):
                continue
            path = reached[module] = modules[module]
            optional = set(CHOICES.get(module, ())).difference(chosen)
            names = _imports(path, _stamp(path), module)
            waiting |= {name for name in names if optional.isdisjoint(_with_parents(name))}
    return dict(sorted(reached.items()))


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _core_folder() -> Path:
    return Path(lightbox.__file__).parent


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


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node below, functions too, but what is imported for annotations only (`if TYPE_CHECKING:`)."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            waiting += node.orelse
        else:
            yield node
            waiting += ast.iter_child_nodes(node)


@cache
def _code_digest(path: Path, stamp: tuple[int, int], *, is_schema: bool) -> str:
    parts: list[str] = []
    _spell(_parsed(path, stamp), parts, is_schema=is_schema)
    return hashlib.sha256("\x00".join(parts).encode()).hexdigest()


def _spell(node: Any, parts: list[str], *, is_schema: bool) -> None:
    """Append the code of a syntax tree to `parts`; empty fields are skipped, as Python versions differ in them."""
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        node = ast.Raise(node.exc.func)  # which error, not its words
    if isinstance(node, ast.ClassDef) and is_schema and node.name.endswith("Config"):
        body = [_without_default(line) for line in node.body]
        node = ast.ClassDef(node.name, node.bases, node.keywords, body, node.decorator_list)
    if isinstance(node, ast.AST):
        parts.append(f"({type(node).__name__}")
        for name, value in ast.iter_fields(node):
            if value is not None and value != []:
                parts.append(name)
                _spell(value, parts, is_schema=is_schema)
        parts.append(")")
    elif isinstance(node, list):
        parts.append("[")
        for entry in node:
            if not _is_without_effect(entry):
                _spell(entry, parts, is_schema=is_schema)
        parts.append("]")
    else:
        parts.append(repr(node))


def _without_default(line: ast.stmt) -> ast.stmt:
    return ast.AnnAssign(line.target, line.annotation, None, line.simple) if isinstance(line, ast.AnnAssign) else line


def _is_without_effect(node: Any) -> bool:
    """True for a bare string (a docstring, or the line under a setting), a log line, and `__version__`."""
    if isinstance(node, ast.Assign):
        return _first_name(node.targets[0]) == "__version__"
    if not isinstance(node, ast.Expr):
        return False
    if isinstance(node.value, ast.Call):
        return _first_name(node.value.func) in LOGGERS
    return isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _first_name(node: ast.AST) -> str:
    """The variable of `variable.attribute.attribute`; "" for what begins otherwise."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""
