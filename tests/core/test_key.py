"""What a key covers, edit by edit, on copies of the toy paper and of the core that a run may reach."""

import shutil
import sys
from pathlib import Path

import pytest

import lightbox
from lightbox.claims.jobs import arm_job
from lightbox.claims.registry import load_papers
from lightbox.runs import key, sources
from lightbox.runs.key import COMPUTING, computing_versions, identify
from lightbox.runs.sources import CHOICES, OUTSIDE, closure, core_digest, digests_of, libraries_of
from lightbox.testing.toy_paper import forget_toy_paper, write_toy_paper

ALL = {"none", "true", "filler", "twice", "majority"}
TRAINED = ALL - {"majority"}
REACHED = '''"""A module of the paper."""

import logging

from lightbox import phantom
from lightbox.train import driver

_log = logging.getLogger(__name__)


def level_of(cfg):
    """How often an arm is right."""
    if cfg.level > 1:
        raise ValueError("a share above 1")
    _log.info("level %s", cfg.level)
    return cfg.level  # between 0 and 1
'''


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Folder with `toy` and a copy of `lightbox`, which keys are computed from; the toy reaches driver and phantom."""
    folder = tmp_path_factory.mktemp("tree")
    root = Path(lightbox.__file__).parent
    shutil.copytree(root, folder / "lightbox", ignore=lambda _, names: [n for n in names if n == "__pycache__"])
    write_toy_paper(folder)
    (folder / "toy" / "world.py").write_text(REACHED)
    for name in ("toy/README.md", "toy/predict.py", "toy/conf.yaml"):
        (folder / name).write_text("old = 1\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lightbox, "__file__", str(folder / "lightbox" / "__init__.py"))
        patch.setattr(sys, "dont_write_bytecode", True)  # an edit within a second would be read from the old bytecode
        yield folder
    forget_toy_paper(folder)


def keys():
    """Key of each arm's job, planned anew."""
    for name in [name for name in sys.modules if name.startswith("toy")]:
        del sys.modules[name]
    paper = load_papers(packages={"toy": "toy"})[0]
    return {arm: arm_job(paper, arm, preset="smoke", seed=0).key for arm in paper.claims.arms}


@pytest.fixture(scope="module")
def before(tree):
    return keys()


@pytest.mark.parametrize(
    ("file", "old", "new", "concerned"),
    [
        ("toy/world.py", "  # between 0 and 1", "", set()),
        ("toy/world.py", "How often an arm is right", "Its share of right answers", set()),
        ("toy/world.py", "a share above 1", "more than a share", set()),
        ("toy/world.py", "level %s", "this arm's level is %s", set()),
        ("toy/cli.py", "import run as run_job", "import run as run_job\n\nx = 1", set()),
        ("toy/predict.py", "old", "new", set()),
        ("toy/README.md", "old", "new", set()),
        ("toy/conf.yaml", "old", "new", set()),
        ("toy/claims.py", "A true rationale helps", "It helps", set()),
        ("lightbox/cli/app.py", "Show a claim", "Shows a claim", set()),
        ("lightbox/report/page.py", "def write_page(", "x = 1\n\n\ndef write_page(", set()),
        ("lightbox/paper/forecast.py", "SHORTEST_TOKENS, ", "OTHER, SHORTEST_TOKENS, ", set()),
        ("lightbox/adapters/memory/prediction.py", "GIB = ", "OTHER = GIB = ", set()),
        ("lightbox/claims/runner.py", "LOCAL_WORKERS = 2", "LOCAL_WORKERS = 3", set()),
        ("lightbox/refusals.py", "One run takes one value", "A run takes one value", set()),
        ("lightbox/__init__.py", '__version__ = "', '__version__ = "9.', set()),
        ("toy/config.py", "luck: float = 0.1", "luck: float = 0.2", TRAINED),  # majority sets it
        ("toy/start.bin", "weights", "other weights", TRAINED),  # majority reads none
        ("toy/claims.py", '("level=0.72",)', '("level=0.73",)', {"true", "twice"}),  # twice reads what true wrote
        ("toy/claims.py", '"filler of equal length", ("level=0.61",)', '"filler", ("level=0.62",)', {"filler"}),
        ("toy/world.py", "return cfg.level", "return cfg.level * 1.0", ALL),
        ("toy/world.py", "raise ValueError", "raise KeyError", ALL),
        ("toy/train.py", "STEPS = 4", "STEPS = 5", ALL),
        ("toy/evaluate.py", '("blank", 0.4)', '("blank", 0.3)', ALL),
        ("toy/__init__.py", "", "x = 1\n", ALL),
        ("lightbox/__init__.py", "__version__", "x = 1\n__version__", ALL),
        ("lightbox/train/driver.py", "_log = ", "x = 1\n_log = ", ALL),
        ("lightbox/train/__init__.py", '"""', 'x = 1\n"""', ALL),
        ("lightbox/phantom/ontology.py", "TRIPLES = ", "x = TRIPLES = ", ALL),
    ],
)
def test_an_edit_changes_the_keys_of_exactly_the_jobs_concerned(tree, before, file, old, new, concerned):
    text = (tree / file).read_text()
    assert old in text
    try:
        (tree / file).write_text(text.replace(old, new, 1))
        after = keys()
    finally:
        (tree / file).write_text(text)
    assert {arm for arm in ALL if after[arm] != before[arm]} == concerned


