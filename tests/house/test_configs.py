"""Guards over every paper's configuration: all of it composes, is documented, and sizes stay apart from methods."""

import importlib
import re
from importlib.resources import files as resources
from itertools import product

import pytest
import yaml

from lightbox.claims.registry import installed_packages, load_paper
from lightbox.config import leaf_docs

SIZES = ("smoke", "quick", "full")
SIZE_KEYS = re.compile(r"(model|data|optim|eval|run)\.\w+")
PACKAGES = installed_packages()
# The smallest number of (preset, experiment) pairs that a complete paper has; fewer means the search is broken.
FEWEST_PAIRS = 30


def leaves(tree, before=""):
    """Dotted keys of a nested mapping, with values; an empty file has none."""
    found = {}
    for key, value in (tree or {}).items():
        name = f"{before}{key}"
        if isinstance(value, dict):
            found |= leaves(value, name + ".")
        elif key != "defaults":
            found[name] = value
    return found


def choices(package, group):
    """Values set by each choice of a group, by name."""
    folder = resources(f"{package}.conf") / group
    return {
        entry.name.removesuffix(".yaml"): leaves(yaml.safe_load(entry.read_text(encoding="utf-8")))
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".yaml")
    }


def arms(package):
    """Arms of a paper by name; each is what `experiment=NAME` means."""
    return importlib.import_module(f"{package}.claims").PAPER.arms


def composed(package, *overrides):
    return importlib.import_module(f"{package}.config").resolve(list(overrides))


def test_there_is_a_paper():
    assert "medthink" in PACKAGES


@pytest.mark.parametrize("package", PACKAGES.values())
def test_there_are_presets_and_experiments(package):
    presets, experiments = choices(package, "preset"), arms(package)
    assert set(SIZES) <= set(presets)
    assert len(presets) * len(experiments) >= FEWEST_PAIRS


@pytest.mark.parametrize("package", PACKAGES.values())
def test_an_experiment_stands_in_one_place(package):
    """What an arm sets is in claims.py; a second copy in YAML would drift."""
    assert not (resources(f"{package}.conf") / "experiment").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "preset"), [(p, preset) for p in PACKAGES.values() for preset in choices(p, "preset")]
)
def test_every_preset_composes_with_every_experiment(package, preset):
    settings = choices(package, "preset")[preset]
    for experiment in arms(package):
        given = [f"{key}=given" for key, value in settings.items() if value == "???"]
        cfg = composed(package, f"preset={preset}", f"experiment={experiment}", "run.seed=0", *given)
        assert cfg.run.preset == preset


@pytest.mark.parametrize("package", PACKAGES.values())
def test_size_presets_and_experiments_share_no_key(package):
    presets = choices(package, "preset")
    by_size = {key for name in SIZES for key in presets[name]}
    by_method = {override.partition("=")[0] for arm in arms(package).values() for override in arm.overrides}
    assert by_size
    assert by_method
    assert by_size & by_method == set()
    assert [key for key in sorted(by_size) if not SIZE_KEYS.fullmatch(key)] == []


@pytest.mark.parametrize("package", PACKAGES.values())
def test_every_leaf_is_documented_in_one_line(package):
    docs = leaf_docs(type(composed(package, "preset=smoke", "run.seed=0")))
    assert len(docs) > 20
    assert [key for key, doc in docs.items() if len(doc) < 15] == []


@pytest.mark.slow
@pytest.mark.parametrize(("paper", "package"), PACKAGES.items())
def test_every_arm_of_every_claim_composes_in_every_size(paper, package):
    every_arm = load_paper(paper, package).claims.arms
    digests = {}
    for arm, preset in product(every_arm.values(), SIZES):
        cfg = composed(package, f"preset={preset}", "run.seed=0", f"experiment={arm.name}")
        digests.setdefault(preset, []).append(repr(cfg))
    for preset, all_of_it in digests.items():
        assert len(set(all_of_it)) == len(every_arm), f"two arms of {paper} are the same experiment in {preset}"
