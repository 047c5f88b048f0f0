"""Guards over source files: what must never be written, because nobody would notice it in review."""

import ast
import doctest
import importlib
import re
import warnings
from collections import defaultdict

import pytest

CODE = ("packages", "projects", "tests", "benchmarks")
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
CONVERTER = "packages/core/src/lightbox/readers/convert.py"
MEGABYTE = 1_000_000
# Written in two parts, so that this file does not find itself.
MACHINE_PATH = re.compile(r"(?<![\w.}])/(?:ho" + r"me|Us" + r"ers|ro" + r"ot|wo" + r"rk|mnt|scratch)/\w")
REGISTRY = re.compile("pypi" + r"\.org|python" + r"hosted\.org|conda\.anaconda" + r"\.org", re.IGNORECASE)
CI_VARIABLE = re.compile(r"(?:environ|getenv)\W[^\n]*[\"'](?:C" + r"I|GITHUB_ACTIONS)[\"']")


def is_source(path):
    return path.parts[0] in ("packages", "projects") and "src" in path.parts


def dotted(node):
    """`a.b.c` of an attribute chain, "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        head = dotted(node.value)
        return f"{head}.{node.attr}" if head else ""
    return ""


@pytest.mark.slow
def test_every_python_file_compiles_without_warning(trees, root):
    assert len(trees) > 30
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in trees:
            compile((root / path).read_text(encoding="utf-8"), str(path), "exec", dont_inherit=True)


@pytest.mark.slow
def test_nothing_unpickles_or_runs_remote_code(trees):
    found = []
    for path, tree in trees.items():
        for node in ast.walk(tree):
            imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if (
                PICKLES & {name.split(".")[0] for name in imported}
                and str(path) != CONVERTER
                and path.parts[0] != "tests"
            ):
                found.append(f"{path}:{node.lineno} imports {imported}")
            if not isinstance(node, ast.Call):
                continue
            if dotted(node.func) in ("pickle.load", "pickle.loads", "joblib.load"):
                found.append(f"{path}:{node.lineno} {dotted(node.func)}")
            if dotted(node.func) == "torch.load" and str(path) != CONVERTER:
                found.append(f"{path}:{node.lineno} torch.load")
            given = {k.arg: k.value for k in node.keywords}
            for unsafe in ("trust_remote_code", "allow_pickle"):
                value = given.get(unsafe)
                if value is not None and not (isinstance(value, ast.Constant) and value.value is False):
                    found.append(f"{path}:{node.lineno} {unsafe}")
            if dotted(node.func) == "torch.load" and not getattr(given.get("weights_only"), "value", False):
                found.append(f"{path}:{node.lineno} torch.load without weights_only=True")
    assert found == []


@pytest.mark.slow
def test_truncated_images_are_never_accepted(trees):
    flag = "LOAD_TRUNCATED" + "_IMAGES"
    assigned = [
        f"{path}:{node.lineno}"
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and any(dotted(target).endswith(flag) for target in node.targets)
    ]
    assert assigned == []


def is_stub(function):
    """True where nothing follows the docstring but `pass`, `...` or `raise NotImplementedError`; Typer roots may."""
    if function.decorator_list:
        return False
    body = [node for node in function.body if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))]
    return all(isinstance(n, ast.Pass) or isinstance(n, ast.Raise) and "NotImplemented" in ast.dump(n) for n in body)


@pytest.mark.slow
def test_no_unfinished_code_in_sources(trees, root):
    found = []
    for path, tree in trees.items():
        if not is_source(path):
            continue
        if re.search(r"#\s*(TODO|FIXME|XXX)\b", (root / path).read_text(encoding="utf-8")):
            found.append(f"{path}: a note to do")
        protocols = [c for c in ast.walk(tree) if isinstance(c, ast.ClassDef) and "Protocol" in ast.dump(c)]
        exempt = {id(method) for protocol in protocols for method in protocol.body}
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and id(node) not in exempt and is_stub(node):
                found.append(f"{path}:{node.lineno} {node.name} does nothing")
    assert found == []


def test_no_name_is_defined_both_in_sources_and_in_tests_or_benchmarks(trees):
    homes = defaultdict(set)
    for path, tree in trees.items():
        place = "source" if is_source(path) else path.parts[0] if path.parts[0] in ("tests", "benchmarks") else ""
        for node in tree.body if place else []:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                if "_" in node.name.strip("_") or isinstance(node, ast.ClassDef):  # one plain verb may be said twice
                    homes[node.name].add((place, str(path)))
    twice = {
        name: sorted(path for _, path in places)
        for name, places in homes.items()
        if len({place == "source" for place, _ in places}) == 2
    }
    assert twice == {}


def test_no_machine_path_registry_host_or_ci_variable_is_written_down(files, root):
    found = []
    for path in files:
        name = path.relative_to(root)
        if name.name == "uv.lock" or name.parts[0] in ("results", "shared_data") or path.stat().st_size > MEGABYTE:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for what in (MACHINE_PATH, REGISTRY, CI_VARIABLE):
            found += [f"{name}: {match.group(0)}" for match in what.finditer(text)]
    assert found == []


def test_committed_files_are_small_except_weights(files, root):
    big = [str(path.relative_to(root)) for path in files if path.stat().st_size >= MEGABYTE]
    assert [name for name in big if not name.startswith("shared_data/weights/")] == []
    weights = sum(path.stat().st_size for path in files if path.is_relative_to(root / "shared_data" / "weights"))
    assert weights < 24 * MEGABYTE * 1.1


def modules_with_examples(trees, root):
    for path in trees:
        if is_source(path) and ">>> " in (root / path).read_text(encoding="utf-8"):
            yield ".".join(path.with_suffix("").parts[path.parts.index("src") + 1 :]).removesuffix(".__init__")


@pytest.mark.slow
def test_every_example_in_a_docstring_runs(trees, root):
    names = list(modules_with_examples(trees, root))
    assert "lightbox.files" in names
    for name in names:
        outcome = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
        assert outcome.attempted > 0, name
        assert outcome.failed == 0, name


@pytest.mark.parametrize(
    ("pattern", "text", "is_found"),
    [
        (MACHINE_PATH, "open('/ho" + "me/someone/data')", True),
        (MACHINE_PATH, "projects/ho" + "me/x and {root}/work/y", False),
        (REGISTRY, "https://pypi" + ".org/simple", True),
        (CI_VARIABLE, "os.environ.get('C" + "I')", True),
        (CI_VARIABLE, "os.environ['C" + "IRCLE']", False),
    ],
)
def test_the_patterns_find_what_they_are_for(pattern, text, is_found):
    assert bool(pattern.search(text)) is is_found