def test_another_generator_changes_every_key(tree, before, monkeypatch):
    paper = load_papers(packages={"toy": "toy"})[0]
    monkeypatch.setattr(paper.config(), "GENERATOR", "2")
    assert all(arm_job(paper, arm, preset="smoke", seed=0).key != before[arm] for arm in ALL)


def test_another_version_of_what_computes_changes_every_key_and_of_what_does_not_none(tree, before, monkeypatch):
    monkeypatch.setattr(key, "COMPUTING", COMPUTING | {"numpy": ("numpy", "no-such-distribution")})
    assert all(value != before[arm] for arm, value in keys().items())
    monkeypatch.setattr(key, "COMPUTING", COMPUTING | {"peft": ("peft", "no-such-distribution")})
    assert keys() == before  # nothing that the toy reaches imports peft


@pytest.mark.parametrize(
    ("text", "other", "is_same"),
    [
        ("class RunConfig:\n    a: int = 1\n", "class RunConfig:\n    a: int = 2\n", True),
        ("class RunConfig:\n    a: int = 1\n", "class RunConfig:\n    a: float = 1\n", False),
        ("class RunConfig:\n    a = 1\n", "class RunConfig:\n    a = 2\n", False),
        ("class Run:\n    a: int = 1\n", "class Run:\n    a: int = 2\n", False),
        ("def f():\n    a: int = 1\n", "def f():\n    a: int = 2\n", False),
    ],
)
def test_only_the_default_of_a_setting_is_no_code(tmp_path, text, other, is_same):
    for name, content in {"one": text, "two": other}.items():
        (tmp_path / f"{name}.py").write_text(content)

    def digests(module):
        return [digests_of({module: tmp_path / f"{name}.py"}) for name in ("one", "two")]

    one, two = digests("toy.config")
    assert (one == two) == is_same
    one, two = digests("toy.model")
    assert one != two


def test_what_is_imported_for_types_only_is_not_followed_and_what_replaces_it_is(tree):
    lines = "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from lightbox import machine\n"
    text = (tree / "toy" / "world.py").read_text()
    try:
        (tree / "toy" / "world.py").write_text(f"{lines}else:\n    from lightbox import shapes\n{text}")
        modules = closure("toy")
    finally:
        (tree / "toy" / "world.py").write_text(text)
    assert "lightbox.shapes" in modules
    assert "lightbox.machine" not in modules


EVERY_CHOICE = {name for names in CHOICES.values() for name in names}
NOT_COMPUTING = {
    "pyarrow": "stores tables",
    "safetensors": "stores tensors",
    "einops": "names axes; torch computes",
    "filelock": "locks",
    "huggingface_hub": "fetches files, named by their commit",
    "hydra": "composes the configuration, which is in the key",
    "omegaconf": "likewise",
    "jaxtyping": "types",
    "pydantic": "refuses malformed records",
    "yaml": "reads the cards of data sets",
}


def test_every_library_that_a_run_imports_is_in_the_key_or_cannot_compute():
    own = {"lightbox", "medthink", *sys.stdlib_module_names}
    libraries = libraries_of(closure("medthink", EVERY_CHOICE)) - own - {""}
    assert libraries - COMPUTING.keys() - NOT_COMPUTING.keys() == set()
    assert COMPUTING.keys() | NOT_COMPUTING.keys() <= libraries


def test_libraries_that_only_some_configurations_call_are_in_the_keys_of_those():
    plain = identify("medthink", {}, inputs={})
    adapted = identify("medthink", {}, inputs={}, chosen=["lightbox.adapters.attach"])
    assert "peft" not in plain.versions
    assert adapted.versions == plain.versions | computing_versions(["peft"])


def test_every_choice_is_imported_by_the_module_that_offers_it():
    modules = dict(sources._modules(Path(lightbox.__file__).parent, "lightbox"))
    for module, names in CHOICES.items():
        path = modules[module]
        assert set(names) <= sources._imports(path, sources._stamp(path), module), module


def test_what_is_outside_is_reached_by_no_job():
    modules = closure("medthink", EVERY_CHOICE)
    assert not [name for name in modules if not OUTSIDE.keys().isdisjoint(sources._with_parents(name))]


def test_a_cache_is_named_by_the_code_that_its_results_come_from(tree):
    first = core_digest("lightbox.backbones.towers")
    reached = {"backbones/towers.py": True, "backbones/weights.py": True, "train/driver.py": False}
    for file, is_reached in reached.items():
        path = tree / "lightbox" / file
        text = path.read_text()
        try:
            path.write_text(text + "\nx = 1\n")
            assert (core_digest("lightbox.backbones.towers") != first) == is_reached, file
        finally:
            path.write_text(text)
